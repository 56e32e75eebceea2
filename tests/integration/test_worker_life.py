"""How a worker process begins and ends, and what becomes of the jobs it holds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from farm import lifecycle
from farm.dispatch import broker
from farm.domain.states import JobState
from farm.domain.worker import WorkerState
from farm.errors import Conflict
from farm.objects.keys import job_prefix
from tests.conftest import TestServers
from tests.integration.worker_process import HOST, Farm, NoiseWorker, Wire, WorkerProcess, spec
from tests.waiting import wait_until
from workers.engine import EXIT_ENGINE_FAILED
from workers.heartbeat import EXIT_STALLED

LONG: dict[str, Any] = {"num_inference_steps": 150, "num_outputs": 16}  #: more than a test waits for


@pytest.fixture(scope="module")
def farm(servers: TestServers, migrated_template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    servers.postgres.create_database("worker_life", template=migrated_template)
    env = servers.env(database_url=servers.postgres.url("worker_life"), redis_url=servers.valkey.url(0))
    env |= {"FARM_HEARTBEAT_SECONDS": "0.5", "FARM_RUN_LEASE_SECONDS": "6"}
    farm = Farm(env, tmp_path_factory.mktemp("worker"))
    yield farm
    farm.close()
    servers.postgres.drop_database("worker_life")


@pytest.fixture(scope="module")
def wires(farm: Farm) -> Iterator[dict[str, Wire]]:
    """The steady worker's ways to the database and the storage."""
    found = {name: Wire(farm.env[name]) for name in ("FARM_DATABASE_URL", "FARM_S3_ENDPOINT_URL")}
    yield found
    for wire in found.values():
        wire.close()


@pytest.fixture(scope="module")
def steady(farm: Farm, wires: dict[str, Wire]) -> Iterator[WorkerProcess]:
    """One worker for the tests that leave it alive."""
    env = {name: wire.url for name, wire in wires.items()} | {"FARM_STORAGE_RETRY_SECONDS": "15"}
    worker = NoiseWorker(farm, device="cpu7", env=env).start()
    try:
        yield worker.wait_online()
    finally:
        worker.kill()


def begun(farm: Farm, job_id: str) -> bool:
    """Whether the job is on the device, and has done a step there."""
    job = farm.job(job_id)
    return job.state is JobState.RUNNING and job.progress is not None and job.progress.step > 0


def reaped(farm: Farm) -> list[str]:
    with farm.store.begin() as unit:
        return lifecycle.reap(unit)


def test_a_lost_job_stops_and_leaves_nothing(farm: Farm, steady: WorkerProcess) -> None:
    job = farm.start(spec(**LONG), steady.name)
    wait_until(lambda: begun(farm, job.id), 60, what="the job is on the device")
    with farm.store.begin() as unit:  # as the reaper would, had it lost patience
        lifecycle.release(unit, job.id, job.epoch + 1, "for the test")
    other = farm.start(spec(seed=8), steady.name)
    farm.wait(other, JobState.SUCCEEDED, timeout=20)  # the device is free again
    assert farm.job(job.id).state is JobState.QUEUED
    assert list(farm.storage.list(job_prefix(farm.tenant, job.id))) == []


def test_jobs_stop_before_their_lease_ends_when_the_database_is_away(
    farm: Farm, steady: WorkerProcess, wires: dict[str, Wire]
) -> None:
    wire = wires["FARM_DATABASE_URL"]
    job = farm.start(spec(**LONG), steady.name)
    wait_until(lambda: begun(farm, job.id), 60, what="the job is on the device")
    wire.cut()
    try:
        wait_until(lambda: "action=lease_expired" in steady.log(), 15, what="the job is fenced")
        assert farm.job(job.id).state is JobState.RUNNING
        assert wait_until(lambda: reaped(farm), 10) == [job.id]
    finally:
        wire.mend()
    other = farm.start(spec(seed=8), steady.name)
    farm.wait(other, JobState.SUCCEEDED, timeout=30)
    assert farm.job(job.id).state is JobState.QUEUED


def spooled(farm: Farm) -> list[Path]:
    """What workers keep on disk until the storage is back."""
    return [one for one in (farm.log_dir / "spool").rglob("*") if one.is_file()]


def test_a_finished_image_is_spooled_until_the_storage_answers(
    farm: Farm, steady: WorkerProcess, wires: dict[str, Wire]
) -> None:
    wire = wires["FARM_S3_ENDPOINT_URL"]
    wire.refuse()
    try:
        job = farm.start(spec(num_outputs=2), steady.name)
        wait_until(lambda: "storage_unavailable" in steady.log(), 90, every=0.2, what="it waits for the storage")
        assert reaped(farm) == []  # the lease outlives the wait
        # on the disk, all of them, so that the worker's memory is free for the next jobs
        assert len(spooled(farm)) == 2
    finally:
        wire.mend()
    done = farm.wait(job, JobState.SUCCEEDED, timeout=60)
    assert done.attempts == 1
    assert [farm.storage.head(one.key).sha256 for one in done.outputs] == [one.sha256 for one in done.outputs]
    wait_until(lambda: not spooled(farm), 10, what="the spool is empty")


def test_unavailable_storage_releases_the_job_without_counting_the_attempt(
    farm: Farm, steady: WorkerProcess, wires: dict[str, Wire]
) -> None:
    wire = wires["FARM_S3_ENDPOINT_URL"]
    wire.refuse()
    try:
        job = farm.start(spec(), steady.name)
        back = farm.wait(job, JobState.RUNNING) and farm.wait(job, JobState.QUEUED, timeout=60)
    finally:
        wire.mend()
    assert back.attempts == 0
    assert farm.events(job) == ["job.started", "job.requeued"]


def test_the_older_of_two_workers_with_one_name_exits_and_the_drain_timeout_releases_jobs(
    farm: Farm,
) -> None:
    older = NoiseWorker(farm, device="cpu6").start()
    newer = NoiseWorker(farm, device="cpu6", env={"FARM_DRAIN_SECONDS": "1"})
    try:
        older.wait_online()
        newer.start().wait_online()
        assert older.wait(20) == 3
        job = farm.start(spec(**LONG), newer.name)
        wait_until(lambda: begun(farm, job.id), 60, what="the job is on the device")
        newer.signal(signal.SIGINT)
        assert farm.wait(job, JobState.QUEUED, timeout=15).attempts == 0
        newer.wait(30)
    finally:
        newer.kill()
        older.kill()


def test_a_stalled_consumer_ends_the_worker_after_its_jobs_finish(farm: Farm) -> None:
    env = {"FARM_CONSUMER_STALL_SECONDS": "3", "FARM_DRAIN_SECONDS": "60"}
    worker = NoiseWorker(farm, device="cpu4", env=env).start()
    try:
        worker.wait_online()
        held = farm.start(spec(num_inference_steps=150, num_outputs=2), worker.name)
        wait_until(lambda: begun(farm, held.id), 90, what="the job is on the device")
        # Celery's own way to make a consumer stop listening: the process lives, beats and renders on
        (answer,) = farm.app.control.cancel_consumer(
            broker.queue_of(worker.name).name, destination=[f"cpu4@{HOST}"], reply=True, timeout=10
        )
        assert "ok" in next(iter(answer.values()))
        unheard = farm.start(spec(seed=8), worker.name)
        assert worker.wait(90) == EXIT_STALLED
        assert "consumer_stalled" in worker.log()
        done = farm.job(held.id)
        assert (done.state, done.attempts) == (JobState.SUCCEEDED, 1)
        # unclaimed, it went back with the worker's goodbye: nobody had to wait for the end of its lease
        assert farm.wait(unheard, JobState.QUEUED, timeout=5).attempts == 0
        found = farm.worker(worker.name)
        assert found is not None
        assert found.state is WorkerState.OFFLINE
    finally:
        worker.kill()


def test_a_stopped_worker_finishes_its_jobs_and_stays_drained_after_a_restart(farm: Farm) -> None:
    worker = NoiseWorker(farm, device="cpu5", env={"FARM_DRAIN_SECONDS": "60"}).start()
    try:
        worker.wait_online()
        job = farm.start(spec(num_inference_steps=40), worker.name)
        wait_until(lambda: begun(farm, job.id), 90, what="the job is on the device")
        with farm.store.begin() as unit:
            assert lifecycle.stop_worker(unit, worker.name, "enough").stopping
        assert worker.wait(90) == 0
        assert farm.job(job.id).state is JobState.SUCCEEDED
        with farm.store.begin() as unit, pytest.raises(Conflict, match="offline"):
            lifecycle.stop_worker(unit, worker.name, "again")
        again = NoiseWorker(farm, device="cpu5").start()
        try:
            wait_until(lambda: (found := farm.worker(worker.name)) and found.state is WorkerState.DRAINING, 60)
            with farm.store.begin() as unit:
                resumed = lifecycle.resume_worker(unit, worker.name)
            assert (resumed.state, resumed.stopping) == (WorkerState.ONLINE, False)
            farm.wait(farm.start(spec(), worker.name), JobState.SUCCEEDED)
        finally:
            again.kill()
    finally:
        worker.kill()


def test_jobs_end_once_after_sigkill_after_a_drain_and_after_a_second_sigterm(farm: Farm) -> None:
    process = NoiseWorker(farm, device="cpu8", env={"FARM_DRAIN_SECONDS": "120", "FARM_BATCHING": "off"})
    try:
        process.start().wait_online()
        killed(farm, process)
        drained(farm, process)
        process.start().wait_online()
        hurried(farm, process)
    finally:
        process.kill()


def killed(farm: Farm, process: WorkerProcess) -> None:
    """What a killed process held is given back when the next one of its name begins."""
    job = farm.start(spec(**LONG), process.name)
    wait_until(lambda: begun(farm, job.id), 60, what="the job is on the device")
    behind = farm.start(spec(seed=8), process.name)
    farm.wait(behind, JobState.RUNNING)
    unread = farm.submit(spec(seed=9))
    process.kill()
    farm.dispatch(unread, process.name)
    process.start().wait_online()
    back = [farm.job(one.id) for one in (job, behind, unread)]
    assert [one.state for one in back] == [JobState.QUEUED] * 3
    assert [one.attempts for one in back] == [1, 0, 0]  # only the one on the device is held to account
    assert farm.queued_messages(process.name) == 0
    farm.dispatch(behind, process.name)
    done = farm.wait(behind, JobState.SUCCEEDED)
    assert farm.events(behind).count("job.succeeded") == 1
    assert [one.key for one in farm.storage.list(job_prefix(farm.tenant, behind.id))] == [done.outputs[0].key]


def drained(farm: Farm, process: WorkerProcess) -> None:
    """SIGTERM: the job on the device finishes, the waiting one is given back at once, the worker says goodbye."""
    job = farm.start(spec(num_inference_steps=100, num_outputs=2), process.name)
    wait_until(lambda: begun(farm, job.id), 60, what="the job is on the device")
    waiting = farm.start(spec(seed=8), process.name)
    farm.wait(waiting, JobState.RUNNING)
    process.signal(signal.SIGTERM)
    assert farm.wait(waiting, JobState.QUEUED, timeout=10).attempts == 0
    worker = farm.worker(process.name)
    assert worker is not None
    assert worker.state is WorkerState.DRAINING
    assert farm.wait(job, JobState.SUCCEEDED, timeout=120).attempts == 1
    assert process.wait(30) == 0
    worker = farm.worker(process.name)
    assert worker is not None
    assert worker.state is WorkerState.OFFLINE


def hurried(farm: Farm, process: WorkerProcess) -> None:
    """A second SIGTERM gives everything back."""
    job = farm.start(spec(**LONG), process.name)
    wait_until(lambda: begun(farm, job.id), 60, what="the job is on the device")
    process.signal(signal.SIGTERM)
    wait_until(lambda: (found := farm.worker(process.name)) and found.state is WorkerState.DRAINING, 10)
    assert farm.job(job.id).state is JobState.RUNNING
    process.signal(signal.SIGTERM)
    released = farm.wait(job, JobState.QUEUED, timeout=10)
    assert (released.attempts, released.error) == (0, None)
    assert process.wait(20) == 0
    assert list(farm.storage.list(job_prefix(farm.tenant, job.id))) == []


def test_a_job_that_kills_its_worker_is_quarantined_and_those_beside_it_are_not(farm: Farm) -> None:
    """After a crash of several jobs any of them may be the cause, so each has the device for itself next time."""
    process = NoiseWorker(farm, device="cpu1").start()
    try:
        process.wait_online()
        poison, innocent = (farm.start(spec(**LONG, seed=seed), process.name) for seed in (1, 2))
        wait_until(lambda: all(begun(farm, job.id) for job in (poison, innocent)), 60, what="both are on the device")
        process.kill()
        process.start().wait_online()
        assert [farm.job(job.id).crash_count for job in (poison, innocent)] == [1, 1]
        farm.dispatch(poison, process.name)
        wait_until(lambda: begun(farm, poison.id), 60, what="the suspect is on the device")
        farm.dispatch(innocent, process.name)
        fresh = farm.start(spec(seed=8), process.name)
        for job in (innocent, fresh):
            farm.wait(job, JobState.RUNNING)
        reached = farm.job(poison.id).progress
        assert reached is not None
        wait_until(lambda: (now := farm.job(poison.id).progress) and now.step > reached.step + 20, 60)
        assert not begun(farm, innocent.id)
        assert not begun(farm, fresh.id)
        process.kill()
        process.env = {"FARM_NOISE_STEP_SECONDS": "0"}
        process.start().wait_online()
        ended = farm.job(poison.id)
        assert (ended.state, ended.error and ended.error.code) == (JobState.FAILED, "worker_lost")
        for job in (innocent, fresh):
            farm.dispatch(job, process.name)
            assert farm.wait(job, JobState.SUCCEEDED, timeout=60).attempts <= 2
    finally:
        process.kill()


def test_a_failed_device_costs_no_job_that_was_not_at_fault_and_the_worker_gets_a_new_engine(farm: Farm) -> None:
    """The jobs on the device are isolated next time, the others released; the one that does it again fails."""
    env = {"FARM_NOISE_DEVICE_FAILS_AT": "breaks the device", "FARM_NOISE_STEP_SECONDS": "0.01"}
    process = NoiseWorker(farm, device="cpu2", env=env).start()
    try:
        process.wait_online()
        long: dict[str, Any] = {"num_inference_steps": 150, "num_outputs": 4}
        beside = [farm.start(spec(**long, seed=seed), process.name) for seed in range(3)]
        wait_until(lambda: all(begun(farm, job.id) for job in beside), 60, what="they are on the device")
        broken = farm.submit(spec(num_outputs=4, prompt="a prompt that breaks the device"))
        waiting = farm.submit(spec(seed=9))
        for job in (broken, waiting):
            farm.dispatch(job, process.name)
        for job in (*beside, broken, waiting):
            left = farm.wait(job, JobState.QUEUED, timeout=30)
            assert left.attempts == 0
            assert left.crash_count == (0 if job is waiting else 1)
        farm.dispatch(broken, process.name)
        ended = farm.wait(broken, JobState.FAILED, timeout=60)
        assert ended.error is not None
        assert ended.error.code == "device_failed"
        for job in (beside[0], waiting):
            farm.dispatch(job, process.name)
        for job in (beside[0], waiting):
            assert farm.wait(job, JobState.SUCCEEDED, timeout=60).attempts == 1
        found = farm.worker(process.name)
        assert found is not None
        assert (found.state, found.info.pid) == (WorkerState.ONLINE, process.running.pid)
    finally:
        process.kill()


def test_a_worker_ends_when_no_engine_lives_long_enough_to_finish_a_job(farm: Farm) -> None:
    env = {"FARM_NOISE_DEVICE_FAILS_AT": "sphere", "FARM_NOISE_STEP_SECONDS": "0.005", "FARM_DRAIN_SECONDS": "60"}
    process = NoiseWorker(farm, device="cpu2", env=env).start()
    try:
        process.wait_online()
        jobs = [farm.submit(spec(seed=seed)) for seed in range(4)]
        for job in jobs[:3]:
            farm.dispatch(job, process.name)
            farm.wait(job, JobState.QUEUED, timeout=30)
        assert process.wait(30) == EXIT_ENGINE_FAILED
        assert all(farm.job(job.id).attempts == 0 for job in jobs)
        found = farm.worker(process.name)
        assert found is not None
        assert found.state is WorkerState.OFFLINE
    finally:
        process.kill()


def test_other_celery_pools_are_refused_in_one_sentence(farm: Farm) -> None:
    command = [sys.executable, "-m", "celery", "-A", "workers.app", "worker", "-P", "solo"]
    ran = subprocess.run(command, env=os.environ | farm.env, capture_output=True, text=True, timeout=60)
    assert ran.returncode != 0
    assert "threads pool" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_missing_device_is_reported_in_one_sentence(farm: Farm) -> None:
    process = WorkerProcess(farm, device="cuda:63").start()
    try:
        assert process.wait(60) != 0
        assert "sees no such CUDA device" in process.log()
        assert "Traceback" not in process.log()
    finally:
        process.kill()
