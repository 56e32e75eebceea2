"""Batches in Postgres: streamed in through a staging table, counted as their jobs end, ended as a whole.

A batch's row holds counters, so that looking at one of a million jobs reads one row. They are written once, at the very
end of the transaction that ends jobs (`flush_counters`), since all its jobs update this row.

The file is long because intake, counters and bulk changes share the batch's row and its order of locks.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

import psycopg
from sqlalchemy import ARRAY, Uuid, bindparam, case, delete, func, insert, or_, select, text, update
from sqlalchemy.orm import Session, aliased

from farm.domain import ids
from farm.domain.batch import (
    MILESTONES,
    PER_ENTRY,
    Batch,
    BatchContents,
    BatchEntry,
    BatchState,
    EntryOverrides,
    JobCounts,
    NewBatch,
    Staged,
)
from farm.domain.cost import cost
from farm.domain.job import JobError, NewJob, Output
from farm.domain.states import EventType, JobState, Priority
from farm.server_errors import database_unavailable
from farm.store import cursor as cursors
from farm.store import staged_chains
from farm.store.events import EVENT_CHANNEL, JOB_CHANNEL, Events
from farm.store.retried_chains import RETRIED_STATE
from farm.store.tables import RETRY_COLUMNS, BatchRow, EventRow, JobDependencyRow, JobRow, OutputRow

#: Seconds that one statement over a whole batch may take; the engine's own limit is for single jobs.
LONG_STATEMENT_SECONDS: Final = 600
LAST_SEQ: Final = 2**31 - 1  #: no job's place in its batch is behind this
EQUAL_HOURS: Final = 24  #: how long a batch is found by its request
PROPAGATE_CHUNK: Final = 100_000  #: jobs propagated by one statement
DELETE_CHUNK: Final = 5_000  #: jobs deleted by one statement, with their events and deliveries
_string: Final = json.encoder.encode_basestring  #: a text as JSON
_ESCAPES: Final = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
COPY_CHUNK: Final = 64 * 2**10  #: characters sent to COPY at once
_OUTPUT_COLUMNS: Final = ("index", "key", "media_type", "size", "sha256", "seed", "meta")
MAX_EVENT_METADATA: Final = 8_000  #: characters of a batch's metadata that its events carry; more is left out

_STAGING: Final = text("""
    CREATE TEMPORARY TABLE staged (
        seq integer, line integer, id uuid, task text, model text, priority smallint, spec jsonb,
        cost double precision, max_attempts smallint, custom_id text, metadata jsonb, webhook text,
        not_before timestamptz, deadline timestamptz, pin text
    ) ON COMMIT DROP
""")
_COPY: Final = (
    "COPY staged (seq, line, id, task, model, priority, spec, cost, max_attempts, custom_id, metadata, webhook, "
    "not_before, deadline, pin) FROM STDIN"
)
_DUPLICATES: Final = text("""
    SELECT line, custom_id, first FROM (
        SELECT seq, line, custom_id, first_value(line) OVER named AS first, row_number() OVER named AS time
        FROM staged WHERE custom_id IS NOT NULL WINDOW named AS (PARTITION BY custom_id ORDER BY seq)
    ) AS named WHERE time > 1 ORDER BY seq
""")
_DROP_DUPLICATES: Final = text("""
    DELETE FROM staged USING (
        SELECT seq, row_number() OVER (PARTITION BY custom_id ORDER BY seq) AS time
        FROM staged WHERE custom_id IS NOT NULL
    ) AS named WHERE named.time > 1 AND staged.seq = named.seq
""")
_INSERT: Final = """
    INSERT INTO job (id, tenant_id, state, task, model, priority, spec, cost, max_attempts, custom_id, metadata,
                     webhook, available_at, queued_at, deadline, pin, batch_id, batch_seq{columns})
    SELECT id, :tenant, {state}, task, model, priority, {spec}, cost, max_attempts, custom_id, metadata, webhook,
           greatest(not_before, now()), greatest(not_before, now()), deadline, coalesce(pin, :pin), :batch, {place}
           {more}
    FROM {staged}
"""
_PLAIN: Final = {"state": "'queued'", "spec": "spec", "columns": "", "more": "", "staged": "staged"}
_CHAINED: Final = {
    "state": "CASE WHEN up.waits > 0 THEN 'pending' ELSE 'queued' END",
    "spec": staged_chains.SPEC,
    "columns": ", pending_inputs, dependents",
    "more": ", coalesce(up.waits, 0), coalesce(down.dependents, 0)",
    "staged": staged_chains.JOINED,
}
_IDS: Final = (bindparam("tenant", type_=Uuid), bindparam("batch", type_=Uuid))
_INSERT_STAGED: Final = text(_INSERT.format(place="seq", **_PLAIN)).bindparams(*_IDS)
# where some were dropped
_BY_SEQ: Final = "row_number() OVER (ORDER BY seq)"
_INSERT_STAGED_REST: Final = text(_INSERT.format(place=_BY_SEQ, **_PLAIN) + "ORDER BY seq").bindparams(*_IDS)
_INSERT_CHAINED: Final = text(_INSERT.format(place=_BY_SEQ, **_CHAINED) + "ORDER BY seq").bindparams(*_IDS)
# The new jobs' ids ascend with their place: what `ids.IdSeries` makes, in SQL.
_COPIED: Final = ", ".join(RETRY_COLUMNS)
# the jobs of a batch of one numerics class stay together in the batch that repeats them
_COPIED_VALUES: Final = ", ".join(
    f"CASE WHEN starts_with(pin, '{ids.BATCH}_') THEN CAST(:new_pin AS text) ELSE pin END"
    if column == "pin"
    else column
    for column in RETRY_COLUMNS
)
_COPY_RETRYABLE: Final = text(f"""
    INSERT INTO job (id, tenant_id, state, retry_of, batch_id, batch_seq, {_COPIED})
    SELECT CAST(:prefix || lpad(to_hex(place), 8, '0') || substr(md5(random()::text), 1, 7) AS uuid),
           tenant_id, {RETRIED_STATE}, id, :batch, place, {_COPIED_VALUES}
    FROM (SELECT job.*, row_number() OVER (ORDER BY batch_seq) AS place FROM job
          WHERE batch_id = :old AND state IN ('failed', 'canceled')
            AND NOT EXISTS (SELECT FROM job AS again WHERE again.retry_of = job.id)) AS ended
    ORDER BY place
""").bindparams(bindparam("batch", type_=Uuid), bindparam("old", type_=Uuid))  # noqa: S608 - of constants
# A paused job keeps its place in its queue; the index of the queues has ``paused`` before the place, so the dispatcher
# never meets what is paused, however much that is.
_PROPAGATE: Final = text("""
    WITH wanted AS (
        SELECT id, priority, paused_at IS NOT NULL AS paused FROM batch WHERE id = :batch FOR KEY SHARE
    ), outdated AS (
        SELECT job.id, wanted.priority, wanted.paused FROM job, wanted
        WHERE job.batch_id = wanted.id AND job.state IN ('pending', 'queued', 'dispatched', 'running')
          AND (job.priority <> wanted.priority OR job.paused <> wanted.paused)
        LIMIT :at_once FOR UPDATE OF job SKIP LOCKED
    ), propagated AS (
        UPDATE job SET priority = coalesce(outdated.priority, job.priority), paused = outdated.paused
        FROM outdated WHERE job.id = outdated.id RETURNING job.id
    )
    SELECT count(*) FROM propagated
""").bindparams(bindparam("batch", type_=Uuid))
_NOT_PROPAGATED: Final = text("""
    SELECT EXISTS (
        SELECT FROM job JOIN batch ON batch.id = job.batch_id
        WHERE batch.id = :batch AND job.state IN ('pending', 'queued', 'dispatched', 'running')
          AND (job.priority <> batch.priority OR job.paused <> (batch.paused_at IS NOT NULL)))
""").bindparams(bindparam("batch", type_=Uuid))

# The jobs at workers are counted over all batches, because they are few, rather than over the batch's jobs, which may
# be a million; and in one statement with the counters, so that the two are of the same moment.
_READ: Final = """
    WITH held AS MATERIALIZED (
        SELECT batch_id, state, count(*) AS jobs FROM job
        WHERE state IN ('dispatched', 'running') AND batch_id IS NOT NULL GROUP BY batch_id, state
    ), chosen AS (
        SELECT * FROM batch
        WHERE {wanted} AND tenant_id = %(tenant)s AND deleted_at IS NULL ORDER BY id DESC LIMIT %(limit)s
    )
    SELECT chosen.*, now() AS read_at, held.state AS at, held.jobs
    FROM chosen LEFT JOIN held ON held.batch_id = chosen.id ORDER BY chosen.id DESC
"""
_ONE: Final = _READ.format(wanted="id = %(id)s")
_PAGE: Final = _READ.format(wanted="id < %(before)s")

# Says of each batch whether it has reached something that it tells.
_FLUSH_COUNTERS: Final = """
    WITH promoted AS (
        SELECT * FROM unnest(%(batches)s::uuid[], %(promoted)s::integer[]) AS promoted (batch_id, jobs)
    ), ended AS (
        SELECT batch_id, count(*) FILTER (WHERE state = 'succeeded') AS succeeded,
            count(*) FILTER (WHERE state = 'failed') AS failed, count(*) FILTER (WHERE state = 'canceled') AS canceled,
            count(*) FILTER (WHERE state = 'succeeded' AND EXISTS (
                SELECT FROM output WHERE output.job_id = job.id AND output.metadata ? 'suspicious_output'
            )) AS suspicious, count(*) FILTER (WHERE pending_inputs > 0) AS pending
        FROM job WHERE id = ANY(%(over)s::uuid[]) AND batch_id IS NOT NULL GROUP BY batch_id
    ), over AS (
        SELECT batch_id, coalesce(succeeded, 0) AS succeeded, coalesce(failed, 0) AS failed,
            coalesce(canceled, 0) AS canceled, coalesce(suspicious, 0) AS suspicious,
            coalesce(pending, 0) + coalesce(jobs, 0) AS pending, ended.batch_id IS NOT NULL AS any_ended
        FROM ended FULL JOIN promoted USING (batch_id)
    ), mine AS (  -- every transaction locks the rows of batches in the same order
        SELECT batch.id FROM batch JOIN over ON batch.id = over.batch_id ORDER BY batch.id FOR NO KEY UPDATE OF batch
    )
    UPDATE batch SET succeeded = batch.succeeded + over.succeeded, failed = batch.failed + over.failed,
        canceled = batch.canceled + over.canceled, suspicious = batch.suspicious + over.suspicious,
        pending = batch.pending - over.pending,
        first_finished_at = CASE WHEN any_ended THEN coalesce(batch.first_finished_at, now())
            ELSE batch.first_finished_at END,
        finished_at = CASE WHEN batch.succeeded + batch.failed + batch.canceled
            + over.succeeded + over.failed + over.canceled >= batch.total THEN now() ELSE batch.finished_at END
    FROM mine JOIN over ON mine.id = over.batch_id WHERE batch.id = mine.id
    RETURNING batch.id, batch.finished_at IS NOT NULL OR EXISTS (
        SELECT FROM unnest(%(milestones)s::integer[]) AS milestone WHERE milestone > batch.last_milestone
            AND 100 * (batch.succeeded + batch.failed + batch.canceled)::bigint >= milestone * batch.total::bigint
    ) AS has_event
"""


@dataclass(frozen=True)
class DeletedJob:
    """A job whose row this transaction deletes, and the objects that it named."""

    tenant_id: str
    job_id: str
    keys: tuple[str, ...]
    may_have_orphans: bool  #: whether a lost attempt may have left objects that no row names


@dataclass(frozen=True)
class ArchivePosition:
    """Where in a batch's archive an image lies."""

    seq: int  #: the job's place in the batch
    index: int  #: the output's place in the job
    start: int  #: bytes before it


@dataclass(frozen=True)
class FinishedJob:
    """The result of one job."""

    seq: int
    id: str
    custom_id: str | None
    state: JobState
    error: JobError | None
    outputs: tuple[Output, ...]


@dataclass(frozen=True)
class ArchiveEntry:
    """What an archive needs to know of one output."""

    seq: int
    index: int
    name: str  #: the job's own name: its ``custom_id``, or its id
    key: str
    size: int  #: bytes
    media_type: str
    ended_at: datetime


def _batch(row: Any, held: Mapping[str, int]) -> Batch:
    dispatched, running = held.get(JobState.DISPATCHED.value, 0), held.get(JobState.RUNNING.value, 0)
    ended = row.succeeded + row.failed + row.canceled
    return Batch(
        id=ids.from_uuid(ids.BATCH, row.id),
        tenant_id=ids.from_uuid(ids.TENANT, row.tenant_id),
        name=row.name,
        metadata={name: str(value) for name, value in row.metadata.items()},
        counts=JobCounts(
            total=row.total,
            pending=row.pending,
            queued=row.total - ended - dispatched - running - row.pending,
            dispatched=dispatched,
            running=running,
            succeeded=row.succeeded,
            failed=row.failed,
            canceled=row.canceled,
        ),
        cost=row.cost,
        suspicious=row.suspicious,
        skipped=row.skipped,
        error_key=row.error_key,
        retry_of=None if row.retry_of is None else ids.from_uuid(ids.BATCH, row.retry_of),
        created_at=row.created_at,
        first_finished_at=row.first_finished_at,
        finished_at=row.finished_at,
        cancel_requested_at=row.cancel_requested_at,
        webhook=row.webhook,
        priority=None if row.priority is None else Priority.of_rank(row.priority),
        paused_at=row.paused_at,
        paused_seconds=row.paused_seconds,
        propagating=row.propagating,
        one_numerics=row.one_numerics,
        numerics=row.numerics,
        read_at=row.read_at,
    )


class Batches:
    """All batches of all tenants."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._over: list[str] = []
        self._promoted: Counter[str] = Counter()

    # -- reading ------------------------------------------------------------------------------------------------------

    def get(self, batch_id: str, tenant_id: str) -> Batch | None:
        """The tenant's batch of that id."""
        if not ids.is_id(ids.BATCH, batch_id):
            return None
        values = {"id": ids.to_uuid(ids.BATCH, batch_id), "tenant": ids.to_uuid(ids.TENANT, tenant_id), "limit": 1}
        return next(iter(self._read(_ONE, values)), None)

    def page(self, tenant_id: str, cursor: str | None, limit: int) -> tuple[list[Batch], str | None]:
        """A page of the tenant's batches, newest first, and the cursor of the next one. Raises `BadInput`."""
        # no id comes after the last one
        place = UUID(int=2**128 - 1) if cursor is None else UUID(bytes=cursors.decode(cursor, 16))
        found = self._read(_PAGE, {"before": place, "tenant": ids.to_uuid(ids.TENANT, tenant_id), "limit": limit + 1})
        following = None
        if len(found) > limit:
            following = cursors.encode(ids.to_uuid(ids.BATCH, found[limit - 1].id).bytes)
        return found[:limit], following

    def _read(self, statement: str, values: dict[str, Any]) -> list[Batch]:
        rows = self._session.connection().exec_driver_sql(statement, values).all()
        at_workers: dict[UUID, dict[str, int]] = {}
        for row in rows:
            if row.at is not None:
                at_workers.setdefault(row.id, {})[row.at] = row.jobs
        return [_batch(row, at_workers.get(row.id, {})) for row in {row.id: row for row in rows}.values()]

    def equal_to(self, tenant_id: str, request_hash: bytes) -> str | None:
        """The tenant's last batch of an equal request, if it was submitted within `EQUAL_HOURS`."""
        found = select(BatchRow.id).where(
            BatchRow.tenant_id == tenant_id,
            BatchRow.request_hash == request_hash,
            BatchRow.deleted_at.is_(None),
            BatchRow.created_at > func.now() - func.make_interval(0, 0, 0, 0, EQUAL_HOURS),
        )
        return self._session.scalar(found.order_by(BatchRow.id.desc()).limit(1))

    def contents(self, batch_id: str) -> BatchContents:
        """How many jobs, outputs and bytes the batch holds."""
        jobs = self._session.scalar(select(func.count()).where(JobRow.batch_id == batch_id))
        outputs, size = self._session.execute(
            select(func.count(), func.coalesce(func.sum(OutputRow.size), 0))
            .join(JobRow, JobRow.id == OutputRow.job_id)
            .where(JobRow.batch_id == batch_id)
        ).one()
        return BatchContents(jobs or 0, outputs, int(size))

    def archive_entries(
        self, batch_id: str, after: tuple[int, int], limit: int, last: int = LAST_SEQ
    ) -> list[ArchiveEntry]:
        """A batch's outputs behind that place (job, output) up to the job ``last``, in the order of their places."""
        seq, index = after
        rows = self._session.execute(
            select(
                JobRow.batch_seq,
                OutputRow.index,
                JobRow.custom_id,
                JobRow.id,
                OutputRow.key,
                OutputRow.size,
                OutputRow.media_type,
                JobRow.finished_at,
            )
            .join(OutputRow, OutputRow.job_id == JobRow.id)
            .where(
                JobRow.batch_id == batch_id,
                JobRow.state == JobState.SUCCEEDED.value,
                JobRow.batch_seq.between(seq, last),  # what the index understands
                or_(JobRow.batch_seq > seq, OutputRow.index > index),
            )
            .order_by(JobRow.batch_seq, OutputRow.index)
            .limit(limit)
        )
        found: Sequence[Any] = rows.all()
        return [ArchiveEntry(row[0], row[1], row[2] or row[3], *row[4:]) for row in found]

    def results(self, batch_id: str, states: Collection[JobState], after: int, limit: int) -> list[FinishedJob]:
        """A batch's jobs in those terminal states with a place above ``after``, in the order of their places."""
        rows: Sequence[Any] = self._session.execute(
            select(
                JobRow.batch_seq,
                JobRow.id,
                JobRow.custom_id,
                JobRow.state,
                JobRow.error_code,
                JobRow.error_message,
            )
            .where(
                JobRow.batch_id == batch_id,
                JobRow.batch_seq > after,
                JobRow.state.in_([state.value for state in states]),
            )
            .order_by(JobRow.batch_seq)
            .limit(limit)
        ).all()
        outputs: dict[str, list[Output]] = {}
        done = [ids.to_uuid(ids.JOB, row[1]) for row in rows if row[3] == JobState.SUCCEEDED.value]
        if done:
            found = self._session.execute(
                select(*(getattr(OutputRow, name) for name in ("job_id", *_OUTPUT_COLUMNS)))
                .where(OutputRow.job_id == func.any(bindparam("done", done, type_=ARRAY(Uuid))))
                .order_by(OutputRow.job_id, OutputRow.index)
            )
            for row in found:
                outputs.setdefault(row[0], []).append(Output(*row[1:]))
        return [
            FinishedJob(
                seq=row[0],
                id=row[1],
                custom_id=row[2],
                state=JobState(row[3]),
                error=None if row[4] is None else JobError(row[4], row[5] or ""),
                outputs=tuple(outputs.get(row[1], ())),
            )
            for row in rows
        ]

    def archive_bytes(self, batch_id: str, block: int, jobs: tuple[int, int] = (1, LAST_SEQ)) -> int:
        """The bytes of a batch's outputs, each behind a header of one block and filled up to whole blocks.

        ``jobs``: of those with places from the first to the second.
        """
        padded = OutputRow.size + block + (block - OutputRow.size % block) % block
        size = self._session.scalar(
            select(func.coalesce(func.sum(padded), 0))
            .join(JobRow, JobRow.id == OutputRow.job_id)
            .where(
                JobRow.batch_id == batch_id,
                JobRow.batch_seq.between(*jobs),
                JobRow.state == JobState.SUCCEEDED.value,
            )
        )
        return int(size or 0)

    def archive_position(
        self, batch_id: str, block: int, offset: int, jobs: tuple[int, int] = (1, LAST_SEQ)
    ) -> ArchivePosition | None:
        """The output whose header, content or padding has the byte at ``offset``; None behind the last one.

        As `archive_bytes` lays them out.
        """
        padded = OutputRow.size + block + (block - OutputRow.size % block) % block
        order = (JobRow.batch_seq, OutputRow.index)
        laid_out = (
            select(
                JobRow.batch_seq.label("seq"),
                OutputRow.index.label("index"),
                func.sum(padded).over(order_by=order).label("end"),
                padded.label("padded"),
            )
            .join(OutputRow, OutputRow.job_id == JobRow.id)
            .where(
                JobRow.batch_id == batch_id,
                JobRow.batch_seq.between(*jobs),
                JobRow.state == JobState.SUCCEEDED.value,
            )
            .subquery()
        )
        row = self._session.execute(
            select(laid_out.c.seq, laid_out.c.index, laid_out.c.end - laid_out.c.padded)
            .where(laid_out.c.end > offset)
            .order_by(laid_out.c.end)
            .limit(1)
        ).one_or_none()
        return None if row is None else ArchivePosition(row[0], row[1], int(row[2]))

    # -- submitting ---------------------------------------------------------------------------------------------------

    def allow_long_statements(self) -> None:
        """Let this transaction's statements take as long as a whole batch needs."""
        self._session.execute(text(f"SET LOCAL statement_timeout = '{LONG_STATEMENT_SECONDS}s'"))

    def stage(self, entries: Iterable[BatchEntry]) -> Staged:
        """Stream entries into this transaction's staging table, one at a time. What they raise, this raises.

        Nobody else sees them, and they are gone with the transaction unless `insert_staged` makes jobs of them.
        """
        # entries come as fast as they are validated, which for a million takes longer than a statement may
        self._session.execute(text("SET LOCAL statement_timeout = 0"))
        self._session.execute(_STAGING)
        connection = self._session.connection().connection.driver_connection
        assert isinstance(connection, psycopg.Connection)
        total, in_all = 0, 0.0
        try:
            with connection.cursor() as cursor, cursor.copy(_COPY) as copy:
                for part, jobs, costs in _parts(entries):
                    copy.write(part)
                    total += jobs
                    in_all += costs
        except psycopg.OperationalError as error:
            raise database_unavailable(error) from error
        self.allow_long_statements()
        return Staged(total, in_all)

    def staged_costs(self) -> dict[str, float]:
        """Megapixel-steps of staged entries, by model."""
        return {row[0]: row[1] for row in self._session.execute(text("SELECT model, sum(cost) FROM staged GROUP BY 1"))}

    def webhook_urls(self, limit: int) -> list[str]:
        """The different webhook URLs of staged entries, at most so many."""
        found = text("SELECT DISTINCT webhook FROM staged WHERE webhook IS NOT NULL LIMIT :limit")
        return list(self._session.scalars(found, {"limit": limit}))

    def duplicates(self) -> Iterator[tuple[int, str, int]]:
        """Staged entries whose ``custom_id`` came before: line, custom_id, and the line where it came first."""
        for row in self._session.execute(_DUPLICATES):
            yield row[0], row[1], row[2]

    def drop_duplicates(self) -> Staged:
        """Drop those entries; returns what stays."""
        gone: Any = self._session.execute(_DROP_DUPLICATES)
        return replace(self.staged(), duplicates=gone.rowcount)

    def staged(self) -> Staged:
        """What is in the staging table now."""
        left = self._session.execute(text("SELECT count(*), coalesce(sum(cost), 0) FROM staged")).one()
        return Staged(left[0], left[1])

    def insert_batch(
        self,
        tenant_id: str,
        batch_id: str,
        new: NewBatch,
        staged: Staged,
        skipped: int = 0,
        error_key: str | None = None,
        error_bytes: int = 0,
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
                error_bytes=error_bytes,
                request_hash=new.request_hash,
                webhook=new.webhook,
                one_numerics=new.one_numerics,
                numerics=new.numerics,
                finished_at=None if staged.total else func.now(),
            )
        )
        if not staged.total:
            self._record_event(batch_id)

    def insert_staged(
        self,
        tenant_id: str,
        batch_id: str,
        *,
        whole: bool = False,
        one_numerics: bool = False,
        chained: bool = False,
    ) -> None:
        """Make queued jobs of what is staged, and pending ones of those that wait for outputs of others.

        Args:
            tenant_id: whose they are.
            batch_id: the batch that they belong to.
            whole: nothing was dropped from what was staged.
            one_numerics: all of them are rendered in the numerics class of the first.
            chained: inputs of them are outputs of other jobs, which `StagedChains.admit` has admitted.
        """
        plain = _INSERT_STAGED if whole else _INSERT_STAGED_REST
        self._session.execute(
            _INSERT_CHAINED if chained else plain,
            {
                "tenant": ids.to_uuid(ids.TENANT, tenant_id),
                "batch": ids.to_uuid(ids.BATCH, batch_id),
                "pin": batch_id if one_numerics else "",
            },
        )
        if chained:
            self._set(batch_id, pending=staged_chains.StagedChains(self._session).insert())

    def retry_of(self, batch_id: str) -> str | None:
        """The last batch that retries this one."""
        found = select(BatchRow.id).where(BatchRow.retry_of == batch_id, BatchRow.deleted_at.is_(None))
        return self._session.scalar(found.order_by(BatchRow.id.desc()).limit(1))

    def count_retryable(self, batch_id: str) -> Staged:
        """How many of a batch's jobs failed or were canceled and were not retried since, and what they cost."""
        again = aliased(JobRow)
        row = self._session.execute(
            select(func.count(), func.coalesce(func.sum(JobRow.cost), 0.0)).where(
                JobRow.batch_id == batch_id,
                JobRow.state.in_((JobState.FAILED.value, JobState.CANCELED.value)),
                ~select(again.id).where(again.retry_of == JobRow.id).exists(),
            )
        ).one()
        return Staged(row[0], row[1])

    def copy_retryable(self, old_id: str, batch_id: str) -> None:
        """Make jobs of those that `count_retryable` counted, in the same order, for `RetriedChains.attach`."""
        self._session.execute(
            _COPY_RETRYABLE,
            {
                "prefix": ids.IdSeries(ids.JOB).prefix,
                "old": ids.to_uuid(ids.BATCH, old_id),
                "new_pin": batch_id,
                "batch": ids.to_uuid(ids.BATCH, batch_id),
            },
        )

    # -- ending -------------------------------------------------------------------------------------------------------

    def note_finished(self, job_id: str) -> None:
        """Note that a job finished in this transaction: `flush_counters` counts it if it belongs to a batch."""
        self._over.append(job_id)

    def note_promoted(self, batch_id: str, jobs: int = 1) -> None:
        """Note that jobs of a batch went from pending to queued in this transaction."""
        self._promoted[batch_id] += jobs

    def flush_counters(self) -> None:
        """Count the jobs that this transaction ended or queued. The unit of work calls it last, before it commits."""
        if not self._over and not self._promoted:
            return
        values = {
            "over": [ids.to_uuid(ids.JOB, one) for one in self._over],
            "milestones": list(MILESTONES),
            "batches": [ids.to_uuid(ids.BATCH, one) for one in self._promoted],
            "promoted": list(self._promoted.values()),
        }
        self._over, self._promoted = [], Counter()
        for row in self._session.connection().exec_driver_sql(_FLUSH_COUNTERS, values).all():
            if row.has_event:
                self._record_event(ids.from_uuid(ids.BATCH, row.id))

    def count_finished(self, batch_id: str, ended: Mapping[str, int], pending: int = 0) -> None:
        """Add to a batch's counters, by terminal state; ``pending``: how many of these jobs were pending.

        A batch's own events are written here, under the lock of its row, so each is recorded once.
        """
        more = sum(ended.values())
        done = BatchRow.succeeded + BatchRow.failed + BatchRow.canceled + more
        values: dict[str, Any] = {state: getattr(BatchRow, state) + count for state, count in ended.items()}
        values["pending"] = BatchRow.pending - pending
        values["first_finished_at"] = func.coalesce(BatchRow.first_finished_at, func.now())
        values["finished_at"] = case((done >= BatchRow.total, func.now()), else_=BatchRow.finished_at)
        self._set(batch_id, **values)
        self._record_event(batch_id)

    def _record_event(self, batch_id: str) -> None:
        """Write the event of what the batch has just reached, if it has reached something."""
        row = self._session.scalars(
            select(BatchRow).where(BatchRow.id == batch_id).execution_options(populate_existing=True)
        ).one()
        ended = row.succeeded + row.failed + row.canceled
        if ended >= row.total:
            kind, percent = EventType.BATCH_COMPLETED, 0
        else:
            kind = EventType.BATCH_PROGRESS
            percent = max((one for one in MILESTONES if one * row.total <= 100 * ended), default=0)
            if percent <= row.last_milestone:
                return
            self._session.execute(
                update(BatchRow)
                .where(BatchRow.id == row.id)
                .values(last_milestone=percent)
                .execution_options(synchronize_session=False)
            )
        self._session.execute(
            insert(EventRow).values(
                tenant_id=row.tenant_id,
                batch_id=row.id,
                type=kind.value,
                epoch=0,
                step=percent,
                data=_event_data(row, ended),
            )
        )
        events = Events(self._session)
        events.notify(EVENT_CHANNEL)
        events.notify(JOB_CHANNEL, row.id)

    # -- steering -----------------------------------------------------------------------------------------------------

    def lock(self, batch_id: str) -> None:
        """Lock the batch's row against changes of its jobs or state; the first lock of a transaction."""
        if ids.is_id(ids.BATCH, batch_id):
            self._session.execute(select(BatchRow.id).where(BatchRow.id == batch_id).with_for_update())

    def pause(self, batch_id: str, by: str | None = None) -> None:
        """Note that it is paused, and by the key of which name; `propagate` lets its jobs follow."""
        self._set(batch_id, paused_at=func.now(), paused_by=by, propagating=True)

    def resume(self, batch_id: str) -> None:
        """Note that it goes on; `propagate` lets its jobs follow."""
        # greatest passes over NULL: without a first end there is no speed that the pause would spoil
        since = func.extract("epoch", func.now() - func.greatest(BatchRow.paused_at, BatchRow.first_finished_at))
        spent = case((BatchRow.first_finished_at.is_not(None), since), else_=0.0)
        self._set(
            batch_id, paused_at=None, paused_by=None, paused_seconds=BatchRow.paused_seconds + spent, propagating=True
        )

    def cancel(self, batch_id: str) -> None:
        """Note that it is to end; its jobs follow."""
        self._set(batch_id, cancel_requested_at=func.now(), propagating=True)

    def canceling_tenant(self, batch_id: str) -> str | None:
        """Whose batch that is, if it is to end; else None."""
        return self._session.scalar(
            select(BatchRow.tenant_id).where(BatchRow.id == batch_id, BatchRow.cancel_requested_at.is_not(None))
        )

    def set_priority(self, batch_id: str, priority: Priority) -> None:
        """Note the class of all its jobs; `propagate` lets them follow."""
        self._set(batch_id, priority=priority.rank, propagating=True)

    def set_name(self, batch_id: str, name: str | None) -> None:
        """Give it another name, or none."""
        self._set(batch_id, name=name)

    def set_metadata(self, batch_id: str, metadata: Mapping[str, str]) -> None:
        """Give it other metadata."""
        self._set(batch_id, meta=dict(metadata))

    def propagate(self, batch_id: str) -> int:
        """Apply the batch's pause and priority to jobs that are not finished; returns to how many.

        `check_propagated` says whether all are done.

        Jobs that another transaction has locked are skipped, as in `BulkActions.cancel_waiting`.
        """
        values = {"batch": ids.to_uuid(ids.BATCH, batch_id), "at_once": PROPAGATE_CHUNK}
        return int(self._session.scalar(_PROPAGATE, values) or 0)

    def check_propagated(self, batch_id: str) -> bool:
        """Whether all its jobs follow now; if so, that is noted. Take `lock` before."""
        if self._session.scalar(_NOT_PROPAGATED, {"batch": ids.to_uuid(ids.BATCH, batch_id)}):
            return False
        self.mark_propagated(batch_id)
        return True

    def mark_propagated(self, batch_id: str) -> None:
        """Note that all its jobs follow."""
        self._set(batch_id, propagating=False)

    def pending_changes(self) -> list[tuple[str, bool]]:
        """Batches whose change or (True) deletion was begun and is not finished."""
        rows = self._session.execute(
            select(BatchRow.id, BatchRow.deleted_at.is_not(None))
            .where(or_(BatchRow.propagating, BatchRow.deleted_at.is_not(None)))
            .order_by(BatchRow.id)
            .limit(100)
        )
        return [(row[0], row[1]) for row in rows]

    def _set(self, batch_id: str, **values: Any) -> None:
        self._session.execute(
            update(BatchRow).where(BatchRow.id == batch_id).values(values).execution_options(synchronize_session=False)
        )

    # -- deleting -----------------------------------------------------------------------------------------------------

    def is_needed(self, batch_id: str) -> bool:
        """Whether an unfinished job has an output of the batch's jobs as an input."""
        parent = aliased(JobRow)
        needed = (
            select(JobRow.id)
            .join(JobDependencyRow, JobDependencyRow.job_id == JobRow.id)
            .join(parent, parent.id == JobDependencyRow.parent_id)
            .where(parent.batch_id == batch_id, parent.dependents > 0, JobRow.finished_at.is_(None))
        )
        return bool(self._session.scalar(select(needed.exists())))

    def soft_delete(self, batch_id: str) -> None:
        """Hide it; `delete_jobs` and `delete_row` do the rest."""
        self._set(batch_id, deleted_at=func.now())

    def delete_jobs(self, batch_id: str) -> list[DeletedJob]:
        """Delete some jobs of a soft-deleted batch, with their events and deliveries; returns them, none at the end.

        The caller keeps their objects' names in the same transaction.
        """
        some = (
            select(JobRow.id)
            .where(JobRow.batch_id == batch_id)
            .order_by(JobRow.batch_seq)
            .limit(DELETE_CHUNK)
            .with_for_update()
        )
        named = (
            select(func.array_agg(OutputRow.key))
            .where(OutputRow.job_id == JobRow.id)
            .correlate(JobRow)
            .scalar_subquery()
        )
        rows = self._session.execute(
            select(JobRow.tenant_id, JobRow.id, named, JobRow.epoch, JobRow.state).where(JobRow.id.in_(some))
        ).all()
        found = [
            DeletedJob(
                row[0], row[1], tuple(row[2] or ()), row[3] > 1 or (row[3] == 1 and row[4] != JobState.SUCCEEDED.value)
            )
            for row in rows
        ]
        if found:
            uuids = [ids.to_uuid(ids.JOB, one.job_id) for one in found]
            self._session.execute(
                delete(JobDependencyRow)
                .where(
                    or_(
                        JobDependencyRow.job_id == func.any(bindparam("gone", uuids, type_=ARRAY(Uuid))),
                        JobDependencyRow.parent_id == func.any(bindparam("gone", uuids, type_=ARRAY(Uuid))),
                    )
                )
                .execution_options(synchronize_session=False)
            )
            self._session.execute(
                delete(JobRow)
                .where(JobRow.id == func.any(bindparam("gone", uuids, type_=ARRAY(Uuid))))
                .execution_options(synchronize_session=False)
            )
        return found

    def delete_row(self, batch_id: str) -> str | None:
        """Delete a soft-deleted batch's row, when no job is left; returns its report's key."""
        return self._session.scalar(
            delete(BatchRow)
            .where(BatchRow.id == batch_id, BatchRow.deleted_at.is_not(None))
            .returning(BatchRow.error_key)
            .execution_options(synchronize_session=False)
        )


def _event_data(row: BatchRow, ended: int) -> dict[str, Any]:
    """What an event says of its batch: small, as the body of a webhook must be."""
    over = BatchState.COMPLETED if row.cancel_requested_at is None else BatchState.CANCELED
    going_on = BatchState.IN_PROGRESS if row.cancel_requested_at is None else BatchState.CANCELING
    metadata = row.meta if len(json.dumps(row.meta)) <= MAX_EVENT_METADATA else {}
    return {
        "id": row.id,
        "name": row.name,
        "state": (over if ended >= row.total else going_on).value,
        "metadata": metadata,
        "request_counts": {
            "total": row.total,
            "succeeded": row.succeeded,
            "failed": row.failed,
            "canceled": row.canceled,
        },
        "progress": round(ended / row.total, 4) if row.total else 1.0,
    }


class _Common(NamedTuple):
    """What entries that share one job have in common, as COPY's text."""

    names: str  #: task, model and priority
    shared: tuple[str, ...]  #: the parameters that the pipeline gets, but for `PER_ENTRY`: members of a JSON object
    own: tuple[tuple[str, str], ...]  #: those of `PER_ENTRY` by name, for entries without their own
    document: str  #: the end of the spec's JSON: all but those and what is each entry's own
    middle: str  #: cost and attempts
    end: str  #: webhook, not_before, deadline and pin
    cost: float


def _common(job: NewJob) -> _Common:
    price = cost(job.spec)
    members = [
        (name, f"{_string(name)}:{json.dumps(value, ensure_ascii=False)}") for name, value in job.spec.common.items()
    ]
    return _Common(
        f"{job.spec.task}\t{_text(job.spec.model)}\t{Priority(job.priority).rank}",
        tuple(text for name, text in members if name not in PER_ENTRY),
        tuple((name, text) for name, text in members if name in PER_ENTRY),
        _document(job.spec.model_dump_json(exclude={"common", "seed"}))[1:],
        f"{price!r}\t{job.max_attempts}",
        f"{_text(job.webhook)}\t{_moment(job.not_before)}\t{_moment(job.deadline)}\t{_text(job.pin)}",
        price,
    )


def _parts(entries: Iterable[BatchEntry]) -> Iterator[tuple[bytes, int, float]]:
    """The entries as COPY's text, some at a time: with how many they are, and what they cost."""
    series = ids.IdSeries(ids.JOB)
    rows: list[str] = []
    size, costs = 0, 0.0
    last: NewJob | None = None
    for seq, entry in enumerate(entries, start=1):
        job, own = entry.job, entry.overrides
        if job is not last:
            last, common = job, _common(job)
        if own is None:
            spec = job.spec
            own = EntryOverrides({}, spec.seed, job.custom_id, dict(job.metadata))
        texts = [f'"{name}":{"null" if text is None else _string(text)}' for name, text in own.common.items()]
        texts += [text for name, text in common.own if name not in own.common]
        begin = f'{{"seed":{own.seed},"common":{{{",".join((*texts, *common.shared))}}},'
        metadata = _document(_metadata(own.metadata)) if own.metadata else "{}"
        row = (
            f"{seq}\t{entry.line}\t{series.hex(seq)}\t{common.names}\t{_document(begin)}{common.document}\t"
            f"{common.middle}\t{_text(own.custom_id)}\t{metadata}\t{common.end}\n"
        )
        rows.append(row)
        size += len(row)
        costs += common.cost
        if size >= COPY_CHUNK:
            yield "".join(rows).encode(), len(rows), costs
            rows, size, costs = [], 0, 0.0
    if rows:
        yield "".join(rows).encode(), len(rows), costs


def _metadata(value: Mapping[str, str]) -> str:
    """Texts by name as JSON, in half of the time that the general way takes."""
    return f"{{{','.join([f'{_string(name)}:{_string(text)}' for name, text in value.items()])}}}"


def _text(value: str | None) -> str:
    """A text as COPY reads it."""
    return "\\N" if value is None else value.translate(_ESCAPES)


def _moment(value: datetime | None) -> str:
    """A time as COPY reads it."""
    return "\\N" if value is None else value.isoformat()


def _document(value: str) -> str:
    """JSON as COPY reads it: a tab or a line's end is written with a backslash in it already."""
    return value.replace("\\", "\\\\")
