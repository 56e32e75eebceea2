"""Tenants: who owns jobs, their share of the farm, their caps, and how long their things are kept."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final, Self

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from farm.api.auth import Admin
from farm.api.dependencies import Farm
from farm.api.problems import ALWAYS, responses
from farm.api.route import Guarded
from farm.api.schemas import Shape
from farm.domain import ids
from farm.domain.tasks import NoNul, Storable
from farm.store.tenants import Tenant

router: Final = APIRouter(prefix="/v1/tenants", tags=["tenants"], route_class=Guarded)

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


class Caps(BaseModel):
    """What a tenant may have at most; null: no limit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_queued: Count | None = Field(None, description="Jobs that may wait.")
    max_running: Count | None = Field(None, description="Jobs that may be at workers at once; more wait.")
    device_seconds_per_day: Seconds | None = Field(
        None, description="Once so many are used in a day (UTC), new jobs are refused until the next."
    )
    storage_bytes: Bytes | None = Field(None, description="Outputs and inputs; beyond it new jobs are refused.")
    retention_days: Days | None = Field(None, description="Ended jobs and their outputs are deleted after so long.")


class TenantRequest(Caps):
    """A tenant to make."""

    name: Name = Field(description="Unique in the farm.")
    weight: Weight = Field(1.0, description="Its share of the farm, relative to the other tenants.")


class TenantChange(Caps):
    """What to change; a field that is absent stays as it is, null removes a cap. Name and weight stay at null, too."""

    name: Name | None = Field(None, description="Unique in the farm.")
    weight: Weight | None = Field(None, description="Its share of the farm, relative to the other tenants.")


class TenantShape(Shape):
    """A tenant as an administrator sees it."""

    id: str
    name: str
    weight: float
    max_queued: int | None
    max_running: int | None
    device_seconds_per_day: float | None
    storage_bytes: int | None
    stored_bytes: int = Field(description="As measured some minutes ago at most; only while there is a limit.")
    retention_days: int | None
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
            paused=tenant.paused_at is not None,
            created_at=tenant.created_at,
        )


class TenantList(Shape):
    """Tenants, oldest first."""

    data: list[TenantShape]
    next_cursor: str | None = Field(description="`cursor` of the next page; null: this is the last one.")


@router.get("", summary="List tenants", responses=responses(*ALWAYS))
def list_tenants(
    farm: Farm,
    admin: Admin,  # noqa: ARG001 - it guards
    cursor: Annotated[
        str | None, Query(pattern=ids.pattern(ids.TENANT), description="The page after this one's `next_cursor`.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 100,
) -> TenantList:
    """All tenants of the farm, oldest first."""
    with farm.store.begin() as unit:
        found = unit.tenants.page(cursor, limit + 1)
    more = found[limit - 1].id if len(found) > limit else None
    return TenantList(data=[TenantShape.of(one) for one in found[:limit]], next_cursor=more)


@router.post("", status_code=201, summary="Make a tenant", responses=responses(*ALWAYS, 409, 413, 415))
def make_tenant(farm: Farm, admin: Admin, request: TenantRequest) -> TenantShape:  # noqa: ARG001 - it guards
    """A new tenant. It has no key yet: make one with `POST /v1/keys?tenant=…`."""
    with farm.store.begin() as unit:
        return TenantShape.of(unit.tenants.create(**request.model_dump()))


@router.get("/{tenant_id}", summary="Show a tenant", responses=responses(*ALWAYS, 404))
def show_tenant(farm: Farm, admin: Admin, tenant_id: TenantId) -> TenantShape:  # noqa: ARG001 - it guards
    """One tenant with its caps."""
    with farm.store.begin() as unit:
        return TenantShape.of(unit.tenants.existing(tenant_id))


@router.patch("/{tenant_id}", summary="Change a tenant", responses=responses(*ALWAYS, 404, 409, 413, 415))
def change_tenant(
    farm: Farm,
    admin: Admin,  # noqa: ARG001 - it guards
    tenant_id: TenantId,
    request: TenantChange,
) -> TenantShape:
    """Change name, weight or caps; what was accepted already is not taken back."""
    kept = {name for name in ("name", "weight") if getattr(request, name) is None}
    changes = request.model_dump(exclude_unset=True, exclude=kept)
    with farm.store.begin() as unit:
        return TenantShape.of(unit.tenants.change(tenant_id, **changes))


@router.delete("/{tenant_id}", summary="Remove a tenant", responses=responses(*ALWAYS, 404, 409))
def remove_tenant(farm: Farm, admin: Admin, tenant_id: TenantId) -> TenantShape:  # noqa: ARG001 - it guards
    """Remove a tenant that has nothing any more, with its keys and its usage. Answers with what it was."""
    with farm.store.begin() as unit:
        gone = unit.tenants.existing(tenant_id)
        unit.tenants.remove(tenant_id)
    return TenantShape.of(gone)
