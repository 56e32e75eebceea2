"""EasyAnimate."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKLMagvit,
    EasyAnimateInpaintPipeline,
    EasyAnimatePipeline,
    EasyAnimateTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
)

from tests.contract.families.family import Call, Family, video
from tests.contract.families.inputs import NEGATIVE_PROMPT, PROMPT, clip
from tests.contract.families.text_encoders import WIDTH
from tests.contract.families.text_encoders_video import qwen2_vl
from tests.contract.families.tokenizers import qwen2_tokenizer

SIDE = 32
FRAMES = 5  #: 4 k + 1

_LATENTS = 4


def _components(**transformer: Any) -> dict[str, Any]:
    tokenizer = qwen2_tokenizer()
    return {
        "vae": AutoencoderKLMagvit(
            latent_channels=_LATENTS,
            block_out_channels=(8, 8, 8, 8),
            layers_per_block=1,
            norm_num_groups=2,
            spatial_group_norm=False,
        ),
        "text_encoder": qwen2_vl(tokenizer),
        "tokenizer": tokenizer,
        "transformer": EasyAnimateTransformer3DModel(
            **{
                "num_attention_heads": 2,
                "attention_head_dim": 16,
                "in_channels": _LATENTS,
                "out_channels": _LATENTS,
                "patch_size": 2,
                "sample_width": SIDE // 8,
                "sample_height": SIDE // 8,
                "num_layers": 2,
                "time_embed_dim": 8,
                "text_embed_dim": WIDTH,
            }
            | transformer
        ),
        "scheduler": FlowMatchEulerDiscreteScheduler(),
    }


def _arguments(**changes: Any) -> dict[str, Any]:
    return {
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE_PROMPT,
        "width": SIDE,
        "height": SIDE,
        "num_frames": FRAMES,
        "num_inference_steps": 2,
    } | changes


def _values() -> torch.Tensor:
    """A clip as (1, 3, frames, height, width) from 0 to 1; the pipeline takes no images."""
    frames = [torch.from_numpy(np.asarray(frame)) for frame in clip(FRAMES, SIDE, SIDE)]
    return torch.stack(frames).permute(3, 0, 1, 2)[None] / 255


def _mask() -> torch.Tensor:
    """The left half of the frames is painted anew."""
    mask = torch.zeros(1, 1, FRAMES, SIDE, SIDE)
    mask[..., : SIDE // 2] = 1
    return mask


_CLIP = video(FRAMES, SIDE, SIDE)

FAMILIES = (
    Family(
        "easyanimate",
        lambda: EasyAnimatePipeline(**_components()),
        {"EasyAnimatePipeline": Call(_arguments, _CLIP)},
    ),
    Family(
        "easyanimate-inpaint",
        lambda: EasyAnimateInpaintPipeline(**_components(in_channels=3 * _LATENTS, resize_inpaint_mask_directly=False)),
        {"EasyAnimateInpaintPipeline": Call(lambda: _arguments(video=_values(), mask_video=_mask()), _CLIP)},
    ),
)

IMPOSSIBLE = {
    "EasyAnimateControlPipeline": "a call fails in diffusers 0.42.1: encode_prompt() does not take text_encoder_index",
}
