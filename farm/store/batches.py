"""Batches in Postgres: streamed in through a staging table, counted as their jobs end, ended as a whole.

A batch's row holds counters, so that looking at one of a million jobs reads one row. They are written once, at the very
end of the transaction that ends jobs (`settle`): the row is hot, and is locked for as short as can be.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final
from uuid import UUID

import psycopg
from sqlalchemy import ARRAY, Uuid, bindparam, case, func, insert, or_, select, text, update
from sqlalchemy.orm import Session

from farm.domain import ids
from farm.domain.batch import Batch, Counts, Entry, NewBatch, Staged
from farm.domain.cost import cost
from farm.domain.states import EventType, JobState, Priority
from farm.errors import DatabaseUnavailable
from farm.store import cursor as cursors
from farm.store.tables import JOB_ID, BatchRow, JobRow
from farm.store.workers import HELD

#: Seconds that one statement over a whole batch may take; the engine's own limit is for single jobs.
LONG_SECONDS: Final = 600
CANCEL_AT_ONCE: Final = 50_000  #: jobs ended by one statement, so that the locks are not held for long

_STAGING: Final = text("""
    CREATE TEMPORARY TABLE staged (
        seq integer, line integer, id uuid, task text, model text, priority smallint, spec jsonb,
        cost double precision, max_attempts smallint, custom_id text, metadata jsonb, webhook text
    ) ON COMMIT DROP
""")
_COPY: Final = (
    "COPY staged (seq, line, id, task, model, priority, spec, cost, max_attempts, custom_id, metadata, webhook) "
    "FROM STDIN"
)
_TWICE: Final = text("""
    SELECT line, custom_id, first FROM (
        SELECT seq, line, custom_id, first_value(line) OVER named AS first, row_number() OVER named AS time
        FROM staged WHERE custom_id IS NOT NULL WINDOW named AS (PARTITION BY custom_id ORDER BY seq)
    ) AS named WHERE time > 1 ORDER BY seq
""")
_DROP_TWICE: Final = text("""
    DELETE FROM staged USING (
        SELECT seq, row_number() OVER (PARTITION BY custom_id ORDER BY seq) AS time
        FROM staged WHERE custom_id IS NOT NULL
    ) AS named WHERE named.time > 1 AND staged.seq = named.seq
""")
_UNSTAGE: Final = text("""
    INSERT INTO job (id, tenant_id, state, task, model, priority, spec, cost, max_attempts, custom_id, metadata,
                     webhook, batch_id, batch_seq)
    SELECT id, :tenant, 'queued', task, model, priority, spec, cost, max_attempts, custom_id, metadata, webhook,
           :batch, row_number() OVER (ORDER BY seq)
    FROM staged ORDER BY seq
""").bindparams(bindparam("tenant", type_=Uuid), bindparam("batch", type_=Uuid))
# The new jobs' ids ascend with their place: what `ids.Series` makes, in SQL.
_AGAIN: Final = text("""
    INSERT INTO job (id, tenant_id, state, task, model, priority, spec, cost, max_attempts, custom_id, metadata,
                     webhook, retry_of, batch_id, batch_seq)
    SELECT CAST(:prefix || lpad(to_hex(place), 8, '0') || substr(md5(random()::text), 1, 7) AS uuid),
           tenant_id, 'queued', task, model, priority, spec, cost, max_attempts, custom_id, metadata, webhook, id,
           :batch, place
    FROM (SELECT job.*, row_number() OVER (ORDER BY batch_seq) AS place FROM job
          WHERE batch_id = :old AND state IN ('failed', 'canceled')) AS ended
    ORDER BY place
""").bindparams(bindparam("batch", type_=Uuid), bindparam("old", type_=Uuid))
# Jobs that somebody else has locked at this moment are passed over, never waited for: two that each hold a part of
# what the other wants would wait for ever. The caller comes back for them.
_CANCEL: Final = text("""
    WITH waiting AS (
        SELECT id FROM job WHERE batch_id = :batch AND state IN ('queued', 'dispatched')
        LIMIT :at_once FOR UPDATE SKIP LOCKED
    ), ended AS (
        UPDATE job SET state = 'canceled', lease_until = NULL, finished_at = now(), cancel_requested = true
        FROM waiting WHERE job.id = waiting.id
        RETURNING job.id, job.tenant_id, job.epoch
    ), told AS (
        INSERT INTO event (tenant_id, job_id, type, epoch, data)
        SELECT tenant_id, id, :type, epoch, '{}' FROM ended
    )
    SELECT count(*) FROM ended
""").bindparams(bindparam("batch", type_=Uuid))
_ASK: Final = (
    text("""
    WITH running AS (
        SELECT id FROM job WHERE batch_id = :batch AND state = 'running' AND NOT cancel_requested
        FOR UPDATE SKIP LOCKED
    )
    UPDATE job SET cancel_requested = true FROM running WHERE job.id = running.id RETURNING job.id
""")
    .bindparams(bindparam("batch", type_=Uuid))
    .columns(id=JOB_ID)
)


def _batch(row: Any, held: Mapping[str, int]) -> Batch:
    found: BatchRow = row[0]
    dispatched, running = held.get(JobState.DISPATCHED.value, 0), held.get(JobState.RUNNING.value, 0)
    ended = found.succeeded + found.failed + found.canceled
    return Batch(
        id=found.id,
        tenant_id=found.tenant_id,
        name=found.name,
        metadata={name: str(value) for name, value in found.meta.items()},
        counts=Counts(
            total=found.total,
            queued=found.total - ended - dispatched - running,
            dispatched=dispatched,
            running=running,
            succeeded=found.succeeded,
            failed=found.failed,
            canceled=found.canceled,
        ),
        cost=found.cost,
        skipped=found.skipped,
        error_key=found.error_key,
        retry_of=found.retry_of,
        created_at=found.created_at,
        first_ended_at=found.first_ended_at,
        finished_at=found.finished_at,
        cancel_requested_at=found.cancel_requested_at,
        read_at=row[1],
    )


class Batches:
    """All batches of all tenants."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._over: list[str] = []

    # -- reading ------------------------------------------------------------------------------------------------------

    def get(self, batch_id: str, tenant_id: str) -> Batch | None:
        """The tenant's batch of that id."""
        if not ids.is_id(ids.BATCH, batch_id):
            return None
        return next(iter(self._read([BatchRow.id == batch_id, BatchRow.tenant_id == tenant_id], 1)), None)

    def page(self, tenant_id: str, cursor: str | None, limit: int) -> tuple[list[Batch], str | None]:
        """A page of the tenant's batches, newest first, and the cursor of the next one. Raises `BadInput`."""
        wanted = [BatchRow.tenant_id == tenant_id]
        if cursor is not None:
            place = UUID(bytes=cursors.decode(cursor, 16))
            wanted.append(BatchRow.id < ids.from_uuid(ids.BATCH, place))
        found = self._read(wanted, limit + 1)
        following = None
        if len(found) > limit:
            following = cursors.encode(ids.to_uuid(ids.BATCH, found[limit - 1].id).bytes)
        return found[:limit], following

    def _read(self, wanted: Sequence[Any], limit: int) -> list[Batch]:
        # Of all jobs at workers, which are few, rather than of the batch's jobs, which may be a million; and in one
        # statement with the counters, so that the two are of the same moment.
        held = (
            select(JobRow.batch_id, JobRow.state, func.count().label("jobs"))
            .where(JobRow.state.in_(HELD), JobRow.batch_id.is_not(None))
            .group_by(JobRow.batch_id, JobRow.state)
            .cte("held")
            .prefix_with("MATERIALIZED", dialect="postgresql")
        )
        chosen = select(BatchRow.id).where(*wanted).order_by(BatchRow.id.desc()).limit(limit)
        rows = self._session.execute(
            select(BatchRow, func.now(), held.c.state, held.c.jobs)
            .outerjoin(held, held.c.batch_id == BatchRow.id)
            .where(BatchRow.id.in_(chosen.scalar_subquery()))
            .order_by(BatchRow.id.desc())
            .execution_options(populate_existing=True)
        ).all()
        at_workers: dict[str, dict[str, int]] = {}
        for row in rows:
            if row[2] is not None:
                at_workers.setdefault(row[0].id, {})[row[2]] = row[3]
        by_id = {row[0].id: row for row in rows}
        return [_batch(row, at_workers.get(batch_id, {})) for batch_id, row in by_id.items()]

    def speed(self) -> float | None:
        """Megapixel-steps that the farm rendered per second over its last 200 pictures; None while it has too few."""
        found = self._session.execute(
            text("""
                WITH lately AS (SELECT job_id FROM event WHERE type = 'job.succeeded' ORDER BY id DESC LIMIT 200)
                SELECT sum(cost), extract(epoch FROM max(finished_at) - min(finished_at)), count(*)
                FROM job JOIN lately ON job.id = lately.job_id
            """)
        ).one()
        if found[2] < 2 or not found[1]:
            return None
        return float(found[0]) / float(found[1])

    # -- submitting ---------------------------------------------------------------------------------------------------

    def allow_long(self) -> None:
        """Let this transaction's statements take as long as a whole batch needs."""
        self._session.execute(text(f"SET LOCAL statement_timeout = '{LONG_SECONDS}s'"))

    def stage(self, entries: Iterable[Entry]) -> Staged:
        """Stream entries into this transaction's staging table, one at a time. What they raise, this raises.

        Nobody else sees them, and they are gone with the transaction unless `unstage` makes jobs of them.
        """
        self.allow_long()
        # while rows come in, the statement is as slow as the client that sends them
        self._session.execute(text("SET LOCAL statement_timeout = 0"))
        self._session.execute(_STAGING)
        connection = self._session.connection().connection.driver_connection
        assert isinstance(connection, psycopg.Connection)
        total, in_all = 0, 0.0
        try:
            with connection.cursor() as cursor, cursor.copy(_COPY) as copy:
                for row in _rows(entries):
                    copy.write_row(row)
                    total += 1
                    in_all += row[7]
        except psycopg.OperationalError as error:
            raise DatabaseUnavailable("PostgreSQL does not answer") from error
        self.allow_long()
        return Staged(total, in_all)

    def twice(self) -> Iterator[tuple[int, str, int]]:
        """Staged entries whose ``custom_id`` came before: line, custom_id, and the line where it came first."""
        for row in self._session.execute(_TWICE):
            yield row[0], row[1], row[2]

    def drop_twice(self) -> Staged:
        """Drop those entries; returns what stays."""
        gone: Any = self._session.execute(_DROP_TWICE)
        left = self._session.execute(text("SELECT count(*), coalesce(sum(cost), 0) FROM staged")).one()
        return Staged(left[0], left[1], gone.rowcount)

    def add(
        self, tenant_id: str, batch_id: str, new: NewBatch, staged: Staged, skipped: int, error_key: str | None
    ) -> None:
        """Store a batch's row."""
        self._session.execute(
            insert(BatchRow).values(
                id=batch_id,
                tenant_id=tenant_id,
                name=new.name,
                meta=dict(new.metadata),
                retry_of=new.retry_of,
                total=staged.total,
                cost=staged.cost,
                skipped=skipped,
                error_key=error_key,
            )
        )

    def unstage(self, tenant_id: str, batch_id: str) -> None:
        """Make queued jobs of what is staged."""
        self._session.execute(
            _UNSTAGE, {"tenant": ids.to_uuid(ids.TENANT, tenant_id), "batch": ids.to_uuid(ids.BATCH, batch_id)}
        )

    def unsuccessful(self, batch_id: str) -> Staged:
        """How many of a batch's jobs failed or were canceled, and what they cost."""
        row = self._session.execute(
            select(func.count(), func.coalesce(func.sum(JobRow.cost), 0.0)).where(
                JobRow.batch_id == batch_id, JobRow.state.in_((JobState.FAILED.value, JobState.CANCELED.value))
            )
        ).one()
        return Staged(row[0], row[1])

    def again(self, old_id: str, batch_id: str) -> None:
        """Make queued jobs of a batch's failed and canceled ones, in the same order."""
        self._session.execute(
            _AGAIN,
            {
                "prefix": ids.Series(ids.JOB).prefix,
                "old": ids.to_uuid(ids.BATCH, old_id),
                "batch": ids.to_uuid(ids.BATCH, batch_id),
            },
        )

    # -- ending -------------------------------------------------------------------------------------------------------

    def note_end(self, job_id: str) -> None:
        """A job of this transaction is over: `settle` counts it, if it belongs to a batch."""
        self._over.append(job_id)

    def settle(self) -> None:
        """Count the jobs that this transaction ended. The unit of work calls it last, before it commits."""
        if not self._over:
            return
        over: Collection[UUID] = [ids.to_uuid(ids.JOB, one) for one in self._over]
        self._over = []
        rows = self._session.execute(
            select(JobRow.batch_id, JobRow.state, func.count())
            .where(JobRow.id == func.any(bindparam("over", over, type_=ARRAY(Uuid))), JobRow.batch_id.is_not(None))
            .group_by(JobRow.batch_id, JobRow.state)
            # every transaction locks the rows of batches in the same order
            .order_by(JobRow.batch_id)
        ).all()
        counts: dict[str, dict[str, int]] = {}
        for batch_id, state, count in rows:
            assert batch_id is not None  # the statement says so
            counts.setdefault(batch_id, {})[state] = count
        for batch_id, ended in counts.items():
            self.count_ended(batch_id, ended)

    def count_ended(self, batch_id: str, ended: Mapping[str, int], *, cancel: bool = False) -> None:
        """Add to a batch's counters, by terminal state; ``cancel``: and note that its end was asked for."""
        more = sum(ended.values())
        done = BatchRow.succeeded + BatchRow.failed + BatchRow.canceled + more
        values: dict[str, Any] = {state: getattr(BatchRow, state) + count for state, count in ended.items()}
        if more:
            values["first_ended_at"] = func.coalesce(BatchRow.first_ended_at, func.now())
            values["finished_at"] = case((done >= BatchRow.total, func.now()), else_=BatchRow.finished_at)
        if cancel:
            values["cancel_requested_at"] = func.coalesce(BatchRow.cancel_requested_at, func.now())
        self._session.execute(
            update(BatchRow).where(BatchRow.id == batch_id).values(values).execution_options(synchronize_session=False)
        )

    def cancel_waiting(self, batch_id: str) -> int:
        """queued or dispatched → canceled for a batch's jobs, with their events; returns how many, see `left`."""
        found = self._session.scalar(
            _CANCEL,
            {
                "batch": ids.to_uuid(ids.BATCH, batch_id),
                "at_once": CANCEL_AT_ONCE,
                "type": EventType.CANCELED.value,
            },
        )
        return int(found or 0)

    def ask_cancel(self, batch_id: str) -> list[str]:
        """Ask the workers of a batch's running jobs to stop; returns those jobs."""
        return list(self._session.scalars(_ASK, {"batch": ids.to_uuid(ids.BATCH, batch_id)}))

    def left(self, batch_id: str) -> bool:
        """Whether jobs of the batch still wait, or run without having been asked to stop."""
        waiting = JobRow.state.in_((JobState.QUEUED.value, JobState.DISPATCHED.value))
        unasked = (JobRow.state == JobState.RUNNING.value) & ~JobRow.cancel_requested
        return bool(
            self._session.scalar(
                select(select(JobRow.id).where(JobRow.batch_id == batch_id, or_(waiting, unasked)).exists())
            )
        )


def _rows(entries: Iterable[Entry]) -> Iterator[tuple[Any, ...]]:
    series = ids.Series(ids.JOB)
    for seq, entry in enumerate(entries, start=1):
        job = entry.job
        yield (
            seq,
            entry.line,
            ids.to_uuid(ids.JOB, series.number(seq)),
            job.spec.task.value,
            job.spec.model,
            Priority(job.priority).rank,
            job.spec.model_dump_json(),
            cost(job.spec),
            job.max_attempts,
            job.custom_id,
            json.dumps(dict(job.metadata), ensure_ascii=False) if job.metadata else "{}",
            job.webhook,
        )
