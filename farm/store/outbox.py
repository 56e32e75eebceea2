"""The outbox: from events to the deliveries to the endpoints that subscribe to them.

Plain statements, whose arrays hold any number of rows: their texts never change, so the driver prepares them once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Final
from uuid import UUID

from sqlalchemy.orm import Session

from farm.domain import ids
from farm.domain.endpoint import SUBSCRIBABLE, WEBHOOK_EVENTS
from farm.domain.states import BATCH_EVENTS, EventType
from farm.store.secret_box import seal

_WANTED: Final = frozenset(kind.value for kind in SUBSCRIBABLE)
_ENDS: Final = frozenset(kind.value for kind in WEBHOOK_EVENTS)
_OF_BATCHES: Final = frozenset(kind.value for kind in BATCH_EVENTS)
_START: Final = EventType.STARTED.value

# fanned out with this unit of work, or not at all
_EVENTS: Final = """
    WITH taken AS (
        UPDATE event SET fanned_out = true WHERE id IN (
            SELECT id FROM event WHERE NOT fanned_out ORDER BY id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
        ) RETURNING id, tenant_id, job_id, batch_id, type
    )
    SELECT * FROM taken ORDER BY id
"""
_SUBSCRIBED: Final = """
    SELECT id, tenant_id, events FROM endpoint
    WHERE tenant_id = ANY(%(tenants)s) AND disabled_at IS NULL AND NOT one_off
"""
_OWN_URLS: Final = """
    SELECT id, tenant_id, webhook, webhook_events FROM job WHERE id = ANY(%(ids)s) AND webhook IS NOT NULL
    UNION ALL
    SELECT id, tenant_id, webhook, NULL::text[] FROM batch WHERE id = ANY(%(batches)s) AND webhook IS NOT NULL
"""
_ONE_OFF: Final = """
    SELECT id, tenant_id, url FROM endpoint
    WHERE one_off AND tenant_id = ANY(%(tenants)s) AND url = ANY(%(urls)s)
"""
# in one order everywhere, so that two deliverers that make the same ones do not wait for each other
_NEW_ONE_OFF: Final = """
    INSERT INTO endpoint (id, tenant_id, url, secrets, events, one_off)
    SELECT made.id, made.tenant_id, made.url, ARRAY[made.secret], %(events)s, true
    FROM unnest(%(ids)s::uuid[], %(tenants)s::uuid[], %(urls)s::text[], %(secrets)s::text[])
        AS made (id, tenant_id, url, secret)
    ON CONFLICT (tenant_id, url) WHERE one_off DO NOTHING
"""
_LOCK: Final = """
    SELECT id, sequence FROM endpoint
    WHERE id = ANY(%(ids)s) AND disabled_at IS NULL ORDER BY id FOR UPDATE
"""
_INSERT: Final = """
    INSERT INTO delivery (id, endpoint_id, event_id, sequence, state)
    SELECT made.*, 'pending'
    FROM unnest(%(ids)s::uuid[], %(endpoints)s::uuid[], %(events)s::bigint[], %(sequences)s::bigint[]) AS made
"""
# least and greatest skip NULLs: due now, unless it is paused
_GROWN: Final = """
    UPDATE endpoint SET sequence = grown.sequence,
        due_at = greatest(least(endpoint.due_at, now()), endpoint.paused_until)
    FROM unnest(%(ids)s::uuid[], %(sequences)s::bigint[]) AS grown (id, sequence)
    WHERE endpoint.id = grown.id
"""


def _subscribed(kind: str, events: Collection[str] | None) -> bool:
    """Whether the ``webhook`` URL of a job or batch gets an event: all but the start, unless the job names others."""
    return kind != _START if events is None else kind in events


class Outbox:
    """Events whose deliveries do not exist yet."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def fan_out(self, new_secret: Callable[[], str], limit: int = 500) -> int:
        """Make the deliveries of up to ``limit`` events that have none yet; returns how many events were done.

        Events that another deliverer has in hand are passed over. ``new_secret`` gives the secret of an endpoint that
        is made here, for the ``webhook`` URL of a job or batch.
        """
        events = self._rows(_EVENTS, limit=limit)
        if not events:
            return 0
        wanted = [event for event in events if event.type in _WANTED]
        if wanted:
            of_jobs = {event.id: event.job_id for event in wanted if event.type in _ENDS or event.type == _START}
            own = {event.id: of_jobs.get(event.id, event.batch_id) for event in wanted}
            one_off = self._one_off_endpoints(
                set(of_jobs.values()),
                {event.batch_id for event in wanted if event.type in _OF_BATCHES},
                new_secret,
            )
            subscribed: dict[UUID, list[tuple[UUID, list[str]]]] = {}
            for row in self._rows(_SUBSCRIBED, tenants=list({event.tenant_id for event in wanted})):
                subscribed.setdefault(row.tenant_id, []).append((row.id, row.events))
            pairs: list[tuple[UUID, int]] = []
            for event in wanted:
                pairs += [(one, event.id) for one, kinds in subscribed.get(event.tenant_id, ()) if event.type in kinds]
                endpoint, events_wanted = one_off.get(own[event.id], (None, None))
                if endpoint is not None and _subscribed(event.type, events_wanted):
                    pairs.append((endpoint, event.id))
            self._insert(pairs)
        return len(events)

    def deliver(self, endpoint_id: str, event_id: int) -> str:
        """Make the delivery of one event to one enabled endpoint; returns its id."""
        (made,) = self._insert([(ids.to_uuid(ids.ENDPOINT, endpoint_id), event_id)])
        return ids.from_uuid(ids.DELIVERY, made)

    def _one_off_endpoints(
        self, jobs: Collection[UUID], batches: Collection[UUID], new_secret: Callable[[], str]
    ) -> dict[UUID, tuple[UUID, list[str] | None]]:
        """The endpoint of each job and batch that has a ``webhook`` URL, made where it is missing, by their ids.

        With the event types that the job names for it, if it names any.
        """
        own = self._rows(_OWN_URLS, ids=list(jobs), batches=list(batches)) if jobs or batches else []
        if not own:
            return {}
        wanted = {(one.tenant_id, one.webhook) for one in own}
        found = self._find_one_off(wanted)
        missing = sorted(wanted - found.keys())
        if missing:
            self._run(
                _NEW_ONE_OFF,
                ids=[ids.to_uuid(ids.ENDPOINT, ids.new(ids.ENDPOINT)) for _ in missing],
                tenants=[tenant_id for tenant_id, _ in missing],
                urls=[url for _, url in missing],
                secrets=[seal(new_secret()) for _ in missing],
                events=[kind.value for kind in WEBHOOK_EVENTS],
            )
            found = self._find_one_off(wanted)
        return {one.id: (found[one.tenant_id, one.webhook], one.webhook_events) for one in own}

    def _find_one_off(self, wanted: Collection[tuple[UUID, str]]) -> dict[tuple[UUID, str], UUID]:
        rows = self._rows(
            _ONE_OFF, tenants=list({tenant_id for tenant_id, _ in wanted}), urls=list({url for _, url in wanted})
        )
        return {(row.tenant_id, row.url): row.id for row in rows}

    def _insert(self, pairs: Sequence[tuple[UUID, int]]) -> list[UUID]:
        """One delivery for each (endpoint, event), numbered within its endpoint; disabled endpoints get none."""
        if not pairs:
            return []
        last = {row.id: row.sequence for row in self._rows(_LOCK, ids=list({one for one, _ in pairs}))}
        made: list[tuple[UUID, UUID, int, int]] = []
        for name, (endpoint_id, event_id) in zip(ids.uuids(len(pairs)), pairs, strict=True):
            if endpoint_id in last:
                last[endpoint_id] += 1
                made.append((name, endpoint_id, event_id, last[endpoint_id]))
        if not made:
            return []
        columns = [list(column) for column in zip(*made, strict=True)]
        self._run(_INSERT, ids=columns[0], endpoints=columns[1], events=columns[2], sequences=columns[3])
        self._run(_GROWN, ids=list(last), sequences=list(last.values()))
        return columns[0]

    def _rows(self, statement: str, **values: Any) -> Sequence[Any]:
        return self._session.connection().exec_driver_sql(statement, values).all()

    def _run(self, statement: str, **values: Any) -> None:
        self._session.connection().exec_driver_sql(statement, values)
