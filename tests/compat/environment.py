"""Other people's clients, unmodified, in an environment of their own (`make compat` makes it)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VENV = ROOT / ".venv-compat"
CLIENTS = Path(__file__).parent / "clients"


def missing(what: str) -> None:
    """Skip where the clients are not installed; on a machine that decides about changes, that is a failure."""
    sentence = f"{what} is not there: `make compat` installs the clients"
    if os.environ.get("CI"):
        pytest.fail(sentence)
    pytest.skip(sentence)


def run_client(script: str, *arguments: str, given: str = "", **environment: str) -> str:
    """Run one of the scripts in `clients` against a farm, and return what it prints. ``given``: its input."""
    with started_client(script, *arguments, **environment) as client:
        told, errors = client.communicate(given, timeout=90)
        assert client.returncode == 0, f"{told}\n{errors}"
    return told


@contextmanager
def started_client(script: str, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """The same, while it runs."""
    if not (VENV / ".installed").exists():
        missing(VENV.name)
    with _started([str(VENV / "bin" / "python"), "-E", "-s", "-W", "ignore", script, *arguments], environment) as made:
        yield made


def run_node(script: str, *arguments: str, **environment: str) -> str:
    """The same as `run_client` for a script of Node, where that is installed."""
    modules = VENV / "node" / "node_modules"
    if not (modules / "openai").exists():
        pytest.skip("npm was not there when `make compat` ran, so the client for Node is not tried")
    with _started(["node", script, str(modules), *arguments], environment) as client:
        told, errors = client.communicate(timeout=90)
        assert client.returncode == 0, f"{told}\n{errors}"
    return told


@contextmanager
def _started(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=CLIENTS, env=kept | environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()
