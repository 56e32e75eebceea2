"""Outputs that look wrong are told from outputs that are only dark, flat or quiet."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from workers.media.artifacts import Artifact, Clip, Sound
from workers.media.suspicion import suspicion

NOISE = np.random.default_rng(1)


def picture(low: int = 0, high: int = 256) -> Image.Image:
    return Image.fromarray(NOISE.integers(low, high, (64, 64, 3), dtype=np.uint8))


def overflowed() -> Image.Image:
    """A picture whose values were multiplied by a thousand before they were clipped."""
    values = NOISE.normal(0, 1, (64, 64, 3)) * 1000
    return Image.fromarray(np.clip((values + 1) * 127.5, 0, 255).astype(np.uint8))


@pytest.mark.parametrize(
    ("artifact", "reason"),
    [
        *((Image.new("RGB", (64, 64), colour), "uniform") for colour in ("white", "black", "grey", "#123456")),
        (overflowed(), "saturated"),
        (Clip([Image.new("RGB", (8, 8), "black")] * 4, 8.0), "uniform"),
        (Sound(np.zeros((1_000, 2), np.float32), 16_000), "silent"),
        (picture(), None),
        (picture(100, 110), None),  # flat, and not of one colour
        (Clip([Image.new("RGB", (64, 64), "black"), picture()], 8.0), None),  # it begins in the dark
        (Sound(np.full((1_000, 1), 0.01, np.float32), 16_000), None),
    ],
)
def test_what_looks_wrong(artifact: Artifact, reason: str | None) -> None:
    assert suspicion(artifact) == reason
