"""Previews of unfinished images: from latents to colours by one linear map, which is fitted to the model's VAE.

Decoding at every step would cost more than the steps of a small model. Latents are nearly linear in the colours of the
pixels that they encode, so a least-squares map from their channels to red, green and blue shows shapes and colours.
"""

from __future__ import annotations

import io
from typing import Any, Final

import torch
from PIL import Image

from workers.render_request import MAX_PREVIEW_BYTES

SIDE: Final = 96  #: pixels of a preview's longer side
_SAMPLES: Final = 8  #: images that the map is fitted to
_CELLS: Final = 8  #: latents on a side of each
_QUALITIES: Final = (80, 60, 40, 20)


def fit(vae: Any) -> torch.Tensor:
    """The colour map of a VAE, (C + 1, 3): from the C channels of a latent and a 1 to RGB in [0, 1].

    The latents are those of the denoiser: shifted and scaled.
    """
    scale = 2 ** (len(vae.config.block_out_channels) - 1)
    draw = torch.Generator("cpu").manual_seed(0)
    cells = torch.rand(_SAMPLES, 3, _CELLS // 2, _CELLS // 2, generator=draw)
    side = _CELLS * scale
    images = torch.nn.functional.interpolate(cells, (side, side), mode="bilinear")
    first = next(vae.parameters())
    with torch.no_grad():
        encoded = vae.encode((images * 2 - 1).to(first.device, first.dtype)).latent_dist.mode().float().cpu()
    latents = (encoded - (getattr(vae.config, "shift_factor", None) or 0.0)) * vae.config.scaling_factor
    colours = torch.nn.functional.adaptive_avg_pool2d(images, latents.shape[-2:])
    rows = latents.movedim(1, -1).reshape(-1, latents.shape[1])
    wanted = colours.movedim(1, -1).reshape(-1, 3)
    known = torch.cat([rows, torch.ones(len(rows), 1)], 1)
    solution: torch.Tensor = torch.linalg.lstsq(known.double(), wanted.double()).solution
    return solution.float()


def unpack(latents: torch.Tensor, width: int, height: int, channels: int) -> torch.Tensor | None:
    """The first image's latents as (C, H/8, W/8).

    Args:
        latents: (B, C, H/8, W/8), or (B, tokens, 4C) where a pipeline packs 2 × 2 of them into one token.
        width: Pixels of the image.
        height: Pixels of the image.
        channels: C.

    Returns:
        None for latents of another shape.
    """
    one = latents[:1].float().cpu()
    if one.ndim == 4 and one.shape[1] == channels:
        return one[0]
    if one.ndim == 3 and one.shape[2] == 4 * channels:
        tokens = one.shape[1]
        across = round((tokens * width / height) ** 0.5)
        if across and tokens % across == 0:
            cells = one[0].reshape(tokens // across, across, channels, 2, 2)
            return cells.permute(2, 0, 3, 1, 4).reshape(channels, 2 * (tokens // across), 2 * across)
    return None


def make(latents: torch.Tensor, colour_map: torch.Tensor, width: int, height: int) -> bytes | None:
    """A small JPEG of what latents encode; None for latents that the map does not fit."""
    cells = unpack(latents, width, height, len(colour_map) - 1)
    if cells is None or not torch.isfinite(cells).all():
        return None
    colours = torch.einsum("chw,cr->hwr", cells, colour_map[:-1]) + colour_map[-1]
    pixels = (colours.clamp(0, 1) * 255).round().to(torch.uint8).contiguous()
    image = Image.frombytes("RGB", (pixels.shape[1], pixels.shape[0]), pixels.numpy().tobytes())
    scale = SIDE / max(width, height)
    image = image.resize((max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BICUBIC)
    for quality in _QUALITIES:
        target = io.BytesIO()
        image.save(target, "JPEG", quality=quality)
        if target.tell() <= MAX_PREVIEW_BYTES:
            return target.getvalue()
    return None
