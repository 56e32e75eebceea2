"""The API of A1111's web UI (``/sdapi/v1``), as its many clients use it.

It lies at the root, because most of those clients take a host and a port and nothing else. The farm has no current
model and no settings that one client could change for another: what a request leaves out is decided by the model's
defaults, and ``override_settings`` names the model.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
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
    ErrorInfo,
    ForeignParameter,
    drop_unsupported,
    reads,
    submits,
)
from farm.api.compat.submission import cancel, render, store_image
from farm.domain.infotext import parameters_text
from farm.domain.job import Job, JobFilter
from farm.domain.model import Model
from farm.domain.parameters import from_text
from farm.domain.schedulers import SAMPLERS, SCHEDULES, sampler, sampler_name
from farm.domain.states import JobState, Priority
from farm.errors import BadInput, FieldProblem
from farm.objects import images
from farm.objects.intake import decode_base64
from farm.pipelines import prompt_weighting
from farm.settings import Settings

PREFIX: Final = "/sdapi/v1"

#: The ``custom_id`` of every job that came this way: how progress and interrupt find them.
CUSTOM_ID: Final = "sdapi"
AT_ONCE: Final = 100  #: jobs that one interrupt stops
_ACTIVE: Final = (JobState.PENDING, JobState.QUEUED, JobState.DISPATCHED, JobState.RUNNING)

#: The farm's fields as these clients call them.
NAMES: Final = {
    "num_inference_steps": "steps",
    "guidance_scale": "cfg_scale",
    "strength": "denoising_strength",
    "scheduler": "sampler_name",
    "num_outputs": "batch_size",
    "image": "init_images",
    "mask_image": "mask",
    "model": "override_settings.sd_model_checkpoint",
}
_FORMATS: Final = {"png": "png", "webp": "webp", "jpg": "jpeg"}
#: What clients send for "the sampler's own noise schedule".
_NO_SCHEDULE: Final = ("", "automatic", "uniform", "use same scheduler")

_NO_SCRIPTS: Final = "the farm has no scripts"
_SINGLE: Final = "the farm renders in one pass: ask for the size itself"
_SAMPLING: Final = "the farm's samplers have no such parameter; leave it out"
#: How the web UI writes that something is left as it is.
_AS_IT_IS: Final = ("Automatic", "automatic", "None", "none")
#: What clients send of their own accord, and its values that ask for nothing.
_UNSUPPORTED: Final[Mapping[str, ForeignParameter | None]] = {
    "enable_hr": ForeignParameter((False,), _SINGLE),
    **dict.fromkeys(
        (
            *("hr_scale", "hr_upscaler", "hr_second_pass_steps", "hr_resize_x", "hr_resize_y", "hr_checkpoint_name"),
            *("hr_sampler_name", "hr_scheduler", "hr_prompt", "hr_negative_prompt", "hr_additional_modules"),
            *("subseed", "seed_resize_from_h", "seed_resize_from_w", "do_not_save_samples", "do_not_save_grid"),
            *("save_images", "override_settings_restore_afterwards", "script_args", "sampler_index", "comments"),
            *("disable_extra_networks", "force_task_id", "infotext", "include_init_images", "mask_round"),
            *("inpaint_full_res", "inpaint_full_res_padding"),
        ),
        IGNORED,
    ),
    "firstphase_width": ForeignParameter((0,), _SINGLE),
    "firstphase_height": ForeignParameter((0,), _SINGLE),
    "refiner_checkpoint": ForeignParameter(("", "None"), _SINGLE),
    "refiner_switch_at": IGNORED,
    "latent_mask": ForeignParameter((), "send mask"),
    "styles": ForeignParameter(([],), "the farm has no saved styles; say it in the prompt"),
    "subseed_strength": ForeignParameter((0,), "the farm renders from one seed"),
    "restore_faces": ForeignParameter((False,), "the farm does not restore faces"),
    "tiling": ForeignParameter((False,), "the farm does not tile"),
    "eta": ForeignParameter((0, 1), _SAMPLING),
    "s_churn": ForeignParameter((0,), _SAMPLING),
    "s_tmax": ForeignParameter((0,), _SAMPLING),
    "s_tmin": ForeignParameter((0,), _SAMPLING),
    "s_noise": ForeignParameter((1,), _SAMPLING),
    "s_min_uncond": ForeignParameter((0,), _SAMPLING),
    "script_name": ForeignParameter(("", "None"), _NO_SCRIPTS),
    "resize_mode": ForeignParameter((0,), "the farm just resizes (mode 0)"),
    "mask_blur": ForeignParameter((0, 4), "a mask's edge stays an edge here: leave it out"),
    "mask_blur_x": ForeignParameter((0, 4), "a mask's edge stays an edge here: leave it out"),
    "mask_blur_y": ForeignParameter((0, 4), "a mask's edge stays an edge here: leave it out"),
    "inpainting_fill": ForeignParameter((0, 1), "the farm starts from the image itself"),
    "initial_noise_multiplier": ForeignParameter((1,), _SAMPLING),
    "image_cfg_scale": ForeignParameter((0, 1.5), _SAMPLING),
    "clip_skip": ForeignParameter((0, 1), "the farm uses the text encoder's last layer"),
    "sd_vae": ForeignParameter(("", *_AS_IT_IS), "a model of the farm has its own VAE"),
}


def _key(request: Request) -> str | None:
    """A key as the password of any user, or as a bearer token."""
    basic = adapter.bearer(request, "basic")
    if basic is None:
        return adapter.bearer(request)
    try:
        user, _, password = base64.b64decode(basic, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return password or user or None


def _body(info: ErrorInfo, _: Request) -> Mapping[str, Any]:
    return {"error": info.code, "detail": info.message, "body": "", "errors": info.message}


ADAPTER: Final = Adapter(
    name="A1111",
    credentials=_key,
    ask="send an API key as the password of any user name, as `--api-auth` has it",
    body=_body,
    challenge='Basic realm="farm"',
)


def application(main: FastAPI) -> Starlette:
    """The adapter's app."""
    nothing = (
        *("/upscalers", "/latent-upscale-modes", "/loras", "/hypernetworks", "/face-restorers", "/sd-vae"),
        *("/realesrgan-models", "/prompt-styles", "/script-info", "/sd-modules"),
    )
    return adapter.application(
        main,
        ADAPTER,
        [
            submits("/txt2img", txt2img),
            submits("/img2img", img2img),
            reads("/progress", progress, "skip_current_image"),
            reads("/png-info", png_info, method="POST"),
            submits("/interrupt", interrupt),
            submits("/skip", interrupt),
            reads("/options", get_options),
            submits("/options", set_options),
            reads("/cmd-flags", lambda _: JSONResponse({"api": True})),
            reads("/sd-models", list_models),
            reads("/samplers", list_samplers),
            reads("/schedulers", lambda _: JSONResponse([_schedule(name) for name in SCHEDULES])),
            reads("/scripts", lambda _: JSONResponse({"txt2img": [], "img2img": []})),
            reads("/embeddings", lambda _: JSONResponse({"loaded": {}, "skipped": {}})),
            *(reads(path, lambda _: JSONResponse([])) for path in nothing),
            submits("/refresh-checkpoints", lambda _: JSONResponse(None)),
        ],
    )


# -- images --------------------------------------------------------------------------------------------------------


async def txt2img(call: AdapterCall) -> Response:
    """``POST /txt2img``."""
    given = await call.json()
    given.pop("denoising_strength", None)  # of the second pass
    return await _answer(call, given, {"task": "text-to-image"})


async def img2img(call: AdapterCall) -> Response:
    """``POST /img2img``: with a mask its white part is painted anew."""
    given = await call.json()
    images, mask = given.pop("init_images", None), given.pop("mask", None)
    inverted = given.pop("inpainting_mask_invert", None) in (1, True)
    if not isinstance(images, list) or len(images) != 1:
        shown = len(images) if isinstance(images, list) else images
        raise BadInput.of("init_images", shown, "must be a list of one image: base64, a data URL or an https URL")
    asked: dict[str, Any] = {"image": await _image(call, images[0], "init_images")}
    if mask is None:
        asked["task"] = "image-to-image"
        asked["strength"] = given.pop("denoising_strength", 0.75)
    else:
        asked["task"] = "inpainting"
        asked["strength"] = given.pop("denoising_strength", 0.75)
        asked["mask_image"] = await _image(call, mask, "mask", inverted=inverted)
    return await _answer(call, given, asked)


async def _image(call: AdapterCall, text: object, field: str, *, inverted: bool = False) -> str:
    """How a job names an image that came as base64, with or without the head of a data URL, or as a URL."""
    if isinstance(text, str) and text.startswith(("https://", "http://")) and not inverted:
        return text
    data = _base64(text, field)
    if inverted:
        data = await call.context.storing.run(call.tenant_id, partial(_inverted, data, field, call.context.settings))
    return await store_image(call, data, field)


def _base64(text: object, field: str) -> bytes:
    if not isinstance(text, str):
        raise BadInput.of(field, text, "must be an image as base64 text")
    try:
        return decode_base64((text.partition(",")[2] if text.startswith("data:") else text).encode("ascii"))
    except (binascii.Error, UnicodeEncodeError):
        raise BadInput.of(field, text[:60], "is not valid base64") from None


def _inverted(data: bytes, field: str, settings: Settings) -> bytes:
    mask = images.load_mask(data, settings, field=field)
    return images.as_png(mask.point(lambda value: 255 - value))


def _read(given: dict[str, Any], asked: dict[str, Any]) -> bool:
    """Put into ``asked`` what a request asks for; returns whether its images are to be sent. Raises `BadInput`."""
    wanted = given.pop("sampler_name", None) or given.get("sampler_index")
    schedule = given.pop("scheduler", None)
    found = drop_unsupported(given, _UNSUPPORTED)
    if wanted and str(wanted).lower() != "automatic":
        known = sampler(str(wanted))
        if known is None:
            found.append(FieldProblem("sampler_name", wanted, f"must be one of {', '.join(SAMPLERS)}"))
        else:
            asked["scheduler"] = known.scheduler
            asked["scheduler_options"] = dict(known.options)
    if schedule is not None and str(schedule).lower() not in _NO_SCHEDULE:
        options = next(
            (each for name, each in SCHEDULES.items() if name.lower() == str(schedule).lower().replace("_", " ")), None
        )
        if options is None:
            found.append(FieldProblem("scheduler", schedule, f"must be one of {', '.join(SCHEDULES)}"))
        else:
            asked["scheduler_options"] = {**asked.get("scheduler_options", {}), **options}
    found += _overrides(given.pop("override_settings", None) or {}, asked)
    scripts = given.pop("alwayson_scripts", None) or {}
    if not isinstance(scripts, dict) or any(_does_something(one) for one in scripts.values()):
        found.append(FieldProblem("alwayson_scripts", scripts, _NO_SCRIPTS))
    if given.get("seed") == -1:
        del given["seed"]
    count = given.pop("n_iter", None), given.pop("batch_size", None)
    if all(one is None or (isinstance(one, int) and not isinstance(one, bool)) for one in count):
        asked["num_outputs"] = (count[0] or 1) * (count[1] or 1)
    else:
        found.append(FieldProblem("batch_size", count[1], "must be a whole number, as must be n_iter"))
    send = given.pop("send_images", True)
    for theirs, ours in (("steps", "num_inference_steps"), ("cfg_scale", "guidance_scale")):
        if given.get(theirs) is not None:
            asked[ours] = _number(ours, given.pop(theirs))
    for name in ("prompt", "negative_prompt", "seed", "width", "height"):
        value = given.pop(name, None)
        # these clients always send a negative prompt: an empty one is none, as it is to the web UI's SDXL
        if value is not None and not (name == "negative_prompt" and value == ""):
            asked[name] = _number(name, value)
    found += [
        FieldProblem(name, value, "is not a field of this request")
        for name, value in given.items()
        if not _asks_for_nothing(value)
    ]
    if found:
        raise BadInput(*found)
    asked.setdefault("prompt", "")
    asked |= {"priority": Priority.INTERACTIVE.value, "custom_id": CUSTOM_ID}
    return send is not False


def _number(name: str, value: object) -> object:
    """A parameter's value: the web UI takes numbers as text too, and some clients send them so."""
    return from_text(name, value) if isinstance(value, str) else value


def _asks_for_nothing(value: object) -> bool:
    """Whether a value that the farm does not know is what clients send for something that is switched off."""
    return value in (None, False, "", [], {}) or value in _AS_IT_IS


def _does_something(script: object) -> bool:
    """Whether a script's arguments are more than the "off" that clients send for scripts that they know."""
    arguments = script.get("args", []) if isinstance(script, dict) else script
    if isinstance(arguments, dict):
        arguments = [arguments]
    if not isinstance(arguments, list):
        return not _asks_for_nothing(arguments)
    if arguments and arguments[0] is False:  # most scripts begin with their switch
        return False
    return any(
        one.get("enabled", one.get("enable", True)) is not False
        if isinstance(one, dict)
        else not _asks_for_nothing(one)
        for one in arguments
    )


def _overrides(settings: object, asked: dict[str, Any]) -> list[FieldProblem]:
    if not isinstance(settings, dict):
        return [FieldProblem("override_settings", settings, "must be a JSON object")]
    found: list[FieldProblem] = []
    for name, value in settings.items():
        match name, value:
            case ("sd_model_checkpoint", str()):
                asked["model"] = value
            case ("samples_format", str()) if value in _FORMATS:
                asked["output_format"] = _FORMATS[value]
            case ("CLIP_stop_at_last_layers", 0 | 1):
                pass
            case _ if _asks_for_nothing(value):
                pass
            case _:
                message = "the farm has no such setting; it has sd_model_checkpoint and samples_format (png, webp, jpg)"
                found.append(FieldProblem(f"override_settings.{name}", value, message))
    return found


async def _answer(call: AdapterCall, given: dict[str, Any], asked: dict[str, Any]) -> Response:
    echoed = {name: value for name, value in given.items() if name != "alwayson_scripts"}
    send = _read(given, asked)
    if await run_in_threadpool(_weighs_prompts, call, asked):
        asked[prompt_weighting.NAME] = "a1111"
    job = await render(call, asked, NAMES)

    def read() -> list[str]:
        return [base64.b64encode(call.context.storage.get(output.key)).decode() for output in job.outputs]

    images = await run_in_threadpool(read) if send else []
    return JSONResponse({"images": images, "parameters": echoed, "info": json.dumps(_info(job), ensure_ascii=False)})


def _weighs_prompts(call: AdapterCall, asked: Mapping[str, Any]) -> bool:
    """Whether the prompts have weights, as these clients write them, or may be long, and the model takes that.

    A plain short prompt is left as it is, so that the job is the one that other clients ask for, to the byte. Blocks
    for a name of the tenant's.
    """
    if not any(prompt_weighting.may_matter(str(asked.get(name) or "")) for name in ("prompt", "negative_prompt")):
        return False
    named = asked.get("model")
    model = call.context.registry.default_for(asked["task"]) if named is None else call.model(str(named))
    if model is None or asked["task"] not in model.tasks:
        return False  # refused with the other problems
    pipeline = model.pipeline_for(asked["task"])
    return pipeline is not None and prompt_weighting.weighs_prompts(pipeline)


def _info(job: Job) -> dict[str, Any]:
    spec = job.spec
    seeds = [output.seed for output in job.outputs]
    return {
        "prompt": spec.prompt,
        "all_prompts": [spec.prompt] * len(seeds),
        "negative_prompt": spec.negative_prompt or "",
        "all_negative_prompts": [spec.negative_prompt or ""] * len(seeds),
        "seed": spec.seed,
        "all_seeds": seeds,
        "subseed": spec.seed,
        "all_subseeds": seeds,
        "subseed_strength": 0,
        "width": job.outputs[0].width if job.outputs else spec.width,
        "height": job.outputs[0].height if job.outputs else spec.height,
        "sampler_name": sampler_name(spec.scheduler, spec.scheduler_options),
        "cfg_scale": spec.guidance_scale,
        "steps": spec.num_inference_steps,
        "batch_size": len(seeds),
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": spec.model,
        "sd_model_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": spec.strength,
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": [parameters_text(spec, output.index) for output in job.outputs],
        "styles": [],
        "job_timestamp": job.created_at.strftime("%Y%m%d%H%M%S"),
        "clip_skip": 1,
        "is_using_inpainting_conditioning": False,
        "job_id": job.id,
    }


# -- what is under way -------------------------------------------------------------------------------------------------


def _active(call: AdapterCall) -> list[Job]:
    """The tenant's unfinished jobs that were submitted through this adapter, newest first."""
    with call.context.store.begin() as unit:
        found, _ = unit.jobs.page(call.tenant_id, JobFilter(state=_ACTIVE, custom_id=CUSTOM_ID), None, AT_ONCE)
    return found


def progress(call: AdapterCall) -> Response:
    """``GET /progress``: of the tenant's oldest unfinished job that was submitted through this adapter."""
    active = _active(call)
    oldest = active[-1] if active else None
    step, steps, fraction, eta = 0, 0, 0.0, 0.0
    if oldest is not None and oldest.progress is not None:
        step, steps = oldest.progress.step, oldest.progress.steps
        fraction = step / steps if steps else 0.0
        if fraction and oldest.started_at is not None:
            eta = (datetime.now(UTC) - oldest.started_at).total_seconds() * (1 - fraction) / fraction
    state = {
        "skipped": False,
        "interrupted": oldest is not None and oldest.cancel_requested,
        "stopping_generation": False,
        "job": "" if oldest is None else oldest.id,
        "job_count": len(active),
        "job_timestamp": "0" if oldest is None else oldest.created_at.strftime("%Y%m%d%H%M%S"),
        "job_no": 0,
        "sampling_step": step,
        "sampling_steps": steps,
    }
    return JSONResponse(
        {"progress": fraction, "eta_relative": eta, "state": state, "current_image": None, "textinfo": None}
    )


def interrupt(call: AdapterCall) -> Response:
    """``POST /interrupt``: stop the tenant's jobs that came this way."""
    for job in _active(call):
        cancel(call, job.id)
    return JSONResponse({})


async def png_info(call: AdapterCall) -> Response:
    """``POST /png-info``: the text that an image carries about its making."""
    given = await call.json()
    data = _base64(given.get("image"), "image")
    found = await run_in_threadpool(images.text_of, data, call.context.settings, field="image")
    return JSONResponse({"info": found.get("parameters", ""), "items": found, "parameters": {}})


# -- what there is -----------------------------------------------------------------------------------------------------


def _default(call: AdapterCall) -> Model | None:
    return call.context.registry.default_for("text-to-image")


def get_options(call: AdapterCall) -> Response:
    """``GET /options``: those that mean something here."""
    return JSONResponse(_options(call))


def _options(call: AdapterCall) -> dict[str, Any]:
    model = _default(call)
    return {
        "sd_model_checkpoint": None if model is None else model.id,
        "sd_checkpoint_hash": None,
        "samples_format": "png",
        "CLIP_stop_at_last_layers": 1,
    }


async def set_options(call: AdapterCall) -> Response:
    """``POST /options``: accepts what is so already; one client's choice must not become another's."""
    now = _options(call)
    found = [
        FieldProblem(
            name, value, "cannot be set for everybody: send it as override_settings with each request that wants it"
        )
        for name, value in (await call.json()).items()
        if name not in now or now[name] != value
    ]
    if found:
        raise BadInput(*found)
    return JSONResponse({})


def list_models(call: AdapterCall) -> Response:
    """``GET /sd-models``."""
    nothing = {"hash": None, "sha256": None, "config": None}
    names = [model.id for model in call.context.registry.rendering]
    return JSONResponse([{"title": name, "model_name": name, "filename": name, **nothing} for name in names])


def list_samplers(_: AdapterCall) -> Response:
    """``GET /samplers``."""
    return JSONResponse(
        [{"name": name, "aliases": [one.scheduler], "options": dict(one.options)} for name, one in SAMPLERS.items()]
    )


def _schedule(label: str) -> dict[str, Any]:
    return {
        "name": label.lower().replace(" ", "_"),
        "label": label,
        "aliases": None,
        "default_rho": -1,
        "need_inner_model": False,
    }
