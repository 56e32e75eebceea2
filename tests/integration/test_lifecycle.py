"""The promises of the state machine, on a real Postgres. Long because each edge has its tests here."""

from __future__ import annotations

import select
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DatabaseError, IntegrityError

from farm import lifecycle
from farm.domain.job import HeldJob, Job, JobError, JobFilter, NewJob, Output, Selection
from farm.domain.queue import Assignment
from farm.domain.states import EDGES, TERMINAL, EventType, JobState
from farm.errors import BadInput, Conflict, LeaseLost, NotFound, QuotaExceeded
from farm.services.inputs import output_of
from farm.store import quotas
from farm.store.deliveries import DeliveryFilter
from farm.store.unit_of_work import Store
from tests import job_edges
from tests.queues import candidates
from tests.waiting import wait_until

from .conftest import Submit, spec, worker_info

WORKER = "host/cpu0"
OUTPUT = Output(0, "outputs/x.png", "image/png", 10, "ab" * 32, 1, {"width": 64, "height": 64})
BROKEN = JobError("render_failed", "it broke")
#: Keeps every change of a job's state.
RECORD = """
    CREATE TABLE transition (before text, after text);
    CREATE FUNCTION record_transition() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO transition VALUES (OLD.state, NEW.state);
        RETURN NULL;
    END $$;
    CREATE TRIGGER record_transition AFTER UPDATE OF state ON job FOR EACH ROW
        WHEN (OLD.state <> NEW.state) EXECUTE FUNCTION record_transition();
"""


def get(store: Store, job: Job) -> Job:
    with store.begin() as unit:
        found = unit.jobs.get(job.id)
    assert found is not None
    return found


def dispatch(store: Store, job: Job, worker: str = WORKER, lease: float = 30) -> int:
    with store.begin() as unit:
        (sent,) = lifecycle.dispatch(unit, [Assignment(job.id, worker)], lease)
    return sent.epoch


def run(store: Store, job: Job, worker: str = WORKER, lease: float = 30, *, on_device: bool = True) -> int:
    epoch = dispatch(store, job, worker)
    with store.begin() as unit:
        job_edges.claim(unit, job.id, epoch, worker, lease)
        if on_device:
            job_edges.start(unit, job.id, epoch, 4)
    return epoch


def succeed(store: Store, job: Job, epoch: int) -> Job:
    with store.begin() as unit:
        return job_edges.succeed(unit, job.id, epoch, [OUTPUT], {"made": "here"})


def expire(store: Store, job: Job) -> None:
    """Let the lease end, by the database's clock."""
    with store.begin() as unit:
        unit.session.execute(text("UPDATE job SET lease_until = now() - interval '1 second'"))
        unit.session.execute(text("UPDATE job SET available_at = now() WHERE state = 'queued'"))


def available_now(store: Store) -> None:
    with store.begin() as unit:
        unit.session.execute(text("UPDATE job SET available_at = now()"))


def reap(store: Store) -> list[str]:
    with store.begin() as unit:
        return lifecycle.reap(unit)


def events(store: Store, job: Job) -> list[str]:
    with store.begin() as unit:
        return [event.type.value for event in unit.events.of_job(job.id)]


def test_the_way_of_a_job_ends_in_success_with_its_outputs_and_its_events(store: Store, submit: Submit) -> None:
    job = submit()
    epoch = run(store, job)
    with store.begin() as unit:
        assert job_edges.progress(unit, job.id, epoch, 2) is False
    done = succeed(store, job, epoch)
    assert (done.state, done.outputs, done.attempts) == (JobState.SUCCEEDED, (OUTPUT,), 1)
    assert events(store, job) == [EventType.STARTED, EventType.SUCCEEDED]


def test_a_stale_epoch_cannot_commit(store: Store, submit: Submit) -> None:
    job = submit()
    stale = run(store, job)
    expire(store, job)
    assert reap(store) == [job.id]
    fresh = run(store, job, "host/cpu1")
    for act in (
        lambda unit: job_edges.succeed(unit, job.id, stale, [OUTPUT], {}),
        lambda unit: lifecycle.fail(unit, job.id, stale, BROKEN, retryable=True),
        lambda unit: lifecycle.release(unit, job.id, stale, "x"),
        lambda unit: job_edges.progress(unit, job.id, stale, 1),
        lambda unit: job_edges.start(unit, job.id, stale, 1),
        lambda unit: job_edges.claim(unit, job.id, stale, WORKER, 30),
    ):
        with pytest.raises(LeaseLost), store.begin() as unit:
            act(unit)
    assert succeed(store, job, fresh).state is JobState.SUCCEEDED


def test_a_doubled_message_is_claimed_once(store: Store, submit: Submit) -> None:
    job = submit()
    epoch = dispatch(store, job)

    def claim(_: int) -> bool:
        try:
            with store.begin() as unit:
                job_edges.claim(unit, job.id, epoch, WORKER, 30)
        except LeaseLost:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(claim, range(8))) == 1
    assert get(store, job).attempts == 1


def test_another_worker_cannot_claim_a_dispatched_job(store: Store, submit: Submit) -> None:
    job = submit()
    epoch = dispatch(store, job, "host/cpu0")
    with pytest.raises(LeaseLost), store.begin() as unit:
        job_edges.claim(unit, job.id, epoch, "host/cpu1", 30)


def test_a_dispatch_skips_rows_that_are_locked(store: Store, submit: Submit) -> None:
    held, free = submit(), submit()
    with store.begin() as other:  # as one that cancels a million jobs does, for seconds
        other.session.execute(text("SELECT FROM job WHERE id = :id FOR UPDATE"), {"id": held.id.removeprefix("job_")})
        with store.begin() as unit:
            unit.session.execute(text("SET LOCAL lock_timeout = '1s'"))
            sent = lifecycle.dispatch(unit, [Assignment(held.id, WORKER), Assignment(free.id, WORKER)], 30)
    assert [one.job_id for one in sent] == [free.id]
    assert dispatch(store, held) == 1


def test_a_dispatched_job_that_is_not_claimed_is_requeued_without_counting(store: Store, submit: Submit) -> None:
    job = submit()
    dispatch(store, job)
    expire(store, job)
    assert reap(store) == [job.id]
    found = get(store, job)
    assert (found.state, found.attempts) == (JobState.QUEUED, 0)
    assert dispatch(store, job) == 2


def test_two_reapers_take_a_job_back_once(store: Store, submit: Submit) -> None:
    jobs = [submit() for _ in range(20)]
    for job in jobs:
        run(store, job)
    expire(store, jobs[0])
    with ThreadPoolExecutor(4) as pool:
        taken = [job_id for part in pool.map(lambda _: reap(store), range(4)) for job_id in part]
    assert sorted(taken) == sorted(job.id for job in jobs)


def test_outputs_of_any_media_keep_what_is_known_of_their_content(store: Store, tenant: str, submit: Submit) -> None:
    job = submit()
    video = Output(0, "outputs/x.mp4", "video/mp4", 10, "ab" * 32, 7, {"width": 64, "height": 48, "seconds": 2.5})
    sound = Output(1, "outputs/x.wav", "audio/wav", 20, "cd" * 32, 8, {"sample_rate": 44_100})
    with store.begin() as unit:
        (sent,) = lifecycle.dispatch(unit, [Assignment(job.id, WORKER)], 30)
        job_edges.claim(unit, job.id, sent.epoch, WORKER, 30)
        made = job_edges.succeed(unit, job.id, sent.epoch, [video, sound], {}).outputs
    assert made == (video, sound)
    assert [(one.width, one.height) for one in made] == [(64, 48), (None, None)]
    with store.begin() as unit:
        assert [one.width for one in unit.activity.latest_outputs(9, tenant)] == [64, None]


def test_a_jobs_own_webhook_gets_the_events_that_the_job_names_and_so_does_its_retry(store: Store, tenant: str) -> None:
    def delivered(*, succeed: bool, job: Job) -> list[EventType]:
        with store.begin() as unit:
            (sent,) = lifecycle.dispatch(unit, [Assignment(job.id, WORKER)], 30)
            job_edges.claim(unit, job.id, sent.epoch, WORKER, 30)
            if succeed:
                job_edges.succeed(unit, job.id, sent.epoch, [OUTPUT], {})
            else:
                lifecycle.fail(unit, job.id, sent.epoch, JobError("broken", "it broke"), retryable=False)
        with store.begin() as unit:
            while unit.outbox.fan_out(lambda: "whsec_secret"):
                pass
            return sorted(one.type for one in unit.deliveries.page(tenant, DeliveryFilter(job_id=job.id), None, 9)[0])

    named = (EventType.STARTED, EventType.FAILED)
    with store.begin() as unit:
        usual = lifecycle.submit(unit, tenant, NewJob(spec(), webhook="https://example.com/usual"))[0]
        own = NewJob(spec(), webhook="https://example.com/own", webhook_events=named)
        good, bad = (lifecycle.submit(unit, tenant, own)[0] for _ in range(2))
    assert delivered(succeed=True, job=usual) == [EventType.SUCCEEDED]
    assert delivered(succeed=True, job=good) == [EventType.STARTED]
    assert delivered(succeed=False, job=bad) == sorted(named)
    with store.begin() as unit:
        again, _ = lifecycle.retry(unit, tenant, bad.id)
        assert unit.bulk_actions.count_retryable(tenant, Selection(job_ids=(bad.id,))).total == 0  # it was retried
    assert delivered(succeed=False, job=again) == sorted(named)
    with store.begin() as unit:
        assert lifecycle.retry_selected(unit, tenant, Selection(job_ids=(again.id,))) == 1
        (third,) = unit.jobs.page(tenant, JobFilter(state=(JobState.QUEUED,)), None, 9)[0]
    assert delivered(succeed=False, job=third) == sorted(named)


def test_heartbeats_keep_a_lease_and_tell_what_is_lost_or_canceled(store: Store, tenant: str, submit: Submit) -> None:
    info = worker_info(WORKER)
    with store.begin() as unit:
        lifecycle.join(unit, info)
    kept, lost, canceled = submit(), submit(), submit()
    held = [HeldJob(job.id, run(store, job)) for job in (kept, lost, canceled)]
    with store.begin() as unit:
        lifecycle.release(unit, lost.id, held[1].epoch, "taken away")
        lifecycle.cancel(unit, tenant, canceled.id)
    expire(store, kept)
    with store.begin() as unit:
        beat = lifecycle.heartbeat(unit, WORKER, info.boot_id, held, ("starter",), 30)
    assert beat.held == {kept.id, canceled.id}
    assert beat.canceled == {canceled.id}
    assert reap(store) == []


def test_a_retryable_failure_is_tried_again_until_the_attempts_are_used(store: Store, submit: Submit) -> None:
    job = submit(max_attempts=2)
    epoch = run(store, job)
    with store.begin() as unit:
        assert lifecycle.fail(unit, job.id, epoch, BROKEN, retryable=True) is JobState.QUEUED
    with store.begin() as unit:
        assert candidates(unit, 5) == []  # it waits before the next attempt
    available_now(store)
    epoch = run(store, job)
    with store.begin() as unit:
        assert lifecycle.fail(unit, job.id, epoch, BROKEN, retryable=True) is JobState.FAILED
    found = get(store, job)
    assert (found.error, found.attempts) == (BROKEN, 2)
    assert events(store, job).count(EventType.FAILED) == 1


def test_a_job_that_kills_two_workers_is_not_given_to_a_third(store: Store, submit: Submit) -> None:
    job = submit(max_attempts=10)
    for _ in range(2):
        assert get(store, job).state is JobState.QUEUED
        run(store, job)
        expire(store, job)
        reap(store)
    found = get(store, job)
    assert found.state is JobState.FAILED
    assert found.error is not None
    assert found.error.code == "worker_lost"


def test_a_job_that_only_waited_at_dying_workers_is_not_to_blame(store: Store, submit: Submit) -> None:
    job = submit(max_attempts=1)
    for _ in range(4):
        run(store, job, on_device=False)
        expire(store, job)
        reap(store)
    found = get(store, job)
    assert (found.state, found.attempts) == (JobState.QUEUED, 0)


def test_what_kills_workers_before_the_device_is_capped_too(store: Store, submit: Submit) -> None:
    job = submit()
    for _ in range(lifecycle.MAX_LOST):
        assert get(store, job).state is JobState.QUEUED
        run(store, job, on_device=False)
        expire(store, job)
        reap(store)
    assert get(store, job).state is JobState.FAILED


def test_a_worker_that_joins_again_releases_the_jobs_of_its_last_process(store: Store, submit: Submit) -> None:
    first, second = worker_info(WORKER), worker_info(WORKER)
    with store.begin() as unit:
        lifecycle.join(unit, first)
    job = submit()
    epoch = run(store, job)
    with store.begin() as unit:
        assert lifecycle.join(unit, second) == [job.id]
    assert get(store, job).state is JobState.QUEUED
    with pytest.raises(LeaseLost), store.begin() as unit:
        lifecycle.heartbeat(unit, WORKER, first.boot_id, [HeldJob(job.id, epoch)], (), 30)
    with store.begin() as unit:
        assert lifecycle.leave(unit, WORKER, first.boot_id) == []


def test_a_worker_that_leaves_gives_its_jobs_back_without_counting(store: Store, submit: Submit) -> None:
    info = worker_info(WORKER)
    with store.begin() as unit:
        lifecycle.join(unit, info)
    running, waiting = submit(), submit()
    run(store, running)
    dispatch(store, waiting)
    with store.begin() as unit:
        assert set(lifecycle.leave(unit, WORKER, info.boot_id)) == {running.id, waiting.id}
    assert [get(store, job).attempts for job in (running, waiting)] == [0, 0]
    assert [get(store, job).state for job in (running, waiting)] == [JobState.QUEUED, JobState.QUEUED]


def test_jobs_whose_message_was_not_sent_are_requeued_unless_claimed(store: Store, submit: Submit) -> None:
    claimed, unsent = submit(), submit()
    with store.begin() as unit:
        sent = lifecycle.dispatch(unit, [Assignment(claimed.id, WORKER), Assignment(unsent.id, WORKER)], 30)
    with store.begin() as unit:
        job_edges.claim(unit, claimed.id, 1, WORKER, 30)
    with store.begin() as unit:
        assert lifecycle.requeue_unsent(unit, sent, "broker unavailable") == [unsent.id]
    assert get(store, claimed).state is JobState.RUNNING
    assert get(store, unsent).state is JobState.QUEUED


@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.DISPATCHED])
def test_a_waiting_job_is_canceled_at_once(store: Store, tenant: str, submit: Submit, state: JobState) -> None:
    job = submit()
    epoch = dispatch(store, job) if state is JobState.DISPATCHED else 0
    with store.begin() as unit:
        assert lifecycle.cancel(unit, tenant, job.id).state is JobState.CANCELED
    with pytest.raises(LeaseLost), store.begin() as unit:
        job_edges.claim(unit, job.id, epoch, WORKER, 30)
    with store.begin() as unit:  # again: nothing more happens
        lifecycle.cancel(unit, tenant, job.id)
    assert events(store, job) == [EventType.CANCELED]


def test_a_running_job_is_canceled_by_its_worker(store: Store, tenant: str, submit: Submit) -> None:
    job = submit()
    epoch = run(store, job)
    with store.begin() as unit:
        assert lifecycle.cancel(unit, tenant, job.id).cancel_requested
    with store.begin() as unit:
        assert job_edges.progress(unit, job.id, epoch, 1) is True
        lifecycle.confirm_cancel(unit, job.id, epoch)
    assert get(store, job).state is JobState.CANCELED


def test_a_job_that_was_asked_to_stop_is_canceled_when_its_worker_gives_it_back(
    store: Store, tenant: str, submit: Submit
) -> None:
    job = submit()
    epoch = run(store, job)
    with store.begin() as unit:
        lifecycle.cancel(unit, tenant, job.id)
    with store.begin() as unit:
        lifecycle.release(unit, job.id, epoch, "drained")
    assert get(store, job).state is JobState.CANCELED
    with pytest.raises(LeaseLost), store.begin() as unit:
        lifecycle.release(unit, job.id, epoch, "drained")


def test_a_cancel_finds_a_job_that_is_given_back_at_that_moment(
    store: Store, tenant: str, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit()
    epoch = run(store, job)
    with store.begin() as unit:
        ask = unit.jobs.request_cancel

        def too_late(tenant_id: str, job_id: str) -> bool:
            """Its worker gives it back before the second question is asked."""
            monkeypatch.undo()
            with store.begin() as other:
                lifecycle.release(other, job_id, epoch, "drained")
            return ask(tenant_id, job_id)

        monkeypatch.setattr(unit.jobs, "request_cancel", too_late)
        assert lifecycle.cancel(unit, tenant, job.id).state is JobState.CANCELED
    assert get(store, job).state is JobState.CANCELED


def test_a_canceled_job_whose_worker_dies_is_not_rendered_again(store: Store, tenant: str, submit: Submit) -> None:
    job = submit()
    run(store, job)
    with store.begin() as unit:
        lifecycle.cancel(unit, tenant, job.id)
    expire(store, job)
    reap(store)
    assert get(store, job).state is JobState.CANCELED


def test_cancel_and_success_have_one_winner(store: Store, tenant: str, submit: Submit) -> None:
    for _ in range(10):
        job = submit()
        epoch = run(store, job)
        with store.begin() as unit:
            lifecycle.cancel(unit, tenant, job.id)

        def ends(how: int, job: Job = job, epoch: int = epoch) -> bool:
            try:
                with store.begin() as unit:
                    if how:
                        lifecycle.confirm_cancel(unit, job.id, epoch)
                    else:
                        job_edges.succeed(unit, job.id, epoch, [OUTPUT], {})
            except LeaseLost:
                return False
            return True

        with ThreadPoolExecutor(2) as pool:
            assert sum(pool.map(ends, range(2))) == 1


def test_a_terminal_state_never_changes(store: Store, tenant: str, submit: Submit) -> None:
    job = submit()
    epoch = run(store, job)
    succeed(store, job, epoch)
    acts: list[Any] = [
        lambda unit: lifecycle.fail(unit, job.id, epoch, BROKEN, retryable=True),
        lambda unit: lifecycle.release(unit, job.id, epoch, "x"),
        lambda unit: lifecycle.confirm_cancel(unit, job.id, epoch),
        lambda unit: job_edges.succeed(unit, job.id, epoch, [OUTPUT], {}),
        lambda unit: lifecycle.cancel(unit, tenant, job.id),
    ]
    for act in acts:
        with pytest.raises((LeaseLost, Conflict)), store.begin() as unit:
            act(unit)
    with store.begin() as unit:
        assert lifecycle.dispatch(unit, [Assignment(job.id, WORKER)], 30) == []
    assert get(store, job).state is JobState.SUCCEEDED


def test_the_database_itself_refuses_a_second_end(store: Store, tenant: str, submit: Submit) -> None:
    job = submit()
    with store.begin() as unit:
        unit.events.record(tenant, job.id, 1, EventType.SUCCEEDED)
    with pytest.raises(IntegrityError), store.begin() as unit:
        unit.events.record(tenant, job.id, 2, EventType.FAILED)


def test_a_retry_is_a_new_job_and_leaves_the_old_one(store: Store, tenant: str, submit: Submit) -> None:
    job = submit(max_attempts=1)
    epoch = run(store, job)
    with store.begin() as unit:
        lifecycle.fail(unit, job.id, epoch, BROKEN, retryable=False)
    with store.begin() as unit:
        again, _ = lifecycle.retry(unit, tenant, job.id)
    assert (again.retry_of, again.spec, again.state) == (job.id, job.spec, JobState.QUEUED)
    assert get(store, job).state is JobState.FAILED
    with pytest.raises(Conflict), store.begin() as unit:
        lifecycle.retry(unit, tenant, again.id)


def test_one_idempotency_key_makes_one_job_also_under_twenty_parallel_requests(store: Store, tenant: str) -> None:
    key = lifecycle.IdempotencyKey("order-7", b"hash")

    def send(_: int) -> str:
        with store.begin() as unit:
            return lifecycle.submit(unit, tenant, NewJob(spec()), key)[0].id

    with ThreadPoolExecutor(20) as pool:
        assert len(set(pool.map(send, range(20)))) == 1
    with store.begin() as unit:
        assert sum(unit.jobs.counts(tenant).values()) == 1
    other = lifecycle.IdempotencyKey("order-7", b"another hash")
    with pytest.raises(BadInput), store.begin() as unit:
        lifecycle.submit(unit, tenant, NewJob(spec()), other)


def test_a_request_that_fails_leaves_its_key_free(store: Store, tenant: str) -> None:
    key = lifecycle.IdempotencyKey("order-8", b"hash")

    def fails_after_submitting() -> None:
        with store.begin() as unit:
            lifecycle.submit(unit, tenant, NewJob(spec()), key)
            raise NotFound("image", "x")

    with pytest.raises(NotFound):
        fails_after_submitting()
    with store.begin() as unit:
        _, made = lifecycle.submit(unit, tenant, NewJob(spec()), key)
    assert made


def test_a_tenant_cannot_queue_more_than_its_limit(store: Store, tenant: str, submit: Submit) -> None:
    with store.begin() as unit:
        unit.session.execute(text("UPDATE tenant SET max_queued = 2"))
    submit()
    submit()
    with pytest.raises(QuotaExceeded):
        submit()


def test_a_large_queue_is_counted_once_in_a_while_and_its_limit_holds(
    store: Store, tenant: str, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quotas, "EXACT_LIMIT", 1)
    monkeypatch.setattr(quotas, "COUNT_TTL_SECONDS", 3600.0)
    asked: list[int] = []
    count = quotas.Quotas.waiting

    def counted(self: quotas.Quotas, tenant_id: str, at_most: int) -> int:
        asked.append(at_most)
        return count(self, tenant_id, at_most)

    monkeypatch.setattr(quotas.Quotas, "waiting", counted)
    with store.begin() as unit:
        unit.session.execute(text("UPDATE tenant SET max_queued = 3"))
    jobs = [submit() for _ in range(3)]
    with pytest.raises(QuotaExceeded):
        submit()
    with store.begin() as unit:
        lifecycle.cancel(unit, tenant, jobs[0].id)
    with pytest.raises(QuotaExceeded):
        submit()  # the count is a little old
    assert asked == [3]
    with store.begin() as unit:
        assert unit.quotas.admit(tenant, 1, 3) is False
        assert unit.quotas.admit(tenant, 2, 3) is False  # many at once are always preceded by a count
    assert asked == [3, 3]
    monkeypatch.setattr(quotas, "COUNT_TTL_SECONDS", 0.0)
    submit()
    with pytest.raises(QuotaExceeded):
        submit()
    assert asked == [3, 3, 3, 3]


def test_another_tenants_job_looks_like_none(store: Store, submit: Submit) -> None:
    job = submit()
    with store.begin() as unit:
        stranger = unit.tenants.create("stranger").id
        assert unit.jobs.get(job.id, stranger) is None
    for act in (lifecycle.cancel, lifecycle.retry):
        with pytest.raises(NotFound), store.begin() as unit:
            act(unit, stranger, job.id)
    assert get(store, job).state is JobState.QUEUED


def test_pages_neither_repeat_nor_miss_a_job_while_others_arrive(store: Store, tenant: str, submit: Submit) -> None:
    from farm.domain.job import JobFilter

    old = [submit().id for _ in range(7)]
    seen: list[str] = []
    cursor = None
    while True:
        with store.begin() as unit:
            page, cursor = unit.jobs.page(tenant, JobFilter(), cursor, 3)
        seen += [job.id for job in page]
        submit()
        if cursor is None:
            break
    assert [one for one in seen if one in old] == sorted(old, reverse=True)
    assert len(set(seen)) == len(seen)


# -- the edges -------------------------------------------------------------------------------------------------------


def overdue(store: Store, job: Job) -> None:
    """Let the job's deadline pass, and fail those that wait longer than theirs."""
    with store.begin() as unit:
        unit.session.execute(text("UPDATE job SET deadline = now() - interval '1 second'"))
    with store.begin() as unit:
        assert lifecycle.expire(unit) == [job.id]


def fail(store: Store, job: Job) -> None:
    epoch = run(store, job)
    with store.begin() as unit:
        lifecycle.fail(unit, job.id, epoch, BROKEN, retryable=False)


def give_up(store: Store, job: Job) -> None:
    """Run the job, and cancel it; its worker stops at the next step."""
    epoch = run(store, job)
    cancel(store, job)
    with store.begin() as unit:
        lifecycle.confirm_cancel(unit, job.id, epoch)


def let_lease_end(store: Store, job: Job) -> None:
    expire(store, job)
    assert reap(store) == [job.id]


def cancel(store: Store, job: Job) -> None:
    with store.begin() as unit:
        lifecycle.cancel(unit, job.tenant_id, job.id)


def chained(then: Callable[[Store, Job, Job], object]) -> Callable[[Store, Job], object]:
    """Submit a job that has an output of the given one as an input, and let ``then`` do something to the two."""

    def act(store: Store, parent: Job) -> None:
        file = output_of(parent, 0, "image", parent.id)
        new = NewJob(spec().model_copy(update={"task": "image-to-image", "inputs": {"image": (file,)}}))
        with store.begin() as unit:
            child = lifecycle.submit(unit, parent.tenant_id, new)[0]
        assert child.state is JobState.PENDING
        then(store, parent, child)

    return act


#: For each edge, a way in which the lifecycle takes a queued job along it, or one that has its output as an input.
WAYS: dict[tuple[JobState, JobState], tuple[Callable[[Store, Job], object], ...]] = {
    (JobState.PENDING, JobState.QUEUED): (
        chained(lambda store, parent, _: succeed(store, parent, run(store, parent))),
    ),
    (JobState.PENDING, JobState.FAILED): (chained(lambda store, parent, _: fail(store, parent)),),
    (JobState.PENDING, JobState.CANCELED): (chained(lambda store, _, child: cancel(store, child)),),
    (JobState.QUEUED, JobState.DISPATCHED): (dispatch,),
    (JobState.QUEUED, JobState.FAILED): (overdue,),
    (JobState.QUEUED, JobState.CANCELED): (cancel,),
    (JobState.DISPATCHED, JobState.RUNNING): (run,),
    (JobState.DISPATCHED, JobState.QUEUED): (dispatch, let_lease_end),
    (JobState.DISPATCHED, JobState.CANCELED): (dispatch, cancel),
    (JobState.RUNNING, JobState.SUCCEEDED): (lambda store, job: succeed(store, job, run(store, job)),),
    (JobState.RUNNING, JobState.FAILED): (fail,),
    (JobState.RUNNING, JobState.QUEUED): (run, let_lease_end),
    (JobState.RUNNING, JobState.CANCELED): (give_up,),
}


@pytest.mark.parametrize(
    ("before", "after"), [(before, after) for before, targets in EDGES.items() for after in sorted(targets)]
)
def test_the_lifecycle_takes_a_job_along_each_edge(
    store: Store, database_url: str, submit: Submit, before: JobState, after: JobState
) -> None:
    job = submit()
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(RECORD)
        for act in WAYS[before, after]:
            act(store, job)
        made = connection.execute("SELECT before, after FROM transition").fetchall()
    assert (before, after) in made
    if before is not JobState.PENDING:
        assert get(store, job).state is after


def test_a_change_along_no_edge_is_refused(store: Store, submit: Submit) -> None:
    """In every database of these tests, so that each of them checks the edges."""
    job = submit()
    succeed(store, job, run(store, job))
    for after in JobState:
        if after is not JobState.SUCCEEDED:
            with pytest.raises(DatabaseError, match=f"went from succeeded to {after}"), store.begin() as unit:
                unit.session.execute(text("UPDATE job SET state = :after"), {"after": after})


def test_no_terminal_state_has_an_edge() -> None:
    assert {state for state in JobState if not EDGES[state]} == TERMINAL


# -- the connection --------------------------------------------------------------------------------------------------


def sockets(store: Store) -> list[int]:
    """Open three connections at once, have them listen, and leave them in the pool; their file descriptors."""
    found: list[int] = []
    with ExitStack() as stack:
        for _ in range(3):
            held = stack.enter_context(store.begin()).session.connection().connection.driver_connection
            assert isinstance(held, psycopg.Connection)
            held.execute("LISTEN test")
            found.append(held.fileno())
    return found


def test_a_connection_that_the_server_dropped_is_replaced_before_use(store: Store, database_url: str) -> None:
    sockets(store)
    with psycopg.connect(database_url, autocommit=True) as other:
        mine = "FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'farm'"
        ended = other.execute(f"SELECT pg_terminate_backend(pid, 5000) {mine}").fetchall()
        assert len(ended) >= 3
        for _ in range(4):  # none of them fails, nor those that come after
            store.check()
        # something to be read is no good-bye: here a notification
        idle = sockets(store)
        before = set(other.execute(f"SELECT pid {mine}").fetchall())
        other.execute("NOTIFY test")
        wait_until(lambda: len(select.select(idle, [], [], 0)[0]) == len(idle), what="each connection is notified")
        for _ in range(4):
            store.check()
        assert set(other.execute(f"SELECT pid {mine}").fetchall()) == before
