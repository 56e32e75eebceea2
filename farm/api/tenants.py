"""Tenants: who owns jobs, their share of the farm, their caps, and how long their things are kept."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Final, Self

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from farm.api.auth import Admin
from farm.api.dependencies import AppContext, Context
from farm.api.idempotency import Once
from farm.api.patch import Patch
from farm.api.problems import ALWAYS, responses
from farm.api.route import AuthenticatedRoute
from farm.api.schemas import Schema
from farm.domain import ids
from farm.errors import BadInput, FieldProblem
from farm.fields import NoNul, Storable
from farm.store.tenants import Tenant

router: Final = APIRouter(prefix="/v1/tenants", tags=["tenants"], route_class=AuthenticatedRoute)

TenantId = Annotated[str, Path(description="The tenant's id.", json_schema_extra={"pattern": ids.pattern(ids.TENANT)})]
Name = Annotated[str, StringConstraints(min_length=1, max_length=100), Storable, NoNul]


def _number(value: object) -> object:
    # JSON's numbers and nothing else: 1.0 is a whole number there, and neither true nor "1" is one
    if isinstance(value, bool | str):
        raise ValueError("must be a number")  # noqa: TRY004 - pydantic reports a ValueError to the client
    return value


Numeric = BeforeValidator(_number)  # after the bounds below: pydantic writes them into the schema only so
Weight = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False), Numeric]
Count = Annotated[int, Field(ge=0, le=2**31 - 1), Numeric]
Bytes = Annotated[int, Field(ge=0, le=2**53), Numeric]  # what every JSON reader takes exactly
Seconds = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False), Numeric]
Days = Annotated[int, Field(ge=1, le=36_500), Numeric]


class TenantLimits(BaseModel):
    """What a tenant may have at most; null: no limit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_queued: Count | None = Field(None, description="Jobs that may wait.")
    max_running: Count | None = Field(None, description="Jobs that may be at workers at once; more wait.")
    device_seconds_per_day: Seconds | None = Field(
        None, description="When a day (UTC) has used so many, new jobs are refused until the next day."
    )
    storage_bytes: Bytes | None = Field(
        None, description="Bytes of outputs and inputs; above this limit new jobs are refused."
    )
    retention_days: Days | None = Field(
        None, description="Days after which finished jobs and their outputs are deleted."
    )


Alias = Annotated[str, StringConstraints(min_length=1, max_length=100), Storable, NoNul]
Aliases = Annotated[dict[Alias, Alias], Field(max_length=100)]
_ALIASES: Final = "Other names of models, to their ids: what the tenant's clients call them."


class TenantCreate(TenantLimits):
    """A tenant to make."""

    name: Name = Field(description="The tenant's name, unique in the farm.")
    weight: Weight = Field(1.0, description="Its share of the farm, relative to the other tenants.")
    model_aliases: Aliases = Field(default_factory=dict, description=_ALIASES)


class TenantUpdate(Patch, TenantLimits):
    """Changes; an absent field stays as it is, and null removes a limit."""

    clearable = frozenset(TenantLimits.model_fields)

    name: Name | None = Field(None, description="The tenant's name, unique in the farm.")
    weight: Weight | None = Field(None, description="Its share of the farm, relative to the other tenants.")
    model_aliases: Aliases | None = Field(None, description=_ALIASES)

    def changes(self) -> dict[str, Any]:
        """The columns to set."""
        return self.model_dump(exclude_unset=True)


class TenantSchema(Schema):
    """A tenant as an administrator sees it."""

    id: str
    name: str
    weight: float
    max_queued: int | None
    max_running: int | None
    device_seconds_per_day: float | None
    storage_bytes: int | None
    stored_bytes: int = Field(description="Measured every few minutes, and only while there is a limit.")
    retention_days: int | None
    model_aliases: dict[str, str]
    paused: bool
    created_at: datetime

    @classmethod
    def of(cls, tenant: Tenant) -> Self:
        """The tenant."""
        return cls(
            id=tenant.id,
            name=tenant.name,
            weight=tenant.weight,
            max_queued=tenant.max_queued,
            max_running=tenant.max_running,
            device_seconds_per_day=tenant.device_seconds_per_day,
            storage_bytes=tenant.storage_bytes,
            stored_bytes=tenant.stored_bytes,
            retention_days=tenant.retention_days,
            model_aliases=dict(tenant.model_aliases),
            paused=tenant.paused_at is not None,
            created_at=tenant.created_at,
        )


class TenantList(Schema):
    """Tenants, oldest first."""

    data: list[TenantSchema]
    next_cursor: str | None = Field(description="`cursor` of the next page; null: this is the last one.")


@router.get("", summary="List tenants", responses=responses(*ALWAYS))
def list_tenants(
    context: Context,
    admin: Admin,  # noqa: ARG001 - it guards
    cursor: Annotated[
        str | None, Query(pattern=ids.pattern(ids.TENANT), description="The page after this one's `next_cursor`.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 100,
) -> TenantList:
    """All tenants of the farm, oldest first."""
    with context.store.begin() as unit:
        found = unit.tenants.page(cursor, limit + 1)
    more = found[limit - 1].id if len(found) > limit else None
    return TenantList(data=[TenantSchema.of(one) for one in found[:limit]], next_cursor=more)


@router.post("", status_code=201, summary="Make a tenant", responses=responses(*ALWAYS, 409, 413, 415))
def create_tenant(
    context: Context,
    admin: Admin,  # noqa: ARG001 - it guards
    once: Once,
    request: TenantCreate,
) -> TenantSchema:
    """A new tenant. It has no key yet: make one with `POST /v1/keys?tenant=…`."""
    _check_aliases(context, request.model_aliases)
    with context.store.begin() as unit:
        return once.once(unit, TenantSchema, lambda: TenantSchema.of(unit.tenants.create(**request.model_dump())))


@router.get("/{tenant_id}", summary="Show a tenant", responses=responses(*ALWAYS, 404))
def get_tenant(context: Context, admin: Admin, tenant_id: TenantId) -> TenantSchema:  # noqa: ARG001 - it guards
    """One tenant with its limits."""
    with context.store.begin() as unit:
        return TenantSchema.of(unit.tenants.existing(tenant_id))


@router.patch("/{tenant_id}", summary="Change a tenant", responses=responses(*ALWAYS, 404, 409, 413, 415))
def change_tenant(
    context: Context,
    admin: Admin,  # noqa: ARG001 - it guards
    tenant_id: TenantId,
    request: TenantUpdate,
) -> TenantSchema:
    """Change name, weight, limits or aliases; jobs that were already accepted stay accepted."""
    _check_aliases(context, request.model_aliases or {})
    with context.store.begin() as unit:
        return TenantSchema.of(unit.tenants.change(tenant_id, **request.changes()))


def _check_aliases(context: AppContext, aliases: Mapping[str, str]) -> None:
    known = [model.id for model in context.registry.models]
    problems = [
        FieldProblem(f"model_aliases.{alias}", model, f"is not a model of this farm; there are: {', '.join(known)}")
        for alias, model in aliases.items()
        if model not in known
    ]
    if problems:
        raise BadInput(*problems)


@router.delete("/{tenant_id}", summary="Remove a tenant", responses=responses(*ALWAYS, 404, 409))
def remove_tenant(context: Context, admin: Admin, tenant_id: TenantId) -> TenantSchema:  # noqa: ARG001 - it guards
    """Remove a tenant that has no jobs and files, with its keys and its usage. Returns it."""
    with context.store.begin() as unit:
        gone = unit.tenants.existing(tenant_id)
        unit.tenants.remove(tenant_id)
    return TenantSchema.of(gone)
