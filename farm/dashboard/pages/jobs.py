"""Jobs: finding them, and one of them with its images, its parameters, its history, live."""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import AsyncIterator
from typing import Annotated, Any, Final
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from farm.api.dependencies import AppContext, Context
from farm.dashboard import forms
from farm.dashboard.rendering import HEADERS, HOME, TEMPLATES, CurrentUser, Link, PageRoute, render, see
from farm.dashboard.session import User
from farm.domain.job import Job
from farm.domain.parameters import to_text
from farm.domain.states import JobState
from farm.errors import BadInput, FieldProblem, NotFound
from farm.services import jobs as services
from farm.services import validation, waiting
from farm.store.deliveries import DeliveryFilter
from farm.tasks import TASKS

PATH: Final = f"{HOME}/jobs"
LINK: Final = Link("Work", "Jobs", PATH, 10)
router: Final = APIRouter(prefix=PATH, include_in_schema=False, route_class=PageRoute)

PAGE: Final = 50
DELIVERIES: Final = 20  #: webhooks shown of one job
DEPENDENTS: Final = 12  #: jobs shown that have an output of one job as an input
STREAM_SECONDS: Final = 300.0  #: a live page asks again after this long, so that a revoked key sees nothing more
REREAD_SECONDS: Final = 2.0  #: a change is noticed within this time even without a notification
PAUSE_SECONDS: Final = 0.2  #: between two renderings of a live page
HEARTBEAT_SECONDS: Final = 15.0
Text = Annotated[str, Query(max_length=300)]
Cursor = Annotated[str, Query(max_length=100)]
States = Annotated[list[JobState], Query(max_length=len(JobState))]


@router.get("")
def jobs(
    request: Request,
    context: Context,
    user: CurrentUser,
    state: States = [],  # noqa: B006
    task: Text = "",
    model: Text = "",
    worker: Text = "",
    custom_id: Text = "",
    error_code: Text = "",
    cursor: Cursor = "",
) -> Response:
    """The newest that match, a page at a time."""
    given = {"task": task, "model": model, "worker": worker, "custom_id": custom_id, "error_code": error_code}
    wanted = validation.job_filter(state, given)
    with context.store.begin() as unit:
        found, following = unit.dashboard_queries.jobs(user.tenant, wanted, cursor or None, PAGE)
        names = unit.dashboard_queries.tenant_names([job.tenant_id for job in found]) if user.is_operator else {}
        found = waiting.explain_blocks_in(unit, context.registry, found)
    return render(
        request,
        "jobs.html",
        jobs=found,
        names=names,
        wanted=wanted,
        states=list(JobState),
        tasks=list(TASKS),
        models=[one.id for one in context.registry.models],
        query=_query(request),
        first=not cursor,
        following=following,
    )


def _query(request: Request) -> str:
    """The filter as it stands in the address, without the place in the list."""
    return urlencode(
        [(name, value) for name, value in request.query_params.multi_items() if name != "cursor" and value]
    )


# -- one job ---------------------------------------------------------------------------------------------------------


@router.get("/{job_id}")
def job(request: Request, context: Context, user: CurrentUser, job_id: str) -> Response:
    """The page of one job."""
    return render(request, "job.html", **_about(context, user, job_id, str(request.base_url).rstrip("/")))


@router.get("/{job_id}/live")
async def live(request: Request, context: Context, user: CurrentUser, job_id: str) -> Response:
    """The body of the page again at each change, until the job has finished."""
    base = str(request.base_url).rstrip("/")
    await run_in_threadpool(_about, context, user, job_id, base)
    headers = {**HEADERS, "X-Accel-Buffering": "no"}
    return StreamingResponse(_changes(context, user, job_id, base), media_type="text/event-stream", headers=headers)


async def _changes(context: AppContext, user: User, job_id: str, base: str) -> AsyncIterator[bytes]:
    loop = asyncio.get_running_loop()
    begun = sent_at = loop.time()
    sent_text, preview = "", None
    with context.notifier.subscribe(job_id) as require_change:
        while loop.time() - begun < STREAM_SECONDS:
            preview = require_change.preview or preview
            try:
                text, over = await run_in_threadpool(_body, context, user, job_id, base, preview)
            except NotFound:
                return
            if text != sent_text:
                yield format_sse_event(data_str=text)
                sent_text, sent_at = text, loop.time()
            if over or require_change.closing:
                yield format_sse_event(event="over", data_str="{}")
                return
            if loop.time() - sent_at >= HEARTBEAT_SECONDS:
                yield KEEPALIVE_COMMENT
                sent_at = loop.time()
            await asyncio.sleep(PAUSE_SECONDS)
            await require_change.wait(REREAD_SECONDS)


def _body(context: AppContext, user: User, job_id: str, base: str, preview: str | None) -> tuple[str, bool]:
    values = _about(context, user, job_id, base)
    with context.store.look() as unit:
        if not unit.tenants.is_live(user.key.id):
            raise NotFound("job", job_id)  # as if it were gone: the stream ends
    text = TEMPLATES.get_template("job_body.html").render(user=user, preview=preview, **values)
    return text, values["job"].state.terminal


def _about(context: AppContext, user: User, job_id: str, base: str) -> dict[str, Any]:
    with context.store.begin() as unit:
        found = unit.jobs.get(job_id, user.tenant)
        if found is None:
            raise NotFound("job", job_id)
        history = unit.events.of_job(job_id)
        wanted = DeliveryFilter(job_id=job_id)
        deliveries, _ = unit.deliveries.page(found.tenant_id, wanted, None, DELIVERIES)
        names = unit.dashboard_queries.tenant_names([found.tenant_id]) if user.is_operator else {}
        dependents = unit.dependencies.dependents(job_id, DEPENDENTS) if found.dependents else []
    found = waiting.explain(context, found)
    parameters = found.spec.request()
    return {
        "job": found,
        "history": history,
        "deliveries": deliveries,
        "dependents": dependents,
        "tenant_name": names.get(found.tenant_id, ""),
        "parameters": parameters,
        "as_curl": _curl(parameters, base),
        "as_python": _python(parameters, base),
    }


def _curl(parameters: dict[str, Any], base: str) -> str:
    body = json.dumps(parameters, ensure_ascii=False)
    return (
        f"curl -s {base}/v1/jobs \\\n"
        '  -H "Authorization: Bearer $FARM_API_KEY" \\\n'
        '  -H "Content-Type: application/json" \\\n'
        f"  -d {shlex.quote(body)}"
    )


def _python(parameters: dict[str, Any], base: str) -> str:
    given = "".join(f"    {name}={value!r},\n" for name, value in parameters.items())
    return (
        "import os\nfrom farm.client import Farm\n\n"
        f'farm = Farm({base!r}, os.environ["FARM_API_KEY"])\n'
        f"rendered = farm.run(\n{given})\n"
        'rendered.artifacts[0].save(".")\n'
    )


# -- actions ---------------------------------------------------------------------------------------------------------


@router.post("/{job_id}/cancel")
def cancel(context: Context, user: CurrentUser, job_id: str) -> Response:
    """Cancel a job."""
    services.cancel(context, _owner(context, user, job_id), job_id)
    return see(f"{PATH}/{job_id}", "The job is canceled, or stops at its next denoising step.")


@router.post("/{job_id}/retry")
def retry(context: Context, user: CurrentUser, job_id: str) -> Response:
    """Submit a failed or canceled job again as a new job."""
    new, _ = services.retry(context, _owner(context, user, job_id), job_id)
    return see(f"{PATH}/{new.id}", f"This job is a retry of {job_id}.")


@router.post("/{job_id}/rerun")
def rerun(context: Context, user: CurrentUser, job_id: str) -> Response:
    """Submit a job again with another seed as a new job."""
    new = services.rerun(context, _owner(context, user, job_id), job_id)
    return see(f"{PATH}/{new.id}", f"This job has the parameters of {job_id} and another seed.")


def _owner(context: AppContext, user: User, job_id: str) -> str:
    """The tenant of a job that the user may change. Raises `NotFound` and `Forbidden`."""
    return user.require_change(services.get(context, user.tenant, job_id).tenant_id)


@router.get("/{job_id}/edit")
def edit(request: Request, context: Context, user: CurrentUser, job_id: str) -> Response:
    """A form with the job's parameters."""
    old = services.get(context, user.tenant, job_id)
    user.require_change(old.tenant_id)
    given = {name: to_text(value) for name, value in old.spec.request().items()}
    return _form(request, old, given | {"priority": old.priority.value}, ())


@router.post("/{job_id}/edit")
async def resubmit(request: Request, context: Context, user: CurrentUser, job_id: str) -> Response:
    """Submit what the form says, with the old job's input images."""
    form = await request.form(max_files=0, max_fields=40)
    given = {name: value for name, value in form.items() if isinstance(value, str)}
    return await run_in_threadpool(_resubmit, request, context, user, job_id, given)


def _resubmit(request: Request, context: AppContext, user: User, job_id: str, given: dict[str, str]) -> Response:
    old = services.get(context, user.tenant, job_id)
    user.require_change(old.tenant_id)
    names = forms.variant(old.spec.task)
    changes = dict.fromkeys(name for name in names if name in given) | forms.request(given, names)
    if "prompt" in names:
        changes["prompt"] = given.get("prompt", "")
    try:
        job = services.resubmit(context, old.tenant_id, job_id, changes)
    except BadInput as error:
        return _form(request, old, given, error.problems)
    return see(f"{PATH}/{job.id}", "Submitted.")


def _form(
    request: Request, old: Job, given: dict[str, str], wrong: tuple[FieldProblem, ...] | list[FieldProblem]
) -> Response:
    names = forms.variant(old.spec.task)
    return render(
        request,
        "job_edit.html",
        status=422 if wrong else 200,
        job=old,
        given=given,
        wrong={one.field: one.message for one in wrong},
        fields=names,
        prompts=[name for name in forms.PROMPTS if name in names],
        inputs=forms.fields(names, hidden=forms.PROMPTS, blank=True),
    )
