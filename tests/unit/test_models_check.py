"""`farm models check`: what is wrong with the entries of a models file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from farm.cli import app

WRONG = """
[[model]]
id = "good"
source = "some/model"
pipeline = "FluxPipeline"
tasks = ["text-to-image", "text-to-audio"]

[[model]]
id = "typo"
source = "some/model"
pipeline = "FluxPipelin"
"""


def check(*arguments: str) -> int:
    """The exit code of the command."""
    code: int | None = app("models")(["models", "check", *arguments], prog_name="farm", standalone_mode=False)
    return code or 0


def test_the_command_names_what_is_wrong_and_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "models.toml"
    file.write_text(WRONG)
    assert check(str(file)) == 1
    printed = capsys.readouterr().out
    assert "good  FluxPipeline  text-to-image\n" in printed
    assert f"{file}: model good: tasks: FluxPipeline cannot do text-to-audio" in printed
    assert "did you mean FluxPipeline?" in printed
    assert check(str(file), "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert [one["key"] for one in found["problems"]] == ["tasks", "pipeline"]
    assert [one["id"] for one in found["models"]] == ["good"]


def test_a_file_without_problems_exits_with_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "models.toml"
    file.write_text('[[model]]\nid = "m"\nsource = "some/model"\npipeline = "FluxPipeline"\n')
    assert check(str(file)) == 0
    assert capsys.readouterr().out.startswith("m  FluxPipeline  text-to-image, image-to-image, inpainting")
