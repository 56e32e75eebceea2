"""The event table, and the notifications that wake those who wait for a change."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from farm.domain import ids
from farm.domain.states import HISTORY, EventType
from farm.store.tables import EventRow

QUEUE_CHANNEL: Final = "farm_queue"  #: a job waits, or a worker has room: the dispatcher looks
JOB_CHANNEL: Final = "farm_job"  #: payload: the id of a job whose row changed, or of a batch that tells something
PREVIEW_CHANNEL: Final = "farm_preview"  #: payload: a job's id, a space, and a data URL of its preview
PROPAGATION_CHANNEL: Final = "farm_propagation"  #: a job with many dependents ended: they are to follow
EVENT_CHANNEL: Final = "farm_event"  #: an event was written that an endpoint subscribes to; the deliverer listens
MODEL_CHANNEL: Final = "farm_model"  #: payload: the id of a model whose row changed

NOTICES: Final = "notices"  #: in a session's ``info``: (channel, payload) of the notifications to send when it commits
_NOTIFY: Final = """
    SELECT pg_notify(channel, payload)
    FROM unnest(%(channels)s::text[], %(payloads)s::text[]) AS notification (channel, payload)
"""
_NOTIFY_EACH: Final = "SELECT pg_notify(%(channel)s, name) FROM unnest(string_to_array(%(names)s, ' ')) AS name"
# Events without a subscriber are no work for a deliverer, so they do not wake it.
_RECORD: Final = """
    INSERT INTO event (tenant_id, job_id, epoch, type, data, fanned_out)
    SELECT recorded.*, NOT EXISTS (
            SELECT FROM endpoint WHERE endpoint.tenant_id = recorded.tenant_id AND recorded.type = ANY (endpoint.events)
                AND NOT one_off AND disabled_at IS NULL)
        AND NOT EXISTS (SELECT FROM job WHERE job.id = recorded.job_id AND job.webhook IS NOT NULL)
    FROM unnest(%(tenants)s::uuid[], %(jobs)s::uuid[], %(epochs)s::integer[], %(types)s::text[], %(data)s::jsonb[])
        AS recorded (tenant_id, job_id, epoch, type, data)
    RETURNING fanned_out
"""
_JSON: Final = json.JSONEncoder(ensure_ascii=False).encode

# Text, because the planner finds the partial index only where its condition stands word for word.
_PROGRESS: Final = text("""
    INSERT INTO event (tenant_id, job_id, epoch, type, step, data)
    SELECT j.tenant_id, j.id, j.epoch, 'job.progress', j.step, jsonb_build_object(
        'worker', j.worker, 'attempt', j.attempts, 'step', j.step, 'steps', j.steps)
    FROM job j
    WHERE j.id = ANY(CAST(:job_ids AS uuid[])) AND j.step IS NOT NULL AND j.steps IS NOT NULL
    AND EXISTS (
        SELECT FROM endpoint
        WHERE tenant_id = j.tenant_id AND 'job.progress' = ANY (events) AND disabled_at IS NULL)
    AND NOT EXISTS (
        SELECT FROM event progress
        WHERE progress.job_id = j.id AND progress.epoch = j.epoch AND progress.type = 'job.progress'
        AND progress.created_at > now() - make_interval(secs => :seconds))
    ON CONFLICT DO NOTHING
    RETURNING id
""")


@dataclass(frozen=True)
class Event:
    """One row of a job's history."""

    id: int
    job_id: str
    type: EventType
    epoch: int
    data: dict[str, Any]
    created_at: datetime


@dataclass(frozen=True)
class BatchEvent:
    """One of a batch's own events."""

    id: int
    type: EventType
    data: dict[str, Any]
    created_at: datetime


class Events:
    """What happened, in order."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def record(
        self, tenant_id: str, job_id: str | None, epoch: int, kind: EventType, data: dict[str, Any] | None = None
    ) -> None:
        """Write an event in the transaction of the state it reports."""
        self.record_many([(tenant_id, job_id, epoch, kind, data or {})])

    def record_many(self, rows: Sequence[tuple[str, str | None, int, EventType, dict[str, Any]]]) -> None:
        """Write several events: (tenant, job, epoch, type, data)."""
        if not rows:
            return
        tenants, jobs, epochs, kinds, data = zip(*rows, strict=True)
        values = {
            "tenants": [ids.to_uuid(ids.TENANT, one) for one in tenants],
            "jobs": [None if one is None else ids.to_uuid(ids.JOB, one) for one in jobs],
            "epochs": list(epochs),
            "types": [one.value for one in kinds],
            "data": [_JSON(one) for one in data],
        }
        wrote = self._session.connection().exec_driver_sql(_RECORD, values)
        if not all(wrote.scalars()):
            self.notify(EVENT_CHANNEL)

    def record_progress(self, job_ids: Collection[str], every_seconds: float) -> None:
        """Record the progress of jobs for endpoints that subscribe to it, at most once in ``every_seconds``."""
        jobs = [ids.to_uuid(ids.JOB, one) for one in job_ids]
        wrote = self._session.execute(_PROGRESS, {"job_ids": jobs, "seconds": every_seconds})
        if wrote.first() is not None:
            self.notify(EVENT_CHANNEL)

    def of_job(self, job_id: str, after: int = 0) -> list[Event]:
        """The history of a job with ids above ``after``, oldest first."""
        rows = self._session.scalars(
            select(EventRow)
            .where(EventRow.job_id == job_id, EventRow.id > after, EventRow.type.in_(HISTORY))
            .order_by(EventRow.id)
        )
        return [Event(row.id, job_id, EventType(row.type), row.epoch, row.data, row.created_at) for row in rows]

    def of_batch(self, batch_id: str, after: int = 0) -> list[BatchEvent]:
        """A batch's own events with ids above ``after``, oldest first."""
        rows = self._session.scalars(
            select(EventRow).where(EventRow.batch_id == batch_id, EventRow.id > after).order_by(EventRow.id)
        )
        return [BatchEvent(row.id, EventType(row.type), row.data, row.created_at) for row in rows]

    def notify(self, channel: str, payload: str = "") -> None:
        """Wake the listeners of a channel when this transaction commits."""
        self._session.info.setdefault(NOTICES, {})[channel, payload] = None

    def flush(self) -> None:
        """Send what `notify` was asked for, in one round trip. The unit of work calls it before it commits."""
        notices = self._session.info.pop(NOTICES, {})
        if notices:
            channels, payloads = zip(*notices, strict=True)
            values = {"channels": list(channels), "payloads": list(payloads)}
            self._session.connection().exec_driver_sql(_NOTIFY, values)

    def notify_each(self, channel: str, names: Sequence[str]) -> None:
        """Send a channel's listeners one notification per name, which has no space in it, by one statement."""
        if names:
            values = {"channel": channel, "names": " ".join(names)}
            self._session.connection().exec_driver_sql(_NOTIFY_EACH, values)
