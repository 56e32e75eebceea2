"""One whole farm for the acceptance tests that only use one: every part a process of its own, as `farm up` does it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.test_local_servers import strays


def farm_command(
    *arguments: str | Path, cwd: Path, check: bool = False, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run one command of the program; ``more`` are further variables for it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FARM_")}
    done = subprocess.run(
        [sys.executable, "-m", "farm.cli", *map(str, arguments)],
        env={**environment, "PYTHONPATH": str(Path(__file__).parents[2]), **more},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=350,
        check=False,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


@dataclass(frozen=True)
class RunningFarm:
    """Where the farm is and how to enter it."""

    url: str
    api_key: str
    database_url: str
    redis_url: str
    data_dir: Path

    def __call__(self, *arguments: str | Path, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run one command against it, in a directory of the test's own."""
        return farm_command(*arguments, cwd=cwd, check=check, FARM_URL=self.url, FARM_API_KEY=self.api_key)


@pytest.fixture(scope="session")
def running_farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningFarm]:
    """A farm with one worker, for the whole session."""
    base = tmp_path_factory.mktemp("running_farm")
    data_dir = base / "data"
    up = farm_command("up", "--detach", "--json", "--workers", "1", "--data-dir", data_dir, cwd=base)
    try:
        assert up.returncode == 0, up.stderr
        told = json.loads(up.stdout)
        yield RunningFarm(told["url"], told["api_key"], told["database_url"], told["redis_url"], data_dir)
    finally:
        farm_command("down", "--data-dir", data_dir, cwd=base)
    assert strays(data_dir) == []
