"""Outputs that look as if something went wrong: blank, saturated or silent, though the pipeline reported no error."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from workers.media.artifacts import Artifact, Clip, Sound

UNIFORM_RANGE: Final = 2  #: of 255: an image whose channels vary no more than this is of one colour
SATURATED_PART: Final = 0.995  #: of all values at either end: arithmetic overflowed
SILENCE: Final = 1e-4  #: of full scale


def suspicion(artifact: Artifact) -> str | None:
    """Why an output looks wrong: ``uniform``, ``saturated`` or ``silent``; None: it does not."""
    if isinstance(artifact, Sound):
        return "silent" if not artifact.samples.size or np.abs(artifact.samples).max() < SILENCE else None
    if isinstance(artifact, Clip):
        found = {_of_pixels(np.asarray(frame)) for frame in artifact.frames}
        return found.pop() if len(found) == 1 else None
    return _of_image(artifact)


def _of_image(image: Image.Image) -> str | None:
    return _of_pixels(np.asarray(image))


def _of_pixels(pixels: NDArray[np.uint8]) -> str | None:
    """The same for pixels of (H, W, channels) or (H, W)."""
    channels = pixels.reshape(-1, pixels.shape[-1] if pixels.ndim == 3 else 1)
    low, high = channels.min(axis=0).astype(int), channels.max(axis=0).astype(int)
    if (high - low <= UNIFORM_RANGE).all():
        return "uniform"
    ends = np.count_nonzero(channels == 0) + np.count_nonzero(channels == 255)
    return "saturated" if ends >= SATURATED_PART * channels.size else None
