"""``farm worker --device all``: a worker for each device, looked after by one process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from farm.domain.worker import WorkerState
from farm.errors import SetupError
from farm.local import worker_supervisor
from farm.local.state import DataDirectory
from tests.conftest import TestServers
from tests.integration.worker_process import ROOT, START_SECONDS, Farm
from tests.waiting import wait_until


def test_all_is_every_gpu_and_a_list_is_what_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text('#!/bin/sh\nfor i in 0 1 2 3 4 5 6 7; do echo "GPU $i: NVIDIA (UUID: GPU-$i)"; done\n')
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    everything = worker_supervisor.chosen("all", {})
    assert everything == tuple(f"cuda:{index}" for index in range(8))
    assert worker_supervisor.chosen("all", {"CUDA_VISIBLE_DEVICES": "2,3"}) == ("cuda:0", "cuda:1")
    assert worker_supervisor.chosen("0, 2", {}) == ("cuda:0", "cuda:2")
    assert worker_supervisor.chosen("0", {}) is worker_supervisor.chosen(None, {}) is None
    with pytest.raises(SetupError, match="twice"):
        worker_supervisor.chosen("0,cuda:0", {})
    made = worker_supervisor.programs(everything, (), {"FARM_DRAIN_SECONDS": "90"}, DataDirectory(tmp_path))
    assert [one.environment["FARM_DEVICE"] for one in made] == list(everything)
    assert [one.environment["FARM_METRICS_WORKER_PORT"] for one in made] == [str(9464 + index) for index in range(8)]
    assert len({one.alive_file for one in made}) == 8
    assert {one.stop_seconds for one in made} == {120}


def test_without_a_gpu_all_is_the_processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if not list(Path("/dev").glob("nvidia[0-9]*")):
        assert worker_supervisor.chosen("all", {}) == ("cpu0",)


def handles_sigterm(pid: int) -> bool:
    """Whether the process has a handler of its own, which Celery installs when it begins to consume."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(status["SigCgt"], 16) >> (signal.SIGTERM - 1) & 1)


def test_two_workers_join_by_host_and_device_are_replaced_and_drain_together(
    servers: TestServers, database_url: str, redis_url: str, tmp_path: Path
) -> None:
    farm = Farm(servers.env(database_url=database_url, redis_url=redis_url), tmp_path)
    alive = tmp_path / "alive"
    environment = {
        **os.environ,
        **farm.env,
        "FARM_DATA_DIR": str(tmp_path),
        "FARM_WORKER_HOST": "rack-3",
        "FARM_WORKER_ALIVE_FILE": str(alive),
    }
    names = ("rack-3/cpu0", "rack-3/cpu1")

    def pids() -> list[int] | None:
        found = [farm.worker(name) for name in names]
        online = [one.info.pid for one in found if one is not None and one.state is WorkerState.ONLINE]
        return online if len(online) == 2 else None

    with (tmp_path / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "farm.cli", "worker", "--device", "cpu0,cpu1"],
            env=environment, cwd=ROOT, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        before = wait_until(pids, 2 * START_SECONDS, every=0.2, what="both workers are online")
        assert process.pid not in before
        assert alive.exists()
        os.kill(before[0], signal.SIGKILL)

        def replaced() -> bool:
            now = pids()
            return now is not None and now[0] != before[0] and now[1] == before[1]

        wait_until(replaced, START_SECONDS, every=0.2, what="the killed worker is replaced, the other one is not")
        now = pids()
        assert now is not None
        wait_until(lambda: all(map(handles_sigterm, now)), 20, what="both workers consume")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        for name in names:
            worker = farm.worker(name)
            assert worker is not None
            assert worker.state is WorkerState.OFFLINE
    finally:
        process.kill()
        farm.close()


def test_when_no_worker_can_start_the_command_ends_and_says_why(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FARM_")}
    done = subprocess.run(
        [sys.executable, "-m", "farm.cli", "worker", "--device", "cpu0,nonsense"],
        env=environment | {"FARM_DATA_DIR": str(tmp_path)},
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert "no worker of this machine starts" in done.stderr.splitlines()[-1]
    assert "FARM_REDIS_URL is not set" in done.stderr or "FARM_DATABASE_URL is not set" in done.stderr
