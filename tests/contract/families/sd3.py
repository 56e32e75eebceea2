"""Stable Diffusion 3 and 3.5."""

from __future__ import annotations

from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

from tests.contract.families.autoencoders import flow_vae
from tests.contract.families.calls import SIDE, image_to_image, inpainting, text_to_image
from tests.contract.families.family import Family
from tests.contract.families.inputs import NEGATIVE_PROMPT
from tests.contract.families.text_encoders import WIDTH, clip_text_encoder_with_projection, t5_encoder
from tests.contract.families.tokenizers import clip_tokenizer, t5_tokenizer

#: T5's hidden states hold those of the two CLIP encoders side by side.
TEXT_WIDTH = 2 * WIDTH

#: The channels of the latents, which the inpainting pipeline knows.
LATENTS = 16


def transformer(**changes: Any) -> SD3Transformer2DModel:
    """SD3's transformer."""
    return SD3Transformer2DModel(
        **{
            "sample_size": 32,
            "patch_size": 2,
            "in_channels": LATENTS,
            "out_channels": LATENTS,
            "num_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "caption_projection_dim": 32,
            "joint_attention_dim": TEXT_WIDTH,
            "pooled_projection_dim": 2 * WIDTH,
            "pos_embed_max_size": 96,
        }
        | changes
    )


def components(**changes: Any) -> dict[str, Any]:
    """The components of SD3."""
    return {
        "transformer": transformer(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        "vae": flow_vae(latent_channels=LATENTS),
        "text_encoder": clip_text_encoder_with_projection(),
        "tokenizer": clip_tokenizer(),
        "text_encoder_2": clip_text_encoder_with_projection(),
        "tokenizer_2": clip_tokenizer(),
        "text_encoder_3": t5_encoder(t5_tokenizer(), TEXT_WIDTH),
        "tokenizer_3": t5_tokenizer(),
    } | changes


def _medium() -> StableDiffusion3Pipeline:
    """SD 3.5 Medium: some blocks have a second attention over the image alone."""
    return StableDiffusion3Pipeline(
        **components(transformer=transformer(dual_attention_layers=(0,), qk_norm="rms_norm"))
    )


FAMILIES = (
    Family(
        "stable-diffusion-3",
        lambda: StableDiffusion3Pipeline(**components()),
        {
            "StableDiffusion3Pipeline": text_to_image(negative_prompt=NEGATIVE_PROMPT),
            "StableDiffusion3ModularPipeline": text_to_image(negative_prompt=NEGATIVE_PROMPT),
            "StableDiffusion3Img2ImgPipeline": image_to_image(width=SIDE, height=SIDE),
            "StableDiffusion3InpaintPipeline": inpainting(),
        },
    ),
    Family("stable-diffusion-3.5-medium", _medium, {"StableDiffusion3Pipeline": text_to_image()}),
)
