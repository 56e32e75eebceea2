"""Endpoints: where tenants want events sent, what signs for them, and whether they get any."""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import delete, func, insert, null, select, text, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from farm.domain import ids
from farm.domain.endpoint import MAX_SECRETS, WEBHOOK_EVENTS, DisabledReason, Endpoint, Secret, signing
from farm.domain.states import EventType
from farm.errors import Conflict, NotFound, QuotaExceeded
from farm.store import cursor as cursors
from farm.store.events import EVENT_CHANNEL, Events
from farm.store.outbox import Outbox
from farm.store.secret_box import seal, unseal
from farm.store.tables import DeliveryRow, EndpointRow, EventRow


class Webhooks:
    """All endpoints of all tenants."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def create_endpoint(
        self,
        tenant_id: str,
        url: str,
        secret: str,
        events: Collection[EventType] = WEBHOOK_EVENTS,
        description: str = "",
        *,
        key: str | None = None,
        limit: int | None = None,
    ) -> Endpoint:
        """A new endpoint, signed for with a private ``key`` too if there is one; the caller has checked the URL.

        Raises `Conflict` when the tenant has ``limit`` endpoints, those of jobs' own webhooks not counted.
        """
        if limit is not None:
            self._check_limit(tenant_id, limit)
        row = EndpointRow(
            id=ids.new(ids.ENDPOINT),
            tenant_id=tenant_id,
            url=url,
            description=description,
            events=sorted(kind.value for kind in events),
            secrets=[seal(secret)],
            keys=[] if key is None else [seal(key)],
        )
        self._session.add(row)
        self._session.flush()
        return _endpoint(row, row.created_at)

    def one_off(self, tenant_id: str, url: str, secret: str, description: str) -> Endpoint:
        """The endpoint of jobs that name this URL as their webhook; made with that secret if it is not there."""
        events = sorted(kind.value for kind in WEBHOOK_EVENTS)
        self._session.execute(
            upsert(EndpointRow)
            .values(
                id=ids.new(ids.ENDPOINT),
                tenant_id=tenant_id,
                url=url,
                description=description,
                events=events,
                secrets=[seal(secret)],
                one_off=True,
            )
            .on_conflict_do_nothing(index_elements=["tenant_id", "url"], index_where=text("one_off"))
        )
        row, now = self._session.execute(
            select(EndpointRow, func.now()).where(
                EndpointRow.tenant_id == tenant_id, EndpointRow.url == url, EndpointRow.one_off
            )
        ).one()
        return _endpoint(row, now)

    def reserve_urls(self, tenant_id: str, urls: Collection[str], new_secret: Callable[[], str], limit: int) -> None:
        """Make the endpoints of URLs that jobs name as their webhooks, where they are missing.

        Raises `QuotaExceeded` when the tenant would have more than ``limit`` of them.
        """
        found = select(EndpointRow.url).where(
            EndpointRow.tenant_id == tenant_id, EndpointRow.one_off, EndpointRow.url.in_(urls)
        )
        missing = set(urls) - set(self._session.scalars(found))
        if not missing:
            return
        self._one_at_a_time(tenant_id)
        have = select(func.count()).where(EndpointRow.tenant_id == tenant_id, EndpointRow.one_off)
        if self._session.execute(have).scalar_one() + len(missing) > limit:
            raise QuotaExceeded(
                f"this tenant's jobs name more than {limit:,} webhook URLs, which is the limit: subscribe an endpoint "
                "(POST /v1/webhooks/endpoints), or delete endpoints of jobs that are no longer needed"
            )
        for url in sorted(missing):
            self.one_off(tenant_id, url, new_secret(), "")

    def _one_at_a_time(self, tenant_id: str) -> None:
        """Wait until no other transaction counts the tenant's endpoints, so that two that come together are counted."""
        turn = func.pg_advisory_xact_lock(func.hashtextextended(f"endpoints of {tenant_id}", 0))
        self._session.execute(select(turn))

    def _check_limit(self, tenant_id: str, limit: int) -> None:
        self._one_at_a_time(tenant_id)
        have = select(func.count()).where(EndpointRow.tenant_id == tenant_id, ~EndpointRow.one_off)
        if self._session.execute(have).scalar_one() >= limit:
            raise Conflict(
                f"there are {limit} endpoints, which is the limit of a tenant: delete one, or let one get more events"
            )

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

    def set_key(self, tenant_id: str, endpoint_id: str, key: str | None) -> Endpoint:
        """Sign with that private key as well, unless one signs already; None: with none. `NotFound`."""
        row, now = self._row(tenant_id, endpoint_id, lock=True)
        if (key is None) == bool(row.keys):
            row.keys, row.keys_until = [] if key is None else [seal(key)], []
            self._session.flush()
        return _endpoint(row, now)

    def rotate(
        self, tenant_id: str, endpoint_id: str, secret: str, overlap_seconds: float, key: str | None = None
    ) -> Endpoint:
        """Sign with a new secret, and for ``overlap_seconds`` with the old ones too; the same with the private key.

        ``key`` is for an endpoint that is signed for with a key pair; without it that pair stays.

        Raises `NotFound`, or `Conflict` when too many secrets sign already.
        """
        row, now = self._row(tenant_id, endpoint_id, lock=True)
        end = now + timedelta(seconds=overlap_seconds)
        old = signing(row.secrets, row.secrets_until, now) if overlap_seconds > 0 else ()
        if len(old) >= MAX_SECRETS:
            raise Conflict(f"{MAX_SECRETS} secrets of this endpoint sign already: wait for one to end, or end them now")
        row.secrets = [seal(secret), *(one.text for one in old)]
        row.secrets_until = [_sooner(one.expires_at, end) for one in old]
        if row.keys and key is not None:
            keys = signing(row.keys, row.keys_until, now) if overlap_seconds > 0 else ()
            row.keys = [seal(key), *(one.text for one in keys)]
            row.keys_until = [_sooner(one.expires_at, end) for one in keys]
        self._session.flush()
        return _endpoint(row, now)

    def disable(self, tenant_id: str, endpoint_id: str) -> Endpoint:
        """Send it nothing more; what waits for it stays until it is enabled again. `NotFound`."""
        row, now = self._row(tenant_id, endpoint_id, lock=True)
        if row.disabled_at is None:
            row.disabled_at, row.disabled_reason, row.due_at = now, DisabledReason.REQUESTED.value, None
            self._session.flush()
        return _endpoint(row, now)

    def enable(self, tenant_id: str, endpoint_id: str) -> Endpoint:
        """Send again, from now on and what waited. One that is enabled stays as it is. `NotFound`."""
        row, now = self._row(tenant_id, endpoint_id, lock=True)
        if row.disabled_at is not None:
            row.disabled_at = row.disabled_reason = row.failing_since = row.paused_until = None
            row.consecutive_failures = 0
            row.due_at = now
            self._session.flush()
            Events(self._session).notify(EVENT_CHANNEL)
        return _endpoint(row, now)

    def delete_deliveries(self, tenant_id: str, endpoint_id: str, limit: int) -> int:
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
        """Delete an endpoint and what was sent to it; `delete_deliveries` it before. `NotFound`."""
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
        delivery_id = Outbox(self._session).deliver(endpoint_id, event_id)
        self.make_due([endpoint_id])
        return delivery_id

    def make_due(self, endpoint_ids: Collection[str]) -> None:
        """Let the deliverers look at these endpoints now, even if they are paused: a user waits for it.

        One that failed many times in a row still gets a single try.
        """
        self._session.execute(
            update(EndpointRow)
            .where(EndpointRow.id.in_(endpoint_ids), EndpointRow.disabled_at.is_(None))
            .values(paused_until=null(), due_at=func.now())
            .execution_options(synchronize_session=False)
        )
        Events(self._session).notify(EVENT_CHANNEL)


def unsealed(secrets: tuple[Secret, ...]) -> tuple[Secret, ...]:
    """The secrets themselves, of those that the database keeps."""
    return tuple(Secret(unseal(one.text), one.expires_at) for one in secrets)


def _sooner(one: datetime | None, other: datetime) -> datetime:
    return other if one is None else min(one, other)


def _endpoint(row: EndpointRow, now: datetime) -> Endpoint:
    return Endpoint(
        row.id,
        row.tenant_id,
        row.url,
        row.description,
        frozenset(map(EventType, row.events)),
        unsealed(signing(row.secrets, row.secrets_until, now)),
        unsealed(signing(row.keys, row.keys_until, now)),
        row.one_off,
        row.sequence,
        row.paused_until,
        row.consecutive_failures,
        row.failing_since,
        row.disabled_at,
        None if row.disabled_reason is None else DisabledReason(row.disabled_reason),
        row.created_at,
    )
