"""OpenAI's image API: what its official clients send for images, files, batches and models.

The clients' base URL is this adapter's, ``…/compat/openai/v1``. Parameters of the farm's own that OpenAI does not have
(``seed``, ``num_inference_steps``, ``guidance_scale``…) travel in the clients' ``extra_body``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from farm.api.compat import adapter, openai_batches
from farm.api.compat.adapter import Adapter, AdapterCall, AdapterError, ErrorInfo, reads, submits
from farm.api.compat.openai_images import NAMES, ImagesRequest, images_of, read_request
from farm.api.compat.submission import render, store_image
from farm.domain.parameters import from_text
from farm.domain.states import Priority
from farm.errors import BadInput
from farm.objects import images
from farm.tasks import TASKS, chosen_task

PREFIX: Final = "/compat/openai/v1"
MAX_FILE_BYTES: Final = openai_batches.MAX_FILE_BYTES
MAX_IMAGES: Final = TASKS["image-editing"].inputs["image"].max  #: of one edit

#: Form fields that are numbers.
_NUMBERS: Final = frozenset({"n", "output_compression", "partial_images", "steps"})


def _body(info: ErrorInfo, _: Request) -> Mapping[str, Any]:
    kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(
        info.status, "invalid_request_error" if info.status < 500 else "server_error"
    )
    return {"error": {"message": info.message, "type": kind, "param": info.field, "code": info.code}}


ADAPTER: Final = Adapter(
    name="OpenAI",
    credentials=adapter.bearer,
    ask="send an API key: OpenAI(api_key='farm_…'), which travels as `Authorization: Bearer farm_…`",
    body=_body,
    conflict=400,  # the clients send a 409 again
    invalid=400,
)


def application(main: FastAPI) -> Starlette:
    """The adapter's app."""
    return adapter.application(
        main,
        ADAPTER,
        [
            submits("/images/generations", generate),
            submits("/images/edits", edit),
            reads("/models", list_models),
            reads("/models/{model:path}", get_model),
            *openai_batches.OPERATIONS,
        ],
    )


# -- images --------------------------------------------------------------------------------------------------------


async def generate(call: AdapterCall) -> Response:
    """``POST /images/generations``: an image from words."""
    images = read_request(await call.json(), "text-to-image", Priority.INTERACTIVE)
    return await _answer(call, images)


async def edit(call: AdapterCall) -> Response:
    """``POST /images/edits``: with a mask its transparent part is painted anew, without one the image is varied."""
    async with call.request.form(max_files=MAX_IMAGES + 1, max_fields=40) as form:
        files: dict[str, list[bytes]] = {}
        given: dict[str, Any] = {}
        for name, value in form.multi_items():
            field = name.removesuffix("[]")
            if isinstance(value, UploadFile):
                files.setdefault(field, []).append(await value.read())
            elif field in given:
                raise BadInput.of(field, value, "is given twice")
            else:
                given[field] = _form_value(field, value)
    unknown = sorted(files.keys() - {"image", "mask"})
    if unknown:
        raise BadInput.of(unknown[0], None, "is not a file of this request: it takes image and mask")
    if "image" not in files:
        raise BadInput.of("image", None, "is required: the image, as a file of the form")
    if len(files.get("mask", ())) > 1:
        raise BadInput.of("mask", len(files["mask"]), "there is one mask, of the first image")
    images = read_request(given, _edit_task(call, given.get("model"), files), Priority.INTERACTIVE)
    stored = [await store_image(call, data, "image") for data in files["image"]]
    images.asked["image"] = stored if len(stored) > 1 else stored[0]
    if "mask" in files:
        mask = await call.context.storing.run(call.tenant_id, partial(_painted_anew, call, files["mask"][0]))
        images.asked["mask_image"] = await store_image(call, mask, "mask")
    return await _answer(call, images)


def _edit_task(call: AdapterCall, model_id: object, files: Mapping[str, list[bytes]]) -> str:
    """The task of an edit: what the model does with these files."""
    if len(files["image"]) > 1:
        return "image-editing"
    roles = ("image", "mask_image") if "mask" in files else ("image",)
    default = "inpainting" if "mask" in files else "image-to-image"
    model = call.context.registry.get(model_id) if isinstance(model_id, str) else None
    return default if model is None else chosen_task(model.tasks, roles, default)


def _form_value(field: str, text: str) -> object:
    if text in ("true", "false"):
        return text == "true"
    if field in _NUMBERS and text.isascii() and text.isdigit() and len(text) < 20:
        return int(text)
    return from_text(field, text)


def _painted_anew(call: AdapterCall, mask: bytes) -> bytes:
    """The farm's mask, white where OpenAI's is transparent, as PNG."""
    return images.as_png(images.load_holes(mask, call.context.settings, field="mask"))


async def _answer(call: AdapterCall, images: ImagesRequest) -> Response:
    job = await render(call, images.asked, NAMES)
    return JSONResponse(await run_in_threadpool(images_of, call.context, job, images.form))


# -- models ----------------------------------------------------------------------------------------------------------


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "farm"}


def list_models(call: AdapterCall) -> Response:
    """``GET /models``."""
    names = [*(model.id for model in call.context.registry.rendering), *call.aliases()]
    return JSONResponse({"object": "list", "data": [_model(name) for name in dict.fromkeys(names)]})


def get_model(call: AdapterCall) -> Response:
    """``GET /models/{model}``."""
    if call.model(call.path("model")) is None:
        names = ", ".join(one.id for one in call.context.registry.rendering)
        raise AdapterError(
            404, "model_not_found", f"there is no model {call.path('model')!r}; there are: {names}", "model"
        )
    return JSONResponse(_model(call.path("model")))
