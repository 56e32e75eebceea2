"""Studio: prompt and settings on the left, the result in place, what was made before below.

The page is drawn by its script from the JSON Schema of the chosen model and task, so every task and every model of the
farm is there without a word here. What it asks for is JSON.
"""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from farm.api.dependencies import AppContext, Context
from farm.dashboard import forms
from farm.dashboard.pages.thumbnails import Range, Side, answer
from farm.dashboard.rendering import HEADERS, HOME, CurrentUser, Link, PageRoute, render
from farm.dashboard.session import User
from farm.domain.gallery import OutputPlace
from farm.domain.infotext import request_from_text
from farm.domain.job import Job
from farm.domain.model_schema import task_schema
from farm.domain.recipe import request_from_recipe
from farm.errors import BadInput, FarmError, NotFound, QuotaExceeded
from farm.objects import infotexts, recipes
from farm.services import gallery, inputs, jobs, validation, waiting
from farm.store.tenants import Scope
from farm.tasks import INPUT_ROLES

PATH: Final = f"{HOME}/studio"
LINK: Final = Link("Work", "Studio", PATH, -25, (Scope.SUBMIT,))
router: Final = APIRouter(prefix=PATH, include_in_schema=False, route_class=PageRoute)

HISTORY: Final = 60  #: jobs that the page asks for at once
STREAM_SECONDS: Final = 300.0  #: a stream ends after this long and is opened again, so that a revoked key sees no more
REREAD_SECONDS: Final = 1.0  #: a change, and a new place in the queue, is noticed within this time
HEARTBEAT_SECONDS: Final = 15.0


@router.get("")
def studio(
    request: Request, context: Context, user: CurrentUser, job: Annotated[str, Query(max_length=100)] = ""
) -> Response:
    """The page. Its script fills it; with ``job``, from that job."""
    user.require(Scope.SUBMIT)
    models = [
        {"id": one.id, "description": one.description, "tasks": list(one.tasks)} for one in context.registry.models
    ]
    files = {one.name: {"label": one.label, "hint": one.hint, "accept": one.accept} for one in forms.files()}
    setup = {"models": models, "roles": INPUT_ROLES, "files": files, "labels": forms.LABELS, "key": user.key.id}
    return render(request, "studio.html", setup=setup | {"job": job})


@router.get("/models/{model_id:path}")
def model(context: Context, user: CurrentUser, model_id: str) -> Response:
    """What a model takes: the JSON Schema of each of its tasks, its LoRAs and example prompts."""
    user.require(Scope.SUBMIT)
    found = context.registry.get(model_id)
    if found is None:
        raise NotFound("model", model_id)
    return _json(
        {
            "id": found.id,
            "description": found.description,
            "schemas": {task: task_schema(found, task) for task in found.tasks},
            "loras": [{"name": one.name, "description": one.description} for one in found.loras],
            "examples": list(found.example_prompts),
        }
    )


# -- jobs ------------------------------------------------------------------------------------------------------------


@router.post("/jobs")
async def submit(request: Request, context: Context, user: CurrentUser) -> Response:
    """Submit a job from its JSON. What is wrong is answered field by field."""
    user.require(Scope.SUBMIT)
    tenant_id = user.key.tenant_id
    try:
        body = await _object(request)
        checked = validation.job_request(body)
        make = partial(jobs.submit, context, tenant_id, checked)
        job, _ = await context.run_submit(tenant_id, checked, make)
    except BadInput as error:
        problems = [{"field": one.field, "message": one.message} for one in error.problems[:20]]
        return _json({"errors": problems}, 422)
    except QuotaExceeded as error:
        return _json({"errors": [{"field": "", "message": str(error)}]}, 429)
    return _json(await run_in_threadpool(_shape, context, job), 201)


@router.get("/jobs")
def look(context: Context, user: CurrentUser, job: Annotated[list[str], Query(max_length=HISTORY)] = []) -> Response:  # noqa: B006
    """Jobs of the key's tenant as they are now; those that are gone are left out."""
    user.require(Scope.SUBMIT)
    with context.store.begin() as unit:
        found = unit.jobs.many([one for one in job if one.startswith("job_") and len(one) == 36])
    own = {one.id: one for one in found.values() if one.tenant_id == user.key.tenant_id}
    return _json({"jobs": [_shape(context, own[one]) for one in job if one in own]})


@router.post("/jobs/{job_id}/cancel")
def cancel(context: Context, user: CurrentUser, job_id: str) -> Response:
    """Stop a job."""
    user.require(Scope.SUBMIT)
    return _json(_shape(context, jobs.cancel(context, user.key.tenant_id, job_id)))


@router.get("/jobs/{job_id}/events")
async def follow(context: Context, user: CurrentUser, job_id: str) -> Response:
    """The job at each change until it has ended, with previews and its place in the queue."""
    user.require(Scope.SUBMIT)
    await run_in_threadpool(jobs.get, context, user.key.tenant_id, job_id)
    headers = {**HEADERS, "X-Accel-Buffering": "no"}
    return StreamingResponse(_events(context, user, job_id), media_type="text/event-stream", headers=headers)


async def _events(context: AppContext, user: User, job_id: str) -> AsyncIterator[bytes]:
    loop = asyncio.get_running_loop()
    begun = sent_at = loop.time()
    sent = ""
    with context.notifier.subscribe(job_id) as changes:
        while loop.time() - begun < STREAM_SECONDS:
            try:
                shape = await run_in_threadpool(_read, context, user, job_id)
            except NotFound:
                return
            if changes.preview is not None and shape["state"] == "running":
                shape["preview"], changes.preview = changes.preview, None
            text = json.dumps(shape)
            if text != sent:
                yield format_sse_event(data_str=text)
                sent, sent_at = text, loop.time()
            if shape["over"] or changes.closing:
                return
            if loop.time() - sent_at >= HEARTBEAT_SECONDS:
                yield KEEPALIVE_COMMENT
                sent_at = loop.time()
            await changes.wait(REREAD_SECONDS)


def _read(context: AppContext, user: User, job_id: str) -> dict[str, Any]:
    with context.store.look() as unit:
        if not unit.tenants.is_live(user.key.id):
            raise NotFound("job", job_id)
    return _shape(context, jobs.get(context, user.key.tenant_id, job_id))


def _shape(context: AppContext, job: Job) -> dict[str, Any]:
    """A job as the page's script reads it."""
    job = waiting.explain(context, job)
    return {
        "id": job.id,
        "state": job.state.value,
        "over": job.state.terminal,
        "step": None if job.progress is None else job.progress.step,
        "steps": None if job.progress is None else job.progress.steps,
        "waiting_reason": job.waiting_reason,
        "position": job.position,
        "eta_seconds": job.eta_seconds,
        "error": None if job.error is None else job.error.message,
        "warnings": list(job.warnings),
        "parameters": {**job.spec.request(), "seed": str(job.spec.seed)},  # a script's numbers have 53 bits
        "seconds": None
        if job.finished_at is None or job.started_at is None
        else (job.finished_at - job.started_at).total_seconds(),
        "outputs": [
            {
                "index": one.index,
                "url": f"{HOME}/images/{job.id}/{one.index}",
                "media_type": one.media_type,
                "seed": str(one.seed),
                "width": one.width,
                "height": one.height,
            }
            for one in job.outputs
        ],
    }


# -- inputs and recipes ----------------------------------------------------------------------------------------------


@router.post("/files")
async def upload(request: Request, context: Context, user: CurrentUser) -> Response:
    """Store an input: an uploaded file, or with ``output`` a copy of an output."""
    user.require(Scope.SUBMIT)
    tenant_id = user.key.tenant_id
    try:
        data, name = await _uploaded(request, context, tenant_id)
        store = partial(inputs.store, context, tenant_id, data, name, field="file")
        file, _ = await context.storing.run(tenant_id, store)
    except (BadInput, QuotaExceeded) as error:
        return _json({"errors": [{"field": "file", "message": str(error)}]}, 422)
    content = file.content
    return _json(
        {
            "id": file.id,
            "url": f"{PATH}/files/{file.id}",
            "media_type": content.media_type,
            "width": content.width,
            "height": content.height,
        }
    )


@router.get("/files/{file_id}")
async def stored(
    context: Context, user: CurrentUser, file_id: str, side: Side = 0, range: Range = None  # noqa: A002
) -> Response:  # fmt: skip
    """An input that was uploaded: whole, a part of it, or its thumbnail."""
    user.require(Scope.SUBMIT)
    file = await run_in_threadpool(inputs.get_file, context, user.key.tenant_id, file_id)
    return await run_in_threadpool(answer, context, file.content, side, file_id, range)


@router.post("/recipe")
async def recipe(request: Request, context: Context, user: CurrentUser) -> Response:
    """The parameters that an image carries: of this farm's outputs, and of those of A1111 and its relatives."""
    user.require(Scope.SUBMIT)
    try:
        data, _ = await _uploaded(request, context, user.key.tenant_id)
        found = await run_in_threadpool(_parameters, data)
    except FarmError as error:
        return _json({"errors": [{"field": "file", "message": str(error)}]}, 422)
    return _json({"parameters": found})


def _parameters(data: bytes) -> dict[str, Any]:
    own = recipes.read(io.BytesIO(data))
    if own is not None:
        return request_from_recipe(own)
    text = infotexts.read(data)
    if text is None:
        raise BadInput.of("file", "", "carries no recipe: it was not made by a farm or by A1111, or was saved again")
    return request_from_text(text)


async def _uploaded(request: Request, context: AppContext, tenant_id: str) -> tuple[bytes, str | None]:
    async with request.form(max_files=1, max_fields=2) as form:
        part, output = form.get("file"), form.get("output")
        if isinstance(part, UploadFile):
            return await part.read(), part.filename
    job_id, _, index = str(output or "").partition("/")
    if not (index.isascii() and index.isdecimal() and len(index) < 6):
        raise BadInput.of("file", None, "is required")
    (found,) = await run_in_threadpool(gallery.many, context, tenant_id, [OutputPlace(job_id, int(index))])
    return await run_in_threadpool(context.storage.get, found.output.key), None


async def _object(request: Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except ValueError:
        raise BadInput.of("body", None, "must be a JSON object") from None
    if not isinstance(body, dict):
        raise BadInput.of("body", None, "must be a JSON object")
    return body


def _json(body: dict[str, Any], status: int = 200) -> JSONResponse:
    return JSONResponse(body, status, headers={"Cache-Control": "no-store"})
