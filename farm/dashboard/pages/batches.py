"""Batches: how far each is, its pictures, its failures by kind."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request, Response

from farm import lifecycle
from farm.api.services import Farm, Services
from farm.dashboard.page import HOME, Link, PageRoute, Who, render, see
from farm.dashboard.session import Visitor
from farm.domain.batch import Batch
from farm.domain.states import JobState
from farm.errors import NotFound
from farm.store.search import Wanted

PATH: Final = f"{HOME}/batches"
LINK: Final = Link("Work", "Batches", PATH, 0)
router: Final = APIRouter(prefix=PATH, include_in_schema=False, route_class=PageRoute)

PAGE: Final = 25
GALLERY: Final = 48
GROUPED: Final = 200_000  #: jobs of a batch whose failures are grouped without being asked
CANCEL_ROUNDS: Final = 50

Cursor = Annotated[str, Query(max_length=100)]
States = Annotated[list[JobState], Query(max_length=6)]


@router.get("")
def batches(request: Request, farm: Farm, who: Who, cursor: Cursor = "") -> Response:
    """The newest, a page at a time."""
    return render(request, "batches.html", first=not cursor, cursor=cursor, **_page(farm, who, cursor))


@router.get("/rows")
def rows(request: Request, farm: Farm, who: Who, cursor: Cursor = "") -> Response:
    """The table as it is now."""
    return render(request, "batches_rows.html", cursor=cursor, **_page(farm, who, cursor))


def _page(farm: Services, who: Visitor, cursor: str) -> dict[str, Any]:
    with farm.store.begin() as unit:
        found, following = unit.search.batches(who.tenant, cursor or None, PAGE)
        read = [unit.batches.get(batch, tenant) for batch, tenant in found]
        names = unit.search.tenant_names([tenant for _, tenant in found]) if who.operates else {}
    return {"batches": [one for one in read if one is not None], "names": names, "following": following}


@router.get("/{batch_id}")
def batch(
    request: Request,
    farm: Farm,
    who: Who,
    batch_id: str,
    state: States = [],  # noqa: B006
    error_code: Annotated[str, Query(max_length=300)] = "",
    cursor: Cursor = "",
    group: bool = False,
) -> Response:
    """The page of one batch."""
    found = _found(farm, who, batch_id)
    wanted = Wanted(found.tenant_id, tuple(state), error_code=error_code, batch_id=batch_id)
    with farm.store.begin() as unit:
        jobs, following = unit.search.jobs(wanted, cursor or None, GALLERY)
        grouped = found.counts.failed > 0 and (group or found.counts.total <= GROUPED)
        if grouped:
            unit.batches.allow_long()
        failures = unit.search.failures(batch_id) if grouped else []
        names = unit.search.tenant_names([found.tenant_id]) if who.operates else {}
    return render(
        request,
        "batch.html",
        batch=found,
        jobs=jobs,
        wanted=wanted,
        first=not cursor,
        following=following,
        failures=failures,
        tenant_name=names.get(found.tenant_id, ""),
        states=list(JobState),
    )


@router.get("/{batch_id}/now")
def now(request: Request, farm: Farm, who: Who, batch_id: str) -> Response:
    """Its progress as it is now."""
    return render(request, "batch_now.html", batch=_found(farm, who, batch_id))


@router.post("/{batch_id}/cancel")
def cancel(farm: Farm, who: Who, batch_id: str) -> Response:
    """Stop what waits at once, what runs at its next step."""
    found = _found(farm, who, batch_id)
    who.changes(found.tenant_id)
    for _ in range(CANCEL_ROUNDS):
        with farm.store.begin() as unit:
            found, left = lifecycle.cancel_batch(unit, found.tenant_id, batch_id)
        if not left:
            break
    return see(f"{PATH}/{batch_id}", "Canceled: what runs stops at its next step.")


@router.post("/{batch_id}/retry")
def retry(farm: Farm, who: Who, batch_id: str) -> Response:
    """What did not succeed, as a new batch."""
    found = _found(farm, who, batch_id)
    who.changes(found.tenant_id)
    with farm.store.begin() as unit:
        new = lifecycle.retry_batch(unit, found.tenant_id, batch_id)
    return see(f"{PATH}/{new.id}", f"This batch repeats the {new.counts.total:,} jobs that did not succeed.")


def _found(farm: Services, who: Visitor, batch_id: str) -> Batch:
    with farm.store.begin() as unit:
        owner = unit.search.owner(batch_id)
        found = unit.batches.get(batch_id, owner) if owner is not None and who.tenant in (None, owner) else None
    if found is None:
        raise NotFound("batch", batch_id)
    return found
