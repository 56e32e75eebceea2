"""A worker that dies at each named place of a job's way, and what becomes of the job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from farm import lifecycle
from farm.domain.states import JobState
from farm.objects.keys import job_prefix
from tests.conftest import TestServers
from tests.integration.worker_process import Farm, NoiseWorker, WorkerProcess, spec
from tests.waiting import wait_until
from workers.failpoints import ENGINE_POINTS, EXIT_CRASHED, POINTS, WORKER_POINTS


@pytest.fixture
def farm(servers: TestServers, database_url: str, redis_url: str, tmp_path: Path) -> Iterator[Farm]:
    env = servers.env(database_url=database_url, redis_url=redis_url)
    env |= {"FARM_HEARTBEAT_SECONDS": "0.5", "FARM_RUN_LEASE_SECONDS": "6"}
    made = Farm(env, tmp_path)
    yield made
    made.close()


def test_a_worker_that_dies_anywhere_costs_no_job_and_makes_no_second_result(farm: Farm) -> None:
    def at(point: str, number: int) -> WorkerProcess:
        return NoiseWorker(farm, device=f"cpu{number}", env={"FARM_CRASH_AT": point, "FARM_BATCHING": "on"})

    workers = {point: at(point, 20 + number) for number, point in enumerate(POINTS)}
    again = NoiseWorker(farm, device="cpu40", env={"FARM_BATCHING": "on"})
    try:
        for worker in (*workers.values(), again):
            worker.start()
        for worker in (*workers.values(), again):
            worker.wait_online()
        jobs = {point: farm.start(spec(num_outputs=2), worker.name) for point, worker in workers.items()}
        for point in WORKER_POINTS:
            assert workers[point].wait(60) == EXIT_CRASHED, f"{point}: {workers[point].log()}"
        for point in ENGINE_POINTS:  # the worker stays, and gives its job back
            farm.dispatch(farm.wait(jobs[point], JobState.QUEUED), again.name)
            assert workers[point].running.poll() is None, f"{point}: {workers[point].log()}"

        def over() -> bool:
            with farm.store.begin() as unit:
                back = lifecycle.reap(unit)
            for job_id in back:
                farm.dispatch(farm.job(job_id), again.name)
            return all(farm.job(job.id).state is JobState.SUCCEEDED for job in jobs.values())

        # the message that died unclaimed comes back when its dispatch lease ends; here it is not waited for
        with farm.store.begin() as unit:
            held = farm.job(jobs["after_receive"].id)
            assert held.state is JobState.DISPATCHED
            lifecycle.release(unit, held.id, held.epoch, "for the test")
        farm.dispatch(held, again.name)
        wait_until(over, 60, every=0.1, what="all jobs succeeded")
        for point, job in jobs.items():
            check(farm, point, job.id)
    finally:
        for worker in (*workers.values(), again):
            worker.kill()


def check(farm: Farm, point: str, job_id: str) -> None:
    job = farm.job(job_id)
    reservations = {"after_receive": 1, "after_commit": 1}.get(point, 2)
    events = farm.events(job)
    assert events.count("job.started") == reservations, point
    assert events.count("job.succeeded") == 1, point
    assert events[-1] == "job.succeeded", point
    assert job.epoch == (1 if point == "after_commit" else 2), point
    assert len(job.outputs) == 2, point
    for output in job.outputs:
        assert f"/{job.epoch}/" in output.key, point
        assert farm.storage.head(output.key).sha256 == output.sha256, point
    stored = {one.key for one in farm.storage.list(job_prefix(farm.tenant, job_id))}
    # of the dead epoch: nothing refers to them; the uploads of one job overlap
    orphans = {"mid_upload": (1, 2), "before_commit": (2,)}.get(point, (0,))
    assert len(stored) - 2 in orphans, point
