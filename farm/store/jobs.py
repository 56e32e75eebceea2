"""Jobs in Postgres.

Every change of state is a fenced UPDATE: it names the state and the epoch it expects, and touches
no row when another one holds the right. Only ``farm/lifecycle.py`` calls the methods that change a state.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    Select,
    Update,
    case,
    delete,
    func,
    insert,
    literal_column,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from farm.domain import ids
from farm.domain.cost import cost
from farm.domain.job import Job, JobError, JobFilter, NewJob, Output, Progress
from farm.domain.job_spec import JobSpec
from farm.domain.states import EventType, JobState, Priority
from farm.domain.worker import WorkerState
from farm.store import cursor as cursors
from farm.store.bulk_actions import WAITING, matching
from farm.store.dependencies import Dependencies
from farm.store.tables import CheckpointRow, IdempotencyRow, JobRow, OutputRow, WorkerRow
from farm.store.workers import HELD, seconds

#: How long an exact job whose worker was lost waits for a worker of the numerics class in which it began: long enough
#: for the worker's process to start again.
SAME_NUMERICS_SECONDS: Final = 30.0

MAX_NAMED: Final = 4  #: jobs that the reason of a pending job names

PENDING, QUEUED = JobState.PENDING.value, JobState.QUEUED.value
DISPATCHED, RUNNING = JobState.DISPATCHED.value, JobState.RUNNING.value


@dataclass(frozen=True)
class Overdue:
    """A waiting job past its deadline, locked until the transaction ends."""

    job_id: str
    tenant_id: str
    epoch: int


@dataclass(frozen=True)
class ExpiredLease:
    """A job whose lease ran out, locked until the transaction ends."""

    job_id: str
    tenant_id: str
    epoch: int
    state: JobState
    worker: str | None
    started: bool  #: whether the device had taken it up
    lost_count: int
    crash_count: int
    attempts: int
    max_attempts: int
    cancel_requested: bool


def job_of(row: JobRow, outputs: Iterable[OutputRow]) -> Job:
    """The job that a row and those of its outputs are."""
    progress = None if row.step is None or row.steps is None else Progress(row.step, row.steps)
    error = None if row.error_code is None else JobError(row.error_code, row.error_message or "")
    return Job(
        id=row.id,
        tenant_id=row.tenant_id,
        state=JobState(row.state),
        spec=JobSpec.model_validate(row.spec),
        priority=Priority.of_rank(row.priority),
        epoch=row.epoch,
        attempts=row.attempts,
        max_attempts=row.max_attempts,
        worker=row.worker,
        progress=progress,
        outputs=tuple(
            Output(one.index, one.key, one.media_type, one.size, one.sha256, one.seed, one.meta) for one in outputs
        ),
        error=error,
        recipe=row.recipe,
        warnings=tuple(map(str, row.warnings)),
        custom_id=row.custom_id,
        metadata={name: str(value) for name, value in row.meta.items()},
        webhook=row.webhook,
        webhook_events=None if row.webhook_events is None else tuple(map(EventType, row.webhook_events)),
        cost=row.cost,
        cancel_requested=row.cancel_requested,
        retry_of=row.retry_of,
        created_at=row.created_at,
        available_at=row.available_at,
        dispatched_at=row.dispatched_at,
        claimed_at=row.claimed_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        deadline=row.deadline,
        batch_id=row.batch_id,
        batch_seq=row.batch_seq,
        crash_count=row.crash_count,
        pin=row.pin or None,
        steps_resumed=row.steps_resumed,
        preemptions=row.preemptions,
        dependents=row.dependents,
    )


def _fenced(job_id: str, epoch: int, *states: JobState) -> Update:
    return update(JobRow).where(
        JobRow.id == job_id, JobRow.epoch == epoch, JobRow.state.in_([state.value for state in states])
    )


def _waits_for(parents: Sequence[str]) -> str:
    shown = ", ".join(parents[:MAX_NAMED])
    more = len(parents) - MAX_NAMED
    return f"waits for {shown} and {more} more jobs" if more > 0 else f"waits for {shown}"


class Jobs:
    """All jobs of all tenants."""

    def __init__(self, session: Session) -> None:
        self._session = session

    # -- reading ------------------------------------------------------------------------------------------------------

    def get(self, job_id: str, tenant_id: str | None = None) -> Job | None:
        """The job of that id; with a tenant, only if it is that tenant's."""
        if not ids.is_id(ids.JOB, job_id):
            return None
        statement = select(JobRow).where(JobRow.id == job_id)
        if tenant_id is not None:
            statement = statement.where(JobRow.tenant_id == tenant_id)
        return next(iter(self._jobs(statement)), None)

    def lock(self, job_id: str) -> None:
        """Hold the job's row against other transactions that change or retry it."""
        if ids.is_id(ids.JOB, job_id):
            self._session.execute(select(JobRow.id).where(JobRow.id == job_id).with_for_update())

    def delete(self, job_id: str) -> None:
        """Delete the job's row and all that belongs to it."""
        self._session.execute(delete(JobRow).where(JobRow.id == job_id).execution_options(synchronize_session=False))

    def retry_of(self, job_id: str) -> str | None:
        """The last job that retries this one."""
        found = select(JobRow.id).where(JobRow.retry_of == job_id).order_by(JobRow.id.desc()).limit(1)
        return self._session.scalar(found)

    def many(self, job_ids: Collection[str]) -> dict[str, Job]:
        """Those of the jobs that exist, by id."""
        return {job.id: job for job in self._jobs(select(JobRow).where(JobRow.id.in_(job_ids)))}

    def page(self, tenant_id: str, wanted: JobFilter, cursor: str | None, limit: int) -> tuple[list[Job], str | None]:
        """A page of the tenant's jobs, newest first, and the cursor of the next one.

        The cursor is a place in the order, so jobs that arrive or change between two calls neither shift nor repeat
        others. Raises `BadInput` for a cursor that this method did not give.
        """
        statement = select(JobRow).where(JobRow.tenant_id == tenant_id).order_by(JobRow.id.desc()).limit(limit + 1)
        statement = statement.where(*matching(wanted))
        if cursor is not None:
            place = UUID(bytes=cursors.decode(cursor, 16))
            statement = statement.where(JobRow.id < ids.from_uuid(ids.JOB, place))
        found = self._jobs(statement)
        following = cursors.encode(ids.to_uuid(ids.JOB, found[limit - 1].id).bytes) if len(found) > limit else None
        return found[:limit], following

    def of_batch(self, batch_id: str, states: Collection[JobState], after: int, limit: int) -> list[Job]:
        """A batch's jobs in those states (none: all) with a place above ``after``, in the order of their places."""
        statement = (
            select(JobRow)
            .where(JobRow.batch_id == batch_id, JobRow.batch_seq > after)
            .order_by(JobRow.batch_seq)
            .limit(limit)
        )
        if states:
            statement = statement.where(JobRow.state.in_([state.value for state in states]))
        return self._jobs(statement)

    def counts(self, tenant_id: str) -> dict[JobState, int]:
        """How many of the tenant's jobs are in each state."""
        rows = self._session.execute(
            select(JobRow.state, func.count()).where(JobRow.tenant_id == tenant_id).group_by(JobRow.state)
        )
        return {JobState(state): count for state, count in rows}

    def _jobs(self, statement: Select[JobRow]) -> list[Job]:
        rows = list(self._session.scalars(statement.execution_options(populate_existing=True)))
        outputs: dict[str, list[OutputRow]] = {}
        done = [row.id for row in rows if row.state == JobState.SUCCEEDED.value]
        if done:
            found = self._session.scalars(
                select(OutputRow).where(OutputRow.job_id.in_(done)).order_by(OutputRow.job_id, OutputRow.index)
            )
            for output in found:
                outputs.setdefault(output.job_id, []).append(output)
        unfinished = Dependencies(self._session).waits_for([row.id for row in rows if row.state == PENDING])
        jobs = [job_of(row, outputs.get(row.id, ())) for row in rows]
        if not unfinished:
            return jobs
        reasons = {job_id: _waits_for(parents) for job_id, parents in unfinished.items()}
        return [replace(job, waiting_reason=reasons.get(job.id)) for job in jobs]

    # -- submitting ---------------------------------------------------------------------------------------------------

    def insert(self, tenant_id: str, jobs: Sequence[NewJob], pending_inputs: int = 0) -> list[str]:
        """Store new jobs; returns their ids in the same order.

        They are queued, or pending if ``pending_inputs`` says how many jobs each of them waits for.
        """
        rows = [
            {
                "id": ids.new(ids.JOB),
                "tenant_id": tenant_id,
                "state": PENDING if pending_inputs else QUEUED,
                "pending_inputs": pending_inputs,
                "task": job.spec.task,
                "model": job.spec.model,
                "priority": job.priority.rank,
                "spec": job.spec.model_dump(mode="json"),
                "cost": cost(job.spec),
                "max_attempts": job.max_attempts,
                "custom_id": job.custom_id,
                "meta": dict(job.metadata),
                "webhook": job.webhook,
                "webhook_events": None if job.webhook_events is None else [kind.value for kind in job.webhook_events],
                "retry_of": job.retry_of,
                "deadline": job.deadline,
                "pin": job.pin or "",
            }
            | ({} if job.not_before is None else {"available_at": job.not_before, "queued_at": job.not_before})
            for job in jobs
        ]
        self._session.execute(insert(JobRow), rows)
        if any(job.not_before is not None for job in jobs):
            # a time that has passed is now: it must not put the job before those that wait already
            self._session.execute(
                update(JobRow)
                .where(JobRow.id.in_([row["id"] for row in rows]), JobRow.available_at < func.now())
                .values(available_at=func.now(), queued_at=func.now())
                .execution_options(synchronize_session=False)
            )
        return [str(row["id"]) for row in rows]

    def reserve_key(self, tenant_id: str, key: str, request_hash: bytes) -> IdempotencyRow | None:
        """Take an idempotency key; returns the row that holds it already, or None if it is ours now.

        Waits for a transaction that is taking the same key at this moment.
        """
        taken = self._session.scalar(
            upsert(IdempotencyRow)
            .values(tenant_id=tenant_id, key=key, request_hash=request_hash)
            .on_conflict_do_nothing()
            .returning(IdempotencyRow.key)
        )
        return None if taken is not None else self.find_key(tenant_id, key)

    def find_key(self, tenant_id: str, key: str) -> IdempotencyRow | None:
        """The row that holds an idempotency key."""
        return self._session.scalar(
            select(IdempotencyRow).where(IdempotencyRow.tenant_id == tenant_id, IdempotencyRow.key == key)
        )

    def complete_key(self, tenant_id: str, key: str, job_id: str | None, batch_id: str | None = None) -> None:
        """Remember what the key's request made."""
        self._session.execute(
            update(IdempotencyRow)
            .where(IdempotencyRow.tenant_id == tenant_id, IdempotencyRow.key == key)
            .values(job_id=job_id, batch_id=batch_id)
        )

    def complete_key_with(self, tenant_id: str, key: str, answer: str) -> None:
        """Remember the sealed answer to the key's request, where that made no job and no batch."""
        self._session.execute(
            update(IdempotencyRow)
            .where(IdempotencyRow.tenant_id == tenant_id, IdempotencyRow.key == key)
            .values(answer=answer)
        )

    def delete_keys(self, older_than_seconds: float) -> int:
        """Drop idempotency keys of that age; returns how many."""
        gone = self._session.execute(
            delete(IdempotencyRow)
            .where(IdempotencyRow.created_at < func.now() - seconds(older_than_seconds))
            .returning(IdempotencyRow.key)
        )
        return len(gone.all())

    # -- releasing and ending ---------------------------------------------------------------------------------------

    def requeue(
        self,
        job_id: str,
        epoch: int,
        *,
        refund: bool,
        delay_seconds: float = 0,
        error: JobError | None = None,
        lost: bool = False,
        died: bool = False,
        unclaimed: bool = False,
        preempted: bool = False,
    ) -> bool:
        """dispatched or running → queued (``unclaimed``: only dispatched); False if the right is lost.

        Nor is a running job that is to be canceled: it would wait for ever in a batch that is being canceled.

        ``refund`` gives the attempt back, ``lost`` counts a run lease that ran out, ``died`` that it was on the device,
        ``preempted`` that it stepped back for an interactive job.
        """
        states = (JobState.DISPATCHED,) if unclaimed else (JobState.DISPATCHED, JobState.RUNNING)
        # a dispatched job was never claimed, so there is no attempt to uncount
        until = func.now() + seconds(SAME_NUMERICS_SECONDS)
        # what the job has done already is good only there
        kept = select(CheckpointRow.job_id).where(CheckpointRow.job_id == job_id).exists()
        waits = JobRow.first_numerics.is_not(None) if died else JobRow.first_numerics.is_not(None) & kept
        refunded = case((JobRow.state == RUNNING, JobRow.attempts - 1), else_=JobRow.attempts)
        return self._changed(
            _fenced(job_id, epoch, *states)
            .where(or_(JobRow.state != RUNNING, ~JobRow.cancel_requested))
            .values(
                state=QUEUED,
                attempts=refunded if refund else JobRow.attempts,
                lost_count=JobRow.lost_count + int(lost),
                crash_count=JobRow.crash_count + int(died),
                preemptions=JobRow.preemptions + int(preempted),
                waits_until=case((waits, until)),
                available_at=func.now() + seconds(delay_seconds),
                lease_until=null(),
                step=null(),
                steps=null(),
                error_code=error.code if error else JobRow.error_code,
                error_message=error.message if error else JobRow.error_message,
            )
        )

    def fail(self, job_id: str, epoch: int, error: JobError) -> bool:
        """running → failed; False if the lease is lost."""
        return self._changed(
            _fenced(job_id, epoch, JobState.RUNNING).values(
                state=JobState.FAILED.value,
                error_code=error.code,
                error_message=error.message,
                lease_until=null(),
                finished_at=func.now(),
            )
        )

    def cancel_waiting(self, tenant_id: str, job_id: str) -> int | None:
        """pending, queued or dispatched → canceled; returns the epoch it ended in, None if it does not wait."""
        return self._session.scalar(
            update(JobRow)
            .where(JobRow.id == job_id, JobRow.tenant_id == tenant_id, JobRow.state.in_(WAITING))
            .values(state=JobState.CANCELED.value, lease_until=null(), finished_at=func.now(), cancel_requested=True)
            .returning(JobRow.epoch)
            .execution_options(synchronize_session=False)
        )

    def request_cancel(self, tenant_id: str, job_id: str) -> bool:
        """Ask the worker of a running job to stop; False if it does not run."""
        return self._changed(
            update(JobRow)
            .where(JobRow.id == job_id, JobRow.tenant_id == tenant_id, JobRow.state == RUNNING)
            .values(cancel_requested=True)
        )

    def cancel_running(self, job_id: str, epoch: int) -> bool:
        """running → canceled, as its worker or the reaper reports; False if the right is lost."""
        return self._changed(
            _fenced(job_id, epoch, JobState.RUNNING)
            .where(JobRow.cancel_requested)
            .values(state=JobState.CANCELED.value, lease_until=null(), finished_at=func.now())
        )

    def overdue(self, state: JobState, limit: int) -> list[Overdue]:
        """Pending or queued jobs past their deadline, locked; those that another reaper holds are passed over."""
        rows = self._session.execute(
            select(JobRow.id, JobRow.tenant_id, JobRow.epoch)
            .where(JobRow.state == literal_column(f"'{state.value}'"), JobRow.deadline <= func.now())
            .order_by(JobRow.deadline)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        return [Overdue(row.id, row.tenant_id, row.epoch) for row in rows]

    def fail_waiting(self, overdue: Collection[Overdue], error: JobError) -> None:
        """pending or queued → failed for jobs that `overdue` locked."""
        self._session.execute(
            update(JobRow)
            .where(JobRow.id.in_([one.job_id for one in overdue]), JobRow.state.in_((PENDING, QUEUED)))
            .values(
                state=JobState.FAILED.value,
                error_code=error.code,
                error_message=error.message,
                finished_at=func.now(),
            )
            .execution_options(synchronize_session=False)
        )

    def expired_leases(self, limit: int) -> list[ExpiredLease]:
        """Jobs whose lease ran out, locked; those that another reaper holds are passed over."""
        return self._expired(JobRow.lease_until < func.now(), limit)

    def held_by(self, worker: str) -> list[ExpiredLease]:
        """All that a worker holds, locked: for when its process is known to be gone."""
        return self._expired(JobRow.worker == worker, None)

    def orphaned(self, limit: int) -> list[ExpiredLease]:
        """Jobs that their worker will not do, locked: it is silent, or another process by now.

        Those that the device of a silent worker has begun are not among them: it may be alive and go on.
        """
        silent = select(WorkerRow.name).where(WorkerRow.state == WorkerState.OFFLINE.value)
        replaced = select(WorkerRow.name).where(
            WorkerRow.name == JobRow.worker,
            WorkerRow.started_at > func.coalesce(JobRow.claimed_at, JobRow.dispatched_at),
        )
        return self._expired(
            or_(JobRow.worker.in_(silent) & JobRow.started_at.is_(None), replaced.correlate(JobRow).exists()), limit
        )

    def _expired(self, condition: Any, limit: int | None) -> list[ExpiredLease]:
        rows = self._session.scalars(
            select(JobRow)
            .where(JobRow.state.in_(HELD), condition)
            .order_by(JobRow.id)
            .limit(limit)
            .with_for_update(skip_locked=True)
            .execution_options(populate_existing=True)
        )
        return [
            ExpiredLease(
                row.id,
                row.tenant_id,
                row.epoch,
                JobState(row.state),
                row.worker,
                row.started_at is not None,
                row.lost_count,
                row.crash_count,
                row.attempts,
                row.max_attempts,
                row.cancel_requested,
            )
            for row in rows
        ]

    def _changed(self, statement: Update) -> bool:
        found = self._session.scalar(statement.returning(JobRow.id).execution_options(synchronize_session=False))
        return found is not None
