"""Endpoints, deliveries and their attempts.

The deliverers walk *endpoints* by the time they are due and take a few deliveries of each, so a million deliveries
that wait for one dead endpoint are one row on everybody's way. ``endpoint.due_at`` is therefore never later than the
``next_at`` of its first pending delivery, unless the endpoint is paused or disabled; it may be earlier, which costs one
look. It is only set under the endpoint's row lock. Endpoints are locked before deliveries and in the order of their
ids, so that no two units of work wait for each other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
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
from farm.errors import NotFound
from farm.store.tables import Base, DeliveryAttemptRow, DeliveryRow, EndpointRow, EventRow, JobRow, PublicId
from farm.store.workers import seconds

#: What can be subscribed to; the other rows of the event table are a job's inner history.
WEBHOOK_EVENTS: Final = (EventType.SUCCEEDED, EventType.FAILED, EventType.CANCELED)
LOST: Final = "lost"  #: error class of a try whose deliverer died before it could note how it went

_ENDPOINT_ID: Final = PublicId(ids.ENDPOINT)
_DELIVERY_ID: Final = PublicId(ids.DELIVERY)
_ATTEMPT: Final = Base.metadata.tables["delivery_attempt"]


class DeliveryState(StrEnum):
    """Where a delivery stands."""

    PENDING = "pending"
    DELIVERED = "delivered"
    DEAD = "dead"  #: given up after the last try of the schedule


@dataclass(frozen=True)
class Endpoint:
    """Where a tenant wants events sent."""

    id: str
    tenant_id: str
    url: str
    description: str
    events: frozenset[EventType]
    secrets: tuple[str, ...]  #: ``whsec_…``, newest first
    one_off: bool  #: made for the ``webhook`` URL of a job
    sequence: int  #: of the last delivery made for it
    paused_until: datetime | None
    failures: int  #: tries that failed in a row
    failing_since: datetime | None
    disabled_at: datetime | None
    created_at: datetime


@dataclass(frozen=True)
class Delivery:
    """One event on its way to one endpoint."""

    id: str  #: the ``webhook-id``
    endpoint_id: str
    event_id: int
    state: DeliveryState
    sequence: int
    tries: int
    next_at: datetime
    created_at: datetime


@dataclass(frozen=True)
class Attempt:
    """One POST and what came back."""

    number: int  #: 1-based
    at: datetime
    status: int | None
    seconds: float
    error: str | None
    answer: str


@dataclass(frozen=True)
class Claimed:
    """A delivery in this deliverer's hands, until its lease ends."""

    id: str
    endpoint_id: str
    url: str
    secrets: tuple[str, ...]
    type: EventType
    job_id: str
    occurred_at: datetime
    sequence: int
    number: int  #: of the try about to be made, 1-based
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
    """All endpoints, deliveries and attempts."""

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
        return _endpoint(row)

    def endpoint(self, tenant_id: str, endpoint_id: str) -> Endpoint:
        """The tenant's endpoint of that id; `NotFound`."""
        row = None
        if ids.is_id(ids.ENDPOINT, endpoint_id):
            row = self._session.scalar(
                select(EndpointRow)
                .where(EndpointRow.id == endpoint_id, EndpointRow.tenant_id == tenant_id)
                .execution_options(populate_existing=True)
            )
        if row is None:
            raise NotFound("endpoint", endpoint_id)
        return _endpoint(row)

    def endpoints(self, tenant_id: str) -> list[Endpoint]:
        """The tenant's endpoints, oldest first."""
        rows = self._session.scalars(
            select(EndpointRow)
            .where(EndpointRow.tenant_id == tenant_id)
            .order_by(EndpointRow.id)
            .execution_options(populate_existing=True)
        )
        return [_endpoint(row) for row in rows]

    def disable(self, tenant_id: str, endpoint_id: str) -> Endpoint:
        """Send it nothing more; what waits for it stays until it is enabled again. `NotFound`."""
        self._change(
            tenant_id, endpoint_id, {"disabled_at": func.coalesce(EndpointRow.disabled_at, func.now()), "due_at": None}
        )
        return self.endpoint(tenant_id, endpoint_id)

    def enable(self, tenant_id: str, endpoint_id: str) -> Endpoint:
        """Send again, from now on and what waited. `NotFound`."""
        self._change(
            tenant_id,
            endpoint_id,
            {"disabled_at": None, "failing_since": None, "failures": 0, "paused_until": None, "due_at": func.now()},
        )
        return self.endpoint(tenant_id, endpoint_id)

    def _change(self, tenant_id: str, endpoint_id: str, values: dict[str, Any]) -> None:
        self.endpoint(tenant_id, endpoint_id)
        self._session.execute(
            update(EndpointRow)
            .where(EndpointRow.id == endpoint_id)
            .values(values)
            .execution_options(synchronize_session=False)
        )

    # -- what was sent ------------------------------------------------------------------------------------------------

    def deliveries(self, endpoint_id: str, limit: int = 100) -> list[Delivery]:
        """The endpoint's deliveries, newest first."""
        rows = self._session.scalars(
            select(DeliveryRow)
            .where(DeliveryRow.endpoint_id == endpoint_id)
            .order_by(DeliveryRow.event_id.desc())
            .limit(limit)
            .execution_options(populate_existing=True)
        )
        return [
            Delivery(
                row.id,
                row.endpoint_id,
                row.event_id,
                DeliveryState(row.state),
                row.sequence,
                row.tries,
                row.next_at,
                row.created_at,
            )
            for row in rows
        ]

    def attempts(self, delivery_id: str) -> list[Attempt]:
        """What was tried for a delivery, in order."""
        rows = self._session.scalars(
            select(DeliveryAttemptRow)
            .where(DeliveryAttemptRow.delivery_id == delivery_id)
            .order_by(DeliveryAttemptRow.number)
        )
        return [Attempt(row.number, row.at, row.status, row.seconds, row.error, row.answer) for row in rows]

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
        wanted = [event for event in events if event.type in WEBHOOK_EVENTS]
        if wanted:
            one_off = self._one_off_endpoints({event.job_id for event in wanted}, new_secret)
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
                if event.job_id in one_off:
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

    def _insert_deliveries(self, pairs: Sequence[tuple[str, int]]) -> None:
        """One delivery for each (endpoint, event), numbered within its endpoint; disabled endpoints get none."""
        if not pairs:
            return
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
            return
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
                EndpointRow.url,
                EndpointRow.secrets,
                EventRow.type,
                EventRow.job_id,
                EventRow.created_at,
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
                secrets=tuple(row.secrets),
                type=EventType(row.type),
                job_id=row.job_id,
                occurred_at=row.created_at,
                sequence=row.sequence,
                number=row.tries,
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
                for one in outcomes
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
            if any(one.gone for one in tries) or (row.hopeless and blamed and not succeeded):
                values = {"disabled_at": func.now(), "due_at": null()}
                disabled.append(row.id)
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


def _endpoint(row: EndpointRow) -> Endpoint:
    return Endpoint(
        row.id,
        row.tenant_id,
        row.url,
        row.description,
        frozenset(map(EventType, row.events)),
        tuple(row.secrets),
        row.one_off,
        row.sequence,
        row.paused_until,
        row.failures,
        row.failing_since,
        row.disabled_at,
        row.created_at,
    )
