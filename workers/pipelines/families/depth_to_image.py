"""Stable Diffusion 2 depth takes its depth map as a tensor without channels."""

from __future__ import annotations

import torch
from PIL import Image

from farm.errors import UnsuitableInput
from workers.pipelines.families.quirk import Quirk


def depth(image: Image.Image) -> torch.Tensor:
    """A depth image, ``L`` or ``I;16``, as (1, H, W) in [0, 1]; brighter is nearer, as depth estimators define it."""
    low, high = image.getextrema()
    if low == high:
        raise UnsuitableInput("the depth map has the same value everywhere, so it contains no depth")
    width, height = image.size
    if image.mode == "I;16":
        # Pillow's 16 bit pixels are little-endian
        values = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint16).to(torch.float32)
        return values.reshape(1, height, width) / 65535.0
    values = torch.frombuffer(bytearray(image.convert("L").tobytes()), dtype=torch.uint8).to(torch.float32)
    return values.reshape(1, height, width) / 255.0


QUIRK = Quirk(classes=frozenset({"StableDiffusionDepth2ImgPipeline"}), inputs={"depth_map": depth})
