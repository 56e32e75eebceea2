"""Models of videos that have one pipeline: Allegro, Latte, Mochi."""

from __future__ import annotations

from typing import Any

from diffusers import (
    AllegroPipeline,
    AllegroTransformer3DModel,
    AutoencoderKLAllegro,
    AutoencoderKLMochi,
    DDIMScheduler,
    DiffusionPipeline,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LattePipeline,
    LatteTransformer3DModel,
    MochiPipeline,
    MochiTransformer3DModel,
)

from tests.contract.families.autoencoders import vae
from tests.contract.families.family import Call, Family, video
from tests.contract.families.inputs import NEGATIVE_PROMPT, PROMPT
from tests.contract.families.text_encoders import WIDTH, t5_encoder
from tests.contract.families.tokenizers import t5_tokenizer

SIDE = 32


def _allegro() -> DiffusionPipeline:
    latents = 4
    tokenizer = t5_tokenizer()
    autoencoder = AutoencoderKLAllegro(
        latent_channels=latents,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=2,
        sample_size=SIDE,
    )
    return AllegroPipeline(
        tokenizer=tokenizer,
        text_encoder=t5_encoder(tokenizer),
        vae=autoencoder,
        transformer=AllegroTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=latents,
            out_channels=latents,
            num_layers=2,
            cross_attention_dim=24,
            sample_width=SIDE // 8,
            sample_height=SIDE // 8,
            sample_frames=_TILE // 4,
            caption_channels=WIDTH,
        ),
        scheduler=EulerAncestralDiscreteScheduler(),
    )


def _latte() -> DiffusionPipeline:
    autoencoder = vae()
    latents = autoencoder.config.latent_channels
    tokenizer = t5_tokenizer(max_length=120)
    return LattePipeline(
        tokenizer=tokenizer,
        text_encoder=t5_encoder(tokenizer),
        vae=autoencoder,
        transformer=LatteTransformer3DModel(
            sample_size=SIDE // 2,
            num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=3,
            caption_channels=WIDTH,
            in_channels=latents,
            cross_attention_dim=24,
            out_channels=2 * latents,
            attention_bias=True,
            activation_fn="gelu-approximate",
            num_embeds_ada_norm=1000,
            norm_type="ada_norm_single",
            norm_elementwise_affine=False,
            video_length=4,
        ),
        scheduler=DDIMScheduler(),
    )


def _mochi() -> DiffusionPipeline:
    latents = 12
    tokenizer = t5_tokenizer(max_length=256)
    return MochiPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=AutoencoderKLMochi(
            latent_channels=latents,
            encoder_block_out_channels=(32, 32, 32, 32),
            decoder_block_out_channels=(32, 32, 32, 32),
            layers_per_block=(1, 1, 1, 1, 1),
        ),
        text_encoder=t5_encoder(tokenizer),
        tokenizer=tokenizer,
        transformer=MochiTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            pooled_projection_dim=16,
            in_channels=latents,
            text_embed_dim=WIDTH,
            time_embed_dim=4,
        ),
    )


def _arguments(**changes: Any) -> dict[str, Any]:
    return {
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE_PROMPT,
        "width": SIDE,
        "height": SIDE,
        "num_inference_steps": 2,
    } | changes


#: The frames of one tile; Allegro's autoencoder decodes only whole tiles.
_TILE = 24

FAMILIES = (
    Family(
        "allegro",
        _allegro,
        {"AllegroPipeline": Call(lambda: _arguments(num_frames=_TILE), video(_TILE, SIDE, SIDE))},
        requires=("ftfy",),
        prepare=lambda pipeline: pipeline.vae.enable_tiling(),
    ),
    Family(
        "latte",
        _latte,
        {"LattePipeline": Call(lambda: _arguments(video_length=4), video(4, SIDE, SIDE))},
        requires=("bs4", "ftfy"),
    ),
    Family("mochi", _mochi, {"MochiPipeline": Call(lambda: _arguments(num_frames=7), video(7, SIDE, SIDE))}),
)
