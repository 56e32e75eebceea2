"""Render: one job from a form, with images from the reader's disk and a mask that may be painted in the page."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Final

from fastapi import APIRouter, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from farm.api.dependencies import AppContext, Context
from farm.dashboard import forms
from farm.dashboard.rendering import HOME, CurrentUser, Link, PageRoute, render, see
from farm.domain.model import Model, Registry
from farm.domain.parameters import PARAMETERS, from_text, to_text
from farm.errors import BadInput, FieldProblem, NotFound
from farm.fields import MAX_FILES
from farm.services import inputs, jobs, validation
from farm.store.tenants import Scope
from farm.tasks import INPUT_ROLES, TASKS

PATH: Final = f"{HOME}/render"
LINK: Final = Link("Work", "Render", PATH, -20, (Scope.SUBMIT,))
router: Final = APIRouter(prefix=PATH, include_in_schema=False, route_class=PageRoute)

#: What the form gives as text; the images come beside it.
FIELDS: Final = tuple(name for name in PARAMETERS if name not in forms.IMAGES)
#: The parameters that are shown when “More” is opened.
MORE: Final = tuple(name for name in FIELDS if name not in ("task", "model", "preview", *forms.MAIN, *forms.PROMPTS))
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
    """Store the images, check the rest as the API does, and submit."""
    user.require(Scope.SUBMIT)
    tenant_id = user.key.tenant_id
    uploads: dict[str, list[bytes]] = {}
    async with request.form(max_files=len(forms.IMAGES) * MAX_FILES, max_fields=100) as sent:
        given = {name: value for name, value in sent.items() if isinstance(value, str)}
        for name in forms.IMAGES:
            parts = [part for part in sent.getlist(name) if isinstance(part, UploadFile) and part.size]
            if parts:
                uploads[name] = [await part.read() for part in parts]
    given.setdefault("task", next(iter(TASKS)))
    wrong: list[FieldProblem] = []
    task = TASKS.get(given["task"])
    roles = INPUT_ROLES.get(given["task"], ())
    for name in roles:
        kept = []
        for data in uploads.get(name, ()):
            store = partial(inputs.store, context, tenant_id, data, field=name)
            try:
                file, _ = await context.storing.run(tenant_id, store)
            except BadInput as error:
                wrong += error.problems
            else:
                kept.append(file.id)
        if kept:
            given[f"{name}_id"] = " ".join(kept)
    # a field of another task may have been filled in before the task was chosen
    names = [name for name in FIELDS if task is None or given["task"] in PARAMETERS[name].tasks]
    body = forms.request(given, names)
    if "prompt" in names and PARAMETERS["prompt"].required:
        body.setdefault("prompt", "")
    body |= {name: from_text(name, given[f"{name}_id"]) for name in roles if given.get(f"{name}_id")}
    if wrong:
        return await run_in_threadpool(_form, request, context, given, wrong)
    try:
        job_request = validation.job_request(body)
        submit_job = partial(jobs.submit, context, tenant_id, job_request)
        job, _ = await context.run_submit(tenant_id, job_request, submit_job)
    except BadInput as error:
        return await run_in_threadpool(_form, request, context, given, error.problems)
    return see(f"{HOME}/jobs/{job.id}", "Submitted.")


def _form(
    request: Request, context: AppContext, given: dict[str, str], wrong: tuple[FieldProblem, ...] | list[FieldProblem]
) -> Response:
    registry = context.registry
    chosen = registry.get(given.get("model", "")) or registry.default_for(given.get("task") or "") or _first(registry)
    return render(
        request,
        "render.html",
        status=422 if wrong else 200,
        given=given,
        wrong={one.field: one.message for one in wrong},
        chosen=chosen,
        models=registry.models,
        tasks=[name for name in TASKS if registry.default_for(name)],
        hints={name: to_text(value) for name, value in chosen.defaults.items()} | {"seed": "random"},
        fields=[*FIELDS, *forms.IMAGES],
        main=forms.fields(forms.MAIN),
        more_fields=forms.fields(MORE),
        files=forms.files(),
        prompt_tasks=forms.field("prompt").tasks,
    )


def _first(registry: Registry) -> Model:
    """The first model. Raises `NotFound` if the registry has none."""
    if not registry.models:
        raise NotFound("model", "of this farm")
    return registry.models[0]
