"""Images, clips and sounds as the worker holds them: decoded inputs, and what pipelines give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from farm.pipelines.spec import Media


@dataclass(frozen=True, eq=False)
class Sound:
    """A sound."""

    samples: NDArray[np.float32]  #: (samples, channels), -1 to 1
    sample_rate: int  #: per second

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return len(self.samples) / self.sample_rate


@dataclass(frozen=True, eq=False)
class Clip:
    """A video, with its sound if it has one."""

    frames: Sequence[Image.Image] | NDArray[np.uint8]  #: images of one size; a pipeline's: (T, H, W, 3)
    fps: float  #: frames per second
    sound: Sound | None = None

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        first = self.frames[0]
        return first.size if isinstance(first, Image.Image) else (first.shape[1], first.shape[0])

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return len(self.frames) / self.fps


#: One output, or one decoded input, of a job.
Artifact: TypeAlias = Image.Image | Clip | Sound


def media_of(artifact: Artifact) -> Media:
    """The kind of an artifact."""
    if isinstance(artifact, Clip):
        return Media.VIDEO
    return Media.AUDIO if isinstance(artifact, Sound) else Media.IMAGE
