"""Equal recipes have equal bytes, in a farm of unlike workers that are killed."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from farm import lifecycle
from farm.domain.job import Job, NewJob
from farm.domain.states import JobState
from tests.conftest import TestServers
from tests.integration.worker_process import ROOT, Farm, WorkerProcess, spec
from tests.waiting import wait_until

JOBS = 200
PINNED = 48  #: of them, the same number to each class
RECIPES = 8
KILL_SECONDS = 4.0  #: between two kills
SECONDS = 600.0  #: for all jobs
#: Four workers of three classes: two threads, the same again, one thread, and other instructions.
WORKERS = {
    "cpu0": {"FARM_TORCH_THREADS": "2"},
    "cpu1": {"FARM_TORCH_THREADS": "2"},
    "cpu2": {"FARM_TORCH_THREADS": "1"},
    "cpu3": {"FARM_TORCH_THREADS": "2", "ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "AVX"},
}


@pytest.fixture(scope="module")
def farm(servers: TestServers, migrated_template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    servers.postgres.create_database("numerics_classes", template=migrated_template)
    env = servers.env(database_url=servers.postgres.url("numerics_classes"), redis_url=servers.valkey.url(0))
    env |= {"FARM_HEARTBEAT_SECONDS": "1", "FARM_RUN_LEASE_SECONDS": "10", "FARM_DISPATCH_LEASE_SECONDS": "10"}
    farm = Farm(env, tmp_path_factory.mktemp("workers"))
    command = "from farm.cli.serve_dispatcher import dispatcher; dispatcher()"
    with subprocess.Popen([sys.executable, "-c", command], env=os.environ | env, cwd=ROOT) as dispatcher:
        yield farm
        dispatcher.kill()
    farm.close()
    servers.postgres.drop_database("numerics_classes")


@pytest.mark.timeout(900)
def test_equal_recipes_have_equal_bytes_on_workers_of_three_classes_that_are_killed(farm: Farm) -> None:
    with ExitStack() as stack:
        workers = []
        for device, env in WORKERS.items():
            workers.append(WorkerProcess(farm, device, env=env).start())
            stack.callback(workers[-1].kill)
        for worker in workers:
            worker.wait_online()
        with farm.store.begin() as unit:
            names = [known.numerics.name for known in unit.numerics.all()]
            assert len(names) == 3
            # the dispatcher prefers workers that have the model, so some jobs ask for each class
            new = [
                NewJob(spec(seed=number % RECIPES), max_attempts=20, pin=names[number % 3] if number < PINNED else None)
                for number in range(JOBS)
            ]
            jobs = [lifecycle.submit(unit, farm.tenant, one)[0].id for one in new]
        kills = _kill_until_done(farm, workers, jobs)
    ended = [farm.job(job_id) for job_id in jobs]
    outcomes: dict[tuple[object, str], Counter[str]] = defaultdict(Counter)
    classes: Counter[str] = Counter()
    lost = [job for job in ended if job.state is not JobState.SUCCEEDED]
    for job in ended:
        if job.recipe is not None:
            numerics = str(job.recipe["numerics"])
            classes[numerics] += 1
            assert {key for key in job.recipe if key != "numerics"} >= {"torch", "dtype", "weights"}
            outcomes[job.spec.seed, numerics][job.outputs[0].sha256] += 1
    unequal = [recipe for recipe, hashes in outcomes.items() if len(hashes) > 1]
    by_seed: dict[object, set[str]] = defaultdict(set)
    for (seed, _), hashes in outcomes.items():
        by_seed[seed] |= set(hashes)
    print(
        f"{len(ended) - len(lost)} of {JOBS} jobs succeeded ({len(lost)} lost two workers), {kills} kills, "
        f"retried {sum(job.attempts > 1 for job in ended)}, jobs by class {sorted(classes.values())}, "
        f"recipes with unequal bytes in a class {len(unequal)}, "
        f"recipes with other bytes in another class {sum(len(found) > 1 for found in by_seed.values())} of {RECIPES}"
    )
    assert not unequal, outcomes
    assert all(job.error is not None and job.error.code == "worker_lost" for job in lost)
    assert kills
    assert len(classes) == 3


def _kill_until_done(farm: Farm, workers: list[WorkerProcess], jobs: list[str]) -> int:
    """Kill a random worker again and again, and start it again, until all jobs have ended; returns the kills."""
    choice, kills = random.Random(1), 0
    until, next_kill = time.monotonic() + SECONDS, time.monotonic() + 2

    def all_ended() -> bool:
        nonlocal kills, next_kill
        if time.monotonic() >= next_kill:
            busy = {job.worker for job in _jobs(farm, jobs) if job.state is JobState.RUNNING}
            running = [worker for worker in workers if worker.name in busy]
            if running:
                worker = choice.choice(running)
                worker.kill()
                worker.start()
                kills += 1
                next_kill = time.monotonic() + KILL_SECONDS
        return all(job.state.terminal for job in _jobs(farm, jobs))

    wait_until(all_ended, until - time.monotonic(), every=0.5, what="all jobs have ended")
    return kills


def _jobs(farm: Farm, jobs: list[str]) -> list[Job]:
    with farm.store.begin() as unit:
        return list(unit.jobs.many(jobs).values())
