"""The whole farm as processes, and what is done to it while it renders."""

from __future__ import annotations

import hashlib
import json
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import psycopg
import pytest
import redis

from farm.client import Farm
from tests.waiting import wait_until

from .conftest import RunningFarm

SLOW = {"num_inference_steps": 60, "width": 192, "height": 192}  #: seconds of work, so that there is a middle


@pytest.fixture
def farm(running_farm: RunningFarm) -> Iterator[Farm]:
    with Farm(running_farm.url, running_farm.api_key) as client:
        yield client


def submit_many(farm: Farm, count: int, **parameters: Any) -> list[str]:
    return [farm.submit(f"a red ball {number}", **parameters).id for number in range(count)]


def worker_process(running: RunningFarm) -> psutil.Process:
    told = json.loads(running("status", "--json", "--data-dir", running.data_dir, cwd=running.data_dir).stdout)
    (pid,) = [part["pid"] for part in told["parts"] if part["name"].startswith("worker")]
    return psutil.Process(pid)


def history(running: RunningFarm, job_id: str) -> list[tuple[str, int]]:
    """(event type, epoch) of the job, in order, from the database itself."""
    with psycopg.connect(running.database_url) as connection:
        rows = connection.execute(
            "SELECT type, epoch FROM event WHERE job_id = %s ORDER BY id", (job_id.removeprefix("job_"),)
        ).fetchall()
    return [(kind, epoch) for kind, epoch in rows]


def assert_finished_once(running: RunningFarm, farm: Farm, job_ids: list[str]) -> None:
    for job_id in job_ids:
        job = farm.get(job_id)
        assert job.state == "succeeded", job
        ends = [kind for kind, _ in history(running, job_id) if kind in ("job.succeeded", "job.failed", "job.canceled")]
        assert ends == ["job.succeeded"]
        (output,) = job.outputs
        assert hashlib.sha256(farm.download(output)).hexdigest() == output.sha256


def all_over(farm: Farm, job_ids: list[str]) -> Callable[[], bool]:
    return lambda: all(farm.get(one).over for one in job_ids)


def at_step(farm: Farm, job_id: str, step: int) -> Callable[[], bool]:
    def reached() -> bool:
        job = farm.get(job_id)
        assert not job.over, "the job was too quick for this test"
        return job.progress is not None and job.progress.step >= step

    return reached


@pytest.mark.timeout(300)
def test_a_worker_killed_in_the_middle_of_a_job_costs_no_job_and_makes_no_second_result(
    running_farm: RunningFarm, farm: Farm
) -> None:
    jobs = submit_many(farm, 2, **SLOW)
    wait_until(at_step(farm, jobs[0], 5), 90, what="step 5 of the first job")
    worker = worker_process(running_farm)
    worker.send_signal(signal.SIGKILL)
    worker.wait(10)
    wait_until(lambda: farm.get(jobs[0]).over, 60, every=0.2, what="the first job over, within a minute of the kill")
    wait_until(all_over(farm, jobs), 60, every=0.2, what="both jobs over")
    assert_finished_once(running_farm, farm, jobs)
    assert farm.get(jobs[0]).attempts == 2
    assert [kind for kind, _ in history(running_farm, jobs[0])] == [
        "job.started",
        "job.requeued",
        "job.started",
        "job.succeeded",
    ]


@pytest.mark.timeout(240)
def test_a_wiped_redis_costs_no_job_and_makes_no_second_result(running_farm: RunningFarm, farm: Farm) -> None:
    jobs = submit_many(farm, 8, num_inference_steps=10)
    with redis.Redis.from_url(running_farm.redis_url) as client:
        while not all_over(farm, jobs)():
            for _ in range(20):  # again and again, so that some wipe hits a message on its way
                client.flushall()
                time.sleep(0.02)
            if len(jobs) < 12:
                jobs += submit_many(farm, 1, num_inference_steps=10)
    assert len(jobs) == 12
    assert_finished_once(running_farm, farm, jobs)


@pytest.mark.timeout(120)
def test_a_running_job_is_canceled_long_before_its_end(running_farm: RunningFarm, farm: Farm) -> None:
    (job_id,) = submit_many(farm, 1, num_inference_steps=150, width=192, height=192)
    wait_until(at_step(farm, job_id, 3), 60, what="step 3")
    farm.cancel(job_id)
    wait_until(lambda: farm.get(job_id).over, 20, what="canceled")
    job = farm.get(job_id)
    assert job.state == "canceled"
    assert job.progress is not None
    assert job.progress.step < 140
    assert not job.outputs
