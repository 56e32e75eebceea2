"""Stable Diffusion 1 and 2 and what was made of them."""

from __future__ import annotations

from typing import Any

from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)

from tests.contract.families.family import Call, Family, image
from tests.contract.families.inputs import PROMPT, mask, picture
from tests.contract.families.text_encoders import WIDTH, clip_text_encoder
from tests.contract.families.tokenizers import clip_tokenizer

SIDE = 64


def unet(**changes: Any) -> UNet2DConditionModel:
    """A UNet for latents of four channels, which are a quarter of the image's sides."""
    return UNet2DConditionModel(
        **{
            "sample_size": SIDE // 2,
            "in_channels": 4,
            "out_channels": 4,
            "block_out_channels": (16, 32),
            "norm_num_groups": 8,
            "layers_per_block": 1,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": WIDTH,
            "attention_head_dim": 2,
        }
        | changes
    )


def vae(**changes: Any) -> AutoencoderKL:
    """An image autoencoder that halves the sides."""
    return AutoencoderKL(
        **{
            "sample_size": SIDE,
            "latent_channels": 4,
            "block_out_channels": (8, 16),
            "norm_num_groups": 4,
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
        }
        | changes
    )


def scheduler() -> DDIMScheduler:
    """The noise schedule of Stable Diffusion 1.5."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
    )


def components() -> dict[str, Any]:
    """What most pipelines of this module take."""
    return {
        "vae": vae(),
        "text_encoder": clip_text_encoder(),
        "tokenizer": clip_tokenizer(),
        "unet": unet(),
        "scheduler": scheduler(),
    }


#: No safety checker: the pipelines warn about that unless it is said in this way.
UNCHECKED = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def _stable_diffusion() -> StableDiffusionPipeline:
    return StableDiffusionPipeline(**components(), **UNCHECKED)


FAMILIES = (
    Family(
        "stable-diffusion",
        _stable_diffusion,
        {
            "StableDiffusionPipeline": Call(
                lambda: {"prompt": PROMPT, "width": SIDE, "height": SIDE, "num_inference_steps": 2},
                image(SIDE, SIDE),
            ),
            "StableDiffusionImg2ImgPipeline": Call(
                lambda: {"prompt": PROMPT, "image": picture(SIDE, SIDE), "strength": 0.5, "num_inference_steps": 4},
                image(SIDE, SIDE),
            ),
            "StableDiffusionInpaintPipeline": Call(
                lambda: {
                    "prompt": PROMPT,
                    "image": picture(SIDE, SIDE),
                    "mask_image": mask(SIDE, SIDE),
                    "width": SIDE,
                    "height": SIDE,
                    "num_inference_steps": 2,
                },
                image(SIDE, SIDE),
            ),
        },
    ),
)
