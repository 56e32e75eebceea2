"""Other people's clients, unmodified, in an environment of their own (`make compat` makes it)."""

from __future__ import annotations

import os
import subprocess
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


def run_client(script: str, *arguments: str, **environment: str) -> str:
    """Run one of the scripts in `clients` against a farm, and return what it prints."""
    python = VENV / "bin" / "python"
    if not (VENV / ".installed").exists():
        missing(VENV.name)
    return _run([str(python), "-E", "-s", "-W", "ignore", str(CLIENTS / script), *arguments], environment)


def run_node(script: str, *arguments: str, **environment: str) -> str:
    """The same for a script of Node, where that is installed."""
    modules = VENV / "node" / "node_modules"
    if not (modules / "openai").exists():
        pytest.skip("npm was not there when `make compat` ran, so the client for Node is not tried")
    return _run(["node", str(CLIENTS / script), str(modules), *arguments], environment)


def _run(command: list[str], environment: dict[str, str]) -> str:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    done = subprocess.run(command, env=kept | environment, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout
