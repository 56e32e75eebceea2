"""Tenants and their API keys."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import case, delete, exists, func, null, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from farm.domain import ids
from farm.domain.queue import MIN_WEIGHT, ShareState, TenantShare
from farm.errors import Conflict, NotFound, Unauthorized
from farm.store.tables import (
    BatchRow,
    EndpointRow,
    FileRow,
    IdempotencyRow,
    JobRow,
    KeyRow,
    QueueStateRow,
    TenantRow,
)


class Scope(StrEnum):
    """What a key may do. No scope implies another."""

    SUBMIT = "submit"  #: send files and jobs, cancel and retry the tenant's own
    READ = "read"  #: see the tenant's own jobs and files, models and workers
    OPERATE = "operate"  #: drain workers, pause queues, of the whole farm
    ADMIN = "admin"  #: all tenants of the farm, their keys and caps: for those who run it, never for a tenant


@dataclass(frozen=True)
class Tenant:
    """Who owns jobs."""

    id: str
    name: str
    weight: float
    max_queued: int | None
    max_running: int | None
    device_seconds_per_day: float | None
    storage_bytes: int | None
    stored_bytes: int  #: as last measured
    retention_days: int | None
    model_aliases: Mapping[str, str]  #: other names of models, to their ids
    paused_at: datetime | None
    created_at: datetime


_SHARES: Final = """
    SELECT 'ten_' || translate(id::text, '-', ''), weight, vtime, backlogged, coalesce(held.jobs, 0), max_running,
        paused_at IS NOT NULL
    FROM tenant LEFT JOIN (
        SELECT tenant_id, count(*) AS jobs FROM job WHERE state IN ('dispatched', 'running') GROUP BY tenant_id
    ) AS held ON held.tenant_id = tenant.id
    ORDER BY id
"""
# by how much it changed: a worker may have given back what a preempted job was charged since the round began
_SAVE_SHARE_STATES: Final = """
    UPDATE tenant SET backlogged = kept.backlogged,
        vtime = CASE WHEN tenant.vtime = kept.was THEN kept.vtime ELSE tenant.vtime + (kept.vtime - kept.was) END
    FROM unnest(%(ids)s::uuid[], %(vtimes)s::float8[], %(were)s::float8[], %(backlogged)s::boolean[])
        AS kept (id, vtime, was, backlogged)
    WHERE tenant.id = kept.id
"""
_REFUND_COST: Final = "UPDATE tenant SET vtime = vtime - %(cost)s / greatest(weight, %(least)s) WHERE id = %(id)s::uuid"


@dataclass(frozen=True)
class Key:
    """An API key without its secret."""

    id: str
    tenant_id: str
    name: str
    scopes: frozenset[Scope]
    created_at: datetime
    revoked_at: datetime | None


#: ``farm_<key id's digits>_<secret>``: the id finds the row, the secret is compared to its hash.
KEY_TEXT = re.compile(r"farm_([0-9a-f]{32})_([A-Za-z0-9_-]{43})")


def _hash(secret: str) -> bytes:
    # A 256-bit random secret needs no slow hash: there is nothing to guess.
    return hashlib.sha256(secret.encode()).digest()


def key_of(row: KeyRow) -> Key:
    """The key of a row."""
    return Key(row.id, row.tenant_id, row.name, frozenset(map(Scope, row.scopes)), row.created_at, row.revoked_at)


def _tenant(row: TenantRow) -> Tenant:
    return Tenant(
        row.id,
        row.name,
        row.weight,
        row.max_queued,
        row.max_running,
        row.device_seconds_per_day,
        row.storage_bytes,
        row.stored_bytes,
        row.retention_days,
        row.model_aliases,
        row.paused_at,
        row.created_at,
    )


class Tenants:
    """All tenants and keys."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def create(self, name: str, weight: float = 1.0, **caps: Any) -> Tenant:
        """A new tenant with these caps (see `change`); `Conflict` if the name is taken."""
        made = self._session.scalar(
            insert(TenantRow)
            .values(id=ids.new(ids.TENANT), name=name, weight=weight, **caps)
            .on_conflict_do_nothing(index_elements=["name"])
            .returning(TenantRow)
        )
        if made is None:
            raise Conflict(f"there is a tenant {name!r} already")
        return _tenant(made)

    def page(self, after: str | None, limit: int) -> list[Tenant]:
        """Tenants, oldest first, those after that id."""
        statement = select(TenantRow).order_by(TenantRow.id).limit(limit)
        if after is not None:
            statement = statement.where(TenantRow.id > after)
        return [_tenant(row) for row in self._session.scalars(statement)]

    def change(self, tenant_id: str, **values: Any) -> Tenant:
        """Set these columns: name, weight and caps. Raises `NotFound`, or `Conflict` if the name is taken."""
        if "name" in values:
            other = self.by_name(values["name"])
            if other is not None and other.id != tenant_id:
                raise Conflict(f"there is a tenant {other.name!r} already")
        if values and ids.is_id(ids.TENANT, tenant_id):
            self._session.execute(
                update(TenantRow)
                .where(TenantRow.id == tenant_id)
                .values(values)
                .execution_options(synchronize_session=False)
            )
        return self.existing(tenant_id)

    def existing(self, tenant_id: str) -> Tenant:
        """The tenant of that id; `NotFound` if there is none."""
        row = None
        if ids.is_id(ids.TENANT, tenant_id):
            row = self._session.get(TenantRow, tenant_id, populate_existing=True)
        if row is None:
            raise NotFound("tenant", tenant_id)
        return _tenant(row)

    def remove(self, tenant_id: str) -> None:
        """Delete a tenant with its keys; `NotFound`, or `Conflict` while it has jobs, batches, files or endpoints."""
        self.existing(tenant_id)
        for kind, table in (("jobs", JobRow), ("batches", BatchRow), ("files", FileRow), ("endpoints", EndpointRow)):
            if self._session.scalar(select(exists().where(table.tenant_id == tenant_id))):
                raise Conflict(f"the tenant still has {kind}; remove them, or revoke its keys, which shuts it out")
        for owned in (KeyRow, IdempotencyRow, QueueStateRow):
            self._session.execute(delete(owned).where(owned.tenant_id == tenant_id))
        self._session.execute(delete(TenantRow).where(TenantRow.id == tenant_id))

    def by_name(self, name: str) -> Tenant | None:
        """The tenant of that name."""
        row = self._session.scalar(select(TenantRow).where(TenantRow.name == name))
        return None if row is None else _tenant(row)

    def get(self, tenant_id: str) -> Tenant | None:
        """The tenant of that id."""
        row = self._session.get(TenantRow, tenant_id)
        return None if row is None else _tenant(row)

    def model_aliases(self, tenant_id: str) -> Mapping[str, str]:
        """A tenant's other names of models, to their ids."""
        found = self._session.scalar(select(TenantRow.model_aliases).where(TenantRow.id == tenant_id))
        return found or {}

    def names(self, tenant_ids: Collection[str]) -> dict[str, str]:
        """These tenants' names by id."""
        rows = self._session.execute(select(TenantRow.id, TenantRow.name).where(TenantRow.id.in_(list(tenant_ids))))
        return {row[0]: row[1] for row in rows}

    def pause(self, tenant_id: str, by: str | None = None) -> bool:
        """Let the tenant's jobs wait; those at workers go on. False if there is no such tenant.

        Pausing again changes nothing. ``by``: the name of the key that asks for it.
        """
        keep = TenantRow.paused_at.is_not(None)
        return self._set_paused(
            tenant_id, func.coalesce(TenantRow.paused_at, func.now()), case((keep, TenantRow.paused_by), else_=by)
        )

    def resume(self, tenant_id: str) -> bool:
        """Hand the tenant's jobs over again; False if there is no such tenant."""
        return self._set_paused(tenant_id, null(), null())

    def _set_paused(self, tenant_id: str, paused_at: Any, paused_by: Any) -> bool:
        found = self._session.scalar(
            update(TenantRow)
            .where(TenantRow.id == tenant_id)
            .values(paused_at=paused_at, paused_by=paused_by)
            .returning(TenantRow.id)
        )
        return found is not None

    def shares(self) -> list[TenantShare]:
        """All tenants, as the policy sees them."""
        return [TenantShare(*row) for row in self._session.connection().exec_driver_sql(_SHARES)]

    def save_share_states(self, states: Sequence[ShareState]) -> None:
        """Store these tenants' states, in one statement."""
        if not states:
            return
        values = {
            "ids": [ids.to_uuid(ids.TENANT, one.tenant_id) for one in states],
            "vtimes": [one.vtime for one in states],
            "were": [one.was for one in states],
            "backlogged": [one.backlogged for one in states],
        }
        self._session.connection().exec_driver_sql(_SAVE_SHARE_STATES, values)

    def refund(self, tenant_id: str, charge: float) -> None:
        """Undo the charge for assignments that were never sent."""
        self._session.execute(
            update(TenantRow)
            .where(TenantRow.id == tenant_id)
            .values(vtime=TenantRow.vtime - charge)
            .execution_options(synchronize_session=False)
        )

    def refund_cost(self, tenant_id: str, cost: float) -> None:
        """Undo the charge for one dispatch of a job of that cost."""
        values = {"id": ids.to_uuid(ids.TENANT, tenant_id), "cost": cost, "least": MIN_WEIGHT}
        self._session.connection().exec_driver_sql(_REFUND_COST, values)

    def create_key(self, tenant_id: str, name: str, scopes: frozenset[Scope]) -> tuple[Key, str]:
        """A new key and its text, which is shown this once and never stored."""
        secret = secrets.token_urlsafe(32)
        row = KeyRow(
            id=ids.new(ids.KEY),
            tenant_id=tenant_id,
            name=name,
            secret_hash=_hash(secret),
            scopes=sorted(scope.value for scope in scopes),
        )
        self._session.add(row)
        self._session.flush()
        return key_of(row), f"farm_{row.id.removeprefix('key_')}_{secret}"

    def authenticate(self, text: str) -> Key:
        """The live key of that text; `Unauthorized` otherwise."""
        parts = KEY_TEXT.fullmatch(text)
        row = self._session.get(KeyRow, f"key_{parts[1]}") if parts else None
        if parts is None or row is None or not hmac.compare_digest(row.secret_hash, _hash(parts[2])):
            raise Unauthorized("the API key is not known")
        if row.revoked_at is not None:
            raise Unauthorized("the API key was revoked")
        return key_of(row)

    def is_live(self, key_id: str) -> bool:
        """Whether the key was not revoked."""
        row = self._session.get(KeyRow, key_id)
        return row is not None and row.revoked_at is None

    def keys(self, tenant_id: str) -> list[Key]:
        """The tenant's keys, newest first."""
        return [
            key_of(r)
            for r in self._session.scalars(
                select(KeyRow).where(KeyRow.tenant_id == tenant_id).order_by(KeyRow.id.desc())
            )
        ]

    def rotate(self, tenant_id: str, key_id: str) -> tuple[Key, str]:
        """A second live key of the same name and scopes, and its text; revoke the old one when it is not used any more.

        Raises `NotFound`, or `Conflict` if the key is revoked.
        """
        row = self._session.get(KeyRow, key_id) if ids.is_id(ids.KEY, key_id) else None
        if row is None or row.tenant_id != tenant_id:
            raise NotFound("API key", key_id)
        if row.revoked_at is not None:
            raise Conflict("the API key was revoked; make a new one")
        return self.create_key(tenant_id, row.name, frozenset(map(Scope, row.scopes)))

    def delete_keys(self, tenant_id: str, name: str, older_than_seconds: float) -> None:
        """Delete the tenant's keys of that name and age, as if they had never been."""
        self._session.execute(
            delete(KeyRow).where(
                KeyRow.tenant_id == tenant_id,
                KeyRow.name == name,
                KeyRow.created_at <= func.now() - timedelta(seconds=older_than_seconds),
            )
        )

    def revoke(self, tenant_id: str, key_id: str) -> Key:
        """End a key at once; `NotFound` if the tenant has no such key."""
        row = None
        if ids.is_id(ids.KEY, key_id):
            row = self._session.scalar(
                update(KeyRow)
                .where(KeyRow.id == key_id, KeyRow.tenant_id == tenant_id)
                .values(revoked_at=func.coalesce(KeyRow.revoked_at, func.now()))
                .returning(KeyRow)
            )
        if row is None:
            raise NotFound("API key", key_id)
        return key_of(row)
