"""Group commit: many threads, few transactions, and no thread pays for another's mistake."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from farm import lifecycle
from farm.domain import ids
from farm.domain.batch import NewBatch, Staged
from farm.domain.job import HeldJob, Job, JobResult, Output
from farm.domain.queue import Assignment
from farm.domain.states import EventType, JobState
from farm.errors import DatabaseUnavailable, LeaseLost
from farm.store.tables import JobRow
from farm.store.unit_of_work import Store, UnitOfWork
from tests.waiting import wait_until
from workers.group_commit import MAX_TRANSACTIONS, GroupCommit

from .conftest import Submit

WORKER = "host/cpu0"
JOBS = 8
NEVER = 1e6  #: seconds between two transactions that run at once: each waits for the end of the one before


class Gate(Store):
    """A store whose transactions begin when they are let, and which counts them."""

    def __init__(self, store: Store) -> None:
        super().__init__(store.engine)
        self.open = threading.Event()
        self.begun = 0

    @contextmanager
    def begin(self) -> Iterator[UnitOfWork]:
        self.begun += 1
        self.open.wait(10)
        with super().begin() as unit:
            yield unit


@pytest.fixture
def gate(store: Store) -> Gate:
    return Gate(store)


def dispatch(store: Store, jobs: list[Job]) -> list[HeldJob]:
    with store.begin() as unit:
        sent = lifecycle.dispatch(unit, [Assignment(job.id, WORKER) for job in jobs], 30)
    return [HeldJob(one.job_id, one.epoch) for one in sent]


def output(held: HeldJob, key: str | None = None) -> Output:
    return Output(0, key or f"outputs/{held.job_id}.png", "image/png", 10, "ab" * 32, 1, {"width": 64, "height": 64})


def done(held: HeldJob, key: str | None = None) -> JobResult:
    return JobResult(held, (output(held, key),), {"made": "here"}, steps=4, seconds=2.5, warnings=("a prompt was cut",))


def soon(gate: Gate) -> None:
    """Let the transactions begin when all that were asked for have come."""
    threading.Timer(0.5, gate.open.set).start()


def jobs_of(store: Store, submit: Submit, count: int = JOBS) -> list[Job]:
    return [submit() for _ in range(count)]


def test_writes_during_a_transaction_share_the_next_one(store: Store, tenant: str, submit: Submit, gate: Gate) -> None:
    held = dispatch(store, jobs_of(store, submit))
    group_commit = GroupCommit(gate, WORKER, 30, NEVER)
    with ThreadPoolExecutor(JOBS) as pool:
        claims = [pool.submit(group_commit.claim, one) for one in held]
        soon(gate)
        assert [one.result().id for one in claims] == [one.job_id for one in held]
        assert gate.begun == 2  # the first one alone, and all the others
        gate.open.clear()
        ends = [pool.submit(group_commit.succeed, done(one)) for one in held]
        soon(gate)
        for end in ends:
            end.result()
    assert gate.begun == 4
    with store.begin() as unit:
        for one in held:
            job = unit.jobs.get(one.job_id)
            assert job is not None
            assert (job.state, job.attempts, job.outputs) == (JobState.SUCCEEDED, 1, (output(one),))
            assert job.progress is not None
            assert (job.progress.step, job.progress.steps) == (4, 4)
            assert job.warnings == ("a prompt was cut",)
            assert job.started_at is not None
            assert job.finished_at is not None
            assert (job.finished_at - job.started_at).total_seconds() == pytest.approx(2.5)
            kinds = Counter(event.type for event in unit.events.of_job(one.job_id))
            assert (kinds[EventType.STARTED], kinds[EventType.SUCCEEDED]) == (1, 1)
        used = unit.usage.today(tenant)[0]
    assert used == pytest.approx(2.5 * JOBS)


def test_where_a_transaction_takes_long_the_next_one_does_not_wait_for_its_end(
    store: Store, submit: Submit, gate: Gate
) -> None:
    held = dispatch(store, jobs_of(store, submit))
    group_commit = GroupCommit(gate, WORKER, 30, 0.1)
    with ThreadPoolExecutor(JOBS) as pool:
        claims = [pool.submit(group_commit.claim, held[0])]
        wait_until(lambda: gate.begun == 1, 5, what="the first transaction has begun")
        claims += [pool.submit(group_commit.claim, one) for one in held[1:]]
        wait_until(lambda: gate.begun > 1, 5, what="the second one has begun")
        assert not any(one.done() for one in claims)
        gate.open.set()
        assert {one.result().id for one in claims} == {one.job_id for one in held}
    assert gate.begun <= MAX_TRANSACTIONS


def test_a_message_that_came_twice_claims_once(store: Store, submit: Submit, gate: Gate) -> None:
    first, second = dispatch(store, jobs_of(store, submit, 2))
    group_commit = GroupCommit(gate, WORKER, 30, NEVER)
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(group_commit.claim, one) for one in (first, second, second, second)]
        soon(gate)
    assert [outcome(one) for one in calls].count(LeaseLost) == 2
    with store.begin() as unit:
        job = unit.jobs.get(second.job_id)
    assert job is not None
    assert job.attempts == 1


def test_what_one_job_brings_costs_the_others_nothing(store: Store, submit: Submit, gate: Gate) -> None:
    held = dispatch(store, jobs_of(store, submit, 4))
    gate.open.set()
    group_commit = GroupCommit(gate, WORKER, 30, NEVER)
    for one in held:
        group_commit.claim(one)
    stale = HeldJob(held[3].job_id, held[3].epoch + 1)
    gate.open.clear()
    with ThreadPoolExecutor(4) as pool:
        # PostgreSQL takes no zero byte in a text; and one right is lost
        calls: list[Future[Any]] = [
            pool.submit(group_commit.succeed, one) for one in (done(held[0]), done(held[1]), done(held[2], "a\0b"))
        ]
        calls.append(pool.submit(group_commit.succeed, done(stale)))
        soon(gate)
    assert [outcome(one) for one in calls[:2]] == [None, None]
    assert outcome(calls[2]) not in {None, LeaseLost, DatabaseUnavailable}
    assert outcome(calls[3]) is LeaseLost
    with store.begin() as unit:
        states = [unit.jobs.many([one.job_id])[one.job_id].state for one in held]
    assert states == [JobState.SUCCEEDED, JobState.SUCCEEDED, JobState.RUNNING, JobState.RUNNING]


def test_a_batch_counts_a_group_and_tells_each_thing_once(
    store: Store, tenant: str, submit: Submit, gate: Gate
) -> None:
    jobs = jobs_of(store, submit)
    batch_id = ids.new(ids.BATCH)
    with store.begin() as unit:
        unit.batches.insert_batch(tenant, batch_id, NewBatch(None, {}), Staged(JOBS, 1.0), 0, None)
        for place, job in enumerate(jobs, 1):
            row = unit.session.get_one(JobRow, job.id)
            row.batch_id, row.batch_seq = batch_id, place
    gate.open.set()
    group_commit = GroupCommit(gate, WORKER, 30, NEVER)
    held = dispatch(store, jobs)
    for one in held:
        group_commit.claim(one)
    for group in (held[:4], held[4:]):
        gate.open.clear()
        with ThreadPoolExecutor(4) as pool:
            calls = [pool.submit(group_commit.succeed, done(one)) for one in group]
            soon(gate)
        assert [outcome(one) for one in calls] == [None] * 4
    with store.begin() as unit:
        batch = unit.batches.get(batch_id, tenant)
        told = [(event.type, event.data["request_counts"]["succeeded"]) for event in unit.events.of_batch(batch_id)]
    assert batch is not None
    assert batch.counts.succeeded == JOBS
    assert batch.finished_at is not None
    assert told == [(EventType.BATCH_PROGRESS, 1), (EventType.BATCH_PROGRESS, 4), (EventType.BATCH_COMPLETED, JOBS)]


def outcome(call: Future[Any]) -> type[BaseException] | None:
    error = call.exception()
    return None if error is None else type(error)
