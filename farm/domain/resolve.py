"""From what a client asked to what will be rendered: every gap closed, every limit of the model checked."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import datetime, timedelta

from farm.domain.media import EMPTY_MASK
from farm.domain.model import Model, Registry
from farm.domain.tasks import (
    AnyJobRequest,
    DepthToImageRequest,
    ImageToImageRequest,
    InpaintingRequest,
    InputFile,
    JobSpec,
    Scheduler,
    Task,
)
from farm.errors import BadInput, FieldProblem

#: PNDM is a four-step method: with fewer, diffusers' scheduler runs off the end of its history.
PNDM_STEPS = 4
RANDOM_SEED_LIMIT = 2**32  #: random seeds are below this, so that tools that hold 32 bits can copy them

MAX_SCHEDULE_AHEAD = timedelta(days=366)  #: how far ahead a job's times may lie


def random_seed() -> int:
    """A seed for a request that names none."""
    return secrets.randbelow(RANDOM_SEED_LIMIT)


def check_times(request: AnyJobRequest, now: datetime) -> list[FieldProblem]:
    """What is wrong with the request's ``not_before`` and ``deadline``."""
    found = []
    for name, moment in (("not_before", request.not_before), ("deadline", request.deadline)):
        if moment is not None and moment > now + MAX_SCHEDULE_AHEAD:
            message = f"is more than {MAX_SCHEDULE_AHEAD.days} days ahead: name an earlier time"
            found.append(FieldProblem(name, moment.isoformat(), message))
    begin, end = request.not_before, request.deadline
    if end is not None and end <= now:
        found.append(FieldProblem("deadline", end.isoformat(), "has passed already: name a later time, or none"))
    elif end is not None and begin is not None and end <= begin:
        message = f"is not after not_before ({begin.isoformat()}): the job could never begin"
        found.append(FieldProblem("deadline", end.isoformat(), message))
    return found


def choose_model(request: AnyJobRequest, registry: Registry) -> Model:
    """The model that the request names or gets by default; `BadInput` names the choice there is."""
    capable = [model.id for model in registry.models if request.task in model.tasks]
    if request.model is None:
        model = registry.default_for(request.task)
        if model is None:
            raise BadInput.of("task", request.task.value, "no model of this farm does this task")
        return model
    model = registry.get(request.model)
    if model is None:
        raise BadInput.of(
            "model", request.model, f"there is no such model; for this task: {', '.join(capable) or 'none'}"
        )
    if request.task not in model.tasks:
        raise BadInput.of(
            "model", request.model, f"does not do {request.task}; models that do: {', '.join(capable) or 'none'}"
        )
    return model


def resolve(request: AnyJobRequest, model: Model, images: Mapping[str, InputFile]) -> JobSpec:
    """The job's spec. ``images`` are the request's inputs by field name, stored and checked already.

    Raises `BadInput` with every problem found.
    """
    problems: list[FieldProblem] = []
    image, mask = images.get("image"), images.get("mask_image")
    depth = images.get("depth_map")
    for name, other in (("mask_image", mask), ("depth_map", depth)):
        if image is not None and other is not None and (other.width, other.height) != (image.width, image.height):
            problems.append(
                FieldProblem(
                    name,
                    f"{other.width}x{other.height}",
                    f"must have the size of image, which is {image.width}x{image.height} pixels",
                )
            )
    if mask is not None and EMPTY_MASK in mask.metadata:
        message = "has no white pixel, so nothing would be repainted: white is repainted, black is kept"
        problems.append(FieldProblem("mask_image", "a black mask", message))
    width, height = _size(request, model, image)
    problems += _size_problems(width, height, request, model)
    if request.num_images_per_prompt > model.limits.max_outputs:
        problems.append(
            FieldProblem(
                "num_images_per_prompt",
                request.num_images_per_prompt,
                f"model {model.id} gives at most {model.limits.max_outputs} images per job",
            )
        )
    strength = _strength(request)
    steps = model.defaults.num_inference_steps if request.num_inference_steps is None else request.num_inference_steps
    if strength is not None and steps * strength < 1:
        problems.append(
            FieldProblem(
                "strength",
                strength,
                f"num_inference_steps × strength is {steps * strength:g}, which leaves no denoising step; "
                f"at {steps} steps use a strength of at least {1 / steps:.3g}",
            )
        )
    scheduler = request.scheduler or model.defaults.scheduler
    if scheduler is Scheduler.PNDM and steps < PNDM_STEPS:
        problems.append(
            FieldProblem("num_inference_steps", steps, f"the scheduler pndm needs at least {PNDM_STEPS} steps")
        )
    problems += _lora_problems(request, model)
    if problems:
        raise BadInput(*problems)
    return JobSpec(
        task=Task(request.task),
        model=model.id,
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        num_inference_steps=steps,
        guidance_scale=model.defaults.guidance_scale if request.guidance_scale is None else request.guidance_scale,
        scheduler=scheduler,
        seed=random_seed() if request.seed is None else request.seed,
        num_images_per_prompt=request.num_images_per_prompt,
        width=width,
        height=height,
        strength=strength,
        output_format=request.output_format,
        inputs=dict(images),
        exact=model.defaults.exact if request.exact is None else request.exact,
        loras=request.loras,
        preview=request.preview,
    )


def _lora_problems(request: AnyJobRequest, model: Model) -> list[FieldProblem]:
    known = ", ".join(lora.name for lora in model.loras) or "none"
    names = [lora.name for lora in request.loras]
    found = []
    for index, name in enumerate(names):
        if model.lora(name) is None:
            message = f"model {model.id} has no such LoRA; it has: {known}"
            found.append(FieldProblem(f"loras.{index}.name", name, message))
        elif name in names[:index]:
            found.append(FieldProblem(f"loras.{index}.name", name, "is named twice; give it one scale"))
    return found


def _strength(request: AnyJobRequest) -> float | None:
    match request:
        case ImageToImageRequest() | InpaintingRequest() | DepthToImageRequest():
            return request.strength
        case _:
            return None


def _size(request: AnyJobRequest, model: Model, image: InputFile | None) -> tuple[int, int]:
    """Width and height in pixels: as asked, else the image's shape within the model's limits, else the default."""
    if image is None or image.width is None or image.height is None:
        return request.width or model.defaults.width, request.height or model.defaults.height
    fitted = model.fit(image.width, image.height)
    return request.width or fitted[0], request.height or fitted[1]


def _size_problems(width: int, height: int, request: AnyJobRequest, model: Model) -> list[FieldProblem]:
    limits = model.limits
    found = [
        FieldProblem(name, value, f"model {model.id} renders sides of {limits.min_side} to {limits.max_side} pixels")
        for name, value in (("width", width), ("height", height))
        if not limits.min_side <= value <= limits.max_side
    ]
    if not found and width * height > limits.max_pixels:
        field = "width" if request.width else "height"
        found.append(
            FieldProblem(
                field, f"{width}x{height}", f"model {model.id} renders at most {limits.max_pixels} pixels in all"
            )
        )
    return found
