"""The check of a family with stock diffusers: what a user's folder goes through in a user's own script."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image, ImageOps

from tests.contract.families.family import Call, Family, Media, Output

#: The least standard deviation of an output that is not constant, as a part of its range.
_CONTRAST = 0.01


@dataclass(frozen=True)
class Rendered:
    """What one call returned."""

    output: Output
    values: np.ndarray  #: all outputs, in the range 0 to 1 for images and videos
    seconds: float


def load(family: Family, pipeline_class: str, folder: Path) -> DiffusionPipeline:
    """Load a saved family as one of its classes, as a user's script does."""
    if pipeline_class == family.pipeline_class:
        pipeline = DiffusionPipeline.from_pretrained(folder)
        assert type(pipeline).__name__ == pipeline_class, f"the folder loads as {type(pipeline).__name__}"
    else:
        pipeline = getattr(diffusers, pipeline_class).from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def render(pipeline: DiffusionPipeline, arguments: dict[str, Any]) -> Rendered:
    """Call a pipeline with seed 0 where the pipeline takes a generator."""
    if "generator" in inspect.signature(pipeline.__call__).parameters:
        arguments = {**arguments, "generator": torch.Generator().manual_seed(0)}
    torch.manual_seed(0)  # some pipelines draw from the global generator
    started = time.perf_counter()
    with np.errstate(invalid="raise"):  # NaN that is cast to pixels
        result = pipeline(**arguments)
    seconds = time.perf_counter() - started
    return Rendered(*_read(result), seconds)


def check(family: Family, pipeline_class: str, folder: Path) -> Rendered:
    """Render one class of a saved family and compare the output with what the family declares.

    Raises:
        AssertionError: The output has another medium or size, is constant, differs between two equal calls, or does
            not depend on one of the prompts, images or clips.
    """
    call = family.calls[pipeline_class]
    pipeline = load(family, pipeline_class, folder)
    rendered = render(pipeline, call.arguments())
    assert rendered.output == call.output, f"{rendered.output} instead of {call.output}"
    if rendered.output.media is not Media.TEXT:
        assert np.isfinite(rendered.values).all(), "the output is not finite"
        assert rendered.values.std() > _CONTRAST, f"the output is constant: {rendered.values.std():.4f}"
    again = render(pipeline, call.arguments())
    assert np.array_equal(rendered.values, again.values), "two equal calls gave different outputs"
    for name, arguments in _variations(call):
        changed = not np.array_equal(rendered.values, render(pipeline, arguments).values)
        assert changed is not (name in call.without_effect), f"{name} has {'an' if changed else 'no'} effect"
    return rendered


def _variations(call: Call) -> Iterator[tuple[str, dict[str, Any]]]:
    """The arguments of a call with one prompt, image or clip replaced by another."""
    for name, value in call.arguments().items():
        other = _other(value) if isinstance(value, list | Image.Image) or "prompt" in name else value
        if other is not value:
            yield name, call.arguments() | {name: other}


def _other(value: Any) -> Any:
    """Another value of the same kind; the same value where its kind is none that a user would vary."""
    match value:
        case str():
            return "three white houses by the sea"
        case Image.Image():
            return ImageOps.invert(value)
        case [Image.Image() | str() | list(), *_]:
            return [_other(item) for item in value]
    return value


def _read(result: Any) -> tuple[Output, np.ndarray]:
    """The medium, size and values of a pipeline's output."""
    for name, media in _FIELDS.items():
        value = getattr(result, name, None)
        if value is not None:
            return _measure(media, value)
    raise AssertionError(f"{type(result).__name__} has none of {', '.join(_FIELDS)}")


#: The fields of diffusers' output classes.
_FIELDS = {
    "images": Media.IMAGE,
    "prediction": Media.IMAGE,
    "rgb": Media.IMAGE,
    "frames": Media.VIDEO,
    "audios": Media.AUDIO,
    "image_embeds": Media.EMBEDDING,
    "image_embeddings": Media.EMBEDDING,
    "prompt_embeds": Media.EMBEDDING,
    "texts": Media.TEXT,
    "text": Media.TEXT,
}


def _measure(media: Media, value: Any) -> tuple[Output, np.ndarray]:
    match media:
        case Media.IMAGE:
            images = [_pixels(item) for item in _flat(value)]
            height, width = images[0].shape[:2]
            return Output(media, (width, height), len(images)), np.stack(images)
        case Media.VIDEO:
            frames = [_pixels(item) for item in value[0]]
            height, width = frames[0].shape[:2]
            return Output(media, (len(frames), width, height), len(value)), np.stack(frames)
        case Media.AUDIO:
            sounds = [np.atleast_2d(np.asarray(item)) for item in value]
            return Output(media, sounds[0].shape, len(sounds)), np.stack(sounds)
        case Media.EMBEDDING:
            values = value.float().numpy()
            return Output(media, values.shape), values
        case Media.TEXT:
            return Output(media, (), len(value)), np.asarray(value)


def _flat(value: Any) -> list[Any]:
    """The images of a list, of a list of lists (one per input) or of an array."""
    return [image for item in value for image in (item if isinstance(item, list) else [item])]


def _pixels(value: Any) -> np.ndarray:
    """An image as numbers from 0 to 1, (height, width, …)."""
    if isinstance(value, Image.Image):
        return np.asarray(value) / 255
    return np.asarray(value, np.float64)
