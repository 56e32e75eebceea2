"""API keys: of the caller's own tenant, or of the one that is named."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from farm.api.auth import Admin
from farm.api.dependencies import Context
from farm.api.idempotency import Once
from farm.api.problems import ALWAYS, responses
from farm.api.route import AuthenticatedRoute
from farm.api.schemas import KeyList, KeySchema, NewKeySchema
from farm.domain import ids
from farm.fields import NoNul, Storable
from farm.store.tenants import Scope

router: Final = APIRouter(prefix="/v1/keys", tags=["keys"], route_class=AuthenticatedRoute)

KeyId = Annotated[str, Path(description="The key's id.", json_schema_extra={"pattern": ids.pattern(ids.KEY)})]
Of = Annotated[
    str | None,
    Query(
        alias="tenant",
        description="The tenant whose keys to list or make; the caller's own if absent.",
        json_schema_extra={"pattern": ids.pattern(ids.TENANT)},
    ),
]


class KeyCreate(BaseModel):
    """A key to make."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, StringConstraints(min_length=1, max_length=100), Storable, NoNul] = Field(
        description="A description."
    )
    scopes: list[Scope] = Field(
        [Scope.SUBMIT, Scope.READ], min_length=1, max_length=len(Scope), description="What the key may do."
    )


@router.get("", summary="List keys", responses=responses(*ALWAYS, 404))
def list_keys(context: Context, admin: Admin, tenant: Of = None) -> KeyList:
    """A tenant's keys, newest first, without their secrets."""
    with context.store.begin() as unit:
        of = unit.tenants.existing(admin.tenant_id if tenant is None else tenant)
        return KeyList(data=[KeySchema.of(key) for key in unit.tenants.keys(of.id)])


@router.post("", status_code=201, summary="Make a key", responses=responses(*ALWAYS, 404, 413, 415))
def create_key(context: Context, admin: Admin, once: Once, request: KeyCreate, tenant: Of = None) -> NewKeySchema:
    """A new key of a tenant. Its text is only in this response."""
    with context.store.begin() as unit:
        of = unit.tenants.existing(admin.tenant_id if tenant is None else tenant)

        def make() -> NewKeySchema:
            key, text = unit.tenants.create_key(of.id, request.name, frozenset(request.scopes))
            return NewKeySchema(**KeySchema.of(key).model_dump(), key=text)

        return once.once(unit, NewKeySchema, make)


@router.post("/{key_id}/rotate", status_code=201, summary="Rotate a key", responses=responses(*ALWAYS, 404, 409))
def rotate_key(context: Context, admin: Admin, once: Once, key_id: KeyId, tenant: Of = None) -> NewKeySchema:
    """A second key of the same name and scopes. Both are valid until the old one is revoked."""
    with context.store.begin() as unit:
        of = unit.tenants.existing(admin.tenant_id if tenant is None else tenant)

        def make() -> NewKeySchema:
            key, text = unit.tenants.rotate(of.id, key_id)
            return NewKeySchema(**KeySchema.of(key).model_dump(), key=text)

        return once.once(unit, NewKeySchema, make)


@router.delete("/{key_id}", summary="Revoke a key", responses=responses(*ALWAYS, 404))
def revoke_key(context: Context, admin: Admin, key_id: KeyId, tenant: Of = None) -> KeySchema:
    """End a key at once. Revoking it again changes nothing."""
    with context.store.begin() as unit:
        of = unit.tenants.existing(admin.tenant_id if tenant is None else tenant)
        return KeySchema.of(unit.tenants.revoke(of.id, key_id))
