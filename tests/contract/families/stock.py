"""The check of a family with stock diffusers: what a user's folder goes through in a user's own script."""

from __future__ import annotations

import inspect
import operator
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import DiffusionPipeline, ModularPipeline
from diffusers.modular_pipelines import PipelineState
from PIL import Image, ImageOps

from tests.contract.families.family import Call, Family, Media, Output

#: The least standard deviation of an output that is not constant, as a part of its range.
_CONTRAST = 0.01


@dataclass(frozen=True)
class Rendered:
    """What one call returned."""

    output: Output
    values: np.ndarray  #: all outputs, in the range 0 to 1 for images and videos
    sound: np.ndarray  #: of a video, (channels, samples); empty where there is none
    seconds: float  #: of processor time

    def equals(self, other: Rendered) -> bool:
        """Whether all values of both are equal."""
        return np.array_equal(self.values, other.values) and np.array_equal(self.sound, other.sound)


def load(family: Family, pipeline_class: str, folder: Path) -> Any:
    """Load a saved family as one of its classes, as a user's script does."""
    if issubclass(getattr(diffusers, pipeline_class), ModularPipeline):
        pipeline = ModularPipeline.from_pretrained(str(folder))
        pipeline.load_components(torch_dtype=family.dtype)
    elif pipeline_class == family.pipeline_class:
        pipeline = DiffusionPipeline.from_pretrained(folder, torch_dtype=family.dtype)
    else:
        pipeline = getattr(diffusers, pipeline_class).from_pretrained(folder, torch_dtype=family.dtype)
    assert type(pipeline).__name__ == pipeline_class, f"the folder loads as {type(pipeline).__name__}"
    pipeline.set_progress_bar_config(disable=True)
    if family.prepare:
        family.prepare(pipeline)
    return pipeline


def render(pipeline: Any, arguments: dict[str, Any]) -> Rendered:
    """Call a pipeline with seed 0 where the pipeline takes a generator."""
    if isinstance(pipeline, ModularPipeline) or "generator" in inspect.signature(pipeline.__call__).parameters:
        arguments = {**arguments, "generator": torch.Generator().manual_seed(0)}
    torch.manual_seed(0)  # some pipelines draw from the global generator
    started = time.process_time()
    with np.errstate(invalid="raise"):  # NaN that is cast to pixels
        result = pipeline(**arguments)
    seconds = time.process_time() - started
    return Rendered(*_read(result), seconds)


def check(family: Family, pipeline_class: str, folder: Path) -> Rendered:
    """Render one class of a saved family and compare the output with what the family declares.

    Raises:
        AssertionError: The output has another medium or size, is constant, differs between two equal calls, or does
            not depend on one of the prompts, images, clips or tensors.
    """
    call = family.calls[pipeline_class]
    pipeline = load(family, pipeline_class, folder)
    rendered = render(pipeline, call.arguments())
    assert rendered.output == call.output, f"{rendered.output} instead of {call.output}"
    if rendered.output.media is not Media.TEXT:
        _check_values(rendered.values)
    if rendered.output.sound:
        _check_values(rendered.sound)
    assert rendered.equals(render(pipeline, call.arguments())), "two equal calls gave different outputs"
    for name, arguments in _variations(call):
        changed = not rendered.equals(render(pipeline, arguments))
        assert changed is not (name in call.without_effect), f"{name} has {'an' if changed else 'no'} effect"
    return rendered


def _check_values(values: np.ndarray) -> None:
    assert np.isfinite(values).all(), "the output is not finite"
    assert values.std() > _CONTRAST, f"the output is constant: {values.std():.4f}"


def _variations(call: Call) -> Iterator[tuple[str, dict[str, Any]]]:
    """The arguments of a call with one prompt, image, clip or tensor replaced by another."""
    for name, value in call.arguments().items():
        text = "prompt" in name or name == "lyrics"
        other = value if isinstance(value, str) and not text else _other(value)
        if other is not value:
            yield name, call.arguments() | {name: other}


def _other(value: Any) -> Any:
    """Another value of the same kind; the same value where its kind is none that a user would vary."""
    match value:
        case str():
            return value.replace("cube", "sphere") if "cube" in value else "three white houses by the sea"
        case Image.Image():
            return ImageOps.invert(value.convert("RGB")).convert(value.mode)
        case torch.Tensor():
            return value.flip(-1)
        case [Image.Image() | str() | list() | torch.Tensor(), *_]:
            others = [_other(item) for item in value]
            return value if all(map(operator.is_, others, value)) else others
        case [first, *_] if is_dataclass(first):
            return [replace(item, **_changes(item)) for item in value]
    return value


def _changes(value: Any) -> dict[str, Any]:
    """Other values for the fields of a condition that are images."""
    named = {field.name: getattr(value, field.name) for field in fields(value)}
    return {name: _other(item) for name, item in named.items() if isinstance(item, list | Image.Image)}


def _read(result: Any) -> tuple[Output, np.ndarray, np.ndarray]:
    """The medium, size and values of a pipeline's output, and the sound of a video."""
    for name, media in _FIELDS.items():
        value = result.get(name) if isinstance(result, PipelineState) else getattr(result, name, None)
        if value is not None:
            one_clip = type(result).__name__ in _ONE_CLIP
            clips = [value] if one_clip and not isinstance(value[0], list) else value
            output, values = _measure(Media.VIDEO if one_clip else media, clips)
            sound = getattr(result, "audio", getattr(result, "sound", None))
            if output.media is not Media.VIDEO or sound is None:
                return output, values, np.empty(0)
            sound = np.atleast_2d(np.asarray(sound if one_clip else sound[0], np.float32))
            return replace(output, sound=sound.shape), values, sound
    raise AssertionError(f"{type(result).__name__} has none of {', '.join(_FIELDS)}")


#: The fields of diffusers' output classes.
_FIELDS = {
    "videos": Media.VIDEO,  # first: the state of a modular pipeline holds the inputs, too
    "images": Media.IMAGE,
    "image": Media.IMAGE,
    "prediction": Media.IMAGE,
    "rgb": Media.IMAGE,
    "frames": Media.VIDEO,
    "video": Media.VIDEO,
    "audios": Media.AUDIO,
    "image_embeds": Media.EMBEDDING,
    "image_embeddings": Media.EMBEDDING,
    "prompt_embeds": Media.EMBEDDING,
    "texts": Media.TEXT,
    "text": Media.TEXT,
}


#: The output classes that hold the frames of one clip instead of a list of clips.
_ONE_CLIP = (
    "Cosmos3OmniPipelineOutput",
    "SanaWMPipelineOutput",
    "ShapEPipelineOutput",
    "TextToVideoPipelineOutput",
    "TextToVideoSDXLPipelineOutput",
)


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
    return np.asarray(value, np.float32)
