"""Kandinsky 5's models of videos."""

from __future__ import annotations

from typing import Any

from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    Kandinsky5I2VPipeline,
    Kandinsky5T2VPipeline,
    Kandinsky5Transformer3DModel,
)

from tests.contract.families.family import Call, Family, video
from tests.contract.families.inputs import NEGATIVE_PROMPT, PROMPT, picture
from tests.contract.families.text_encoders import WIDTH, clip_text_encoder, qwen2_5_vl, qwen2_vl_processor
from tests.contract.families.tokenizers import clip_tokenizer

SIDE = 32
FRAMES = 5  #: 4 k + 1

_LATENTS = 4


def _components(*, image: bool) -> dict[str, Any]:
    return {
        "transformer": Kandinsky5Transformer3DModel(
            in_visual_dim=_LATENTS,
            in_text_dim=WIDTH,
            in_text_dim2=WIDTH,
            time_dim=16,
            out_visual_dim=_LATENTS,
            model_dim=16,
            ff_dim=32,
            num_text_blocks=1,
            num_visual_blocks=2,
            axes_dims=(1, 1, 2),
            visual_cond=image,
        ),
        "vae": AutoencoderKLHunyuanVideo(
            latent_channels=_LATENTS, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
        ),
        "text_encoder": qwen2_5_vl(),
        "tokenizer": qwen2_vl_processor(),
        "text_encoder_2": clip_text_encoder(),
        "tokenizer_2": clip_tokenizer(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=5.0),
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


#: Five frames of latents: the pipeline normalizes the first four by those that follow.
_IMAGE_FRAMES = 17

FAMILIES = (
    Family(
        "kandinsky-5-video",
        lambda: Kandinsky5T2VPipeline(**_components(image=False)),
        {"Kandinsky5T2VPipeline": Call(_arguments, video(FRAMES, SIDE, SIDE))},
        requires=("ftfy", "torchvision"),
    ),
    Family(
        "kandinsky-5-video-image",
        lambda: Kandinsky5I2VPipeline(**_components(image=True)),
        {
            "Kandinsky5I2VPipeline": Call(
                lambda: _arguments(image=picture(SIDE, SIDE), num_frames=_IMAGE_FRAMES),
                video(_IMAGE_FRAMES, SIDE, SIDE),
            )
        },
        requires=("ftfy", "torchvision"),
    ),
)
