"""What a user would do without the engine, on the same pipelines: a loop, and static batching by equal parameters."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence

import torch
from PIL import Image, ImageDraw

from farm.domain.job_spec import JobSpec
from workers import pipelines
from workers.pipelines import LoadedModel
from workers.pipelines.schedulers import make_scheduler


def inputs(spec: JobSpec) -> dict[str, tuple[Image.Image, ...]]:
    """Images for a task that takes some."""
    assert spec.width is not None
    assert spec.height is not None
    size = spec.width, spec.height
    scene, mask = Image.new("RGB", size, (40, 60, 200)), Image.new("L", size, 0)
    ImageDraw.Draw(scene).ellipse((8, 8, spec.width // 2, spec.height // 2), (220, 40, 40))
    mask.paste(255, (4, 4, spec.width // 2, spec.height // 2))
    if spec.task == "text-to-image":
        return {}
    found: dict[str, tuple[Image.Image, ...]] = {"image": (scene,)}
    return found | ({"mask_image": (mask,)} if spec.task == "inpainting" else {})


def settings_of(spec: JobSpec) -> tuple[object, ...]:
    """What jobs must have in common to be one call of a stock pipeline."""
    guided = spec.num_inference_steps, spec.guidance_scale, spec.scheduler, spec.strength
    return spec.task, *guided, spec.width, spec.height


def next_group(waiting: Sequence[JobSpec], most: int) -> list[int]:
    """ServiceAddresses of the oldest job and of those that are equal to it, up to ``most``."""
    first = settings_of(waiting[0])
    return [place for place, spec in enumerate(waiting) if settings_of(spec) == first][:most]


def render_equal(loaded: LoadedModel, specs: Sequence[JobSpec]) -> None:
    """Jobs of equal settings as one call of the stock pipeline."""
    if len(specs) == 1:
        pipelines.render(loaded, specs[0], 0, inputs(specs[0]), lambda _: None, threading.Event())
        return
    first = specs[0]
    pipeline = copy.copy(loaded.pipeline(first.task))
    pipeline.scheduler = make_scheduler(pipeline, first.scheduler, first.scheduler_options)
    given = {name: [image] * len(specs) for name, (image,) in inputs(first).items()}
    if first.task in ("text-to-image", "inpainting"):
        given |= {"width": first.width, "height": first.height}  # type: ignore[dict-item]
    if first.strength is not None:
        given["strength"] = first.strength  # type: ignore[assignment]
    pipeline(
        prompt=[spec.prompt for spec in specs],
        num_inference_steps=first.num_inference_steps,
        guidance_scale=first.guidance_scale,
        generator=[torch.Generator("cpu").manual_seed(spec.seed) for spec in specs],
        **given,
    )


def loop(loaded: LoadedModel, specs: Sequence[JobSpec], ended: Callable[[], None]) -> None:
    """One job after the other."""
    for spec in specs:
        render_equal(loaded, [spec])
        ended()


def static(loaded: LoadedModel, specs: Sequence[JobSpec], most: int, ended: Callable[[], None]) -> None:
    """Groups of equal settings, up to ``most`` jobs each, the group of the oldest job first."""
    waiting = list(specs)
    while waiting:
        service_addresses = next_group(waiting, most)
        render_equal(loaded, [waiting[place] for place in service_addresses])
        waiting = [spec for place, spec in enumerate(waiting) if place not in service_addresses]
        for _ in service_addresses:
            ended()
