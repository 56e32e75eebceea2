"""Inputs of the calls: each call of a function gives a new object with the same content."""

from __future__ import annotations

import numpy as np
from PIL import Image

PROMPT = "a red cube on a blue table"
NEGATIVE_PROMPT = "blurry"


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """An RGB image of colour gradients and one disc."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    x, y = x / width, y / height
    corners = random.uniform(0, 255, (4, 3))
    weights = np.stack([(1 - x) * (1 - y), x * (1 - y), (1 - x) * y, x * y], -1)
    pixels = weights @ corners
    centre = random.uniform(0.3, 0.7, 2)
    pixels[(x - centre[0]) ** 2 + (y - centre[1]) ** 2 < 0.06] = random.uniform(0, 255, 3)
    return Image.fromarray(pixels.round().astype(np.uint8))


def pictures(width: int, height: int) -> list[Image.Image]:
    """Two images that differ."""
    return [picture(width, height, 1), picture(width, height, 2)]


def mask(width: int, height: int, seed: int = 0) -> Image.Image:
    """A mask with one white rectangle, the area to repaint."""
    random = np.random.default_rng(seed)
    left, top = random.uniform(0.1, 0.3, 2)
    right, bottom = random.uniform(0.6, 0.9, 2)
    pixels = np.zeros((height, width), np.uint8)
    pixels[round(top * height) : round(bottom * height), round(left * width) : round(right * width)] = 255
    return Image.fromarray(pixels)


def clip(frames: int, width: int, height: int, seed: int = 0) -> list[Image.Image]:
    """A video whose frames differ."""
    return [picture(width, height, seed * 1000 + frame) for frame in range(frames)]
