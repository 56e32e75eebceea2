"""An interactive job on a farm full of bulk jobs starts at once; the bulk jobs step back and lose nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from farm import lifecycle
from farm.domain.job import HeldJob, Job, NewJob
from farm.domain.queue import MIN_WEIGHT, Assignment, ShareState
from farm.domain.states import JobState, Priority
from farm.store.unit_of_work import Store
from tests import job_edges
from tests.conftest import TestServers
from tests.integration.conftest import spec as small_spec
from tests.integration.conftest import worker_info
from tests.integration.worker_process import ROOT, Farm, NoiseWorker, spec
from tests.waiting import wait_until

STEP_SECONDS = 0.05
SLOTS, PREFETCH = 4, 2


@pytest.fixture(scope="module")
def farm(servers: TestServers, migrated_template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    servers.postgres.create_database("preemption", template=migrated_template)
    env = servers.env(database_url=servers.postgres.url("preemption"), redis_url=servers.valkey.url(0))
    env |= {"FARM_HEARTBEAT_SECONDS": "1", "FARM_RUN_LEASE_SECONDS": "8", "FARM_MAX_PREFETCH": "0"}
    farm = Farm(env, tmp_path_factory.mktemp("worker"))
    command = "from farm.cli.serve_dispatcher import dispatcher; dispatcher()"
    with subprocess.Popen([sys.executable, "-c", command], env=os.environ | env, cwd=ROOT) as dispatcher:
        yield farm
        dispatcher.kill()
    farm.close()
    servers.postgres.drop_database("preemption")


def submit(farm: Farm, priority: Priority, steps: int) -> Job:
    with farm.store.begin() as unit:
        wanted = NewJob(spec(num_inference_steps=steps), priority=priority)
        return lifecycle.submit(unit, farm.tenant, wanted)[0]


def test_an_interactive_job_on_a_full_farm_starts_at_once_and_the_bulk_jobs_lose_nothing(farm: Farm) -> None:
    env = {"FARM_NOISE_STEP_SECONDS": str(STEP_SECONDS)}
    workers = [NoiseWorker(farm, f"cpu{number}", env=env) for number in (1, 2)]
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.wait_online()
        bulk = [submit(farm, Priority.BULK, 150) for _ in range(len(workers) * (SLOTS + PREFETCH) + 3)]

        def full() -> bool:
            reached = [job.progress.step for one in bulk if (job := farm.job(one.id)).progress is not None]
            return len(reached) == len(workers) * SLOTS and min(reached) > 4

        wait_until(full, 60, what="the devices render bulk jobs")
        held = [job for one in bulk if (job := farm.job(one.id)).state is JobState.RUNNING]
        assert len(held) == len(workers) * (SLOTS + PREFETCH), "no worker has room"

        people = [submit(farm, Priority.INTERACTIVE, 3) for _ in range(3)]
        done = [farm.wait(job, JobState.SUCCEEDED, timeout=20) for job in people]
        for job in done:
            assert job.started_at is not None
            waited = (job.started_at - job.created_at).total_seconds()
            assert waited < 2 * STEP_SECONDS + 1.0, "two steps, and the way to the worker"
        assert JobState.SUCCEEDED not in {farm.job(job.id).state for job in bulk}

        ended = [farm.wait(job, JobState.SUCCEEDED, timeout=90) for job in bulk]
        stepped_back = [job for job in ended if job.preemptions]
        assert 1 <= len(stepped_back) <= len(people)
        assert all(job.steps_resumed > 0 for job in stepped_back)
        assert {job.attempts for job in ended} == {1}, "to step back is no attempt"
        assert {job.preemptions for job in ended} <= {0, 1}
        assert all(farm.events(job).count("job.requeued") == job.preemptions for job in ended)
    finally:
        for worker in workers:
            worker.kill()


def test_what_a_preempted_job_was_charged_is_given_back_also_while_a_round_decides(store: Store) -> None:
    with store.begin() as unit:
        tenant = unit.tenants.create("acme", 2.0).id
        lifecycle.join(unit, worker_info("host/cpu0"))
        job = lifecycle.submit(unit, tenant, NewJob(small_spec(), priority=Priority.BULK))[0]
        (sent,) = lifecycle.dispatch(unit, [Assignment(job.id, "host/cpu0")], 30)
        job_edges.claim(unit, job.id, sent.epoch, "host/cpu0", 30)
        job_edges.start(unit, job.id, sent.epoch, 4)
        (share,) = unit.tenants.shares()
        assert share.weight > MIN_WEIGHT
    with store.begin() as round_:
        (read,) = round_.tenants.shares()
        with store.begin() as unit:
            assert lifecycle.preempt(unit, job.id, sent.epoch) is JobState.QUEUED
        round_.tenants.save_share_states([ShareState(tenant, read.vtime + 10, True, read.vtime)])
    with store.begin() as unit:
        (after,) = unit.tenants.shares()
        found = unit.jobs.get(job.id)
    assert after.vtime == pytest.approx(share.vtime + 10 - job.cost / 2)
    assert found is not None
    assert (found.state, found.attempts, found.preemptions) == (JobState.QUEUED, 0, 1)


def test_a_bulk_job_steps_back_a_limited_number_of_times_and_a_canceled_one_ends(store: Store) -> None:
    with store.begin() as unit:
        tenant = unit.tenants.create("acme").id
        lifecycle.join(unit, worker_info("host/cpu0", slots=1, prefetch=0))
        job = lifecycle.submit(unit, tenant, NewJob(small_spec(), priority=Priority.BULK))[0]
    for times in range(lifecycle.MAX_PREEMPTIONS + 1):
        with store.begin() as unit:
            (sent,) = lifecycle.dispatch(unit, [Assignment(job.id, "host/cpu0")], 30)
            job_edges.claim(unit, job.id, sent.epoch, "host/cpu0", 30)
            assert not any(one.preemptible for one in unit.workers.with_free_slots(lifecycle.MAX_PREEMPTIONS)), (
                "not begun"
            )
            job_edges.start(unit, job.id, sent.epoch, 4)
            offered = [one.preemptible for one in unit.workers.with_free_slots(lifecycle.MAX_PREEMPTIONS)]
            assert offered == ([1] if times < lifecycle.MAX_PREEMPTIONS else [])
        if times < lifecycle.MAX_PREEMPTIONS:
            with store.begin() as unit:
                lifecycle.preempt(unit, job.id, sent.epoch)
    with store.begin() as unit:
        lifecycle.cancel(unit, tenant, job.id)
        assert lifecycle.preempt(unit, job.id, sent.epoch) is JobState.CANCELED
        assert unit.running_jobs.progress({HeldJob(job.id, sent.epoch): 1}) == {}
