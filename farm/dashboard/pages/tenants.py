"""Tenants and what they have used: their shares and limits, by those who run the farm; one's own, by everybody."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, Final

from fastapi import APIRouter, Form, Request, Response
from pydantic import ValidationError

from farm.api.dependencies import AppContext, Context
from farm.api.tenants import TenantCreate, TenantUpdate
from farm.dashboard.rendering import HOME, CurrentUser, Link, PageRoute, render, see
from farm.dashboard.session import User
from farm.errors import BadInput, FieldProblem, ScopeMissing
from farm.services import pauses
from farm.services import usage as services_usage
from farm.store.tenants import Scope
from farm.store.usage import Used

PATH: Final = f"{HOME}/tenants"
LINK: Final = Link("Settings", "Tenants and usage", PATH, 20)
router: Final = APIRouter(prefix=PATH, include_in_schema=False, route_class=PageRoute)

DAYS: Final = 30
#: The limits, by their field: what the form calls them.
LIMITS: Final = {
    "max_queued": "Jobs that may wait",
    "max_running": "Jobs at workers at once",
    "device_seconds_per_day": "Device-seconds per day",
    "storage_bytes": "Bytes of storage",
    "retention_days": "Days until ended jobs go",
}


@router.get("")
def tenants(request: Request, context: Context, user: CurrentUser) -> Response:
    """All of them for who runs the farm; else one's own."""
    if not user.has_scope(Scope.ADMIN):
        return see(f"{PATH}/{user.key.tenant_id}")
    first, last = _days()
    with context.store.begin() as unit:
        found = unit.tenants.page(None, 500)
        used = unit.usage.between(first, last)
    return render(request, "tenants.html", tenants=found, used=_totals(used), days=DAYS, given={}, wrong={})


@router.post("")
def make(context: Context, user: CurrentUser, name: Annotated[str, Form(max_length=200)] = "") -> Response:
    """A new tenant, without limits and without a key."""
    user.require(Scope.ADMIN)
    try:
        new = TenantCreate(name=name.strip())
    except ValidationError as error:
        raise BadInput.of("name", name, "must have 1 to 100 characters") from error
    with context.store.begin() as unit:
        made = unit.tenants.create(new.name)
    return see(f"{PATH}/{made.id}", "Created. It has no key yet: create one on the page “API keys”.")


@router.get("/{tenant_id}")
def tenant(request: Request, context: Context, user: CurrentUser, tenant_id: str) -> Response:
    """One tenant: limits, what it has now, what it used."""
    return _page(request, context, user, tenant_id, {}, {})


@router.get("/{tenant_id}/usage.csv")
def usage(context: Context, user: CurrentUser, tenant_id: str) -> Response:
    """The last days by day and model, for a spreadsheet."""
    _may_see(user, tenant_id)
    first, last = _days()
    text = services_usage.as_csv(services_usage.between(context, first, last, tenant_id))
    headers = {"Content-Disposition": f'attachment; filename="usage-{last}.csv"'}
    return Response(text, media_type="text/csv", headers=headers)


@router.get("/{tenant_id}/usage.json")
def chart(context: Context, user: CurrentUser, tenant_id: str) -> Any:
    """The last days' device-seconds and images, as columns for the chart."""
    _may_see(user, tenant_id)
    first, last = _days()
    with context.store.begin() as unit:
        return _chart(unit.usage.between(first, last, tenant_id), first, last)


@router.post("/{tenant_id}")
def change(
    request: Request,
    context: Context,
    user: CurrentUser,
    tenant_id: str,
    name: Annotated[str, Form(max_length=200)] = "",
    weight: Annotated[str, Form(max_length=40)] = "",
    max_queued: Annotated[str, Form(max_length=40)] = "",
    max_running: Annotated[str, Form(max_length=40)] = "",
    device_seconds_per_day: Annotated[str, Form(max_length=40)] = "",
    storage_bytes: Annotated[str, Form(max_length=40)] = "",
    retention_days: Annotated[str, Form(max_length=40)] = "",
) -> Response:
    """Another name, share or limits; an empty limit is none."""
    user.require(Scope.ADMIN)
    given = {
        "name": name.strip(),
        "weight": weight,
        "max_queued": max_queued,
        "max_running": max_running,
        "device_seconds_per_day": device_seconds_per_day,
        "storage_bytes": storage_bytes,
        "retention_days": retention_days,
    }
    try:
        new = TenantUpdate.model_validate({field: _value(field, text) for field, text in given.items()})
        with context.store.begin() as unit:
            unit.tenants.change(tenant_id, **new.changes())
    except ValidationError as error:
        wrong = {str(one["loc"][0]): one["msg"] for one in error.errors()}
        return _page(request, context, user, tenant_id, given, wrong, status=422)
    except BadInput as error:
        return _page(
            request, context, user, tenant_id, given, {one.field: one.message for one in error.problems}, status=422
        )
    return see(f"{PATH}/{tenant_id}", "Saved. Jobs that were already accepted stay accepted.")


@router.post("/{tenant_id}/{switch}")
def pause(context: Context, user: CurrentUser, tenant_id: str, switch: str) -> Response:
    """Hand none of its jobs over, or hand them over again."""
    user.require(Scope.OPERATE, Scope.ADMIN)
    if switch not in ("pause", "resume"):
        raise BadInput.of("action", switch, "must be pause or resume")
    if switch == "pause":
        pauses.pause_tenant(context, tenant_id, user.key.name)
        return see(f"{PATH}/{tenant_id}", "Paused. Jobs at workers are finished; the others wait.")
    pauses.resume_tenant(context, tenant_id)
    return see(f"{PATH}/{tenant_id}", "Resumed. The tenant's jobs are dispatched again.")


def _page(
    request: Request,
    context: AppContext,
    user: User,
    tenant_id: str,
    given: dict[str, str],
    wrong: dict[str, str],
    status: int = 200,
) -> Response:
    _may_see(user, tenant_id)
    first, last = _days()
    with context.store.begin() as unit:
        found = unit.tenants.existing(tenant_id)
        used = unit.usage.between(first, last, tenant_id)
        today, _ = unit.usage.today(tenant_id)
        lines = unit.dashboard_queries.queues(tenant_id)
    kept = {"name": found.name, "weight": f"{found.weight:g}"}
    kept |= {field: "" if getattr(found, field) is None else f"{getattr(found, field):.15g}" for field in LIMITS}
    by_model: dict[str, list[Used]] = defaultdict(list)
    for one in used:
        by_model[one.model].append(one)
    return render(
        request,
        "tenant.html",
        status=status,
        tenant=found,
        today=today,
        lines=lines,
        limits=LIMITS,
        models={model: _sum(rows) for model, rows in sorted(by_model.items())},
        total=_sum(used),
        chart=_chart(used, first, last),
        days=DAYS,
        given=kept | given,
        wrong=wrong,
    )


def _value(field: str, text: str) -> object:
    """A number as it was typed; nothing is no limit."""
    text = text.strip().replace(",", "").replace("_", "")
    if field == "name":
        return text or None
    if not text:
        return None
    try:
        return float(text) if "." in text or "e" in text.lower() else int(text)
    except ValueError as error:
        raise BadInput(FieldProblem(field, text, "must be a number, or nothing for no limit")) from error


def _may_see(user: User, tenant_id: str) -> None:
    if tenant_id != user.key.tenant_id and not user.has_scope(Scope.ADMIN):
        raise ScopeMissing(Scope.ADMIN)


def _days() -> tuple[date, date]:
    last = datetime.now(UTC).date()
    return last - timedelta(days=DAYS - 1), last


def _sum(rows: list[Used]) -> dict[str, float]:
    return {name: sum(getattr(one, name) for one in rows) for name in ("jobs", "outputs", "bytes", "device_seconds")}


def _totals(used: list[Used]) -> dict[str, dict[str, float]]:
    by_tenant: dict[str, list[Used]] = defaultdict(list)
    for one in used:
        by_tenant[one.tenant_id].append(one)
    return {tenant_id: _sum(rows) for tenant_id, rows in by_tenant.items()}


def _chart(used: list[Used], first: date, last: date) -> dict[str, Any]:
    days = [first + timedelta(days=number) for number in range((last - first).days + 1)]
    seconds: dict[date, float] = defaultdict(float)
    for one in used:
        seconds[one.day] += one.device_seconds
    return {
        "at": [int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) for day in days],
        "values": [round(seconds[day] / 60, 2) for day in days],
    }
