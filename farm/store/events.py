"""The event table, and the notifications that wake whoever waits for a change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import insert, select, text
from sqlalchemy.orm import Session

from farm.domain.states import EventType
from farm.store.tables import EventRow

QUEUE_CHANNEL: Final = "farm_queue"  #: a job waits, or a worker has room: the dispatcher looks
JOB_CHANNEL: Final = "farm_job"  #: payload: the id of a job whose row changed
EVENT_CHANNEL: Final = "farm_event"  #: an event row was written: the deliverer looks


@dataclass(frozen=True)
class Event:
    """One row of a job's history."""

    id: int
    job_id: str
    type: EventType
    epoch: int
    data: dict[str, Any]
    created_at: datetime


class Events:
    """What happened, in order."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def record(
        self, tenant_id: str, job_id: str, epoch: int, kind: EventType, data: dict[str, Any] | None = None
    ) -> None:
        """Write an event in the transaction of the state it reports."""
        self.record_many([(tenant_id, job_id, epoch, kind, data or {})])

    def record_many(self, rows: Sequence[tuple[str, str, int, EventType, dict[str, Any]]]) -> None:
        """Write several events: (tenant, job, epoch, type, data)."""
        if not rows:
            return
        self._session.execute(
            insert(EventRow),
            [
                {"tenant_id": tenant, "job_id": job, "epoch": epoch, "type": kind.value, "data": data}
                for tenant, job, epoch, kind, data in rows
            ],
        )
        self.notify(EVENT_CHANNEL)

    def of_job(self, job_id: str, after: int = 0) -> list[Event]:
        """The events of a job with an id above ``after``, oldest first."""
        rows = self._session.scalars(
            select(EventRow).where(EventRow.job_id == job_id, EventRow.id > after).order_by(EventRow.id)
        )
        return [Event(row.id, row.job_id, EventType(row.type), row.epoch, row.data, row.created_at) for row in rows]

    def notify(self, channel: str, payload: str = "") -> None:
        """Wake the listeners of a channel when this transaction commits."""
        self._session.execute(text("SELECT pg_notify(:channel, :payload)"), {"channel": channel, "payload": payload})

    def notify_each(self, channel: str, payloads: Sequence[str]) -> None:
        """Send a channel's listeners one notification per payload, by one statement."""
        self._session.execute(
            text("SELECT pg_notify(:channel, payload) FROM unnest(CAST(:payloads AS text[])) AS payload"),
            {"channel": channel, "payloads": list(payloads)},
        )
