"""Stable Diffusion XL and what has its components."""

from __future__ import annotations

from typing import Any

from diffusers import (
    EDMDPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLInstructPix2PixPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

from tests.contract.families.autoencoders import vae
from tests.contract.families.calls import image_to_image, inpainting, text_to_image
from tests.contract.families.family import Family
from tests.contract.families.inputs import NEGATIVE_PROMPT
from tests.contract.families.stable_diffusion import unet
from tests.contract.families.text_encoders import WIDTH, clip_text_encoder, clip_text_encoder_with_projection
from tests.contract.families.tokenizers import clip_tokenizer

_TIME = 8


def xl_unet(*, size_numbers: int = 6, **changes: Any) -> UNet2DConditionModel:
    """SDXL's UNet: the original size, the crop and the target size are embedded as six numbers beside the text."""
    return unet(
        **{
            "cross_attention_dim": 2 * WIDTH,
            "transformer_layers_per_block": (1, 2),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": _TIME,
            "projection_class_embeddings_input_dim": size_numbers * _TIME + WIDTH,
        }
        | changes
    )


def components(**changes: Any) -> dict[str, Any]:
    """The components of SDXL."""
    return {
        "vae": vae(),
        "text_encoder": clip_text_encoder(),
        "text_encoder_2": clip_text_encoder_with_projection(),
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": clip_tokenizer(),
        "unet": xl_unet(),
        "scheduler": EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading"
        ),
    } | changes


def _refiner() -> StableDiffusionXLImg2ImgPipeline:
    """The refiner has only the second text encoder and an aesthetic score instead of a target size."""
    changes = {
        "text_encoder": None,
        "tokenizer": None,
        "unet": xl_unet(size_numbers=5, cross_attention_dim=WIDTH),
    }
    return StableDiffusionXLImg2ImgPipeline(**components(**changes), requires_aesthetics_score=True)


def _inpaint() -> StableDiffusionXLInpaintPipeline:
    return StableDiffusionXLInpaintPipeline(**components(unet=xl_unet(in_channels=9)))


def _pix2pix() -> StableDiffusionXLInstructPix2PixPipeline:
    return StableDiffusionXLInstructPix2PixPipeline(**components(unet=xl_unet(in_channels=8)))


def _playground() -> StableDiffusionXLPipeline:
    """Playground 2.5 has the components of SDXL with a scheduler and latents of its own."""
    return StableDiffusionXLPipeline(
        **components(
            vae=vae(latents_mean=[0.1, -0.1, 0.2, 0.0], latents_std=[1.0, 1.2, 0.9, 1.1], scaling_factor=0.5),
            scheduler=EDMDPMSolverMultistepScheduler(),
        )
    )


FAMILIES = (
    Family(
        "stable-diffusion-xl",
        lambda: StableDiffusionXLPipeline(**components()),
        {
            "StableDiffusionXLPipeline": text_to_image(negative_prompt=NEGATIVE_PROMPT),
            "StableDiffusionXLModularPipeline": text_to_image(negative_prompt=NEGATIVE_PROMPT),
            "StableDiffusionXLImg2ImgPipeline": image_to_image(),
            "StableDiffusionXLInpaintPipeline": inpainting(),
        },
    ),
    Family("stable-diffusion-xl-refiner", _refiner, {"StableDiffusionXLImg2ImgPipeline": image_to_image()}),
    Family("stable-diffusion-xl-inpainting", _inpaint, {"StableDiffusionXLInpaintPipeline": inpainting()}),
    Family(
        "stable-diffusion-xl-instruct-pix2pix",
        _pix2pix,
        {"StableDiffusionXLInstructPix2PixPipeline": image_to_image(strength=None)},
    ),
    Family("playground", _playground, {"StableDiffusionXLPipeline": text_to_image()}),
)
