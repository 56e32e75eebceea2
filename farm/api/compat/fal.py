"""fal's queue, as its client speaks it: submit, ask, fetch, cancel. Off unless ``FARM_COMPAT_FAL`` says otherwise.

The client always speaks HTTPS: it gets the host and this adapter's path by ``FAL_RUN_HOST`` and
``FAL_QUEUE_RUN_HOST``. An app's name is ``<anything>/<model>``; the images that a request holds decide its task.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from farm.api.compat import adapter
from farm.api.compat.adapter import (
    IGNORED,
    Adapter,
    AdapterCall,
    AdapterError,
    ErrorInfo,
    ForeignParameter,
    drop_unsupported,
    reads,
    submits,
)
from farm.api.compat.submission import cancel, get_job, render, submit, url_of
from farm.domain.job import Job
from farm.domain.model import Model
from farm.domain.states import JobState, Priority
from farm.errors import BadInput, FieldProblem
from farm.services import waiting
from farm.tasks import INPUT_ROLES, chosen_task
from farm.webhooks import fal as fal_shape

PREFIX: Final = "/compat/fal"

#: The farm's fields as fal's models call them.
NAMES: Final = {
    "num_outputs": "num_images",
    "image": "image_url",
    "mask_image": "mask_url",
    "width": "image_size",
    "height": "image_size",
}
#: Sizes that have names, in pixels.
SIZES: Final = {
    "square_hd": (1024, 1024),
    "square": (512, 512),
    "portrait_4_3": (768, 1024),
    "portrait_16_9": (576, 1024),
    "landscape_4_3": (1024, 768),
    "landscape_16_9": (1024, 576),
}
_UNSUPPORTED: Final[Mapping[str, ForeignParameter | None]] = {
    "enable_safety_checker": IGNORED,
    "sync_mode": ForeignParameter((False,), "images are answered as URLs"),
    "loras": ForeignParameter(([],), "name the LoRAs of the farm's own registry over POST /v1/jobs"),
    "embeddings": ForeignParameter(([],), "the farm has none"),
    "controlnets": ForeignParameter(([],), "the farm has none"),
}


def _body(info: ErrorInfo, _: Request) -> Mapping[str, Any]:
    if info.problems:
        code = info.code
        return {"detail": [{"loc": ["body", p.field], "msg": p.message, "type": code} for p in info.problems]}
    return {"detail": info.message}


ADAPTER: Final = Adapter(
    name="fal",
    credentials=lambda request: adapter.bearer(request, "key", "bearer"),
    ask="send an API key: FAL_KEY=farm_…, which travels as `Authorization: Key farm_…`",
    body=_body,
    conflict=400,  # the client sends a 409 again
    challenge='Key realm="farm"',
)


def application(main: FastAPI) -> Starlette:
    """The adapter's app."""
    return adapter.application(
        main,
        ADAPTER,
        [
            reads("/{owner}/{model}/requests/{request}/status", status, "logs"),
            submits("/{owner}/{model}/requests/{request}/cancel", stop, "PUT"),
            reads("/{owner}/{model}/requests/{request}", result),
            submits("/run/{owner}/{model:path}", run),
            submits("/{owner}/{model:path}", enqueue, query=("fal_webhook",)),
        ],
    )


def _model(call: AdapterCall) -> Model:
    """The model that an app's name ends in; what stands after it is a variant that the farm does not need."""
    name = call.path("model")
    full = f"{call.path('owner')}/{name}"
    for one in (full, name, name.partition("/")[0]):
        model = call.model(one)
        if model is not None:
            return model
    names = ", ".join(model.id for model in call.context.registry.rendering)
    raise AdapterError(404, "not_found", f"there is no app {full!r}; the farm's are <anything>/<model> of: {names}")


async def _asked(call: AdapterCall) -> dict[str, Any]:
    """A request in the farm's own fields. Raises `BadInput`."""
    given = await call.json()
    found = drop_unsupported(given, _UNSUPPORTED)
    model = await run_in_threadpool(_model, call)
    asked: dict[str, Any] = {"model": model.id, "priority": Priority.NORMAL.value}
    if call.request.headers.get("x-fal-queue-priority") == "low":
        asked["priority"] = Priority.BULK.value
    if call.request.query_params.get("fal_webhook"):
        asked |= {"webhook": call.request.query_params["fal_webhook"], "metadata": {fal_shape.MARK: "1"}}
    size = given.pop("image_size", None)
    if isinstance(size, dict):
        given |= {name: size.get(name) for name in ("width", "height")}
    elif size is not None:
        if size in SIZES:
            given |= dict(zip(("width", "height"), SIZES[size], strict=True))
        else:
            found.append(FieldProblem("image_size", size, f"must be {{width, height}} or one of {', '.join(SIZES)}"))
    for theirs, ours in (("num_images", "num_outputs"), ("image_url", "image"), ("mask_url", "mask_image")):
        value = given.pop(theirs, None)
        if value is not None:
            given[ours] = value
    if given.get("output_format") == "jpg":
        given["output_format"] = "jpeg"
    roles = [name for name in set().union(*INPUT_ROLES.values()) if given.get(name) not in (None, [], "")]
    if found:
        raise BadInput(*found)
    return (
        {name: value for name, value in given.items() if value is not None}
        | asked
        | {"task": chosen_task(model.tasks, roles)}
    )


async def enqueue(call: AdapterCall) -> Response:
    """Queue a request."""
    job = await submit(call, await _asked(call), NAMES)
    job = await run_in_threadpool(waiting.explain, call.context, job)
    url = f"{call.base}/{call.path('owner')}/{job.spec.model.rpartition('/')[2]}/requests/{job.id}"
    return JSONResponse(
        {
            "status": "IN_QUEUE",
            "request_id": job.id,
            "response_url": url,
            "status_url": f"{url}/status",
            "cancel_url": f"{url}/cancel",
            "queue_position": (job.position or 1) - 1,
        }
    )


async def run(call: AdapterCall) -> Response:
    """Render while the client waits."""
    job = await render(call, await _asked(call), NAMES)
    return JSONResponse(await run_in_threadpool(_output, call, job))


def status(call: AdapterCall) -> Response:
    """How far a request is."""
    job = waiting.explain(call.context, get_job(call, call.path("request"), "request"))
    logs: list[dict[str, Any]] | None = None
    if call.request.query_params.get("logs") in ("1", "true") and job.progress is not None:
        message = f"step {job.progress.step} of {job.progress.steps}"
        logs = [{"message": message, "level": "INFO", "timestamp": (job.claimed_at or job.created_at).isoformat()}]
    if job.state in (JobState.PENDING, JobState.QUEUED, JobState.DISPATCHED):
        reason = {} if job.waiting_reason is None else {"waiting_reason": job.waiting_reason}
        return JSONResponse({"status": "IN_QUEUE", "queue_position": (job.position or 1) - 1} | reason, 202)
    if not job.state.terminal:
        return JSONResponse({"status": "IN_PROGRESS", "logs": logs}, 202)
    metrics = {}
    if job.started_at is not None and job.finished_at is not None:
        metrics["inference_time"] = (job.finished_at - job.started_at).total_seconds()
    failed = {}
    if job.state is not JobState.SUCCEEDED:
        info = _ended(job)
        failed = {"error": info.message, "error_type": info.code}
    return JSONResponse({"status": "COMPLETED", "logs": logs, "metrics": metrics} | failed)


def _ended(job: Job) -> ErrorInfo:
    if job.error is not None and job.state is JobState.FAILED:
        return ErrorInfo(422, job.error.code, job.error.message)
    return ErrorInfo(422, "canceled", "the request was canceled")


def result(call: AdapterCall) -> Response:
    """The images of a finished request."""
    job = get_job(call, call.path("request"), "request")
    if not job.state.terminal:
        raise AdapterError(400, "in_progress", "the request is still in progress")
    if job.state is not JobState.SUCCEEDED:
        info = _ended(job)
        raise AdapterError(info.status, info.code, info.message)
    return JSONResponse(_output(call, job))


def _output(call: AdapterCall, job: Job) -> dict[str, Any]:
    return fal_shape.result(job, [url_of(call, output) for output in job.outputs])


def stop(call: AdapterCall) -> Response:
    """Cancel a request."""
    job = get_job(call, call.path("request"), "request")
    if job.state.terminal:
        return JSONResponse({"status": "ALREADY_COMPLETED"}, 400)
    cancel(call, job.id)
    return JSONResponse({"status": "CANCELLATION_REQUESTED"}, 202)
