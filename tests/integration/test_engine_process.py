"""The engine's process may crash, hang or be killed: the worker stays, and no job that was not at fault is lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from farm import lifecycle, model_registry
from farm.domain.states import JobState
from farm.domain.worker import WorkerState
from tests.conftest import TestServers
from tests.integration.worker_process import Farm, NoiseWorker, WorkerProcess, spec
from tests.waiting import wait_until
from workers import device as devices
from workers.engine import EngineOptions
from workers.engine_process import EngineProcess
from workers.render_request import RenderRequest

LONG: dict[str, Any] = {"num_inference_steps": 150, "num_outputs": 4}
QUICK = {"FARM_HEARTBEAT_SECONDS": "0.5", "FARM_NOISE_STEP_SECONDS": "0.01"}


@pytest.fixture
def farm(servers: TestServers, database_url: str, redis_url: str, tmp_path: Path) -> Iterator[Farm]:
    made = Farm(servers.env(database_url=database_url, redis_url=redis_url), tmp_path)
    yield made
    made.close()


def engine_of(worker: WorkerProcess) -> psutil.Process:
    """The engine's process of a worker; the last one if one has just ended."""
    (engine,) = psutil.Process(worker.running.pid).children()
    return engine


def started(farm: Farm, job_id: str) -> bool:
    progress = farm.job(job_id).progress
    return progress is not None and progress.step > 1


def test_a_killed_engine_costs_the_jobs_on_the_device_no_attempt_and_the_worker_stays(farm: Farm) -> None:
    worker = NoiseWorker(farm, device="cpu1", env=QUICK).start()
    try:
        worker.wait_online()
        engine = engine_of(worker)
        on_device = [farm.start(spec(**LONG, seed=seed), worker.name) for seed in range(4)]
        wait_until(lambda: all(started(farm, job.id) for job in on_device), 30)
        waiting = farm.start(spec(seed=9), worker.name)
        wait_until(lambda: farm.job(waiting.id).state is JobState.RUNNING, 10)  # claimed: it waits for the device
        engine.send_signal(signal.SIGKILL)
        for job in (*on_device, waiting):
            back = farm.wait(job, JobState.QUEUED, timeout=10)
            assert (back.attempts, back.crash_count) == (0, 0 if job is waiting else 1)
        assert engine_of(worker).pid != engine.pid
        for job in (*on_device, waiting):
            farm.dispatch(job, worker.name)
        for job in (waiting, *on_device):
            assert farm.wait(job, JobState.SUCCEEDED, timeout=60).attempts == 1
        found = farm.worker(worker.name)
        assert found is not None
        assert (found.state, found.info.pid) == (WorkerState.ONLINE, worker.running.pid)
        assert "the engine was ended by SIGKILL" in worker.log()
    finally:
        worker.kill()


def test_a_job_that_crashes_the_engine_twice_fails_and_the_worker_goes_on(farm: Farm) -> None:
    env = QUICK | {"FARM_CRASH_AT": "engine_mid_denoise=poison"}
    worker = NoiseWorker(farm, device="cpu1", env=env).start()
    try:
        worker.wait_online()
        poison = farm.start(spec(prompt="poison", num_outputs=1), worker.name)
        back = farm.wait(poison, JobState.QUEUED, timeout=20)
        assert (back.attempts, back.crash_count) == (0, 1)
        farm.dispatch(back, worker.name)
        ended = farm.wait(poison, JobState.FAILED, timeout=20)
        assert ended.error is not None
        assert ended.error.code == "device_failed"
        assert "exit code 113" in ended.error.message
        good = farm.start(spec(seed=3), worker.name)
        assert farm.wait(good, JobState.SUCCEEDED, timeout=30).attempts == 1
        assert worker.running.poll() is None
    finally:
        worker.kill()


def test_an_engine_that_hangs_is_replaced(farm: Farm) -> None:
    worker = NoiseWorker(farm, device="cpu1", env=QUICK | {"FARM_STEP_TIMEOUT_SECONDS": "2"}).start()
    try:
        worker.wait_online()
        hung = farm.start(spec(**LONG), worker.name)
        wait_until(lambda: started(farm, hung.id), 30)
        engine = engine_of(worker)
        engine.send_signal(signal.SIGSTOP)
        back = farm.wait(hung, JobState.QUEUED, timeout=20)
        assert (back.attempts, back.crash_count) == (0, 1)
        assert not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE
        farm.dispatch(back, worker.name)
        assert farm.wait(hung, JobState.SUCCEEDED, timeout=60)
        assert "the device hangs" in worker.log()
    finally:
        worker.kill()


def test_the_engine_ends_with_its_worker(farm: Farm) -> None:
    worker = NoiseWorker(farm, device="cpu1", env=QUICK).start()
    try:
        worker.wait_online()
        engine = engine_of(worker)
        engine.send_signal(signal.SIGSTOP)  # it cannot notice anything
    finally:
        worker.kill()
    engine.wait(10)


def test_a_canceled_job_ends_on_the_device_and_a_waiting_one_at_once(farm: Farm) -> None:
    worker = NoiseWorker(farm, device="cpu1", env=QUICK | {"FARM_BATCHING": "off"}).start()
    try:
        worker.wait_online()
        first = farm.start(spec(**LONG), worker.name)
        wait_until(lambda: started(farm, first.id), 30)
        second = farm.start(spec(**LONG, seed=2), worker.name)
        wait_until(lambda: farm.job(second.id).state is JobState.RUNNING, 10)
        for job in (second, first):
            with farm.store.begin() as unit:
                lifecycle.cancel(unit, farm.tenant, job.id)
            farm.wait(job, JobState.CANCELED, timeout=10)
    finally:
        worker.kill()


def test_only_the_engines_process_has_torch(farm: Farm) -> None:
    worker = WorkerProcess(farm, device="cpu1").start()
    try:
        worker.wait_online()
        job = farm.start(spec(), worker.name)
        farm.wait(job, JobState.SUCCEEDED, timeout=90)

        def has_torch(pid: int) -> bool:
            return "libtorch" in Path(f"/proc/{pid}/maps").read_text()

        assert has_torch(engine_of(worker).pid)
        assert not has_torch(worker.running.pid)
    finally:
        worker.kill()


def test_a_job_submitted_while_no_process_runs_is_rendered_by_the_next_one() -> None:
    engine = EngineProcess(EngineOptions(devices.choose("cpu0")), module="tests.noise_device")
    model = model_registry.load(None).models[0]
    request = RenderRequest(spec(), model, {}, lambda _: None, lambda _: None, threading.Event())
    future = engine.submit(request)
    engine.start()
    assert future.result(60).artifacts
    engine.close()
    engine.join(30)
    assert not engine.is_alive()
