"""Render: one job from a form, with images from the reader's disk and a mask that may be painted in the page."""

from __future__ import annotations

from typing import Annotated, Any, Final

import anyio.to_thread
from fastapi import APIRouter, Query, Request, Response
from pydantic import TypeAdapter, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from farm.api import jobs as api
from farm.api.dependencies import AppContext, Context
from farm.dashboard.rendering import HOME, CurrentUser, Link, PageRoute, render, see
from farm.domain.states import Priority
from farm.domain.tasks import INPUT_FIELDS, AnyJobRequest, OutputFormat, Scheduler, Task
from farm.errors import BadInput, FieldProblem
from farm.services import bulk_parsers, inputs, validation
from farm.store.tenants import Scope

PATH: Final = f"{HOME}/render"
LINK: Final = Link("Work", "Render", PATH, -20, (Scope.SUBMIT,))
router: Final = APIRouter(prefix=PATH, include_in_schema=False, route_class=PageRoute)

#: What the form says in words; the images come beside it.
FIELDS: Final = (
    "task",
    "model",
    "prompt",
    "negative_prompt",
    "num_inference_steps",
    "guidance_scale",
    "seed",
    "num_images_per_prompt",
    "width",
    "height",
    "scheduler",
    "strength",
    "output_format",
    "priority",
    "preview",
)
IMAGES: Final = ("image", "mask_image", "depth_map")
_REQUEST: Final[TypeAdapter[Any]] = TypeAdapter(AnyJobRequest)
Text = Annotated[str, Query(max_length=10_000)]


@router.get("")
def form(
    request: Request, context: Context, user: CurrentUser, task: Text = "", model: Text = "", prompt: Text = ""
) -> Response:
    """The form, empty but for what the address says."""
    user.require(Scope.SUBMIT)
    return _form(request, context, {"task": task, "model": model, "prompt": prompt}, ())


@router.post("")
async def submit(request: Request, context: Context, user: CurrentUser) -> Response:
    """Keep the images, check the rest as the API does, and submit."""
    user.require(Scope.SUBMIT)
    tenant = user.key.tenant_id
    uploads: dict[str, bytes] = {}
    async with request.form(max_files=len(IMAGES), max_fields=40) as sent:
        given = {name: value for name, value in sent.items() if isinstance(value, str)}
        for name in IMAGES:
            part = sent.get(name)
            if isinstance(part, UploadFile) and part.size:
                uploads[name] = await part.read()
    given.setdefault("task", Task.TEXT_TO_IMAGE.value)
    wrong: list[FieldProblem] = []
    wanted = INPUT_FIELDS[Task(given["task"])] if given["task"] in set(Task) else ()
    for name in wanted:
        if name in uploads:
            try:
                given[f"{name}_id"] = await anyio.to_thread.run_sync(
                    _keep, context, tenant, name, uploads[name], limiter=context.fetching
                )
            except BadInput as refused:
                wrong += refused.problems
    body = bulk_parsers.row((name, given[name]) for name in FIELDS if name in given)
    if given["task"] == Task.TEXT_TO_IMAGE:
        body.pop("strength", None)
    body.setdefault("prompt", "")
    body |= {name: given[f"{name}_id"] for name in wanted if given.get(f"{name}_id")}
    if wrong:
        return await run_in_threadpool(_form, request, context, given, wrong)
    try:
        asked = _asked(body)
        new = await api.resolved(context, tenant, asked)
        job, _ = await run_in_threadpool(api.store_job, context, tenant, new, None)
    except BadInput as refused:
        return await run_in_threadpool(_form, request, context, given, refused.problems)
    return see(f"{HOME}/jobs/{job.id}", "Submitted.")


def _asked(body: dict[str, Any]) -> Any:
    try:
        return _REQUEST.validate_python(body)
    except ValidationError as error:
        raise BadInput(*validation.of_body(error)) from None


def _keep(context: AppContext, tenant_id: str, field: str, data: bytes) -> str:
    stored = context.intake.from_bytes(tenant_id, data, None, field=field)
    file, _ = inputs.keep(context.store, tenant_id, stored, None)
    return file.id


def _form(
    request: Request, context: AppContext, given: dict[str, str], wrong: tuple[FieldProblem, ...] | list[FieldProblem]
) -> Response:
    registry = context.registry
    chosen = registry.get(given.get("model", "")) or registry.models[0]
    return render(
        request,
        "render.html",
        status=422 if wrong else 200,
        given=given,
        wrong={one.field: one.message for one in wrong},
        chosen=chosen,
        models=registry.models,
        tasks=list(Task),
        fields=[*FIELDS, *IMAGES],
        schedulers=list(Scheduler),
        formats=list(OutputFormat),
        priorities=list(Priority),
    )
