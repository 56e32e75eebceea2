"""What was sent to a tenant's endpoints, how it went, and sending it again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import ColumnElement, Select, and_, func, null, select, true, tuple_, update
from sqlalchemy.orm import Session

from farm.domain import ids
from farm.domain.endpoint import DeliveryState
from farm.domain.states import EventType
from farm.errors import BadInput, Conflict, NotFound
from farm.store import cursor as cursors
from farm.store.tables import DeliveryAttemptRow, DeliveryRow, EndpointRow, EventRow
from farm.store.webhooks import Webhooks

_PLACE_BYTES: Final = 24  #: a cursor's: the event's id, then the delivery's


@dataclass(frozen=True)
class Delivery:
    """One event on its way to one endpoint."""

    id: str  #: the ``webhook-id``
    endpoint_id: str
    event_id: int
    type: EventType
    job_id: str | None
    state: DeliveryState
    sequence: int  #: within its endpoint
    attempt_count: int  #: begun
    next_attempt_at: datetime  #: of the next attempt, while it is pending
    status: int | None  #: HTTP status of the last try that ended
    error: str | None  #: why the last try that ended did not deliver
    occurred_at: datetime
    created_at: datetime


@dataclass(frozen=True)
class DeliveryAttempt:
    """One POST and its response."""

    number: int  #: 1-based
    at: datetime
    status: int | None
    seconds: float
    error: str | None
    response: str


@dataclass(frozen=True)
class DeliveryFilter:
    """Which of a tenant's deliveries. Empty fields do not filter."""

    endpoint_id: str | None = None
    state: DeliveryState | None = None
    job_id: str | None = None
    type: EventType | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None


class Deliveries:
    """All deliveries and attempts."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def get(self, tenant_id: str, delivery_id: str) -> Delivery:
        """The tenant's delivery of that id. `NotFound`."""
        found: list[Delivery] = []
        if ids.is_id(ids.DELIVERY, delivery_id):
            found = self._found(_joined().where(DeliveryRow.id == delivery_id, EndpointRow.tenant_id == tenant_id))
        if not found:
            raise NotFound("delivery", delivery_id)
        return found[0]

    def of_endpoint(self, endpoint_id: str, limit: int = 100) -> list[Delivery]:
        """The endpoint's deliveries, newest event first."""
        return self._found(
            _joined().where(DeliveryRow.endpoint_id == endpoint_id).order_by(DeliveryRow.event_id.desc()).limit(limit)
        )

    def page(
        self, tenant_id: str, wanted: DeliveryFilter, cursor: str | None, limit: int
    ) -> tuple[list[Delivery], str | None]:
        """A page of the tenant's deliveries, newest event first, and the cursor of the next one.

        Raises `BadInput` for a cursor that this method did not give.
        """
        conditions = _conditions(wanted)
        if cursor is not None:
            place = cursors.decode(cursor, _PLACE_BYTES)
            event_id = int.from_bytes(place[:8])
            if event_id >= 2**63:
                raise BadInput.of("cursor", cursor, "is not a cursor: use the `next` of the previous page")
            before = ids.from_uuid(ids.DELIVERY, UUID(bytes=place[8:]))
            conditions += [
                DeliveryRow.event_id <= event_id,
                tuple_(DeliveryRow.event_id, DeliveryRow.id) < tuple_(event_id, before, types=_PLACE_TYPES),
            ]
        if _impossible(wanted):
            return [], None
        order = (DeliveryRow.event_id.desc(), DeliveryRow.id.desc())
        if wanted.job_id is None:
            # The newest of each endpoint by its own index, then the newest of those: however many there are in all.
            newest = (
                select(DeliveryRow.id)
                .join(EventRow, EventRow.id == DeliveryRow.event_id)
                .where(DeliveryRow.endpoint_id == EndpointRow.id, *conditions)
                .order_by(*order)
                .limit(limit + 1)
                .correlate(EndpointRow)
                .lateral("newest")
            )
            those = select(newest.c.id).select_from(EndpointRow).join(newest, true())
            those = those.where(EndpointRow.tenant_id == tenant_id)
            if wanted.endpoint_id is not None:
                those = those.where(EndpointRow.id == wanted.endpoint_id)
            statement = _joined().where(DeliveryRow.id.in_(those.correlate(None)))
        else:
            statement = _joined().where(EndpointRow.tenant_id == tenant_id, *conditions)
        found = self._found(statement.order_by(*order).limit(limit + 1))
        following = None
        if len(found) > limit:
            last = found[limit - 1]
            following = cursors.encode(last.event_id.to_bytes(8) + ids.to_uuid(ids.DELIVERY, last.id).bytes)
        return found[:limit], following

    def attempts(self, delivery_id: str) -> list[DeliveryAttempt]:
        """A delivery's attempts, in order."""
        rows = self._session.scalars(
            select(DeliveryAttemptRow)
            .where(DeliveryAttemptRow.delivery_id == delivery_id)
            .order_by(DeliveryAttemptRow.number)
        )
        return [DeliveryAttempt(row.number, row.at, row.status, row.seconds, row.error, row.response) for row in rows]

    # -- again --------------------------------------------------------------------------------------------------------

    def resend(self, tenant_id: str, delivery_id: str) -> Delivery:
        """Send a delivery now, under its id, and by the whole schedule again; one that is being sent stays as it is.

        Raises `NotFound`, or `Conflict` when its endpoint is disabled.
        """
        endpoint_id = self.get(tenant_id, delivery_id).endpoint_id
        # endpoints are locked before deliveries, see farm/store/delivery_leases.py
        disabled = self._session.execute(
            select(EndpointRow.disabled_at).where(EndpointRow.id == endpoint_id).with_for_update()
        ).one_or_none()
        if disabled is None:
            raise NotFound("delivery", delivery_id)
        if disabled.disabled_at is not None:
            raise Conflict(f"its endpoint {endpoint_id} is disabled: enable it first")
        self._again(and_(DeliveryRow.id == delivery_id, DeliveryRow.lease_until.is_(None)))
        Webhooks(self._session).make_due([endpoint_id])
        return self.get(tenant_id, delivery_id)

    def count_dead(self, tenant_id: str, wanted: DeliveryFilter, most: int) -> int:
        """How many `resend_dead` would send again, counted up to ``most``."""
        if _impossible(wanted):
            return 0
        dead = (
            select(DeliveryRow.id)
            .join(EventRow, EventRow.id == DeliveryRow.event_id)
            .join(EndpointRow, EndpointRow.id == DeliveryRow.endpoint_id)
            .where(
                EndpointRow.tenant_id == tenant_id,
                EndpointRow.disabled_at.is_(None),
                DeliveryRow.state == DeliveryState.DEAD.value,
                *_conditions(wanted),
            )
            .limit(most)
        )
        return self._session.scalar(select(func.count()).select_from(dead.subquery())) or 0

    def resend_dead(self, tenant_id: str, wanted: DeliveryFilter, died_before: datetime, limit: int) -> int:
        """Send up to ``limit`` dead deliveries of enabled endpoints again; returns how many. Call it until it is less.

        ``died_before`` keeps out those that died again meanwhile.
        """
        if _impossible(wanted):
            return 0
        dead = and_(
            DeliveryRow.state == DeliveryState.DEAD.value,
            DeliveryRow.next_attempt_at <= died_before,
            *_conditions(wanted),
        )
        which = (
            select(DeliveryRow.id, DeliveryRow.endpoint_id)
            .join(EventRow, EventRow.id == DeliveryRow.event_id)
            .join(EndpointRow, EndpointRow.id == DeliveryRow.endpoint_id)
            .where(EndpointRow.tenant_id == tenant_id, EndpointRow.disabled_at.is_(None), dead)
            .order_by(DeliveryRow.endpoint_id, DeliveryRow.event_id)
            .limit(limit)
        )
        found = self._session.execute(which).all()
        if not found:
            return 0
        endpoint_ids = sorted({row.endpoint_id for row in found})
        self._session.execute(
            select(EndpointRow.id).where(EndpointRow.id.in_(endpoint_ids)).order_by(EndpointRow.id).with_for_update()
        )
        count = self._again(
            and_(DeliveryRow.id.in_([row.id for row in found]), DeliveryRow.state == DeliveryState.DEAD.value)
        )
        Webhooks(self._session).make_due(endpoint_ids)
        return count

    def _again(self, which: ColumnElement[bool]) -> int:
        done = self._session.execute(
            update(DeliveryRow)
            .where(which)
            .values(
                state=DeliveryState.PENDING.value,
                attempts_before=DeliveryRow.attempt_count,
                next_attempt_at=func.now(),
                lease_until=null(),
            )
            .returning(DeliveryRow.id)
            .execution_options(synchronize_session=False)
        )
        return len(done.all())

    def _found(self, statement: Select[Any]) -> list[Delivery]:
        return [
            Delivery(
                id=row.id,
                endpoint_id=row.endpoint_id,
                event_id=row.event_id,
                type=EventType(row.type),
                job_id=row.job_id,
                state=DeliveryState(row.state),
                sequence=row.sequence,
                attempt_count=row.attempt_count,
                next_attempt_at=row.next_attempt_at,
                status=row.status,
                error=row.error,
                occurred_at=row.occurred_at,
                created_at=row.created_at,
            )
            for row in self._session.execute(statement)
        ]


_PLACE_TYPES: Final[Sequence[Any]] = (DeliveryRow.event_id.type, DeliveryRow.id.type)


def _joined() -> Select[Any]:
    """Deliveries with their event, endpoint and last attempt."""
    last = (
        select(DeliveryAttemptRow.status, DeliveryAttemptRow.error)
        .where(DeliveryAttemptRow.delivery_id == DeliveryRow.id)
        .order_by(DeliveryAttemptRow.number.desc())
        .limit(1)
        .correlate(DeliveryRow)
        .lateral("last")
    )
    statement: Any = (
        select(
            DeliveryRow.id,
            DeliveryRow.endpoint_id,
            DeliveryRow.event_id,
            DeliveryRow.state,
            DeliveryRow.sequence,
            DeliveryRow.attempt_count,
            DeliveryRow.next_attempt_at,
            DeliveryRow.created_at,
            EventRow.type,
            EventRow.job_id,
            EventRow.created_at.label("occurred_at"),
            last.c.status,
            last.c.error,
        )
        .join(EndpointRow, EndpointRow.id == DeliveryRow.endpoint_id)
        .join(EventRow, EventRow.id == DeliveryRow.event_id)
        .outerjoin(last, true())
    )
    joined: Select[Any] = statement
    return joined


def _conditions(wanted: DeliveryFilter) -> list[ColumnElement[bool]]:
    """What the filter asks for, over deliveries joined to their events."""
    conditions: list[ColumnElement[bool]] = []
    if wanted.endpoint_id is not None:
        conditions.append(DeliveryRow.endpoint_id == wanted.endpoint_id)
    if wanted.state is not None:
        conditions.append(DeliveryRow.state == wanted.state.value)
    if wanted.job_id is not None:
        conditions.append(EventRow.job_id == wanted.job_id)
    if wanted.type is not None:
        conditions.append(EventRow.type == wanted.type.value)
    if wanted.created_after is not None:
        conditions.append(DeliveryRow.created_at > wanted.created_after)
    if wanted.created_before is not None:
        conditions.append(DeliveryRow.created_at < wanted.created_before)
    return conditions


def _impossible(wanted: DeliveryFilter) -> bool:
    """Whether an id could not name anything: there is nothing to find, and nothing to ask the database."""
    return (wanted.endpoint_id is not None and not ids.is_id(ids.ENDPOINT, wanted.endpoint_id)) or (
        wanted.job_id is not None and not ids.is_id(ids.JOB, wanted.job_id)
    )
