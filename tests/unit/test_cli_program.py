"""The ``farm`` program as a process: exit codes, one sentence on mistakes, and what it loads."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import get_args

import pytest

from farm.api_types import OutputFormat
from farm.cli import COMMANDS, app
from tests.unit.scripted_server import Answer, Asked, job, serving


def run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "farm.cli", *arguments],
        capture_output=True, text=True, cwd=cwd, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environment},
    )  # fmt: skip


def one_sentence(done: subprocess.CompletedProcess[str]) -> str:
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_help_page_exists(command: str) -> None:
    app(command)


@pytest.mark.parametrize("arguments", [["--help"], ["ls"], ["render", "--help"]])
def test_a_client_s_command_loads_no_server_s_library(arguments: list[str], tmp_path: Path) -> None:
    code = (
        "import sys, atexit; sys.argv = ['farm', *sys.argv[1:]]\n"
        "heavy = {'sqlalchemy', 'boto3', 'botocore', 'fastapi', 'celery', 'torch', 'numpy', 'PIL', 'alembic'}\n"
        "atexit.register(lambda: print('loaded', sorted(heavy & set(sys.modules))))\n"
        "from farm.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "FARM_URL": "http://127.0.0.1:9",
             "FARM_API_KEY": ""},
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "loaded []"


def test_no_farm_here_is_exit_3_and_says_what_to_do(tmp_path: Path) -> None:
    done = run("ls", cwd=tmp_path)
    assert done.returncode == 3
    assert "or set FARM_URL and FARM_API_KEY" in one_sentence(done)
    assert not list(tmp_path.iterdir()), "looking leaves nothing behind"


def test_a_farm_that_does_not_answer_is_exit_3(tmp_path: Path) -> None:
    with serving(lambda *_: Answer()) as server:
        pass
    done = run("models", "--url", server.url, "--api-key", "k", cwd=tmp_path)
    assert done.returncode == 3
    assert "no farm answers" in one_sentence(done)


@pytest.mark.parametrize(
    "arguments",
    [
        ["render", "x", "--mask", "m.png"],
        ["render", "x", "--size", "64"],
        ["render", "x", "-o", "nowhere/out.png"],
        ["render", "x", "-o", "out.bmp"],
        ["render", "x", "--image", "missing.png"],
        ["rerun", "missing.png"],
        ["rerun", "."],
        ["show", "../keys"],
    ],
)
def test_a_mistake_is_exit_2_and_one_sentence(arguments: list[str], tmp_path: Path) -> None:
    done = run(*arguments, "--url", "http://127.0.0.1:9", "--api-key", "k", cwd=tmp_path)
    assert done.returncode == 2
    one_sentence(done)


def _png_with(recipe: bytes) -> bytes:
    text = b"farm\0" + recipe
    chunk = struct.pack(">I", len(text)) + b"tEXt" + text + struct.pack(">I", zlib.crc32(b"tEXt" + text))
    return b"\x89PNG\r\n\x1a\n" + chunk


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no image",
        _png_with(b"{"),
        _png_with(b"[" * 100_000),
        _png_with(b'{"version":1,"parameters":7}'),
        _png_with(b'{"version":99,"parameters":{}}'),
        b"\0\0\0\x08ftyp" * 1000,
        b"\x1a\x45\xdf\xa3" + b"\xff" * 1000,
        b"OggS" + b"\xff" * 1000,
        b"fLaC" + b"\xff" * 1000,
    ],
    ids=lambda content: content[-12:].hex(),
)
def test_a_file_without_a_usable_recipe_is_exit_2_and_one_sentence(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "given.png").write_bytes(content)
    done = run("rerun", "given.png", "--url", "http://127.0.0.1:9", "--api-key", "k", cwd=tmp_path)
    assert done.returncode == 2
    one_sentence(done)


def test_a_file_larger_than_any_output_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "large.png").open("wb") as file:
        file.write(_png_with(b'{"version":1,"parameters":{}}'))
        file.truncate(2**40)  # takes no space on the disk
    done = run("rerun", "large.png", "--url", "http://127.0.0.1:9", "--api-key", "k", cwd=tmp_path)
    assert done.returncode == 2
    assert "at most 536,870,912 are read" in done.stderr


@pytest.mark.parametrize("arguments", [["nosuch"], ["render"], ["ls", "--state", "odd"], ["ls", "--limit", "0"]])
def test_words_that_the_program_does_not_know_are_exit_2(arguments: list[str], tmp_path: Path) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_what_the_farm_refuses_is_exit_2_and_a_server_s_problem_exit_3(tmp_path: Path) -> None:
    refused = {"title": "x", "errors": [{"field": "seed", "value": -1, "message": "must be at least 0"}]}
    for status, code in ((422, 2), (401, 2), (500, 3)):
        with serving(lambda *_, status=status: Answer(status, refused)) as server:
            done = run("render", "x", "--url", server.url, "--api-key", "k", cwd=tmp_path)
        assert done.returncode == code
        assert one_sentence(done) == "farm: seed: must be at least 0"


def test_a_failed_job_is_exit_1_and_says_why(tmp_path: Path) -> None:
    failed = job("failed", error={"code": "out_of_memory", "message": "the device is too small"})
    with serving(lambda *_: Answer(201, failed)) as server:
        done = run("render", "x", "--url", server.url, "--api-key", "k", cwd=tmp_path)
    assert done.returncode == 1
    assert "the device is too small" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_canceling_goes_on_after_a_refusal_and_exits_1(tmp_path: Path) -> None:
    def script(asked: Asked, _: int) -> Answer:
        return (
            Answer(409, {"detail": "the job has already ended"})
            if "job_1" in asked.path
            else Answer(200, job("canceled"))
        )

    with serving(script) as server:
        some = run("cancel", "job_1", "job_2", "--json", "--url", server.url, "--api-key", "k", cwd=tmp_path)
        none = run("cancel", "job_1", "--url", server.url, "--api-key", "k", cwd=tmp_path)
    assert some.returncode == 1
    assert [one["state"] for one in json.loads(some.stdout)] == ["canceled"]
    assert "job_1: the job has already ended" in some.stderr
    assert none.returncode == 2


def test_ctrl_c_leaves_the_job_running_and_says_how_to_reach_it(tmp_path: Path) -> None:
    with serving(lambda *_: Answer(201, job("running", worker="w/cpu0"))) as server:
        waiting = subprocess.Popen(
            [sys.executable, "-m", "farm.cli", "render", "x", "--url", server.url, "--api-key", "k"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )  # fmt: skip
        with waiting:
            assert waiting.stderr is not None
            assert "running on w/cpu0" in waiting.stderr.readline()
            waiting.send_signal(signal.SIGINT)
            out, err = waiting.communicate(timeout=30)
    assert waiting.returncode == 130
    assert out == ""
    assert f"farm show job_{1:032x}" in err
    assert f"farm cancel job_{1:032x}" in err
    assert not any(asked.path.endswith("/cancel") for asked in server.asked)


# -- shell completion ------------------------------------------------------------------------------------------------


def bash(script: str, home: Path) -> str:
    """What a script prints in a bash that has the program on its path."""
    program = home / "bin" / "farm"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m farm.cli "$@"\n')
    program.chmod(0o755)
    path = f"{program.parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "--norc", "-c", script], capture_output=True, text=True, cwd=home, timeout=60, check=False,
        env={"PATH": path, "HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def completions(words: str, home: Path) -> set[str]:
    """What bash offers for the last of these words."""
    script = (
        f'source <(farm --show-completion); read -ra COMP_WORDS <<< "{words}"; '
        f'[[ "{words}" == *" " ]] && COMP_WORDS+=(""); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 )); '
        '_farm_completion farm; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    return set(bash(script, home).split())


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("farm ", set(COMMANDS)),
        ("farm pause", {"pause", "pauses"}),
        ("farm render --guidance", {"--guidance", "--guidance-scale"}),
        ("farm render --format ", set(get_args(OutputFormat))),
        ("farm webhooks add --event batch.", {"batch.progress", "batch.completed"}),
        ("farm webhooks del", {"deliveries"}),
    ],
)
def test_bash_completes_commands_options_and_their_values(words: str, found: set[str], tmp_path: Path) -> None:
    assert completions(words, tmp_path) == found


def test_completion_is_installed_for_the_shell_in_use(tmp_path: Path) -> None:
    assert "completion installed" in bash("farm --install-completion", tmp_path)
    installed = (tmp_path / ".bash_completions" / "farm.sh").read_text()
    assert "_FARM_COMPLETE=complete_bash" in installed
    assert "farm.sh" in (tmp_path / ".bashrc").read_text()
