"""Batches: how far each is, its images, its failures by kind."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Form, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from farm import lifecycle
from farm.api import batches as api
from farm.api.batch_schemas import BatchUpdate
from farm.api.dependencies import AppContext, Context
from farm.dashboard.rendering import HOME, CurrentUser, Link, PageRoute, render, see
from farm.dashboard.session import User
from farm.domain.batch import Batch
from farm.domain.states import JobState, Priority
from farm.errors import NotFound
from farm.services.contact_sheet import SheetFormat
from farm.store.dashboard_queries import Wanted
from farm.store.tenants import Key

PATH: Final = f"{HOME}/batches"
LINK: Final = Link("Work", "Batches", PATH, 0)
router: Final = APIRouter(prefix=PATH, include_in_schema=False, route_class=PageRoute)

PAGE: Final = 25
GALLERY: Final = 48
GROUPED: Final = 200_000  #: jobs of a batch whose failures are grouped without being asked

Cursor = Annotated[str, Query(max_length=100)]
States = Annotated[list[JobState], Query(max_length=6)]


@router.get("")
def batches(request: Request, context: Context, user: CurrentUser, cursor: Cursor = "") -> Response:
    """The newest, a page at a time."""
    return render(request, "batches.html", first=not cursor, cursor=cursor, **_page(context, user, cursor))


@router.get("/rows")
def rows(request: Request, context: Context, user: CurrentUser, cursor: Cursor = "") -> Response:
    """The table as it is now."""
    return render(request, "batches_rows.html", cursor=cursor, **_page(context, user, cursor))


def _page(context: AppContext, user: User, cursor: str) -> dict[str, Any]:
    with context.store.begin() as unit:
        found, following = unit.dashboard_queries.batches(user.tenant, cursor or None, PAGE)
        read = [unit.batches.get(batch, tenant) for batch, tenant in found]
        names = unit.dashboard_queries.tenant_names([tenant for _, tenant in found]) if user.is_operator else {}
    return {"batches": [one for one in read if one is not None], "names": names, "following": following}


@router.get("/{batch_id}")
def batch(
    request: Request,
    context: Context,
    user: CurrentUser,
    batch_id: str,
    state: States = [],  # noqa: B006
    error_code: Annotated[str, Query(max_length=300)] = "",
    cursor: Cursor = "",
    group: bool = False,
) -> Response:
    """The page of one batch."""
    found = _found(context, user, batch_id)
    wanted = Wanted(found.tenant_id, tuple(state), error_code=error_code, batch_id=batch_id)
    with context.store.begin() as unit:
        jobs, following = unit.dashboard_queries.jobs(wanted, cursor or None, GALLERY)
        grouped = found.counts.failed > 0 and (group or found.counts.total <= GROUPED)
        if grouped:
            unit.batches.allow_long_statements()
        failures = unit.dashboard_queries.failure_groups(batch_id) if grouped else []
        told = unit.dashboard_queries.batch_webhooks(batch_id)
        names = unit.dashboard_queries.tenant_names([found.tenant_id]) if user.is_operator else {}
    return render(
        request,
        "batch.html",
        told=told,
        again=str(request.url.path) + (f"?{request.url.query}" if request.url.query else ""),
        batch=found,
        jobs=jobs,
        wanted=wanted,
        first=not cursor,
        following=following,
        failures=failures,
        tenant_name=names.get(found.tenant_id, ""),
        states=list(JobState),
        priorities=list(Priority),
    )


@router.get("/{batch_id}/now")
def now(request: Request, context: Context, user: CurrentUser, batch_id: str) -> Response:
    """Its progress as it is now."""
    return render(request, "batch_now.html", batch=_found(context, user, batch_id))


# -- taking it home ----------------------------------------------------------------------------------------------------


@router.get("/{batch_id}/results.jsonl")
def results(context: Context, user: CurrentUser, batch_id: str) -> Response:
    """Every job that is over, as JSON lines."""
    return api.get_batch_results(context, _theirs(context, user, batch_id), batch_id)


@router.get("/{batch_id}/errors.jsonl")
def errors(context: Context, user: CurrentUser, batch_id: str) -> Response:
    """What went wrong, as JSON lines."""
    return api.get_batch_errors(context, _theirs(context, user, batch_id), batch_id)


@router.get("/{batch_id}/images.{form}")
def archive(context: Context, user: CurrentUser, batch_id: str, form: api.ArchiveFormat) -> Response:
    """All images as one download."""
    return api.get_batch_archive(context, _theirs(context, user, batch_id), batch_id, form)


@router.get("/{batch_id}/sheet.jpeg")
async def sheet(context: Context, user: CurrentUser, batch_id: str) -> Response:
    """The images side by side."""
    key = await run_in_threadpool(_theirs, context, user, batch_id)
    return await api.get_contact_sheet(context, key, batch_id, None, None, 192, SheetFormat.JPEG)


# -- doing something ---------------------------------------------------------------------------------------------------


@router.post("/{batch_id}/cancel")
def cancel(context: Context, user: CurrentUser, batch_id: str) -> Response:
    """Stop what waits at once, what runs at its next step."""
    api.cancel_batch(context, _steered(context, user, batch_id), batch_id)
    return see(f"{PATH}/{batch_id}", "Canceled: what runs stops at its next step.")


@router.post("/{batch_id}/pause")
def pause(context: Context, user: CurrentUser, batch_id: str) -> Response:
    """Hand nothing over any more."""
    api.pause_batch(context, _steered(context, user, batch_id), batch_id)
    return see(f"{PATH}/{batch_id}", "Paused: what is at workers goes on, the rest waits.")


@router.post("/{batch_id}/resume")
def resume(context: Context, user: CurrentUser, batch_id: str) -> Response:
    """Go on."""
    api.resume_batch(context, _steered(context, user, batch_id), batch_id)
    return see(f"{PATH}/{batch_id}", "The batch goes on, from the place in the queue that it had.")


@router.post("/{batch_id}/priority")
def prioritise(context: Context, user: CurrentUser, batch_id: str, priority: Annotated[Priority, Form()]) -> Response:
    """Move what waits to another class."""
    api.change_batch(context, _steered(context, user, batch_id), batch_id, BatchUpdate(priority=priority))
    return see(f"{PATH}/{batch_id}", f"Its jobs wait in the class {priority} now.")


@router.post("/{batch_id}/retry")
def retry(context: Context, user: CurrentUser, batch_id: str) -> Response:
    """What did not succeed, as a new batch."""
    key = _steered(context, user, batch_id)
    with context.store.begin() as unit:
        new = lifecycle.retry_batch(unit, key.tenant_id, batch_id)
    return see(f"{PATH}/{new.id}", f"This batch repeats the {new.counts.total:,} jobs that did not succeed.")


@router.get("/{batch_id}/delete")
def weigh(request: Request, context: Context, user: CurrentUser, batch_id: str) -> Response:
    """What deleting it would remove."""
    weighed = api.delete_batch(context, _steered(context, user, batch_id), batch_id, dry_run=True)
    return render(request, "batch_delete.html", batch=_found(context, user, batch_id), weighed=weighed)


@router.post("/{batch_id}/delete")
def delete(context: Context, user: CurrentUser, batch_id: str) -> Response:
    """Remove it with its jobs and their images."""
    gone = api.delete_batch(context, _steered(context, user, batch_id), batch_id)
    return see(PATH, f"Deleted: {gone.jobs:,} jobs and {gone.outputs:,} images.")


def _theirs(context: AppContext, user: User, batch_id: str) -> Key:
    return user.key_for(_found(context, user, batch_id).tenant_id)


def _steered(context: AppContext, user: User, batch_id: str) -> Key:
    return user.key_for(user.require_change(_found(context, user, batch_id).tenant_id))


def _found(context: AppContext, user: User, batch_id: str) -> Batch:
    with context.store.begin() as unit:
        owner = unit.dashboard_queries.owner(batch_id)
        found = unit.batches.get(batch_id, owner) if owner is not None and user.tenant in (None, owner) else None
    if found is None:
        raise NotFound("batch", batch_id)
    return found
