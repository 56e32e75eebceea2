"""Starts and steps on their way to the database while a job ends."""

from __future__ import annotations

from farm import lifecycle
from farm.domain.job import HeldJob, JobResult
from farm.domain.queue import Assignment
from farm.store.unit_of_work import Store
from tests.waiting import wait_until
from workers.leases import Lease, Leases
from workers.progress_reporter import ProgressReporter

from .conftest import Submit, worker_info
from .test_group_commit import WORKER, Gate, output


def test_a_success_carries_its_start_and_steps_while_they_are_on_their_way(store: Store, submit: Submit) -> None:
    job = submit()
    with store.begin() as unit:
        lifecycle.join(unit, worker_info(WORKER))
        lifecycle.dispatch(unit, [Assignment(job.id, WORKER)], 30)
    held = HeldJob(job.id, 1)
    with store.begin() as unit:
        (claimed,) = lifecycle.claim_all(unit, [held], WORKER, 30)
    leases = Leases()
    lease = Lease(claimed, deadline=1e9)
    leases.add(lease)
    far = Gate(store)  # its transactions do not get through yet
    reporter = ProgressReporter(far, leases)
    reporter.start()
    reporter.started(lease, 8)
    wait_until(lambda: far.begun == 1, 5, what="the start is on its way")
    steps, started_at = reporter.take_start(lease)
    assert steps == 8
    assert started_at is not None
    with store.begin() as unit:  # the success overtakes it
        assert lifecycle.succeed_all(unit, [JobResult(held, (output(held),), {}, steps=steps, seconds=0.5)]) == [job.id]
    far.open.set()
    reporter.close()
    reporter.join(10)
    with store.begin() as unit:
        done = unit.jobs.get(job.id)
    assert done is not None
    assert done.started_at is not None
    assert done.progress is not None
    assert (done.progress.step, done.progress.steps) == (8, 8)
    assert reporter.take_start(lease) == (None, None)  # nothing is kept of a job that ended
