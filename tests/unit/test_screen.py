"""No text of somebody else reaches the terminal as a command to it."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from farm.cli.output_files import save
from farm.cli.screen import open_console, say

HOSTILE = "a\x1b[2Jb\x1b]0;title\x07c\x9b31md\u202ee\rf"
SHOWN = "a�[2Jb�]0;title�c�31md�e�f"


def test_tables_and_lines_show_control_characters_instead_of_sending_them(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(box=None)
    table.add_column("prompt", no_wrap=True)
    table.add_row(HOSTILE)
    table.add_row(Text(HOSTILE, style="red"))
    open_console(width=200).print(table)
    say(HOSTILE)
    out = capsys.readouterr().out
    assert out.count("�[2Jb�]0;title") == 3
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", out)
    assert SHOWN in out


def test_every_command_prints_through_that_console() -> None:
    """A console of rich's own, or a plain `print` of a value, would send control characters as they are."""
    for path in Path("farm/cli").glob("*.py"):
        if path.name != "screen.py":
            assert not re.search(r"(?<![\w.])Console\(", path.read_text()), path


def test_styles_of_our_own_are_kept() -> None:
    console = open_console()
    console.file, console._force_terminal = io.StringIO(), True
    console._color_system = 1  # type: ignore[assignment]
    console.print(Text("ok", style="red"))
    assert "\x1b[31mok" in console.file.getvalue()


def test_saving_replaces_a_link_and_follows_none(tmp_path: Path) -> None:
    victim, link = tmp_path / "victim", tmp_path / "image.png"
    victim.write_bytes(b"precious")
    link.symlink_to(victim)
    (tmp_path / ".image.png.part").symlink_to(victim)
    save(link, b"image")
    assert victim.read_bytes() == b"precious"
    assert not link.is_symlink()
    assert link.read_bytes() == b"image"
    assert sorted(one.name for one in tmp_path.iterdir()) == [".image.png.part", "image.png", "victim"]
