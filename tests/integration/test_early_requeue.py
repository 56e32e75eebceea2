"""Jobs of a worker that is gone go on elsewhere before their leases end, and a nap of the machine costs no attempt."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from farm import lifecycle
from farm.dispatch.reaper import Reaper
from farm.domain.job import HeldJob, Job
from farm.domain.queue import Assignment
from farm.domain.states import JobState
from farm.settings import Settings
from farm.store.unit_of_work import Store
from tests.conftest import TestServers
from tests.waiting import wait_until

from .conftest import Submit, worker_info
from .worker_process import ROOT, Farm, NoiseWorker, spec

WORKER = "host/cpu0"


@pytest.fixture
def held(store: Store, submit: Submit) -> dict[str, Job]:
    """A worker's jobs, one in each stage, and a database that did not start just now."""
    wait_until(lambda: uptime(store) > 2 * Settings().heartbeat_seconds, 20, what="the reaper trusts the database")
    with store.begin() as unit:
        lifecycle.join(unit, worker_info(WORKER, slots=2, prefetch=2))
    jobs = {stage: submit() for stage in ("dispatched", "claimed", "begun")}
    with store.begin() as unit:
        lifecycle.dispatch(unit, [Assignment(job.id, WORKER) for job in jobs.values()], 30)
    with store.begin() as unit:
        lifecycle.claim_all(unit, [HeldJob(jobs[stage].id, 1) for stage in ("claimed", "begun")], WORKER, 30)
        lifecycle.start_all(unit, {HeldJob(jobs["begun"].id, 1): 4})
    return jobs


def uptime(store: Store) -> float:
    with store.begin() as unit:
        return unit.database_uptime()


def states(store: Store, jobs: dict[str, Job]) -> dict[str, tuple[str, int]]:
    with store.begin() as unit:
        found = unit.jobs.many([job.id for job in jobs.values()])
    return {stage: (found[job.id].state.value, found[job.id].attempts) for stage, job in jobs.items()}


def change(store: Store, statement: str) -> None:
    with store.begin() as unit:
        unit.session.connection().exec_driver_sql(statement)


def test_what_a_silent_worker_has_not_begun_is_requeued_after_two_missed_heartbeats(
    store: Store, held: dict[str, Job]
) -> None:
    reaper = Reaper(store, Settings())
    change(store, "UPDATE worker SET heartbeat_at = now() - interval '9.9 s'")
    reaper.run()
    assert {state for state, _ in states(store, held).values()} == {"dispatched", "running"}
    reaper = Reaper(store, Settings())
    change(store, "UPDATE worker SET heartbeat_at = now() - interval '10.1 s'")
    reaper.run()
    # its device may go on with what it has begun: that waits for the lease
    assert states(store, held) == {"dispatched": ("queued", 0), "claimed": ("queued", 0), "begun": ("running", 1)}


def test_all_that_the_earlier_process_of_a_worker_held_is_requeued_at_once(store: Store, held: dict[str, Job]) -> None:
    reaper = Reaper(store, Settings())
    reaper.run()
    assert states(store, held)["begun"] == ("running", 1)
    # joined again, while another transaction had locked the rows that joining takes back
    change(store, "UPDATE worker SET started_at = now(), boot_id = 'another'")
    reaper = Reaper(store, Settings())
    reaper.run()
    assert states(store, held) == {"dispatched": ("queued", 0), "claimed": ("queued", 0), "begun": ("queued", 1)}


def test_what_the_new_process_of_a_worker_holds_stays(store: Store, held: dict[str, Job], submit: Submit) -> None:
    change(store, "UPDATE worker SET started_at = now() - interval '1 s'")
    change(store, "UPDATE job SET claimed_at = now() - interval '2 s' WHERE started_at IS NOT NULL")
    Reaper(store, Settings()).run()
    assert states(store, held) == {"dispatched": ("dispatched", 0), "claimed": ("running", 1), "begun": ("queued", 1)}


# -- with real processes ---------------------------------------------------------------------------------------------


@pytest.fixture
def farm(servers: TestServers, database_url: str, redis_url: str, tmp_path: Path) -> Iterator[Farm]:
    found = Farm(servers.env(database_url=database_url, redis_url=redis_url), tmp_path)
    yield found
    found.close()


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    running: list[subprocess.Popen[bytes]] = []
    yield running
    for one in running:
        one.send_signal(signal.SIGCONT)
        one.kill()
        one.wait()


def dispatcher(farm: Farm, **settings: str) -> subprocess.Popen[bytes]:
    command = "from farm.cli.serve_dispatcher import dispatcher; dispatcher()"
    return subprocess.Popen([sys.executable, "-c", command], env=os.environ | farm.env | settings, cwd=ROOT)


def begun(farm: Farm, job: Job) -> bool:
    found = farm.job(job.id)
    return found.state is JobState.RUNNING and found.progress is not None and found.progress.step > 0


def test_a_nap_of_the_whole_farm_costs_no_attempt(farm: Farm, processes: list[subprocess.Popen[bytes]]) -> None:
    quick = {
        "FARM_HEARTBEAT_SECONDS": "0.5",
        "FARM_RUN_LEASE_SECONDS": "4",
        "FARM_DISPATCH_LEASE_SECONDS": "4",
        "FARM_STEP_TIMEOUT_SECONDS": "6",
        "FARM_CONSUMER_STALL_SECONDS": "6",
    }
    worker = NoiseWorker(farm, env={**quick, "FARM_NOISE_STEP_SECONDS": "0.05"}).start().wait_online()
    processes += [worker.running, dispatcher(farm, **quick)]
    jobs = [farm.submit(spec(num_inference_steps=100, seed=seed)) for seed in range(8)]  # some on the device, some wait
    wait_until(lambda: begun(farm, jobs[0]), 30, what="a job is on the device")
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    time.sleep(8)
    for process in processes:
        process.send_signal(signal.SIGCONT)
    for job in jobs:
        assert farm.wait(job, JobState.SUCCEEDED, JobState.FAILED, timeout=60).state is JobState.SUCCEEDED
        assert farm.job(job.id).attempts == 1
        assert "job.requeued" not in farm.events(job)


def test_jobs_of_a_killed_worker_are_elsewhere_within_12_seconds_at_the_default_settings(
    farm: Farm, processes: list[subprocess.Popen[bytes]]
) -> None:
    slow = {"FARM_NOISE_STEP_SECONDS": "0.3"}
    workers = [NoiseWorker(farm, device=device, env=slow).start().wait_online() for device in ("cpu0", "cpu1")]
    jobs = [farm.submit(spec(num_inference_steps=100, seed=seed)) for seed in range(12)]
    processes += [worker.running for worker in workers]
    processes.append(dispatcher(farm))
    wait_until(lambda: all(begun(farm, job) or farm.job(job.id).claimed_at for job in jobs), 30, what="all are held")
    victim, other = workers
    victim.signal(signal.SIGKILL)
    killed = time.monotonic()
    waiting = [job for job in jobs if (held := farm.job(job.id)).worker == victim.name and held.started_at is None]
    assert waiting
    victim.wait()

    def taken_back() -> bool:
        return all("job.requeued" in farm.events(job) for job in waiting)

    wait_until(taken_back, 30, what="what it had not begun is requeued")
    seconds = time.monotonic() - killed
    assert seconds <= 12, seconds
    assert all(farm.job(job.id).worker != victim.name or farm.job(job.id).state is JobState.QUEUED for job in waiting)
    assert other.running.poll() is None
