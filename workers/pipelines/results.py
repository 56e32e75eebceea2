"""Reads what a pipeline returns: images, clips and sounds, with the size and length that they came out with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch
from diffusers.modular_pipelines import PipelineState
from numpy.typing import NDArray
from PIL import Image

from farm.errors import NanOutput, RenderError
from farm.pipelines.spec import Media, PipelineSpec
from workers.media.artifacts import Artifact, Clip, Sound
from workers.pipelines.families import quirks_of
from workers.pipelines.forms import sample_rate_of

DEFAULT_FRAME_RATE: Final = 8.0  #: of a family whose own is not known
DEFAULT_SAMPLE_RATE: Final = 16_000
#: The task whose outputs have values from -1 to 1.
_NORMALS: Final = "normal-estimation"
_DEPTH: Final = "depth-estimation"


def read_artifact(spec: PipelineSpec, pipeline: Any, result: Any, task: str, given: Mapping[str, Any]) -> Artifact:
    """The first output of a call, as the pipeline made it.

    Args:
        spec: The pipeline's class.
        pipeline: The pipeline, whose components tell the sample rate.
        result: What the call returned.
        task: What the job asks for.
        given: The job's parameters and the call's arguments by name, which may tell the frame rate.

    Raises:
        NanOutput: The arithmetic overflowed.
        RenderError: The pipeline returned nothing.
    """
    main, media = next(iter(spec.outputs.items()))
    value = _field(result, main)
    if value is None or len(value) == 0:
        raise RenderError(f"{spec.name} returned no {main}")
    if media is Media.AUDIO:
        return _sound(value[0], pipeline)
    if media is Media.IMAGE:
        return _image(_first_image(value), task)
    sound_field = next((name for name, kind in spec.outputs.items() if kind is Media.AUDIO), None)
    sound = None if sound_field is None else _field(result, sound_field)
    if isinstance(sound, list) or (sound is not None and sound.ndim > 2):  # of a batch
        sound = sound[0]
    return Clip(
        _frames(_one_clip(value)),
        frame_rate_of(spec, given),
        None if sound is None else _sound(sound, pipeline),
    )


def frame_rate_of(spec: PipelineSpec, given: Mapping[str, Any]) -> float:
    """Frames per second of a pipeline's clips: what the job says, the class's default, or the family's."""
    own = spec.own_name("fps")
    for rate in (given.get("fps"), given.get(own or ""), spec.parameters[own].default if own else None):
        if rate:
            return float(rate)
    return next((quirk.frame_rate for quirk in quirks_of(spec) if quirk.frame_rate), DEFAULT_FRAME_RATE)


def _field(result: Any, name: str) -> Any:
    if isinstance(result, PipelineState):
        return result.get(name)
    if isinstance(result, tuple):
        return result[0]
    return getattr(result, name, None)


def _first_image(value: Any) -> Any:
    """The first image of a list, of a list of lists (one for each input), or of an array (B, H, W, C)."""
    if isinstance(value, torch.Tensor):
        value = _array(value)
        if value.ndim == 4 and value.shape[1] in (1, 3, 4) and value.shape[-1] not in (1, 3, 4):
            value = np.moveaxis(value, 1, -1)
    first = value[0]
    return first[0] if isinstance(first, list) else first


def _image(value: Any, task: str) -> Image.Image:
    if isinstance(value, Image.Image):
        return value if value.mode in ("RGB", "RGBA", "L") else value.convert("RGB")
    pixels: NDArray[Any] = _array(value).astype(np.float32)
    if not np.isfinite(pixels).all():
        raise NanOutput("the image contains NaN")
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    if task == _NORMALS:
        pixels = pixels / 2 + 0.5
    if task == _DEPTH:  # an estimator gives distances, 0 to 1; a depth map is brighter where it is nearer
        pixels = 1 - pixels
    return Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8)).convert("RGB")


def _one_clip(value: Any) -> Any:
    """The frames of the first clip: the batch's first, unless the class returns the frames of one clip."""
    if isinstance(value, list) and isinstance(value[0], list):
        return value[0]
    if isinstance(value, list) and isinstance(value[0], (np.ndarray, torch.Tensor)):
        return value if value[0].ndim == 3 else value[0]
    if isinstance(value, (np.ndarray, torch.Tensor)) and value.ndim == 5:
        return value[0]
    return value


def _frames(clip: Any) -> NDArray[np.uint8]:
    """The frames of a clip as bytes, (T, H, W, 3)."""
    if isinstance(clip, list) and isinstance(clip[0], Image.Image):
        return np.stack([np.asarray(frame.convert("RGB")) for frame in clip])
    pixels = _array(clip) if not isinstance(clip, list) else np.stack([_array(frame) for frame in clip])
    if pixels.shape[-1] != 3:  # channels first: (T, 3, H, W) or (3, T, H, W)
        pixels = np.moveaxis(pixels, 1 if pixels.shape[1] == 3 else 0, -1)
    if pixels.dtype == np.uint8:
        return pixels
    if not np.isfinite(pixels).all():
        raise NanOutput("the clip contains NaN")
    return (pixels.clip(0, 1) * 255).round().astype(np.uint8)


def _sound(value: Any, pipeline: Any) -> Sound:
    """A sound of a pipeline: (samples,) or (channels, samples)."""
    samples = np.atleast_2d(_array(value)).astype(np.float32)
    if samples.ndim == 3:
        samples = samples[0]
    if samples.shape[0] > samples.shape[1]:
        samples = samples.T
    if not np.isfinite(samples).all():
        raise NanOutput("the sound contains NaN")
    return Sound(np.ascontiguousarray(samples.T), sample_rate_of(pipeline) or DEFAULT_SAMPLE_RATE)


def _array(value: Any) -> NDArray[Any]:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return np.asarray(value.float() if value.is_floating_point() else value)
    return np.asarray(value)
