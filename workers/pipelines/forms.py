"""Decoded inputs in the Python types that pipelines take."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from farm.errors import UnsupportedParameter
from farm.pipelines.spec import Form
from workers.media.artifacts import Artifact, Clip, Sound


def to_form(form: Form, value: Artifact, pipeline: Any) -> Any:
    """An input in the form that its parameter takes.

    Args:
        form: Of the parameter.
        value: The decoded input.
        pipeline: The loaded pipeline, which may say what sample rate it works at.

    Returns:
        PIL: an image, or a list of images for a clip. NumPy: images (H, W, 3) as bytes, clips (T, H, W, 3), sounds
        (samples,) in one channel. Tensors: images (1, 3, H, W) and clips (1, 3, T, H, W) from 0 to 1, sounds
        (1, channels, samples).

    Raises:
        UnsupportedParameter: The form is the name of a file.
    """
    if form is Form.PATH:
        raise UnsupportedParameter("the pipeline reads this input from a file on the worker, which a job cannot name")
    if isinstance(value, Sound):
        samples = at_rate(value, sample_rate_of(pipeline)).samples
        if form is Form.NUMPY:
            return samples.mean(axis=1)
        return torch.from_numpy(np.ascontiguousarray(samples.T)).unsqueeze(0)
    if isinstance(value, Clip):
        frames = [frame if isinstance(frame, Image.Image) else Image.fromarray(frame) for frame in value.frames]
        if form is Form.PIL:
            return frames
        pixels = np.stack([np.asarray(frame.convert("RGB")) for frame in frames])
        if form is Form.NUMPY:
            return pixels
        return torch.from_numpy(pixels).permute(3, 0, 1, 2).unsqueeze(0).to(torch.float32) / 255
    if form is Form.PIL:
        return value
    pixels = np.array(value.convert("RGB"))
    if form is Form.NUMPY:
        return pixels
    return torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0).to(torch.float32) / 255


def sample_rate_of(pipeline: Any) -> int | None:
    """Samples per second of the sounds of a pipeline; None where no component says it."""
    for name in ("vocoder", "audio_vae", "vae", "sound_tokenizer", "unet", "mel"):
        component = getattr(pipeline, name, None)
        config = getattr(component, "config", None)
        for key in ("output_sampling_rate", "sampling_rate", "sample_rate"):
            rate = getattr(config, key, None) or getattr(component, key, None)
            if isinstance(rate, (int, float)) and rate > 0:
                return int(rate)
    return None


def at_rate(sound: Sound, rate: int | None) -> Sound:
    """A sound at another sample rate, by linear interpolation; the sound itself if ``rate`` is None or its own."""
    if rate is None or rate == sound.sample_rate or not len(sound.samples):
        return sound
    count = max(1, round(len(sound.samples) * rate / sound.sample_rate))
    places = np.arange(count) * (sound.sample_rate / rate)
    known = np.arange(len(sound.samples))
    channels = [np.interp(places, known, channel) for channel in sound.samples.T]
    return Sound(np.stack(channels, 1).astype(np.float32), rate)
