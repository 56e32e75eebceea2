"""The policy's promises through the real store: what it must remember is remembered, what it must see is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta

import pytest
from sqlalchemy import text

from farm import lifecycle
from farm.dispatch import broker
from farm.dispatch.dispatcher import Dispatcher
from farm.domain import ids
from farm.domain.batch import BatchEntry, NewBatch
from farm.domain.job import JobFilter, NewJob, Output
from farm.domain.states import EventType, JobState, Priority
from farm.domain.worker import WorkerState
from farm.settings import Settings
from farm.store.unit_of_work import Store
from tests import job_edges

from .conftest import spec, worker_info

WORKER = "host/cpu0"
Round = Callable[[], list[str]]


@pytest.fixture
def play(farm_env: dict[str, str], store: Store) -> Iterator[Round]:
    """Plays one round of a real dispatcher; returns the jobs that it dispatched, in any order."""
    dispatcher = Dispatcher(Settings())

    def one() -> list[str]:
        before = held(store)
        dispatcher.round()
        broker.purge(dispatcher._app, WORKER)  # the worker reads its messages
        return sorted(held(store) - before)

    yield one
    dispatcher._store.close()
    dispatcher._listener.close()


def held(store: Store) -> set[str]:
    with store.begin() as unit:
        return {one.job_id for one in unit.jobs.held_by(WORKER)}


def tenant(store: Store, name: str, jobs: int = 0, weight: float = 1.0) -> str:
    with store.begin() as unit:
        made = unit.tenants.create(name, weight).id
    if jobs:
        insert(store, made, jobs)
    return made


def insert(store: Store, tenant_id: str, count: int = 1, **fields: object) -> list[str]:
    with store.begin() as unit:
        return unit.jobs.insert(tenant_id, [NewJob(spec(), **fields)] * count)  # type: ignore[arg-type]


def join(store: Store, slots: int = 1, prefetch: int = 0) -> None:
    with store.begin() as unit:
        lifecycle.join(unit, worker_info(WORKER, slots=slots, prefetch=prefetch))


def finish(store: Store, job_ids: list[str]) -> None:
    for job_id in job_ids:
        with store.begin() as unit:
            job = unit.jobs.get(job_id)
            assert job is not None
            job_edges.claim(unit, job_id, job.epoch, WORKER, 30)
            output = Output(0, f"outputs/{job_id}.png", "image/png", 10, "ab" * 32, 1, {"width": 64, "height": 64})
            job_edges.succeed(unit, job_id, job.epoch, [output], {})


def owners(store: Store, job_ids: list[str]) -> Counter[str]:
    with store.begin() as unit:
        return Counter(job.tenant_id for job in unit.jobs.many(job_ids).values())


def test_one_job_among_anothers_500_goes_in_the_next_round(store: Store, play: Round) -> None:
    big = tenant(store, "big", 500)
    small = tenant(store, "small")
    join(store, slots=3)
    for _ in range(3):
        done = play()
        assert owners(store, done) == {big: 3}
        finish(store, done)
    (lone,) = insert(store, small)
    assert lone in play()


@pytest.mark.parametrize("how", ["canceled", "paused", "held by somebody"])
def test_a_batch_that_ends_or_waits_costs_its_tenant_nothing_and_no_device_waits_for_it(
    store: Store, play: Round, how: str
) -> None:
    mine, other = tenant(store, "mine"), tenant(store, "other", 30)
    batch_id = ids.new(ids.BATCH)
    with store.begin() as unit:
        staged = unit.batches.stage(BatchEntry(line, NewJob(spec())) for line in range(1, 41))
        lifecycle.submit_batch(unit, mine, batch_id, NewBatch(), staged)
    insert(store, mine, 2, priority=Priority.INTERACTIVE)
    join(store, slots=4)
    with ExitStack() as stack:
        if how == "held by somebody":
            unit = stack.enter_context(store.begin())
            unit.session.execute(
                text("SELECT FROM job WHERE batch_id = :id FOR UPDATE"), {"id": ids.to_uuid(ids.BATCH, batch_id)}
            )
        else:
            with store.begin() as unit:  # and nobody has gone on to its jobs yet
                {"canceled": lifecycle.cancel_batch, "paused": lifecycle.pause_batch}[how](unit, mine, batch_id)
        done = play()
        assert owners(store, done) == {mine: 2, other: 2}
        finish(store, done)
        done = play()
        assert owners(store, done) == {other: 4}
    with store.begin() as unit:
        vtimes = {share.tenant_id: share.vtime for share in unit.tenants.shares()}
    assert vtimes[mine] < vtimes[other]


@pytest.mark.parametrize("how", ["canceled", "paused"])
def test_what_is_submitted_behind_a_batch_that_ends_or_waits_does_not_wait_for_its_rows(
    store: Store, play: Round, how: str
) -> None:
    """The wrong prompt: canceled, mended and sent again, into the same line."""
    mine = tenant(store, "mine")
    for _ in range(3):
        batch_id = ids.new(ids.BATCH)
        with store.begin() as unit:
            staged = unit.batches.stage(BatchEntry(line, NewJob(spec())) for line in range(1, 41))
            lifecycle.submit_batch(unit, mine, batch_id, NewBatch(), staged)
        with store.begin() as unit:  # and nobody has gone on to its jobs yet
            {"canceled": lifecycle.cancel_batch, "paused": lifecycle.pause_batch}[how](unit, mine, batch_id)
    mended = sorted(insert(store, mine, 6))
    join(store, slots=4)
    assert play() == mended[:4]
    finish(store, mended[:4])
    assert play() == mended[4:]


def test_shares_follow_the_weights_from_round_to_round(store: Store, play: Round) -> None:
    names = {tenant(store, "light", 200): 1, tenant(store, "heavy", 200, weight=3): 3}
    join(store)
    served: Counter[str] = Counter()
    for _ in range(80):
        done = play()
        served += owners(store, done)
        finish(store, done)
    for name, weight in names.items():
        assert abs(served[name] - 20 * weight) <= 1
    with store.begin() as unit:
        assert all(share.backlogged and share.vtime > 0 for share in unit.tenants.shares())


def test_a_cap_counts_what_is_at_workers(store: Store, play: Round) -> None:
    capped = tenant(store, "capped", 9)
    with store.begin() as unit:
        unit.session.execute(text("UPDATE tenant SET max_running = 2"))
    join(store, slots=5)
    first = play()
    assert owners(store, first) == {capped: 2}
    assert play() == []
    finish(store, first[:1])
    assert len(play()) == 1


def test_pauses_and_drains_hold_jobs_back_and_let_them_go(store: Store, play: Round) -> None:
    one = tenant(store, "one", 9)
    join(store, slots=9)

    def act(**pause: str) -> None:
        with store.begin() as unit:
            unit.pauses.pause(**pause)
            unit.pauses.pause(**pause)
        assert play() == []
        with store.begin() as unit:
            assert unit.pauses.resume(**pause)
            assert not unit.pauses.resume(**pause)

    act()
    act(model="starter")
    with store.begin() as unit:
        assert unit.tenants.pause(one)
    assert play() == []
    with store.begin() as unit:
        assert unit.tenants.resume(one)
        unit.workers.set_state(WORKER, WorkerState.DRAINING)
    assert play() == []
    with store.begin() as unit:
        unit.workers.set_state(WORKER, WorkerState.ONLINE)
    assert len(play()) == 9


def test_a_job_waits_for_its_time_and_lets_the_others_pass(store: Store, play: Round) -> None:
    one = tenant(store, "one")
    with store.begin() as unit:
        now = unit.now()
    later = insert(store, one, 20, not_before=now + timedelta(hours=1))
    past = insert(store, one, not_before=now - timedelta(hours=1))
    insert(store, one)
    join(store, slots=30)
    assert len(done := play()) == 2
    assert not set(later) & set(done)
    with store.begin() as unit:
        job = unit.jobs.get(past[0])
        assert job is not None
        assert job.available_at >= now  # the past is no way to the front


def test_a_waiting_job_fails_at_its_deadline_and_no_other_does(store: Store, play: Round) -> None:
    one = tenant(store, "one")
    with store.begin() as unit:
        now = unit.now()
    late = insert(store, one, deadline=now - timedelta(seconds=1))
    soon = insert(store, one, deadline=now + timedelta(hours=1))
    plain = insert(store, one)
    join(store, slots=9)
    assert play() == sorted(soon + plain)  # too late, even before anybody says so
    with store.begin() as unit:
        assert lifecycle.expire(unit) == late
    with store.begin() as unit:
        assert lifecycle.expire(unit) == []
        job = unit.jobs.get(late[0])
        assert job is not None
        assert job.error is not None
        assert (job.state, job.error.code) == (JobState.FAILED, "deadline_exceeded")
        assert [event.type for event in unit.events.of_job(late[0])] == [EventType.FAILED]


def test_a_retry_keeps_its_place(store: Store, play: Round) -> None:
    one = tenant(store, "one", 50)
    join(store)
    (first,) = play()
    with store.begin() as unit:
        job_edges.claim(unit, first, 1, WORKER, 30)
        lifecycle.release(unit, first, 1, "test")
    assert play() == [first]
    assert one


def test_a_deep_backlog_hides_no_line_behind_it(store: Store, play: Round) -> None:
    one = tenant(store, "one", 300)
    (urgent,) = insert(store, one, priority=Priority.INTERACTIVE)
    with store.begin() as unit:
        unit.session.execute(text("UPDATE job SET model = 'other' WHERE id = (SELECT max(id::text)::uuid FROM job)"))
        queues = unit.queues.read(10)
    assert {(queue.priority, queue.model): (len(queue.candidates), queue.more) for queue in queues} == {
        (Priority.NORMAL, "starter"): (8, True),
        (Priority.INTERACTIVE, "other"): (1, False),
    }
    join(store)
    assert play() == [urgent]


def test_assignments_that_were_not_sent_are_not_charged(
    store: Store, farm_env: dict[str, str], full_redis: Callable[[], None]
) -> None:
    one = tenant(store, "one", 5)
    join(store, slots=3)
    full_redis()
    dispatcher = Dispatcher(Settings())
    dispatcher.round()
    with store.begin() as unit:
        (share,) = unit.tenants.shares()
        job = unit.jobs.page(one, JobFilter(), None, 5)[0][-1]
    assert (job.state, job.epoch) == (JobState.QUEUED, 1)
    assert abs(share.vtime) < 1e-9
    dispatcher._store.close()
    dispatcher._listener.close()
