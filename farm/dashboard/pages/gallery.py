"""Gallery: a tenant's outputs, newest first; search, stars, tags and collections; zip, rerun and delete of some."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field, ValidationError
from starlette.concurrency import run_in_threadpool

from farm.api.dependencies import AppContext, Context
from farm.api.gallery import zipped
from farm.dashboard.filters import plural
from farm.dashboard.rendering import HOME, CurrentUser, Link, PageRoute, render, see
from farm.dashboard.session import User
from farm.domain.gallery import LabelKind, OutputFilter, OutputPlace
from farm.errors import BadInput, FieldProblem, NotFound
from farm.services import bulk_actions
from farm.services import gallery as services
from farm.services.bulk_actions import JobAction
from farm.store.tenants import Scope
from farm.tasks import TASKS

PATH: Final = f"{HOME}/gallery"
LINK: Final = Link("Work", "Gallery", PATH, -15)
router: Final = APIRouter(prefix=PATH, include_in_schema=False, route_class=PageRoute)

PAGE: Final = 60  #: outputs of one page
MAX_NAME: Final = 100  #: characters of a tag or a collection
#: What may be done with the chosen outputs, by the value of the button.
MARKS: Final = {
    "star": (LabelKind.STAR, True), "unstar": (LabelKind.STAR, False),
    "tag": (LabelKind.TAG, True), "untag": (LabelKind.TAG, False),
    "collect": (LabelKind.COLLECTION, True), "uncollect": (LabelKind.COLLECTION, False),
}  # fmt: skip


class GalleryQuery(BaseModel):
    """What the filter takes, as it stands in the address: an empty field does not filter."""

    q: str = Field("", max_length=500)
    model: str = ""
    task: str = ""
    media: str = ""
    star: str = ""
    tag: str = ""
    collection: str = ""
    batch_id: str = ""
    custom_id: str = ""
    metadata_key: str = ""
    metadata_value: str = ""
    min_width: str = ""
    min_height: str = ""
    created_after: str = ""
    created_before: str = ""
    cursor: str = Field("", max_length=100)


@router.get("")
def gallery(request: Request, context: Context, user: CurrentUser, asked: Annotated[GalleryQuery, Query()]) -> Response:
    """The page, or with ``HX-Request`` the next outputs alone."""
    user.require(Scope.READ)
    given = {name: value.strip() for name, value in asked.model_dump(exclude={"cursor"}).items()}
    wanted = _wanted(given)
    tenant_id = user.key.tenant_id
    found, following = services.page(context, tenant_id, wanted, asked.cursor or None, PAGE)
    part = "hx-request" in request.headers
    labels = [] if part else services.labels(context, tenant_id)
    query = urlencode({name: value for name, value in given.items() if value})
    return render(
        request,
        "gallery_items.html" if part else "gallery.html",
        outputs=found,
        following=following,
        first=not asked.cursor,
        query=query,
        given=given,
        tags=[one for one in labels if one.kind is LabelKind.TAG],
        collections=[one for one in labels if one.kind is LabelKind.COLLECTION],
        models=[one.id for one in context.registry.models],
        tasks=list(TASKS),
        can_change=user.has_scope(Scope.SUBMIT),
    )


def _wanted(given: dict[str, str]) -> OutputFilter:
    values: dict[str, Any] = {name: value for name, value in given.items() if value}
    if "star" in values:
        values["star"] = True
    for name in ("created_after", "created_before"):
        if name in values:
            try:
                moment = datetime.fromisoformat(values[name])
            except ValueError:
                raise BadInput.of(name, values[name], "is not a date") from None
            if name == "created_before" and len(values[name]) == len("2026-12-31"):
                moment += timedelta(days=1)  # the whole day
            values[name] = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).isoformat()
    try:
        return OutputFilter(**values)
    except ValidationError as error:
        problems = [FieldProblem(str(one["loc"][0]), one["input"], one["msg"]) for one in error.errors()]
        raise BadInput(*problems) from error


@router.post("/act")
async def act(request: Request, context: Context, user: CurrentUser) -> Response:
    """Mark, download, rerun or delete the chosen outputs."""
    form = await request.form(max_files=0, max_fields=services.MAX_PLACES + 20)
    given = [(name, value) for name, value in form.multi_items() if isinstance(value, str)]
    return await run_in_threadpool(_act, request, context, user, given)


def _act(request: Request, context: AppContext, user: User, given: list[tuple[str, str]]) -> Response:
    only = dict(given)
    action, back = only.get("action", ""), _back(only.get("query", ""))
    places = [_place(value) for name, value in given if name == "place"]
    tenant_id = user.key.tenant_id
    if not places:
        return see(back, "No output is ticked.")
    if action == "zip":
        user.require(Scope.READ)
        return zipped(context, services.many(context, tenant_id, places))
    user.require(Scope.SUBMIT)
    what = plural(len(places), "output")
    if action in MARKS:
        kind, on = MARKS[action]
        name = "" if kind is LabelKind.STAR else only.get(f"{kind.value}_name", "").strip()
        if kind is not LabelKind.STAR and not 0 < len(name) <= MAX_NAME:
            raise BadInput.of(kind.value, name, f"must have 1 to {MAX_NAME} characters")
        marks = [(kind, name)]
        services.change_labels(context, tenant_id, places, add=marks if on else (), remove=() if on else marks)
        if "hx-request" in request.headers:
            return Response(status_code=204)
        mark = "the star" if kind is LabelKind.STAR else f"the {kind.value} {name}"
        return see(back, f"{what} {'with' if on else 'without'} {mark}.")
    if action == "rerun":
        jobs = list(dict.fromkeys(one.job_id for one in places))
        report = bulk_actions.apply(context, JobAction.RERUN, jobs, tenant_id, user.require_change)
        return see(f"{HOME}/jobs", f"{plural(report.done, 'job')} submitted with another seed.")
    if action == "delete":
        if only.get("sure") != "1":
            found = services.many(context, tenant_id, places)
            return render(request, "gallery_delete.html", outputs=found, query=only.get("query", ""))
        count = services.delete(context, tenant_id, places)
        return see(back, f"{plural(count, 'output')} deleted.")
    raise BadInput.of("action", action, f"must be one of {', '.join([*MARKS, 'zip', 'rerun', 'delete'])}")


def _place(text: str) -> OutputPlace:
    job_id, _, index = text.partition("/")
    if not (index.isascii() and index.isdecimal() and len(index) < 6):
        raise NotFound("output", text)
    return OutputPlace(job_id, int(index))


def _back(query: str) -> str:
    return PATH + (f"?{query}" if query and query.isprintable() and len(query) < 3_000 else "")
