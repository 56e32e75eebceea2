"""Jobs whose inputs are outputs of other jobs: they wait, start, fail and are retried as their inputs say."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from farm import lifecycle
from farm.domain import ids
from farm.domain.batch import BatchEntry, NewBatch
from farm.domain.job import Job, JobError, NewJob, Output, Selection
from farm.domain.job_spec import InputFile, JobSpec
from farm.domain.queue import Assignment
from farm.domain.states import EventType, JobState
from farm.errors import BadInput, Conflict, QuotaExceeded
from farm.services import inputs
from farm.store.retention import Retention
from farm.store.unit_of_work import Store
from tests import job_edges

from .conftest import spec, worker_info

WORKER = "host/cpu0"


def output(job: Job, index: int = 0) -> Output:
    """An output whose hash says of which job it is."""
    digest = f"{ids.to_uuid(ids.JOB, job.id).int:032x}{index:032x}"
    return Output(
        index, f"outputs/{job.id}/{index}.png", "image/png", 9, digest, 1 + index, {"width": 64, "height": 64}
    )


@dataclass
class Chain:
    """A tenant's jobs, and one worker."""

    store: Store
    tenant: str

    def submit(self, *parents: Job | str, **more: Any) -> Job:
        """A job with an input from each of these jobs."""
        with self.store.begin() as unit:
            new = NewJob(self.spec(*parents), **more)
            return lifecycle.submit(unit, self.tenant, new)[0]

    def spec(self, *parents: Job | str) -> JobSpec:
        if not parents:
            return spec()
        files = [
            inputs.output_of(one, 0, "image", one.id)
            if isinstance(one, Job)
            else InputFile(sha256="", key="", media_type="image/png", size=0, job=one)
            for one in parents
        ]
        base = spec().model_dump(exclude={"inputs"}) | {"task": "image-to-image"}
        return JobSpec.model_validate(base | {"inputs": {"image": files}})

    def get(self, job: Job) -> Job:
        with self.store.begin() as unit:
            found = unit.jobs.get(job.id)
        assert found is not None
        return found

    def state(self, job: Job) -> JobState:
        return self.get(job).state

    def start(self, job: Job) -> Job:
        """To the worker, and claimed."""
        with self.store.begin() as unit:
            lifecycle.join(unit, worker_info(WORKER))
            (sent,) = lifecycle.dispatch(unit, [Assignment(job.id, WORKER)], 30)
        with self.store.begin() as unit:
            return job_edges.claim(unit, sent.job_id, sent.epoch, WORKER, 30)

    def succeed(self, job: Job) -> Job:
        running = self.start(job)
        with self.store.begin() as unit:
            return job_edges.succeed(unit, job.id, running.epoch, [output(job)], {})

    def fail(self, job: Job) -> None:
        running = self.start(job)
        with self.store.begin() as unit:
            lifecycle.fail(unit, job.id, running.epoch, JobError("render_failed", "no"), retryable=False)

    def cancel(self, job: Job) -> None:
        with self.store.begin() as unit:
            lifecycle.cancel(unit, self.tenant, job.id)


@pytest.fixture
def chain(store: Store, tenant: str) -> Chain:
    return Chain(store, tenant)


def test_a_job_waits_for_its_input_and_gets_the_bytes_of_its_parent(chain: Chain) -> None:
    parent = chain.submit()
    child = chain.submit(parent)
    found = chain.get(child)
    assert found.state is JobState.PENDING
    assert found.depends_on == (parent.id,)
    assert found.waiting_reason == f"waits for {parent.id}"
    assert chain.get(parent).dependents == 1
    with chain.store.begin() as unit:
        assert not lifecycle.dispatch(unit, [Assignment(child.id, WORKER)], 30)

    chain.succeed(parent)
    assert chain.state(child) is JobState.QUEUED
    claimed = chain.start(child)
    (file,) = claimed.spec.inputs["image"]
    assert (file.sha256, file.key) == (output(parent).sha256, output(parent).key)
    assert chain.get(child).spec == claimed.spec
    assert file.reference == f"{parent.id}/0"


def test_a_job_with_several_inputs_waits_for_the_last(chain: Chain) -> None:
    first, second = chain.submit(), chain.submit()
    child = chain.submit(first, second)
    chain.succeed(second)
    assert chain.state(child) is JobState.PENDING
    assert chain.get(child).waiting_reason == f"waits for {first.id}"
    chain.succeed(first)
    assert chain.state(child) is JobState.QUEUED


def test_an_input_that_exists_is_not_waited_for(chain: Chain) -> None:
    parent = chain.succeed(chain.submit())
    child = chain.submit(parent)
    assert child.state is JobState.QUEUED
    waiting = chain.submit(parent, chain.submit())
    assert waiting.state is JobState.PENDING
    # an input that succeeded between the look at it and the submission
    assert chain.submit(parent.id).state is JobState.QUEUED


def test_an_output_that_will_never_exist_is_refused(chain: Chain, store: Store) -> None:
    parent = chain.submit()
    chain.cancel(parent)
    with pytest.raises(BadInput, match="was canceled, so it has no output"):
        chain.submit(parent.id)
    with pytest.raises(BadInput, match="there is no such job"):
        chain.submit(ids.new(ids.JOB))
    with store.begin() as unit:
        other = Chain(store, unit.tenants.create("other").id)
    with pytest.raises(BadInput, match="there is no such job"):
        other.submit(chain.submit().id)


@pytest.mark.parametrize("how", ["fail", "cancel"])
def test_the_end_of_an_input_fails_all_levels_and_says_why(chain: Chain, how: str) -> None:
    parent = chain.submit()
    child = chain.submit(parent)
    grandchild = chain.submit(child, chain.submit())
    other = chain.submit()
    getattr(chain, how)(parent)
    ended = {"fail": "failed", "cancel": "was canceled"}[how]
    error = chain.get(child).error
    assert error == JobError("input_failed", f"Its input {parent.id} {ended}.")
    error = chain.get(grandchild).error
    assert error == JobError("input_failed", f"Its input {child.id} failed, because {parent.id} {ended}.")
    assert chain.state(other) is JobState.QUEUED
    with chain.store.begin() as unit:
        for job in (child, grandchild):
            assert [event.type for event in unit.events.of_job(job.id)] == [EventType.FAILED]


def test_an_input_with_many_dependents_lets_them_follow_in_slices(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "FOLLOW_AT_ONCE", 2)
    for end, state in ((chain.succeed, JobState.QUEUED), (chain.fail, JobState.FAILED)):
        parent = chain.submit()
        children = [chain.submit(parent) for _ in range(5)]
        grandchildren = [chain.submit(children[0]) for _ in range(3)]
        end(parent)
        assert {chain.state(one) for one in children} == {JobState.PENDING}
        rounds = 0
        while follow(chain.store, 2):
            rounds += 1
        assert rounds >= 3
        assert {chain.state(one) for one in children} == {state}
        expected = JobState.FAILED if state is JobState.FAILED else JobState.PENDING
        assert {chain.state(one) for one in grandchildren} == {expected}
    assert chain.get(grandchildren[0]).error == JobError(
        "input_failed", f"Its input {children[0].id} failed, because {parent.id} failed."
    )


def follow(store: Store, limit: int) -> bool:
    with store.begin() as unit:
        return lifecycle.propagate_end(unit, limit)


def test_a_new_job_beside_the_slices_is_not_counted_twice(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "FOLLOW_AT_ONCE", 0)
    parent, other = chain.submit(), chain.submit()
    before = chain.submit(parent, other)
    chain.succeed(parent)
    late = chain.submit(parent.id, other)  # the parent has ended, its mark is still there
    while follow(chain.store, 1):
        pass
    assert (chain.state(before), chain.state(late)) == (JobState.PENDING, JobState.PENDING)
    chain.succeed(other)
    while follow(chain.store, 1):
        pass
    assert (chain.state(before), chain.state(late)) == (JobState.QUEUED, JobState.QUEUED)


def test_cancel_deadline_and_limits_hold_for_pending_jobs(chain: Chain, store: Store) -> None:
    parent = chain.submit()
    canceled = chain.submit(parent)
    chain.cancel(canceled)
    assert chain.state(canceled) is JobState.CANCELED
    late = chain.submit(parent, deadline=datetime.now(UTC) - timedelta(seconds=1))
    after_it = chain.submit(late)
    with store.begin() as unit:
        assert lifecycle.expire(unit) == [late.id]
    found = chain.get(late)
    assert found.error == JobError("deadline_exceeded", "its deadline passed while it waited for its inputs")
    assert chain.state(after_it) is JobState.FAILED
    selected = chain.submit(parent)
    below = chain.submit(selected)
    with store.begin() as unit:
        assert lifecycle.cancel_selected(unit, chain.tenant, Selection((selected.id,)))[:2] == (1, 0)
    assert follow(store, 10)
    assert chain.get(below).error == JobError("input_failed", f"Its input {selected.id} was canceled.")
    with store.begin() as unit:
        unit.tenants.change(chain.tenant, max_queued=2)
    chain.submit(parent)
    with pytest.raises(QuotaExceeded):
        chain.submit(parent)


def test_a_retry_attaches_the_dependents_if_asked(chain: Chain, store: Store) -> None:
    parent = chain.submit()
    child = chain.submit(parent)
    grandchild = chain.submit(child)
    chain.fail(parent)
    with pytest.raises(BadInput, match="that job failed"), store.begin() as unit:
        lifecycle.retry(unit, chain.tenant, child.id)
    with store.begin() as unit:
        again, created, dependents = lifecycle.retry_with_dependents(unit, chain.tenant, parent.id)
    assert (created, dependents) == (True, 2)
    with store.begin() as unit:
        repeated, *rest = lifecycle.retry_with_dependents(unit, chain.tenant, parent.id)
        assert (repeated.id, rest) == (again.id, [False, 0])
        new_child = unit.jobs.retry_of(child.id)
        new_grandchild = unit.jobs.retry_of(grandchild.id)
        assert new_child
        assert new_grandchild
        jobs = unit.jobs.many([new_child, new_grandchild])
    assert jobs[new_child].depends_on == (again.id,)
    assert jobs[new_grandchild].depends_on == (new_child,)
    chain.succeed(again)
    chain.succeed(jobs[new_child])
    assert chain.state(jobs[new_grandchild]) is JobState.QUEUED


def test_an_output_is_kept_while_an_unfinished_job_needs_it(chain: Chain, store: Store, database_url: str) -> None:
    parent = chain.succeed(chain.submit())
    child = chain.submit(parent)
    with store.begin() as unit:
        unit.tenants.change(chain.tenant, retention_days=1)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("UPDATE job SET finished_at = now() - interval '2 days' WHERE finished_at IS NOT NULL")
        with store.begin() as unit:
            assert Retention(unit.session).delete_expired_jobs(10) == []
        chain.succeed(child)
        with store.begin() as unit:
            assert Retention(unit.session).delete_expired_jobs(10) == [(chain.tenant, parent.id)]
        assert connection.execute("SELECT count(*) FROM job_dependency").fetchone() == (0,)


@pytest.mark.parametrize("how", ["succeed", "cancel"])
def test_an_input_that_ends_while_its_batch_is_inserted_takes_the_jobs_along(chain: Chain, how: str) -> None:
    parent = chain.submit()
    batch_id = ids.new(ids.BATCH)
    with chain.store.begin() as unit:
        staged = unit.batches.stage([BatchEntry(1, NewJob(chain.spec(parent))), BatchEntry(2, NewJob(spec()))])
        unit.staged_chains.collect()
        assert not list(unit.staged_chains.problems())
        hold = unit.staged_chains.hold_parents

        def held() -> Any:
            getattr(chain, how)(parent)  # another transaction, which must not wait for this one
            return hold()

        unit.staged_chains.hold_parents = held  # type: ignore[method-assign]
        lifecycle.submit_batch(unit, chain.tenant, batch_id, NewBatch(), replace(staged, chained=True))
    with chain.store.begin() as unit:
        found = unit.batches.get(batch_id, chain.tenant)
        child, other = unit.jobs.of_batch(batch_id, (), 0, 10)
    assert found is not None
    assert other.state is JobState.QUEUED
    assert child.state is {"succeed": JobState.QUEUED, "cancel": JobState.FAILED}[how]
    assert (found.counts.pending, found.counts.queued) == (0, {"succeed": 2, "cancel": 1}[how])


def test_a_batch_is_kept_while_an_unfinished_job_needs_it(chain: Chain, store: Store) -> None:
    batch_id = ids.new(ids.BATCH)
    with store.begin() as unit:
        staged = unit.batches.stage([BatchEntry(1, NewJob(spec()))])
        lifecycle.submit_batch(unit, chain.tenant, batch_id, NewBatch(), staged)
        (parent,) = unit.jobs.of_batch(batch_id, (), 0, 10)
    child = chain.submit(chain.succeed(parent))
    with pytest.raises(Conflict, match="unfinished jobs have outputs of this batch"), store.begin() as unit:
        lifecycle.delete_batch(unit, chain.tenant, batch_id)
    chain.cancel(child)
    with store.begin() as unit:
        lifecycle.delete_batch(unit, chain.tenant, batch_id)
    with pytest.raises(BadInput, match="there is no such job"):
        chain.submit(parent.id)
