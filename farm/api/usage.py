"""What tenants have used, by day and model, as JSON or CSV."""

from __future__ import annotations

import re
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BeforeValidator, Field

from farm.api.auth import RequireScope
from farm.api.dependencies import Context
from farm.api.problems import ALWAYS, responses
from farm.api.route import AuthenticatedRoute
from farm.api.schemas import Schema
from farm.domain import ids
from farm.errors import BadInput, ScopeMissing
from farm.services import usage as services
from farm.store.tenants import Key, Scope

router: Final = APIRouter(prefix="/v1/usage", tags=["usage"], route_class=AuthenticatedRoute)

MOST_DAYS: Final = 366


def _written(value: object) -> object:
    # pydantic also takes a bare number, as seconds since 1970
    if isinstance(value, str) and not re.fullmatch(r"\d{4}-\d{2}-\d{2}", value):
        raise ValueError("is no day; write it as 2026-01-31")
    return value


Day = Annotated[date, BeforeValidator(_written)]
Asking = Annotated[Key, Depends(RequireScope(Scope.READ, Scope.ADMIN))]


class UsageSchema(Schema):
    """What one tenant used of one model on one day."""

    day: date = Field(description="In UTC.")
    tenant_id: str
    tenant: str = Field(description="The tenant's name.")
    model: str
    jobs: int = Field(description="Jobs that succeeded.")
    outputs: int
    bytes: int = Field(description="Of the outputs.")
    device_seconds: float = Field(description="Each job's own time on its device, also while others shared the device.")


class UsageList(Schema):
    """Usage by day, tenant and model."""

    data: list[UsageSchema]


@router.get(
    "",
    summary="Show usage",
    response_model=UsageList,
    responses={
        200: {"content": {"text/csv": {"schema": {"type": "string"}}}, "description": "The usage."},
        **responses(*ALWAYS, 404),
    },
)
def usage(
    context: Context,
    key: Asking,
    first: Annotated[Day | None, Query(alias="from", description="First day, UTC; 30 days ago if absent.")] = None,
    last: Annotated[Day | None, Query(alias="to", description="Last day, UTC; today if absent.")] = None,
    tenant: Annotated[
        str | None,
        Query(
            description="The tenant; the caller's own if absent, `all` for all. Other tenants need the scope `admin`.",
            json_schema_extra={"pattern": rf"^(all|{ids.pattern(ids.TENANT)[1:-1]})$"},
        ),
    ] = None,
    form: Annotated[Literal["json", "csv"], Query(alias="format")] = "json",
) -> UsageList | Response:
    """Device-seconds, outputs and bytes by day, tenant and model."""
    last = last or datetime.now(UTC).date()
    first = first or max(date.min + timedelta(31), last) - timedelta(30)
    if not 0 <= (last - first).days < MOST_DAYS:
        raise BadInput.of("from", str(first), f"must not be after `to` ({last}), and at most {MOST_DAYS} days before")
    of = key.tenant_id if tenant is None else tenant
    if of != key.tenant_id and Scope.ADMIN not in key.scopes:
        raise ScopeMissing(Scope.ADMIN)
    rows = services.between(context, first, last, None if of == "all" else of)
    if form == "csv":
        return Response(services.as_csv(rows), media_type="text/csv")
    return UsageList(data=[UsageSchema(**asdict(row)) for row in rows])
