"""Replicate's API: models, predictions, files and webhooks, as its clients use them.

The clients' base URL is this adapter's, ``…/compat/replicate``, without a version. A model of the farm is
``farm/<model>``; the images in a prediction's input decide the task.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

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
from farm.api.compat.submission import cancel, get_job, submit
from farm.api.dependencies import AppContext
from farm.api.waiting import parse_prefer_wait, wait
from farm.domain.endpoint import WEBHOOK_EVENTS
from farm.domain.job import Job, JobFilter, Output
from farm.domain.model import Model
from farm.domain.states import EventType, Priority
from farm.egress import guard
from farm.errors import BadInput, FieldProblem, NotFound
from farm.objects import keys
from farm.services import inputs, waiting
from farm.store.files import StoredFile
from farm.store.unit_of_work import UnitOfWork
from farm.tasks import INPUT_ROLES, TASKS, chosen_task
from farm.webhooks import signature
from farm.webhooks.payload import stamp
from farm.webhooks.prediction import BASE, prediction, reference

PREFIX: Final = "/compat/replicate"

MAX_WAIT: Final = 60.0  #: seconds that `Prefer: wait` is honoured for
PAGE: Final = 100  #: predictions in one answer
MAX_METADATA: Final = 64 * 2**10  #: bytes of a file's metadata, which the farm does not keep
OVERLAP_SECONDS: Final = 24 * 3600  #: an endpoint's own secret signs beside the tenant's for so long
#: What stands for the tenant's default secret among its endpoints. Nothing is ever sent there.
DEFAULT_URL: Final = "https://replicate.invalid/default"

FILTERS: Final = ("start", "output", "logs", "completed")
#: The farm's fields as Replicate's models call them.
NAMES: Final = {"mask_image": "mask", "strength": "prompt_strength"}
_SCHEDULERS: Final = {
    "ddim": "ddim",
    "ddpm": "ddpm",
    "pndm": "pndm",
    "k_euler": "euler",
    "k_euler_ancestral": "euler-ancestral",
    "heundiscrete": "heun",
    "dpmsolvermultistep": "dpm-solver",
    "unipcmultistep": "unipc",
}
_UNSUPPORTED: Final[Mapping[str, ForeignParameter | None]] = {
    "apply_watermark": IGNORED,
    "disable_safety_checker": IGNORED,
    "go_fast": IGNORED,
    "refine": ForeignParameter(("no_refiner",), "the farm renders in one pass"),
    "output_quality": ForeignParameter((100,), "the farm chooses how its files are compressed; choose output_format"),
}


def _body(info: ErrorInfo, request: Request) -> Mapping[str, Any]:
    return {
        "title": info.code.replace("_", " ").capitalize(),
        "detail": info.message,
        "status": info.status,
        "type": f"urn:farm:problem:{info.code.replace('_', '-')}",
        "instance": request.url.path[:500],
        "invalid_fields": [{"field": one.field, "description": one.message} for one in info.problems],
    }


ADAPTER: Final = Adapter(
    name="Replicate",
    credentials=lambda request: adapter.bearer(request, "bearer", "token"),
    ask="send an API key: Client(api_token='farm_…'), which travels as `Authorization: Bearer farm_…`",
    body=_body,
)


def application(main: FastAPI) -> Starlette:
    """The adapter's app."""
    return adapter.application(
        main,
        ADAPTER,
        [
            submits("/v1/predictions", create_prediction),
            reads("/v1/predictions", list_predictions, "cursor"),
            reads("/v1/predictions/{prediction}", get_prediction),
            submits("/v1/predictions/{prediction}/cancel", cancel_prediction),
            reads("/v1/models", list_models),
            submits("/v1/models/{owner}/{name}/predictions", create_prediction),
            reads("/v1/models/{owner}/{name}/versions", list_versions),
            reads("/v1/models/{owner}/{name}/versions/{version}", get_version),
            reads("/v1/models/{owner}/{name}", get_model),
            submits("/v1/files", create_file),
            reads("/v1/files/{file}", get_file),
            submits("/v1/webhooks/default/secret", get_secret, "GET"),
            reads("/v1/account", get_account),
        ],
        {"/v1/outputs/{job}/{index:int}.{extension}": get_output},
    )


# -- models ----------------------------------------------------------------------------------------------------------


def _version_id(model: Model) -> str:
    """A model's version: it changes when the registry's entry does."""
    return hashlib.sha256(model.model_dump_json().encode()).hexdigest()


def _version(model: Model) -> dict[str, Any]:
    output = {"type": "array", "items": {"type": "string", "format": "uri"}, "title": "Output"}
    return {
        "id": _version_id(model),
        "created_at": "2020-01-01T00:00:00Z",
        "cog_version": "0.10.0",
        "openapi_schema": {"components": {"schemas": {"Output": output}}},
    }


def _model(model: Model) -> dict[str, Any]:
    owner, _, name = reference(model.id).partition("/")
    return {
        "url": "",
        "owner": owner,
        "name": name,
        "description": model.description,
        "visibility": "private",
        "github_url": None,
        "paper_url": None,
        "license_url": None,
        "run_count": 0,
        "cover_image_url": None,
        "default_example": None,
        "latest_version": _version(model),
    }


def _named(call: AdapterCall) -> Model:
    """The model in the path. Raises `AdapterError`."""
    wanted = f"{call.path('owner')}/{call.path('name')}"
    for model in call.context.registry.rendering:
        if reference(model.id) == wanted:
            return model
    aliased = call.model(wanted)
    if aliased is not None:
        return aliased
    names = ", ".join(reference(model.id) for model in call.context.registry.rendering)
    raise AdapterError(404, "not_found", f"there is no model {wanted}; there are: {names}")


def list_models(call: AdapterCall) -> Response:
    """``GET /v1/models``."""
    return _results([_model(model) for model in call.context.registry.rendering])


def get_model(call: AdapterCall) -> Response:
    """``GET /v1/models/{owner}/{name}``."""
    return JSONResponse(_model(_named(call)))


def list_versions(call: AdapterCall) -> Response:
    """``GET /v1/models/{owner}/{name}/versions``: there is one."""
    return _results([_version(_named(call))])


def get_version(call: AdapterCall) -> Response:
    """``GET /v1/models/{owner}/{name}/versions/{version}``."""
    model = _named(call)
    if call.path("version") not in (_version_id(model), model.id):
        raise AdapterError(404, "not_found", f"{reference(model.id)} has the version {_version_id(model)} and no other")
    return JSONResponse(_version(model))


def _results(found: list[dict[str, Any]], following: str | None = None) -> Response:
    return JSONResponse({"previous": None, "next": following, "results": found})


def get_account(_: AdapterCall) -> Response:
    """``GET /v1/account``."""
    return JSONResponse({"type": "organization", "username": "farm", "name": "farm", "github_url": None})


# -- predictions -----------------------------------------------------------------------------------------------------


async def create_prediction(call: AdapterCall) -> Response:
    """``POST /v1/predictions`` and ``POST /v1/models/{owner}/{name}/predictions``."""
    body = await call.json()
    named = call.request.path_params.get("owner") is not None
    if named:
        model = await run_in_threadpool(_named, call)
    else:
        model = await run_in_threadpool(_of_version, call, body.pop("version", None))
    asked = await run_in_threadpool(_asked, call, model, body)
    events = _webhook(call, body, asked)
    if body:
        name, value = next(iter(body.items()))
        raise BadInput.of(name, value, "is not a field of this request")
    if events:
        await run_in_threadpool(_share_secret, call, asked["webhook"])
    job = await submit(call, asked, NAMES, events)
    seconds = parse_prefer_wait(call.request.headers.get("prefer"), MAX_WAIT)
    if seconds is not None:
        job = await wait(call.context, job, seconds)
    shown = await run_in_threadpool(_shape, call, job)
    if seconds is not None and not job.state.terminal:
        shown["status"] = "starting"  # the clients take anything else for the end of a wait that was long enough
    return JSONResponse(shown, 201 if job.state.terminal or seconds is None else 202)


def _of_version(call: AdapterCall, version: object) -> Model:
    """The model of a version: its id, the model's own id, or ``owner/name:version``. Raises `BadInput`."""
    wanted = version.rpartition(":")[2] if isinstance(version, str) else version
    for model in call.context.registry.rendering:
        if wanted in (_version_id(model), model.id, reference(model.id)):
            return model
    aliased = call.model(version.partition(":")[0]) if isinstance(version, str) else None
    if aliased is not None:
        return aliased
    names = ", ".join(reference(model.id) for model in call.context.registry.rendering)
    raise BadInput.of("version", version, f"is no version of a model of this farm; name one of: {names}")


def _asked(call: AdapterCall, model: Model, body: dict[str, Any]) -> dict[str, Any]:
    """A prediction's input in the farm's own fields. Raises `BadInput`."""
    given = body.pop("input", None)
    if not isinstance(given, dict):
        raise BadInput.of("input", given, "is required: a JSON object with the model's inputs")
    given = dict(given)
    found = drop_unsupported(given, _UNSUPPORTED)
    stream = body.pop("stream", None)
    if stream not in (None, False):
        found.append(FieldProblem("stream", stream, "outputs come whole"))
    for ours, theirs in NAMES.items():
        value = given.pop(theirs, None)
        if value is not None:
            given[ours] = value
    scheduler = given.get("scheduler")
    if isinstance(scheduler, str):
        given["scheduler"] = _SCHEDULERS.get(scheduler.lower(), scheduler)
    if given.get("output_format") == "jpg":
        given["output_format"] = "jpeg"
    if given.get("seed") == -1:
        del given["seed"]
    found += [
        FieldProblem(name, given.pop(name), "is not an input of this model")
        for name in ("task", "model", "webhook", "metadata", "custom_id")
        if name in given
    ]
    if found:
        raise BadInput(*found)
    own_files = f"{call.base}/v1/files/"
    roles = [name for name in set().union(*INPUT_ROLES.values()) if given.get(name) not in (None, [], "")]
    for name in roles:
        if isinstance(given[name], str):
            given[name] = given[name].removeprefix(own_files)
        elif isinstance(given[name], list):
            given[name] = [one.removeprefix(own_files) if isinstance(one, str) else one for one in given[name]]
    task = chosen_task(model.tasks, roles)
    if "strength" not in TASKS[task].params.model_fields:
        given.pop("strength", None)
    asked = {"task": task, "model": model.id, "priority": Priority.NORMAL.value}
    return {name: value for name, value in given.items() if value is not None} | asked


def _webhook(call: AdapterCall, body: dict[str, Any], asked: dict[str, Any]) -> tuple[EventType, ...] | None:
    """Put the webhook that a request names into ``asked``; returns the events that it gets, None without a webhook.

    Raises `BadInput`.
    """
    url, wanted = body.pop("webhook", None), body.pop("webhook_events_filter", None)
    older = body.pop("webhook_completed", None)
    if url is None and older is not None:
        url, wanted = older, ["completed"]
    if url is None:
        return None
    if wanted is not None and (not isinstance(wanted, list) or not wanted or any(one not in FILTERS for one in wanted)):
        raise BadInput.of("webhook_events_filter", wanted, f"must be a list of {', '.join(FILTERS)}")
    chosen = set(FILTERS if wanted is None else wanted)
    if chosen == {"logs"}:
        raise BadInput.of("webhook_events_filter", wanted, "logs alone are not sent: add start or completed")
    asked |= {"webhook": url, "metadata": {BASE: call.base}}
    started = (EventType.STARTED,) if "start" in chosen else ()
    return started + (WEBHOOK_EVENTS if chosen & {"output", "completed"} else ())


def _shape(call: AdapterCall, job: Job) -> dict[str, Any]:
    model = call.context.registry.get(job.spec.model)
    return prediction(job, _urls(call, job), call.base, "" if model is None else _version_id(model))


def list_predictions(call: AdapterCall) -> Response:
    """``GET /v1/predictions``: the tenant's jobs, newest first, also those that were not made here."""
    cursor = call.request.query_params.get("cursor")
    with call.context.store.begin() as unit:
        jobs, following = unit.jobs.page(call.tenant_id, JobFilter(), cursor, PAGE)
    link = None if following is None else f"{call.base}/v1/predictions?cursor={following}"
    return _results([_shape(call, job) for job in jobs], link)


def get_prediction(call: AdapterCall) -> Response:
    """``GET /v1/predictions/{prediction}``."""
    job = waiting.explain(call.context, get_job(call, call.path("prediction"), "prediction"))
    return JSONResponse(_shape(call, job))


def cancel_prediction(call: AdapterCall) -> Response:
    """``POST /v1/predictions/{prediction}/cancel``; a finished one stays as it is."""
    get_job(call, call.path("prediction"), "prediction")
    return JSONResponse(_shape(call, cancel(call, call.path("prediction"))))


# -- outputs -----------------------------------------------------------------------------------------------------------
# The clients fetch outputs with their API key in a header, which an object storage refuses beside a signed URL. So
# outputs have URLs of this adapter, signed for a limited time, which work with a key and without one.


def _urls(call: AdapterCall, job: Job) -> list[str]:
    if not job.outputs:
        return []
    with call.context.store.begin() as unit:
        secret = _secret(unit, call.tenant_id)
    until = int(time.time()) + call.context.settings.presign_seconds
    return [
        f"{call.base}/v1/outputs/{job.id}/{output.index}.{keys.extension(output.media_type)}"
        f"?expires={until}&signature={_signed(secret, output, until)}"
        for output in job.outputs
    ]


def _signed(secret: str, output: Output, until: int) -> str:
    return hmac.new(secret.encode(), f"output {output.key} {until}".encode(), hashlib.sha256).hexdigest()


def get_output(context: AppContext, request: Request) -> Response:
    """``GET /v1/outputs/{job}/{index}``: an output, for who has its signed URL."""
    given = request.query_params
    until = given.get("expires", "")
    job = None
    with context.store.begin() as unit:
        job = unit.jobs.get(str(request.path_params["job"]))
        secret = None if job is None else _secret(unit, job.tenant_id)
    output = None if job is None else next((o for o in job.outputs if o.index == request.path_params["index"]), None)
    live = until.isascii() and until.isdigit() and time.time() < int(until[:12])
    signed = output is not None and secret is not None and live
    if output is None or secret is None or not signed:
        raise NotFound("output", request.url.path[-100:])
    if not hmac.compare_digest(_signed(secret, output, int(until)), given.get("signature", "")):
        raise NotFound("output", request.url.path[-100:])
    opened = context.storage.open(output.key)
    return StreamingResponse(opened, media_type=output.media_type, headers={"Content-Length": str(output.size)})


# -- files -------------------------------------------------------------------------------------------------------------


async def create_file(call: AdapterCall) -> Response:
    """``POST /v1/files``: an image for the inputs of predictions."""
    # one of the clients sends the metadata as a file of the form too
    async with call.request.form(max_files=2, max_fields=4) as form:
        part = form.get("content")
        if not isinstance(part, UploadFile):
            raise BadInput.of("content", None, "is required: the image, as a file of the form")
        metadata = form.get("metadata")
        if isinstance(metadata, UploadFile) and metadata.size is not None and metadata.size > MAX_METADATA:
            raise BadInput.of("metadata", f"{metadata.size:,} bytes", f"has at most {MAX_METADATA:,} bytes")
        unknown = sorted(form.keys() - {"content", "metadata", "type", "filename"})
        if unknown:
            raise BadInput.of(unknown[0], None, "is not a field of this form: it takes content and metadata")
        data, filename = await part.read(), part.filename

    store = partial(inputs.store, call.context, call.tenant_id, data, filename, field="content")
    file, _ = await call.context.storing.run(call.tenant_id, store)
    return JSONResponse(_file(call, file), 201)


def get_file(call: AdapterCall) -> Response:
    """``GET /v1/files/{file}``."""
    return JSONResponse(_file(call, inputs.get_file(call.context, call.tenant_id, call.path("file"))))


def _file(call: AdapterCall, file: StoredFile) -> dict[str, Any]:
    content = file.content
    return {
        "id": file.id,
        "name": file.filename or file.id,
        "content_type": content.media_type,
        "size": content.size,
        "etag": content.sha256,
        "checksums": {"sha256": content.sha256},
        "metadata": {},
        "created_at": stamp(file.created_at),
        "expires_at": None,
        "urls": {"get": f"{call.base}/v1/files/{file.id}"},
    }


# -- webhooks ----------------------------------------------------------------------------------------------------------


def get_secret(call: AdapterCall) -> Response:
    """``GET /v1/webhooks/default/secret``: what signs all webhooks that are asked for here."""
    with call.context.store.begin() as unit:
        return JSONResponse({"key": _secret(unit, call.tenant_id)})


def _secret(unit: UnitOfWork, tenant_id: str) -> str:
    """The tenant's default secret: of an endpoint that stands for it, made when it is first needed."""
    about = "the secret of all webhooks that are asked for over the Replicate API; nothing is sent here"
    return unit.webhooks.one_off(tenant_id, DEFAULT_URL, signature.new_secret(), about).secrets[0]


def _share_secret(call: AdapterCall, url: object) -> None:
    """Have webhooks to a URL signed with the tenant's default secret. Raises `BadInput`."""
    if not isinstance(url, str):
        raise BadInput.of("webhook", url, "must be a URL")
    guard.parse(url, call.context.settings, field="webhook")
    with call.context.store.begin() as unit:
        secret = _secret(unit, call.tenant_id)
        endpoint = unit.webhooks.one_off(call.tenant_id, url, secret, "")
        if endpoint.secrets[0] != secret and endpoint.disabled_at is None:
            unit.webhooks.rotate(call.tenant_id, endpoint.id, secret, OVERLAP_SECONDS)
