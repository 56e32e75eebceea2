"""Finding jobs and batches for a person who looks: of one tenant or of all, by what can be seen on them.

No search reads more than `WINDOW` rows, however many there are: a page may be short, or empty, and still have a next.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Boolean, DateTime, Integer, Select, SmallInteger, Text, func, select, text
from sqlalchemy.orm import Session

from farm.domain import ids
from farm.domain.job import Job, JobFilter
from farm.domain.states import JobState, Priority
from farm.store import cursor as cursors
from farm.store.bulk_actions import matching
from farm.store.jobs import Jobs
from farm.store.numerics import CLASS_OF_PIN
from farm.store.queue import QUEUES as ALL_QUEUES
from farm.store.queue import Queues
from farm.store.tables import TENANT_ID, BatchRow, DeliveryRow, EndpointRow, EventRow, JobRow, TenantRow
from farm.store.workers import HELD

WINDOW: Final = 20_000
MAX_BATCH_WEBHOOKS: Final = 50  #: webhooks about one batch that are shown
MAX_QUEUES: Final = 200  #: lines of the queue that are shown
QUEUE_WINDOW: Final = 2_000  #: jobs of one line that are counted


@dataclass(frozen=True)
class JobAtWorker:
    """A job at a worker."""

    job_id: str
    tenant_id: str
    worker: str
    state: JobState
    model: str
    prompt: str
    step: int | None
    steps: int | None
    since: datetime | None  #: when it was claimed, or dispatched


@dataclass(frozen=True)
class QueueTotals:
    """What waits."""

    jobs: int
    costs: Mapping[str, float]  #: megapixel-steps by model
    more: bool  #: whether there is more than was counted
    oldest: datetime | None  #: since when the first in any line waits


@dataclass(frozen=True)
class FailureGroup:
    """Failed jobs of a batch with the same error code."""

    code: str
    jobs: int
    example: str  #: one of their messages


@dataclass(frozen=True)
class BatchWebhook:
    """A webhook about a batch."""

    id: str
    type: str
    url: str
    state: str
    attempt_count: int


@dataclass(frozen=True)
class QueueSummary:
    """What waits of one tenant, class and model, and what of it is at workers."""

    tenant_id: str
    priority: Priority
    model: str
    waiting: int  #: jobs whose turn may come now, counted up to `QUEUE_WINDOW`
    more: bool  #: whether there are more than were counted
    later: bool  #: whether others wait for a later time, or for their batch to go on
    oldest: datetime | None  #: since when the first of them waits
    held: int  #: at workers
    numerics: str | None  #: the numerics class that its jobs asked for, or the batch that asked for one class for all
    numerics_class: str | None  #: the class that this means; None: any, or not chosen yet


#: The lines themselves are found by a loose index scan, as the dispatcher finds them; of each, few rows are read.
_QUEUES: Final = text(f"""
    WITH {ALL_QUEUES}, found AS (
        SELECT * FROM queue WHERE CAST(:tenant AS uuid) IS NULL OR tenant_id = CAST(:tenant AS uuid) LIMIT :lines
    ), held AS (
        SELECT tenant_id, priority, model, pin, count(*) AS jobs FROM job
        WHERE state IN ('dispatched', 'running')
          AND (CAST(:tenant AS uuid) IS NULL OR tenant_id = CAST(:tenant AS uuid))
        GROUP BY tenant_id, priority, model, pin
    )
    SELECT tenant_id, priority, model, pin,
           (SELECT count(*) FROM (SELECT FROM job WHERE state = 'queued' AND job.tenant_id = found.tenant_id
                AND job.priority = found.priority AND job.model = found.model
                AND job.pin = found.pin AND NOT paused AND queued_at <= now()
                LIMIT :most + 1) AS counted) AS waiting,
           EXISTS (SELECT FROM job WHERE state = 'queued' AND job.tenant_id = found.tenant_id
                AND job.priority = found.priority AND job.model = found.model
                AND job.pin = found.pin AND paused)
           OR EXISTS (SELECT FROM job WHERE state = 'queued' AND job.tenant_id = found.tenant_id
                AND job.priority = found.priority AND job.model = found.model
                AND job.pin = found.pin AND NOT paused AND queued_at > now())
               AS later,
           (SELECT queued_at FROM job WHERE state = 'queued' AND job.tenant_id = found.tenant_id
                AND job.priority = found.priority AND job.model = found.model
                AND job.pin = found.pin AND NOT paused AND queued_at <= now()
                ORDER BY queued_at, id LIMIT 1) AS oldest,
           coalesce(held.jobs, 0) AS held, {CLASS_OF_PIN.format(pin="pin")} AS numerics_class
    FROM found FULL JOIN held USING (tenant_id, priority, model, pin)
    ORDER BY priority DESC, oldest NULLS LAST, tenant_id, model, pin LIMIT :lines
""").columns(  # noqa: S608 - of constants
    tenant_id=TENANT_ID, priority=SmallInteger, model=Text, pin=Text, waiting=Integer, later=Boolean,
    oldest=DateTime(timezone=True), held=Integer, numerics_class=Text,
)  # fmt: skip


class DashboardQueries:
    """Jobs and batches of one tenant, or of all."""

    def __init__(self, session: Session) -> None:
        self._session = session

    # -- jobs ---------------------------------------------------------------------------------------------------------

    def jobs(
        self, tenant_id: str | None, wanted: JobFilter, cursor: str | None, limit: int
    ) -> tuple[list[Job], str | None]:
        """A page of the jobs of a tenant, or of all, newest first, and the next page's cursor.

        A batch's jobs come in the order of their places. Raises `BadInput` for a cursor.
        """
        if wanted.batch_id:
            return self._of_batch(tenant_id, wanted, cursor, limit)
        scanned = _window(tenant_id, cursor)
        found = self._ids(tenant_id, wanted, scanned, limit + 1)
        following = None
        if len(found) > limit:
            following = found[limit - 1]
        elif not _few(wanted):
            following = self._session.scalar(scanned.offset(WINDOW - 1).limit(1))
        jobs = Jobs(self._session).many(found[:limit])
        place = None if following is None else cursors.encode(ids.to_uuid(ids.JOB, following).bytes)
        return [jobs[one] for one in found[:limit] if one in jobs], place

    def _of_batch(
        self, tenant_id: str | None, wanted: JobFilter, cursor: str | None, limit: int
    ) -> tuple[list[Job], str | None]:
        after = int.from_bytes(cursors.decode(cursor, 4)) if cursor else 0
        rows = self._session.execute(
            select(JobRow.id, JobRow.batch_seq)
            .where(
                *_of(tenant_id),
                JobRow.batch_seq > after,
                JobRow.batch_seq <= after + WINDOW,
                *matching(wanted),
            )
            .order_by(JobRow.batch_seq)
            .limit(limit + 1)
        ).all()
        following = None
        if len(rows) > limit:
            following = rows[limit - 1][1]
        elif self._session.scalar(
            select(
                select(JobRow.id).where(JobRow.batch_id == wanted.batch_id, JobRow.batch_seq > after + WINDOW).exists()
            )
        ):
            following = after + WINDOW
        jobs = Jobs(self._session).many([row[0] for row in rows[:limit]])
        place = None if following is None else cursors.encode(following.to_bytes(4))
        return [jobs[row[0]] for row in rows[:limit] if row[0] in jobs], place

    def matching(self, tenant_id: str | None, wanted: JobFilter, limit: int) -> list[str]:
        """The ids of the newest jobs that match, at most ``limit``: what an action on all of them touches."""
        if wanted.batch_id:
            rows = self._session.scalars(
                select(JobRow.id).where(*_of(tenant_id), *matching(wanted)).order_by(JobRow.batch_seq).limit(limit)
            )
            return list(rows)
        return self._ids(tenant_id, wanted, _window(tenant_id, None), limit)

    def _ids(self, tenant_id: str | None, wanted: JobFilter, scanned: Select[Any], limit: int) -> list[str]:
        statement = select(JobRow.id).where(*matching(wanted)).order_by(JobRow.id.desc()).limit(limit)
        if _few(wanted):
            statement = statement.where(*_of(tenant_id))
        else:
            window = scanned.limit(WINDOW).subquery("recent")
            statement = statement.join(window, window.c.id == JobRow.id)
        return list(self._session.scalars(statement))

    def failure_groups(self, batch_id: str) -> list[FailureGroup]:
        """A batch's failed jobs by error code, most frequent first. Reads all of the batch's rows."""
        rows = self._session.execute(
            select(JobRow.error_code, func.count(), func.min(JobRow.error_message))
            .where(JobRow.batch_id == batch_id, JobRow.state == JobState.FAILED.value)
            .group_by(JobRow.error_code)
            .order_by(func.count().desc())
        )
        return [FailureGroup(row[0] or "unknown", row[1], row[2] or "") for row in rows]

    def recent_on_worker(self, worker: str, limit: int) -> list[str]:
        """Ids of the jobs among the newest that this worker held last."""
        window = select(JobRow.id).order_by(JobRow.id.desc()).limit(WINDOW).subquery("recent")
        statement = select(JobRow.id).join(window, window.c.id == JobRow.id).where(JobRow.worker == worker)
        return list(self._session.scalars(statement.order_by(JobRow.id.desc()).limit(limit)))

    # -- batches ------------------------------------------------------------------------------------------------------

    def batches(
        self, tenant_id: str | None, cursor: str | None, limit: int
    ) -> tuple[list[tuple[str, str]], str | None]:
        """A page of (batch, tenant), newest first, and the cursor of the next one. Raises `BadInput` for a cursor."""
        statement = select(BatchRow.id, BatchRow.tenant_id).order_by(BatchRow.id.desc()).limit(limit + 1)
        if tenant_id is not None:
            statement = statement.where(BatchRow.tenant_id == tenant_id)
        if cursor is not None:
            place = UUID(bytes=cursors.decode(cursor, 16))
            statement = statement.where(BatchRow.id < ids.from_uuid(ids.BATCH, place))
        rows = [(row[0], row[1]) for row in self._session.execute(statement)]
        following = None
        if len(rows) > limit:
            following = cursors.encode(ids.to_uuid(ids.BATCH, rows[limit - 1][0]).bytes)
        return rows[:limit], following

    def owner(self, batch_id: str) -> str | None:
        """The tenant of a batch."""
        if not ids.is_id(ids.BATCH, batch_id):
            return None
        return self._session.scalar(select(BatchRow.tenant_id).where(BatchRow.id == batch_id))

    def owner_of_endpoint(self, endpoint_id: str) -> str | None:
        """The tenant of a webhook's endpoint."""
        if not ids.is_id(ids.ENDPOINT, endpoint_id):
            return None
        return self._session.scalar(select(EndpointRow.tenant_id).where(EndpointRow.id == endpoint_id))

    def owner_of_delivery(self, delivery_id: str) -> str | None:
        """The tenant of a webhook's delivery."""
        if not ids.is_id(ids.DELIVERY, delivery_id):
            return None
        statement = select(EndpointRow.tenant_id).join(DeliveryRow, DeliveryRow.endpoint_id == EndpointRow.id)
        return self._session.scalar(statement.where(DeliveryRow.id == delivery_id))

    def batch_webhooks(self, batch_id: str) -> list[BatchWebhook]:
        """The webhooks about a batch itself, not about its jobs, oldest event first."""
        rows = self._session.execute(
            select(DeliveryRow.id, EventRow.type, EndpointRow.url, DeliveryRow.state, DeliveryRow.attempt_count)
            .join(EventRow, EventRow.id == DeliveryRow.event_id)
            .join(EndpointRow, EndpointRow.id == DeliveryRow.endpoint_id)
            .where(EventRow.batch_id == batch_id)
            .order_by(EventRow.id, DeliveryRow.id)
            .limit(MAX_BATCH_WEBHOOKS)
        )
        return [BatchWebhook(*row) for row in rows]

    # -- the farm now -------------------------------------------------------------------------------------------------

    def held_jobs(self, tenant_id: str | None = None) -> list[JobAtWorker]:
        """Every job at a worker, the longest there first. They are as few as the farm has places."""
        statement = select(
            JobRow.id,
            JobRow.tenant_id,
            JobRow.worker,
            JobRow.state,
            JobRow.model,
            JobRow.spec["common"]["prompt"].astext,
            JobRow.step,
            JobRow.steps,
            func.coalesce(JobRow.claimed_at, JobRow.dispatched_at),
        ).where(JobRow.state.in_(HELD))
        if tenant_id is not None:
            statement = statement.where(JobRow.tenant_id == tenant_id)
        rows = self._session.execute(statement.order_by(JobRow.dispatched_at, JobRow.id))
        return [JobAtWorker(row[0], row[1], row[2] or "", JobState(row[3]), *row[4:]) for row in rows]

    def queue_totals(self, tenant_id: str | None = None) -> QueueTotals:
        """What waits, counted up to `WINDOW` jobs; of one tenant, or of all."""
        statement = select(JobRow.model, JobRow.cost, JobRow.queued_at, JobRow.paused).where(
            JobRow.state == JobState.QUEUED.value
        )
        if tenant_id is not None:
            statement = statement.where(JobRow.tenant_id == tenant_id)
        some = statement.limit(WINDOW + 1).subquery("some")
        rows = self._session.execute(
            select(
                some.c.model,
                func.count(),
                func.sum(some.c.cost),
                func.min(some.c.queued_at).filter(~some.c.paused),
            ).group_by(some.c.model)
        ).all()
        count = sum(row[1] for row in rows)
        since = min((row[3] for row in rows if row[3] is not None), default=None)
        if count > WINDOW:  # the oldest may be among those that were not read: the head of each line is
            queues = [one for one in Queues(self._session).read(1) if tenant_id in (None, one.tenant_id)]
            firsts = [datetime.fromtimestamp(one.candidates[0].queued_at, UTC) for one in queues]
            since = min([*firsts, *([] if since is None else [since])], default=None)
        costs = {row[0]: float(row[2]) for row in rows}
        return QueueTotals(min(count, WINDOW), costs, count > WINDOW, since)

    def queues(self, tenant_id: str | None = None) -> list[QueueSummary]:
        """What waits or is at workers, line by line: highest class, then longest wait first; `MAX_QUEUES` at most."""
        values = {
            "tenant": None if tenant_id is None else str(ids.to_uuid(ids.TENANT, tenant_id)),
            "lines": MAX_QUEUES,
            "most": QUEUE_WINDOW,
        }
        rows = self._session.execute(_QUEUES, values).all()
        return [
            QueueSummary(
                row.tenant_id,
                Priority.of_rank(row.priority),
                row.model,
                min(row.waiting, QUEUE_WINDOW),
                row.waiting > QUEUE_WINDOW,
                row.later,
                row.oldest,
                row.held,
                row.pin or None,
                row.numerics_class,
            )
            for row in rows
        ]

    def tenant_names(self, tenant_ids: Collection[str]) -> dict[str, str]:
        """The names of these tenants."""
        rows = self._session.execute(select(TenantRow.id, TenantRow.name).where(TenantRow.id.in_(set(tenant_ids))))
        return {row[0]: row[1] for row in rows}


def _of(tenant_id: str | None) -> list[Any]:
    return [] if tenant_id is None else [JobRow.tenant_id == tenant_id]


def _few(wanted: JobFilter) -> bool:
    """Whether an index of its own holds all that could match: jobs at workers."""
    return bool(wanted.state) and {state.value for state in wanted.state} <= set(HELD)


def _window(tenant_id: str | None, cursor: str | None) -> Select[Any]:
    """The newest jobs before the cursor."""
    statement = select(JobRow.id).order_by(JobRow.id.desc())
    statement = statement.where(*_of(tenant_id))
    if cursor is not None:
        statement = statement.where(JobRow.id < ids.from_uuid(ids.JOB, UUID(bytes=cursors.decode(cursor, 16))))
    return statement
