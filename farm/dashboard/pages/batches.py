"""Batches: how far each is, its images, its failures by kind."""

from __future__ import annotations

from typing import Annotated, Any, Final

import anyio.to_thread
from fastapi import APIRouter, Form, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from farm.api import downloads
from farm.api.dependencies import AppContext, Context
from farm.dashboard.rendering import HOME, CurrentUser, Link, PageRoute, render, see
from farm.dashboard.session import User
from farm.domain.batch import Batch
from farm.domain.states import JobState, Priority
from farm.errors import NotFound
from farm.services import batch_archive, validation
from farm.services import batches as services
from farm.services.batch_archive import ArchiveFormat

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
    wanted = validation.job_filter(state, {"error_code": error_code, "batch_id": batch_id})
    with context.store.begin() as unit:
        jobs, following = unit.dashboard_queries.jobs(found.tenant_id, wanted, cursor or None, GALLERY)
        grouped = found.counts.failed > 0 and (group or found.counts.total <= GROUPED)
        if grouped:
            unit.batches.allow_long_statements()
        failures = unit.dashboard_queries.failure_groups(batch_id) if grouped else []
        webhooks = unit.dashboard_queries.batch_webhooks(batch_id)
        names = unit.dashboard_queries.tenant_names([found.tenant_id]) if user.is_operator else {}
    return render(
        request,
        "batch.html",
        webhooks=webhooks,
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


# -- downloads ---------------------------------------------------------------------------------------------------------


@router.get("/{batch_id}/results.jsonl")
def results(context: Context, user: CurrentUser, batch_id: str) -> Response:
    """Every finished job, as JSON lines."""
    return downloads.results(context, _found(context, user, batch_id))


@router.get("/{batch_id}/errors.jsonl")
def errors(context: Context, user: CurrentUser, batch_id: str) -> Response:
    """The refused lines and the failed jobs, as JSON lines."""
    return downloads.errors(context, _found(context, user, batch_id))


@router.get("/{batch_id}/images.{form}")
def archive(context: Context, user: CurrentUser, batch_id: str, form: ArchiveFormat) -> Response:
    """All images as one download."""
    return downloads.archived(context, _found(context, user, batch_id), form)


@router.get("/{batch_id}/sheet.jpeg")
async def sheet(context: Context, user: CurrentUser, batch_id: str) -> Response:
    """The images side by side."""
    batch = await run_in_threadpool(_found, context, user, batch_id)
    drawn = await anyio.to_thread.run_sync(batch_archive.draw_contact_sheet, context, batch, limiter=context.drawing)
    return Response(drawn, media_type="image/jpeg")


# -- actions -----------------------------------------------------------------------------------------------------------


@router.post("/{batch_id}/cancel")
def cancel(context: Context, user: CurrentUser, batch_id: str) -> Response:
    """Cancel every job of a batch."""
    services.cancel(context, _owner(context, user, batch_id), batch_id)
    return see(f"{PATH}/{batch_id}", "Canceled. Running jobs stop at their next denoising step.")


@router.post("/{batch_id}/pause")
def pause(context: Context, user: CurrentUser, batch_id: str) -> Response:
    """Dispatch none of a batch's jobs."""
    services.pause(context, _owner(context, user, batch_id), batch_id, user.key.name)
    return see(f"{PATH}/{batch_id}", "Paused. Jobs at workers are finished; the others wait.")


@router.post("/{batch_id}/resume")
def resume(context: Context, user: CurrentUser, batch_id: str) -> Response:
    """Dispatch a paused batch's jobs again."""
    services.resume(context, _owner(context, user, batch_id), batch_id)
    return see(f"{PATH}/{batch_id}", "Resumed. The jobs keep their places in the queue.")


@router.post("/{batch_id}/priority")
def set_priority(context: Context, user: CurrentUser, batch_id: str, priority: Annotated[Priority, Form()]) -> Response:
    """Change the priority of a batch's unfinished jobs."""
    services.change(context, _owner(context, user, batch_id), batch_id, priority=priority)
    return see(f"{PATH}/{batch_id}", f"The jobs have the priority {priority} now.")


@router.post("/{batch_id}/retry")
def retry(context: Context, user: CurrentUser, batch_id: str) -> Response:
    """Submit the failed and canceled jobs again as a new batch."""
    new, _ = services.retry(context, _owner(context, user, batch_id), batch_id)
    return see(f"{PATH}/{new.id}", f"This batch retries {new.counts.total:,} failed or canceled jobs.")


@router.get("/{batch_id}/delete")
def confirm_delete(request: Request, context: Context, user: CurrentUser, batch_id: str) -> Response:
    """What deleting a batch would remove."""
    holdings = services.contents(context, _owner(context, user, batch_id), batch_id)
    return render(request, "batch_delete.html", batch=_found(context, user, batch_id), holdings=holdings)


@router.post("/{batch_id}/delete")
def delete(context: Context, user: CurrentUser, batch_id: str) -> Response:
    """Delete a batch with its jobs and their images."""
    gone = services.delete(context, _owner(context, user, batch_id), batch_id)
    return see(PATH, f"Deleted: {gone.jobs:,} jobs and {gone.outputs:,} images.")


def _owner(context: AppContext, user: User, batch_id: str) -> str:
    """The tenant of a batch that the user may change. Raises `NotFound` and `Forbidden`."""
    return user.require_change(_found(context, user, batch_id).tenant_id)


def _found(context: AppContext, user: User, batch_id: str) -> Batch:
    with context.store.begin() as unit:
        owner = unit.dashboard_queries.owner(batch_id)
    if owner is None or user.tenant not in (None, owner):
        raise NotFound("batch", batch_id)
    return services.get(context, owner, batch_id)
