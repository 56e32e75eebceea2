"""Hunyuan-Image 2.1 and its refiner."""

from __future__ import annotations

from diffusers import (
    AutoencoderKLHunyuanImage,
    AutoencoderKLHunyuanImageRefiner,
    FlowMatchEulerDiscreteScheduler,
    HunyuanImagePipeline,
    HunyuanImageRefinerPipeline,
    HunyuanImageTransformer2DModel,
)
from diffusers.guiders import AdaptiveProjectedMixGuidance
from transformers import ByT5Tokenizer

from tests.contract.families.calls import text_to_image
from tests.contract.families.family import Family
from tests.contract.families.inputs import NEGATIVE_PROMPT, picture
from tests.contract.families.text_encoders import WIDTH, qwen2_5_vl, t5_encoder
from tests.contract.families.tokenizers import qwen2_tokenizer

_LATENTS = 4


def _hunyuan_image() -> HunyuanImagePipeline:
    """ByT5 reads what the prompt puts in quotes, letter by letter."""
    glyphs = ByT5Tokenizer()
    return HunyuanImagePipeline(
        transformer=HunyuanImageTransformer2DModel(
            in_channels=_LATENTS,
            out_channels=_LATENTS,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            text_embed_dim=WIDTH,
            text_embed_2_dim=WIDTH,
            rope_axes_dim=(8, 8),
        ),
        vae=AutoencoderKLHunyuanImage(
            in_channels=3,
            out_channels=3,
            latent_channels=_LATENTS,
            block_out_channels=(32, 32, 32),
            layers_per_block=1,
            spatial_compression_ratio=4,
            sample_size=32,
            scaling_factor=0.5,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        text_encoder=qwen2_5_vl(),
        tokenizer=qwen2_tokenizer(),
        text_encoder_2=t5_encoder(glyphs),
        tokenizer_2=glyphs,
        guider=AdaptiveProjectedMixGuidance(),
        ocr_guider=AdaptiveProjectedMixGuidance(),
    )


def _refiner() -> HunyuanImageRefinerPipeline:
    """Two frames of latents are one latent, and those of the image that is refined are concatenated with the noise."""
    return HunyuanImageRefinerPipeline(
        transformer=HunyuanImageTransformer2DModel(
            in_channels=4 * _LATENTS,
            out_channels=2 * _LATENTS,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            patch_size=(1, 1, 1),
            guidance_embeds=True,
            text_embed_dim=WIDTH,
            rope_axes_dim=(4, 6, 6),
        ),
        vae=AutoencoderKLHunyuanImageRefiner(
            latent_channels=_LATENTS,
            block_out_channels=(16, 16, 16, 16),
            layers_per_block=1,
            spatial_compression_ratio=8,
            temporal_compression_ratio=2,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=4.0),
        text_encoder=qwen2_5_vl(),
        tokenizer=qwen2_tokenizer(),
    )


FAMILIES = (
    Family(
        "hunyuan-image",
        _hunyuan_image,
        {"HunyuanImagePipeline": text_to_image(prompt='a red sign with "open" on it', negative_prompt=NEGATIVE_PROMPT)},
    ),
    Family("hunyuan-image-refiner", _refiner, {"HunyuanImageRefinerPipeline": text_to_image(image=picture)}),
)
