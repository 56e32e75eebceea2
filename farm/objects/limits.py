"""How large an input clip or sound may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the process that looks into files starts sooner without it
    from farm.settings import Settings


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of `farm.settings` on one input."""

    seconds: float  #: of a clip or sound
    frames: int  #: of a clip
    frame_pixels: int  #: of one frame
    clip_pixels: int  #: of all frames
    samples: int  #: of a sound, over all channels

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        """Those of the settings."""
        return cls(
            seconds=settings.max_input_seconds,
            frames=settings.max_input_frames,
            frame_pixels=settings.max_input_pixels,
            clip_pixels=settings.max_input_clip_pixels,
            samples=settings.max_input_samples,
        )
