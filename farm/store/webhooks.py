"""Endpoints, and deliveries on their way to them.

The deliverers walk *endpoints* by the time they are due and take a few deliveries of each, so a million deliveries
that wait for one dead endpoint are one row on everybody's way. ``endpoint.due_at`` is therefore never later than the
``next_at`` of its first pending delivery, unless the endpoint is paused or disabled; it may be earlier, which costs one
look. It is only set under the endpoint's row lock. Endpoints are locked before deliveries and in the order of their
ids, so that no two units of work wait for each other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from operator import itemgetter
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    Boolean,
    Double,
    SmallInteger,
    Uuid,
    bindparam,
    case,
    cast,
    column,
    delete,
    func,
    insert,
    null,
    or_,
    select,
    text,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from farm.domain import ids
from farm.domain.states import EventType
from farm.errors import Conflict, NotFound
from farm.store import cursor as cursors
from farm.store.events import EVENT_CHANNEL, Events
from farm.store.tables import Base, DeliveryAttemptRow, DeliveryRow, EndpointRow, EventRow, JobRow, PublicId
from farm.store.workers import seconds

#: What an endpoint gets that asks for nothing else, and all that a job's own ``webhook`` URL gets.
WEBHOOK_EVENTS: Final = (EventType.SUCCEEDED, EventType.FAILED, EventType.CANCELED)
#: What can be subscribed to.
SUBSCRIBABLE: Final = (EventType.STARTED, EventType.PROGRESS, *WEBHOOK_EVENTS, EventType.ENDPOINT_DISABLED)
MAX_SECRETS: Final = 4  #: of one endpoint that sign at the same time
LOST: Final = "lost"  #: error class of a try whose deliverer died before it could note how it went

_ENDPOINT_ID: Final = PublicId(ids.ENDPOINT)
_DELIVERY_ID: Final = PublicId(ids.DELIVERY)
_ATTEMPT: Final = Base.metadata.tables["delivery_attempt"]


class DeliveryState(StrEnum):
    """Where a delivery stands."""

    PENDING = "pending"
    DELIVERED = "delivered"
    DEAD = "dead"  #: given up after the last try of the schedule


class Disabled(StrEnum):
    """Why an endpoint gets nothing more."""

    GONE = "gone"  #: it answered 410
    FAILING = "failing"  #: it failed for days
    ASKED = "asked"  #: its tenant wanted so


@dataclass(frozen=True)
class Secret:
    """What signs an endpoint's webhooks."""

    text: str  #: ``whsec_…``
    expires_at: datetime | None  #: None: the current one


@dataclass(frozen=True)
class Endpoint:
    """Where a tenant wants events sent."""

    id: str
    tenant_id: str
    url: str
    description: str
    events: frozenset[EventType]
    signing: tuple[Secret, ...]  #: those that sign now, newest first
    one_off: bool  #: made for the ``webhook`` URL of a job
    sequence: int  #: of the last delivery made for it
    paused_until: datetime | None
    failures: int  #: tries that failed in a row
    failing_since: datetime | None
    disabled_at: datetime | None
    disabled_reason: Disabled | None
    created_at: datetime

    @property
    def secrets(self) -> tuple[str, ...]:
        """The texts of the secrets that sign now, newest first."""
        return tuple(secret.text for secret in self.signing)


@dataclass(frozen=True)
class Claimed:
    """A delivery in this deliverer's hands, until its lease ends."""

    id: str
    endpoint_id: str
    url: str
    secrets: tuple[str, ...]
    type: EventType
    job_id: str | None
    data: dict[str, Any]  #: what the event's row says
    occurred_at: datetime
    sequence: int
    number: int  #: of the try about to be made, 1-based
    turn: int  #: the same, counted from when it was last sent again: the schedule goes by it
    probe: bool  #: the one try that a failing endpoint is given


@dataclass(frozen=True)
class Claim:
    """What one look gave."""

    claimed: tuple[Claimed, ...]
    starved: frozenset[str]  #: endpoints that have more due deliveries than the caller may send at once
    due_in: float | None  #: seconds until another endpoint is due; None: none waits


@dataclass(frozen=True)
class Outcome:
    """How a try ended, and what follows from it."""

    delivery_id: str
    endpoint_id: str
    number: int
    delivered: bool
    status: int | None
    seconds: float
    error: str | None
    answer: str
    retry_in: float | None = None  #: seconds to the next try; None: delivered, or given up
    pause: float | None = None  #: seconds that the whole endpoint rests
    probe: bool = False
    blames: bool = True  #: whether a failure is the endpoint's
    gone: bool = False  #: the endpoint asked not to be called again


@dataclass(frozen=True)
class Verdict:
    """What a group of outcomes did to its endpoints."""

    disabled: tuple[str, ...]
    rescheduled: bool  #: an endpoint may be due earlier than the last look said


class Webhooks:
    """All endpoints, and the deliverers' side of deliveries; `farm.store.deliveries` has the reader's."""

    def __init__(self, session: Session) -> None:
        self._session = session

    # -- endpoints ----------------------------------------------------------------------------------------------------

    def create_endpoint(
        self,
        tenant_id: str,
        url: str,
        secret: str,
        events: Collection[EventType] = WEBHOOK_EVENTS,
        description: str = "",
    ) -> Endpoint:
        """A new endpoint; the caller has checked the URL."""
        row = EndpointRow(
            id=ids.new(ids.ENDPOINT),
            tenant_id=tenant_id,
            url=url,
            description=description,
            events=sorted(kind.value for kind in events),
            secrets=[secret],
        )
        self._session.add(row)
        self._session.flush()
        return _endpoint(row, row.created_at)

    def endpoint(self, tenant_id: str, endpoint_id: str) -> Endpoint:
        """The tenant's endpoint of that id; `NotFound`."""
        return _endpoint(*self._row(tenant_id, endpoint_id))

    def _row(self, tenant_id: str, endpoint_id: str, *, lock: bool = False) -> tuple[EndpointRow, datetime]:
        """The row, and the database's time. `NotFound`."""
        found = None
        if ids.is_id(ids.ENDPOINT, endpoint_id):
            statement = (
                select(EndpointRow, func.now())
                .where(EndpointRow.id == endpoint_id, EndpointRow.tenant_id == tenant_id)
                .execution_options(populate_existing=True)
            )
            found = self._session.execute(statement.with_for_update() if lock else statement).one_or_none()
        if found is None:
            raise NotFound("endpoint", endpoint_id)
        row, now = found
        return row, now

    def endpoints(self, tenant_id: str) -> list[Endpoint]:
        """The tenant's endpoints, oldest first."""
        rows = self._session.execute(
            select(EndpointRow, func.now())
            .where(EndpointRow.tenant_id == tenant_id)
            .order_by(EndpointRow.id)
            .execution_options(populate_existing=True)
        )
        return [_endpoint(row, now) for row, now in rows]

    def endpoint_page(
        self, tenant_id: str, cursor: str | None, limit: int, *, one_off: bool | None = None
    ) -> tuple[list[Endpoint], str | None]:
        """A page of the tenant's endpoints, newest first, and the cursor of the next one. `BadInput` for a cursor."""
        statement = (
            select(EndpointRow, func.now())
            .where(EndpointRow.tenant_id == tenant_id)
            .order_by(EndpointRow.id.desc())
            .limit(limit + 1)
            .execution_options(populate_existing=True)
        )
        if one_off is not None:
            statement = statement.where(EndpointRow.one_off.is_(one_off))
        if cursor is not None:
            place = ids.from_uuid(ids.ENDPOINT, UUID(bytes=cursors.decode(cursor, 16)))
            statement = statement.where(EndpointRow.id < place)
        found = [_endpoint(row, now) for row, now in self._session.execute(statement)]
        following = None
        if len(found) > limit:
            following = cursors.encode(ids.to_uuid(ids.ENDPOINT, found[limit - 1].id).bytes)
        return found[:limit], following

    def edit(
        self,
        tenant_id: str,
        endpoint_id: str,
        *,
        url: str | None = None,
        description: str | None = None,
        events: Collection[EventType] | None = None,
    ) -> Endpoint:
        """Change what is given; the caller has checked the URL.

        Raises `NotFound`, or `Conflict` for the URL or the events of an endpoint that belongs to a job's ``webhook``.
        """
        row, now = self._row(tenant_id, endpoint_id, lock=True)
        if row.one_off and (url is not None or events is not None):
            raise Conflict("the URL and the events of this endpoint follow from the `webhook` of jobs")
        if url is not None:
            row.url = url
        if description is not None:
            row.description = description
        if events is not None:
            row.events = sorted(kind.value for kind in events)
        self._session.flush()
        return _endpoint(row, now)

    def rotate(self, tenant_id: str, endpoint_id: str, secret: str, overlap_seconds: float) -> Endpoint:
        """Sign with a new secret, and for ``overlap_seconds`` with the old ones too.

        Raises `NotFound`, or `Conflict` when too many secrets sign already.
        """
        row, now = self._row(tenant_id, endpoint_id, lock=True)
        end = now + timedelta(seconds=overlap_seconds)
        old = _signing(row.secrets, row.secrets_until, now) if overlap_seconds > 0 else ()
        if len(old) >= MAX_SECRETS:
            raise Conflict(f"{MAX_SECRETS} secrets of this endpoint sign already: wait for one to end, or end them now")
        row.secrets = [secret, *(one.text for one in old)]
        row.secrets_until = [end if one.expires_at is None else min(one.expires_at, end) for one in old]
        self._session.flush()
        return _endpoint(row, now)

    def disable(self, tenant_id: str, endpoint_id: str) -> Endpoint:
        """Send it nothing more; what waits for it stays until it is enabled again. `NotFound`."""
        row, now = self._row(tenant_id, endpoint_id, lock=True)
        if row.disabled_at is None:
            row.disabled_at, row.disabled_reason, row.due_at = now, Disabled.ASKED.value, None
            self._session.flush()
        return _endpoint(row, now)

    def enable(self, tenant_id: str, endpoint_id: str) -> Endpoint:
        """Send again, from now on and what waited. One that is enabled stays as it is. `NotFound`."""
        row, now = self._row(tenant_id, endpoint_id, lock=True)
        if row.disabled_at is not None:
            row.disabled_at = row.disabled_reason = row.failing_since = row.paused_until = None
            row.failures = 0
            row.due_at = now
            self._session.flush()
            Events(self._session).notify(EVENT_CHANNEL)
        return _endpoint(row, now)

    def clear(self, tenant_id: str, endpoint_id: str, limit: int) -> int:
        """Delete up to ``limit`` deliveries of an endpoint, with their attempts; returns how many. `NotFound`."""
        self._row(tenant_id, endpoint_id, lock=True)
        some = select(DeliveryRow.id).where(DeliveryRow.endpoint_id == endpoint_id).limit(limit)
        gone = self._session.execute(
            delete(DeliveryRow)
            .where(DeliveryRow.id.in_(some))
            .returning(DeliveryRow.id)
            .execution_options(synchronize_session=False)
        )
        return len(gone.all())

    def remove(self, tenant_id: str, endpoint_id: str) -> None:
        """Delete an endpoint and what was sent to it; `clear` it before. `NotFound`."""
        self._row(tenant_id, endpoint_id, lock=True)
        self._session.execute(
            delete(EndpointRow).where(EndpointRow.id == endpoint_id).execution_options(synchronize_session=False)
        )

    def send_test(self, tenant_id: str, endpoint_id: str) -> str:
        """Make a ``farm.test`` event for one endpoint alone; returns the delivery's id.

        Raises `NotFound`, or `Conflict` when the endpoint is disabled.
        """
        row, _ = self._row(tenant_id, endpoint_id, lock=True)
        if row.disabled_at is not None:
            raise Conflict("the endpoint is disabled: enable it first")
        event_id = self._session.execute(
            insert(EventRow)
            .values(
                tenant_id=tenant_id,
                type=EventType.TEST.value,
                epoch=0,
                data={"endpoint": {"id": endpoint_id, "url": row.url, "description": row.description}},
                fanned_out=True,  # here, to one endpoint
            )
            .returning(EventRow.id)
        ).scalar_one()
        (delivery_id,) = self._insert_deliveries([(endpoint_id, event_id)])
        self.hurry([endpoint_id])
        return delivery_id

    def hurry(self, endpoint_ids: Collection[str]) -> None:
        """Let the deliverers look at these endpoints now, also where they pause: somebody waits for it.

        One that failed many times in a row still gets a single try.
        """
        self._session.execute(
            update(EndpointRow)
            .where(EndpointRow.id.in_(endpoint_ids), EndpointRow.disabled_at.is_(None))
            .values(paused_until=null(), due_at=func.now())
            .execution_options(synchronize_session=False)
        )
        Events(self._session).notify(EVENT_CHANNEL)

    # -- from events to deliveries ------------------------------------------------------------------------------------

    def fan_out(self, new_secret: Callable[[], str], limit: int = 500) -> int:
        """Make the deliveries of up to ``limit`` events that have none yet; returns how many events were done.

        Events that another deliverer has in hand are passed over. ``new_secret`` gives the secret of an endpoint that
        is made here, for a job's own ``webhook`` URL.
        """
        events = self._session.execute(
            select(EventRow.id, EventRow.tenant_id, EventRow.job_id, EventRow.type)
            .where(~EventRow.fanned_out)
            .order_by(EventRow.id)
            .limit(limit)
            .with_for_update(skip_locked=True)
        ).all()
        if not events:
            return 0
        wanted = [event for event in events if event.type in SUBSCRIBABLE]
        if wanted:
            over = {event.job_id for event in wanted if event.type in WEBHOOK_EVENTS}
            one_off = self._one_off_endpoints(over, new_secret)
            subscribed: dict[str, list[tuple[str, list[str]]]] = {}
            for row in self._session.execute(
                select(EndpointRow.id, EndpointRow.tenant_id, EndpointRow.events).where(
                    EndpointRow.tenant_id.in_({event.tenant_id for event in wanted}),
                    EndpointRow.disabled_at.is_(None),
                    ~EndpointRow.one_off,
                )
            ):
                subscribed.setdefault(row.tenant_id, []).append((row.id, row.events))
            pairs: list[tuple[str, int]] = []
            for event in wanted:
                pairs += [(one, event.id) for one, kinds in subscribed.get(event.tenant_id, ()) if event.type in kinds]
                if event.type in WEBHOOK_EVENTS and event.job_id in one_off:
                    pairs.append((one_off[event.job_id], event.id))
            self._insert_deliveries(pairs)
        self._session.execute(
            update(EventRow)
            .where(EventRow.id.in_([event.id for event in events]))
            .values(fanned_out=True)
            .execution_options(synchronize_session=False)
        )
        return len(events)

    def _one_off_endpoints(self, job_ids: Collection[str], new_secret: Callable[[], str]) -> dict[str, str]:
        """The endpoint of each job that has a ``webhook`` URL, made where it is missing: job id → endpoint id."""
        jobs = self._session.execute(
            select(JobRow.id, JobRow.tenant_id, JobRow.webhook).where(
                JobRow.id.in_(job_ids), JobRow.webhook.is_not(None)
            )
        ).all()
        if not jobs:
            return {}
        targets = {(job.tenant_id, job.webhook): "" for job in jobs}
        self._find_one_off(targets)
        missing = sorted(key for key, found in targets.items() if not found)
        if missing:
            # in one order everywhere, so that two deliverers that make the same ones do not wait for each other
            self._session.execute(
                upsert(EndpointRow)
                .values(
                    [
                        {
                            "id": ids.new(ids.ENDPOINT),
                            "tenant_id": tenant_id,
                            "url": url,
                            "events": [kind.value for kind in WEBHOOK_EVENTS],
                            "secrets": [new_secret()],
                            "one_off": True,
                        }
                        for tenant_id, url in missing
                    ]
                )
                .on_conflict_do_nothing(index_elements=["tenant_id", "url"], index_where=text("one_off"))
            )
            self._find_one_off(targets)
        return {job.id: targets[job.tenant_id, job.webhook] for job in jobs}

    def _find_one_off(self, targets: dict[tuple[str, str], str]) -> None:
        found = self._session.execute(
            select(EndpointRow.id, EndpointRow.tenant_id, EndpointRow.url).where(
                EndpointRow.one_off,
                EndpointRow.tenant_id.in_({tenant_id for tenant_id, _ in targets}),
                EndpointRow.url.in_({url for _, url in targets}),
            )
        )
        for row in found:
            if (row.tenant_id, row.url) in targets:
                targets[row.tenant_id, row.url] = row.id

    def _insert_deliveries(self, pairs: Sequence[tuple[str, int]]) -> list[str]:
        """One delivery for each (endpoint, event), numbered within its endpoint; disabled endpoints get none."""
        if not pairs:
            return []
        locked = self._session.execute(
            select(EndpointRow.id, EndpointRow.sequence)
            .where(EndpointRow.id.in_({endpoint_id for endpoint_id, _ in pairs}), EndpointRow.disabled_at.is_(None))
            .order_by(EndpointRow.id)
            .with_for_update()
        )
        before: dict[str, int] = {row.id: row.sequence for row in locked}
        last = dict(before)
        rows: list[dict[str, Any]] = []
        for endpoint_id, event_id in pairs:
            if endpoint_id not in last:
                continue
            last[endpoint_id] += 1
            rows.append(
                {
                    "id": ids.new(ids.DELIVERY),
                    "endpoint_id": endpoint_id,
                    "event_id": event_id,
                    "state": DeliveryState.PENDING.value,
                    "sequence": last[endpoint_id],
                }
            )
        if not rows:
            return []
        self._session.execute(insert(DeliveryRow), rows)
        grown = [(ids.to_uuid(ids.ENDPOINT, one), last[one] - before[one]) for one in last]
        added = (
            func.unnest(cast([one for one, _ in grown], ARRAY(Uuid)), cast([n for _, n in grown], ARRAY(SmallInteger)))
            .table_valued(column("id", _ENDPOINT_ID), column("more", SmallInteger))
            .render_derived("added")
        )
        self._session.execute(
            update(EndpointRow)
            .where(EndpointRow.id == added.c.id)
            .values(
                sequence=EndpointRow.sequence + added.c.more,
                # both skip NULLs: due now, unless it is paused
                due_at=func.greatest(func.least(EndpointRow.due_at, func.now()), EndpointRow.paused_until),
            )
            .execution_options(synchronize_session=False)
        )
        return [row["id"] for row in rows]

    # -- claiming -----------------------------------------------------------------------------------------------------

    def claim(
        self, room: int, per_endpoint: int, busy: Mapping[str, int], lease_seconds: float, probe_after: int
    ) -> Claim:
        """Take up to ``room`` due deliveries, and look when the next ones are due.

        At most ``per_endpoint`` of one endpoint, less what the caller has ``busy`` on it, and a single one, the probe,
        of an endpoint that failed ``probe_after`` times in a row. Where there is more than room, each endpoint gets one
        before any gets a second. A delivery whose lease ran out is due again; its lost try is noted.
        """
        full = {one for one, count in busy.items() if count >= per_endpoint}
        endpoints = self._session.execute(
            select(EndpointRow.id, EndpointRow.failures)
            .where(EndpointRow.due_at <= func.now(), EndpointRow.disabled_at.is_(None), EndpointRow.id.not_in(full))
            .order_by(EndpointRow.due_at)
            .limit(room)
            .with_for_update(skip_locked=True)
        ).all()
        if not endpoints:
            return Claim((), self._starved(full), self._due_in(full))
        probes = {row.id for row in endpoints if row.failures >= probe_after}
        allowed = {row.id: max(0, (1 if row.id in probes else per_endpoint) - busy.get(row.id, 0)) for row in endpoints}
        chosen = self._first_due(list(allowed), allowed, room)
        taken: dict[str, int] = {}
        if chosen:
            rows = self._session.execute(
                update(DeliveryRow)
                .where(
                    DeliveryRow.id.in_(list(chosen)),
                    DeliveryRow.state == DeliveryState.PENDING.value,
                    DeliveryRow.next_at <= func.now(),
                )
                .values(
                    tries=DeliveryRow.tries + 1,
                    lease_until=func.now() + seconds(lease_seconds),
                    next_at=func.now() + seconds(lease_seconds),
                )
                .returning(DeliveryRow.id, DeliveryRow.endpoint_id)
                .execution_options(synchronize_session=False)
            ).all()
            chosen = {row.id: chosen[row.id] for row in rows}
            for row in rows:
                taken[row.endpoint_id] = taken.get(row.endpoint_id, 0) + 1
            self._note_lost(chosen)
        probed = probes & taken.keys()
        if probed:
            # while the probe is out, nobody sends anything else
            self._session.execute(
                update(EndpointRow)
                .where(EndpointRow.id.in_(probed))
                .values(paused_until=func.now() + seconds(lease_seconds))
                .execution_options(synchronize_session=False)
            )
        first = (
            select(func.min(DeliveryRow.next_at))
            .where(DeliveryRow.endpoint_id == EndpointRow.id, DeliveryRow.state == DeliveryState.PENDING.value)
            .correlate(EndpointRow)
            .scalar_subquery()
        )
        # A statement of its own, which sees all that was committed before the lock was ours.
        self._session.execute(
            update(EndpointRow)
            .where(EndpointRow.id.in_([row.id for row in endpoints]))
            .values(due_at=case((first.is_(None), null()), else_=func.greatest(first, EndpointRow.paused_until)))
            .execution_options(synchronize_session=False)
        )
        full |= {one for one, count in taken.items() if count + busy.get(one, 0) >= per_endpoint}
        return Claim(tuple(self._claimed(list(chosen), probed)), self._starved(full), self._due_in(full))

    def _first_due(
        self, endpoints: Sequence[str], allowed: Mapping[str, int], room: int
    ) -> dict[str, tuple[int, bool]]:
        """Due deliveries of those endpoints: id → (tries so far, whether its last try was never noted)."""
        most = max(allowed.values(), default=0)
        if not most:
            return {}
        uuids: list[UUID] = [ids.to_uuid(ids.ENDPOINT, one) for one in endpoints]
        one = func.unnest(cast(uuids, ARRAY(Uuid))).table_valued(column("id", _ENDPOINT_ID)).render_derived("one")
        due = (
            select(DeliveryRow.id, DeliveryRow.tries, DeliveryRow.lease_until, DeliveryRow.next_at)
            .where(
                DeliveryRow.endpoint_id == one.c.id,
                DeliveryRow.state == DeliveryState.PENDING.value,
                DeliveryRow.next_at <= func.now(),
            )
            .order_by(DeliveryRow.next_at)
            .limit(most)
            .correlate(one)
            .lateral("due")
        )
        found = self._session.execute(
            select(one.c.id.label("endpoint_id"), due.c.id, due.c.tries, due.c.lease_until, due.c.next_at)
            .select_from(one)
            .join(due, true())
            .order_by(due.c.next_at)
        )
        ranked: list[tuple[int, str, int, bool]] = []
        ranks: dict[str, int] = {}
        for row in found:
            rank = ranks[row.endpoint_id] = ranks.get(row.endpoint_id, 0) + 1
            if rank <= allowed[row.endpoint_id]:
                ranked.append((rank, row.id, row.tries, row.lease_until is not None))
        ranked.sort(key=itemgetter(0))
        return {delivery_id: (tries, lost) for _, delivery_id, tries, lost in ranked[:room]}

    def _note_lost(self, claimed: Mapping[str, tuple[int, bool]]) -> None:
        rows = [
            {"delivery_id": one, "number": tries, "seconds": 0.0, "error": LOST}
            for one, (tries, lost) in claimed.items()
            if lost
        ]
        if rows:
            self._session.execute(upsert(DeliveryAttemptRow).values(rows).on_conflict_do_nothing())

    def _claimed(self, delivery_ids: Collection[str], probed: Collection[str]) -> list[Claimed]:
        if not delivery_ids:
            return []
        rows = self._session.execute(
            select(
                DeliveryRow.id,
                DeliveryRow.endpoint_id,
                DeliveryRow.sequence,
                DeliveryRow.tries,
                DeliveryRow.tries_before,
                EndpointRow.url,
                EndpointRow.secrets,
                EndpointRow.secrets_until,
                EventRow.type,
                EventRow.job_id,
                EventRow.data,
                EventRow.created_at,
                func.now().label("now"),
            )
            .join(EndpointRow, EndpointRow.id == DeliveryRow.endpoint_id)
            .join(EventRow, EventRow.id == DeliveryRow.event_id)
            .where(DeliveryRow.id.in_(delivery_ids))
            .order_by(DeliveryRow.endpoint_id, DeliveryRow.sequence)
        )
        return [
            Claimed(
                id=row.id,
                endpoint_id=row.endpoint_id,
                url=row.url,
                secrets=tuple(one.text for one in _signing(row.secrets, row.secrets_until, row.now)),
                type=EventType(row.type),
                job_id=row.job_id,
                data=row.data,
                occurred_at=row.created_at,
                sequence=row.sequence,
                number=row.tries,
                turn=row.tries - row.tries_before,
                probe=row.endpoint_id in probed,
            )
            for row in rows
        ]

    def _starved(self, full: Collection[str]) -> frozenset[str]:
        if not full:
            return frozenset()
        return frozenset(
            self._session.scalars(
                select(EndpointRow.id).where(
                    EndpointRow.id.in_(full), EndpointRow.due_at <= func.now(), EndpointRow.disabled_at.is_(None)
                )
            )
        )

    def _due_in(self, except_for: Collection[str]) -> float | None:
        until = self._session.scalar(
            select(func.extract("epoch", func.min(EndpointRow.due_at) - func.clock_timestamp())).where(
                EndpointRow.due_at.is_not(None),
                EndpointRow.disabled_at.is_(None),
                EndpointRow.id.not_in(except_for),
            )
        )
        return None if until is None else float(until)

    # -- recording ----------------------------------------------------------------------------------------------------

    def record(
        self,
        outcomes: Sequence[Outcome],
        give_up_seconds: float,
        probe_after: int,
        pause_of: Callable[[int], float | None],
    ) -> Verdict:
        """Note how tries ended, each delivery at most once, and what that says of their endpoints.

        A delivered one stays delivered, also when its lease had run out: the receiver has it. Any other outcome counts
        only while the delivery is still the caller's. An endpoint is disabled when it is gone, or a try fails after
        ``give_up_seconds`` without a success. ``pause_of`` says how long an endpoint rests after so many failures in a
        row; beyond ``probe_after`` only probes count, so that what was under way at once does not lengthen the pause.
        """
        verdict = self._judge_endpoints(outcomes, give_up_seconds, probe_after, pause_of)
        delivered = [one.delivery_id for one in outcomes if one.delivered]
        if delivered:
            self._session.execute(
                update(DeliveryRow)
                .where(DeliveryRow.id.in_(delivered), DeliveryRow.state == DeliveryState.PENDING.value)
                .values(state=DeliveryState.DELIVERED.value, lease_until=null())
                .execution_options(synchronize_session=False)
            )
        failed = [one for one in outcomes if not one.delivered]
        if failed:
            uuids: list[UUID] = [ids.to_uuid(ids.DELIVERY, one.delivery_id) for one in failed]
            outcome = (
                func.unnest(
                    cast(uuids, ARRAY(Uuid)),
                    cast([one.number for one in failed], ARRAY(SmallInteger)),
                    cast([one.retry_in or 0.0 for one in failed], ARRAY(Double)),
                    cast([one.retry_in is None for one in failed], ARRAY(Boolean)),
                )
                .table_valued(
                    column("id", _DELIVERY_ID),
                    column("number", SmallInteger),
                    column("delay", Double),
                    column("last", Boolean),
                )
                .render_derived("outcome")
            )
            delay: Any = outcome.c.delay
            self._session.execute(
                update(DeliveryRow)
                .where(
                    DeliveryRow.id == outcome.c.id,
                    DeliveryRow.tries == outcome.c.number,
                    DeliveryRow.state == DeliveryState.PENDING.value,
                )
                .values(
                    state=case((outcome.c.last, DeliveryState.DEAD.value), else_=DeliveryRow.state),
                    next_at=func.now() + seconds(delay),
                    lease_until=null(),
                )
                .execution_options(synchronize_session=False)
            )
        # An endpoint may have been deleted meanwhile, with its deliveries.
        there = set(
            self._session.scalars(
                select(DeliveryRow.id)
                .where(DeliveryRow.id.in_([one.delivery_id for one in outcomes]))
                .with_for_update(read=True, key_share=True)
            )
        )
        noted = [one for one in outcomes if one.delivery_id in there]
        if not noted:
            return verdict
        took: Any = bindparam("took")
        attempt = upsert(_ATTEMPT).values(at=func.now() - seconds(took))
        # One that was taken for lost was only slow to be noted.
        attempt = attempt.on_conflict_do_update(
            index_elements=["delivery_id", "number"],
            set_={name: attempt.excluded[name] for name in ("at", "status", "seconds", "error", "answer")},
        )
        # As parameters of one statement: its text is made once, not for each number of rows.
        self._session.connection().execute(
            attempt,
            [
                {
                    "delivery_id": one.delivery_id,
                    "number": one.number,
                    "status": one.status,
                    "seconds": one.seconds,
                    "took": one.seconds,
                    "error": one.error,
                    "answer": one.answer,
                }
                for one in noted
            ],
        )
        return verdict

    def _judge_endpoints(
        self,
        outcomes: Sequence[Outcome],
        give_up_seconds: float,
        probe_after: int,
        pause_of: Callable[[int], float | None],
    ) -> Verdict:
        """What the outcomes mean for their endpoints; a healthy one's success touches no row."""
        by_endpoint: dict[str, list[Outcome]] = {}
        for one in outcomes:
            by_endpoint.setdefault(one.endpoint_id, []).append(one)
        failed = [name for name, tries in by_endpoint.items() if not all(one.delivered for one in tries)]
        locked = self._session.execute(
            select(
                EndpointRow.id,
                EndpointRow.failures,
                EndpointRow.tenant_id,
                EndpointRow.url,
                EndpointRow.description,
                EndpointRow.failing_since,
                func.now().label("now"),
                (EndpointRow.failing_since < func.now() - seconds(give_up_seconds)).label("hopeless"),
            )
            .where(
                EndpointRow.id.in_(list(by_endpoint)),
                EndpointRow.disabled_at.is_(None),
                or_(EndpointRow.id.in_(failed), EndpointRow.failures > 0, EndpointRow.paused_until.is_not(None)),
            )
            .order_by(EndpointRow.id)
            .with_for_update()
        ).all()
        disabled: list[str] = []
        for row in locked:
            tries = by_endpoint[row.id]
            blamed = [one for one in tries if not one.delivered and one.blames]
            succeeded = any(one.delivered for one in tries)
            values: dict[str, Any]
            gone = any(one.gone for one in tries)
            if gone or (row.hopeless and blamed and not succeeded):
                reason = Disabled.GONE if gone else Disabled.FAILING
                values = {"disabled_at": func.now(), "disabled_reason": reason.value, "due_at": null()}
                disabled.append(row.id)
                told = {
                    "id": row.id,
                    "url": row.url,
                    "description": row.description,
                    "reason": reason.value,
                    "failing_since": None if row.failing_since is None else row.failing_since.isoformat(),
                    "disabled_at": row.now.isoformat(),
                }
                Events(self._session).record(row.tenant_id, None, 0, EventType.ENDPOINT_DISABLED, {"endpoint": told})
            else:
                values = self._after(tries, row.failures, probe_after, pause_of)
            self._session.execute(
                update(EndpointRow)
                .where(EndpointRow.id == row.id)
                .values(values)
                .execution_options(synchronize_session=False)
            )
        return Verdict(tuple(disabled), bool(locked))

    def _after(
        self, tries: Sequence[Outcome], failures: int, probe_after: int, pause_of: Callable[[int], float | None]
    ) -> dict[str, Any]:
        """An endpoint's columns after those tries."""
        recovered = False
        pauses: list[float] = []
        for one in tries:
            if one.delivered:
                failures, pauses, recovered = 0, [], True
            elif one.blames:
                if one.probe or failures < probe_after:
                    failures += 1
                pauses += [pause for pause in (one.pause, pause_of(failures)) if pause is not None]
        since: Any = null()
        if failures:
            since = func.now() if recovered else func.coalesce(EndpointRow.failing_since, func.now())
        # A success ends every pause, and a probe's end the one that the probe had set; others only grow.
        released = recovered or any(one.probe for one in tries)
        until: Any = null() if released else EndpointRow.paused_until
        if pauses:
            until = func.greatest(until, func.now() + seconds(max(pauses)))
        # All of these pass over NULL. What a pause held back is due at once: an early look costs little.
        retries = [0.0] if released else [one.retry_in for one in tries if one.retry_in is not None]
        due: Any = EndpointRow.due_at
        if retries:
            due = func.least(due, func.now() + seconds(min(retries)))
        return {
            "failures": failures,
            "failing_since": since,
            "paused_until": until,
            "due_at": case((due.is_(None), null()), else_=func.greatest(due, until)),
        }


def _signing(secrets: Sequence[str], until: Sequence[datetime], now: datetime) -> tuple[Secret, ...]:
    """The secrets that sign at that time; ``until`` says when all but the first end."""
    return (
        Secret(secrets[0], None),
        *(Secret(text, end) for text, end in zip(secrets[1:], until, strict=True) if end > now),
    )


def _endpoint(row: EndpointRow, now: datetime) -> Endpoint:
    return Endpoint(
        row.id,
        row.tenant_id,
        row.url,
        row.description,
        frozenset(map(EventType, row.events)),
        _signing(row.secrets, row.secrets_until, now),
        row.one_off,
        row.sequence,
        row.paused_until,
        row.failures,
        row.failing_since,
        row.disabled_at,
        None if row.disabled_reason is None else Disabled(row.disabled_reason),
        row.created_at,
    )
