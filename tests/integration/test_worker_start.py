"""A worker that cannot work ends with a reason and an exit code, and takes no job with a wrong clock."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from farm.domain.states import JobState
from farm.local import services
from farm.local.ports import PortReservations
from farm.local.servers import Servers, prepare
from farm.local.services import ServiceAddresses
from farm.local.state import DataDirectory
from farm.settings import Settings
from tests.conftest import TestServers
from tests.integration.worker_process import Farm, NoiseWorker, spec
from tests.waiting import wait_until


@pytest.fixture
def farm(servers: TestServers, database_url: str, redis_url: str, tmp_path: Path) -> Iterator[Farm]:
    env = servers.env(database_url=database_url, redis_url=redis_url)
    env |= {"FARM_HEARTBEAT_SECONDS": "0.5", "FARM_RUN_LEASE_SECONDS": "6", "FARM_DRAIN_SECONDS": "1"}
    found = Farm(env, tmp_path)
    yield found
    found.close()


def last_lines(worker: NoiseWorker) -> str:
    return worker.log()[-3000:]


@pytest.mark.parametrize("ahead", [3600, -3600])
def test_a_worker_with_a_wrong_clock_does_not_join(farm: Farm, ahead: int) -> None:
    worker = NoiseWorker(farm, env={"FARM_CHAOS_CLOCK": str(ahead)}).start()
    assert worker.wait(90) == 1, last_lines(worker)
    where = "ahead of" if ahead > 0 else "behind"
    assert f"clock is 3600 s {where} the database's" in worker.log()
    assert "switch on NTP" in worker.log()
    assert "Traceback" not in worker.log()
    assert farm.worker(worker.name) is None


def test_a_worker_whose_clock_becomes_wrong_gives_its_jobs_back_unharmed(farm: Farm, tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    worker = NoiseWorker(farm, env={"FARM_CHAOS_CLOCK": "3600@25", "FARM_WORKER_ALIVE_FILE": str(alive)}).start()
    try:
        worker.wait_online()
        wait_until(alive.exists, 5, what="the watchdog touches the file")
        before = alive.stat().st_mtime_ns
        wait_until(lambda: alive.stat().st_mtime_ns != before, 5, what="the watchdog touches the file")
        job = farm.start(spec(num_inference_steps=150, num_outputs=16), worker.name)
        farm.wait(job, JobState.RUNNING)
        farm.wait(job, JobState.QUEUED, timeout=60)
        worker.wait(60)
    finally:
        worker.kill()
    assert "action=clock_skewed" in worker.log()
    assert farm.job(job.id).attempts == 0


def test_a_start_that_fails_for_any_reason_ends_the_process(farm: Farm, database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("ALTER TABLE worker RENAME TO other")
    worker = NoiseWorker(farm).start()
    assert worker.wait(90) == 1, last_lines(worker)
    assert "farm worker: cannot start: ProgrammingError" in worker.log()


def test_farm_up_watches_its_workers_for_freezing(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path)
    directory.create()
    reservations = PortReservations()
    identity = prepare(directory, reservations)
    reservations.release()
    addresses = Servers.of(directory, identity, Settings()).addresses
    table = services.table({}, directory, addresses, ServiceAddresses.of(identity, "127.0.0.1"), ("cpu", "cuda:1"))
    files = {
        one.name: (one.alive_file, one.environment.get("FARM_WORKER_ALIVE_FILE")) for one in table if one.alive_file
    }
    assert files == {
        "worker-cpu": (tmp_path / "worker-cpu.alive", str(tmp_path / "worker-cpu.alive")),
        "worker-cuda1": (tmp_path / "worker-cuda1.alive", str(tmp_path / "worker-cuda1.alive")),
    }
