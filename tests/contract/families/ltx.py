"""LTX-Video."""

from __future__ import annotations

from typing import Any

from diffusers import (
    AutoencoderKLLTXVideo,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    LTXConditionPipeline,
    LTXI2VLongMultiPromptPipeline,
    LTXLatentUpsamplePipeline,
    LTXPipeline,
    LTXVideoTransformer3DModel,
)
from diffusers.pipelines.ltx.modeling_latent_upsampler import LTXLatentUpsamplerModel

from tests.contract.families.family import Call, Family, video
from tests.contract.families.inputs import NEGATIVE_PROMPT, PROMPT, clip, picture
from tests.contract.families.text_encoders import WIDTH, t5_encoder
from tests.contract.families.tokenizers import t5_tokenizer

SIDE = 32
FRAMES = 9  #: 8 k + 1

_LATENTS = 8


def _vae() -> AutoencoderKLLTXVideo:
    """Latents of a quarter of the sides and of the frames."""
    return AutoencoderKLLTXVideo(
        latent_channels=_LATENTS,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=1,
    )


def _components() -> dict[str, Any]:
    tokenizer = t5_tokenizer(max_length=128)
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        "vae": _vae(),
        "text_encoder": t5_encoder(tokenizer),
        "tokenizer": tokenizer,
        "transformer": LTXVideoTransformer3DModel(
            in_channels=_LATENTS,
            out_channels=_LATENTS,
            num_attention_heads=4,
            attention_head_dim=8,
            cross_attention_dim=32,
            num_layers=2,
            caption_channels=WIDTH,
        ),
    }


def _latent_upsample() -> DiffusionPipeline:
    upsampler = LTXLatentUpsamplerModel(in_channels=_LATENTS, mid_channels=32, num_blocks_per_stage=1)
    return LTXLatentUpsamplePipeline(vae=_vae(), latent_upsampler=upsampler)


def _text_arguments(**changes: Any) -> dict[str, Any]:
    return {
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE_PROMPT,
        "width": SIDE,
        "height": SIDE,
        "num_frames": FRAMES,
        "num_inference_steps": 2,
    } | changes


def _long_arguments() -> dict[str, Any]:
    """Two windows of nine frames that share five, each with a prompt of its own."""
    return _text_arguments(
        prompt=f"{PROMPT} | a green sphere in the rain",
        cond_image=picture(SIDE, SIDE),
        guidance_scale=3.0,
        num_frames=13,
        temporal_tile_size=9,
        temporal_overlap=5,
        decode_horizontal_tiles=1,
        decode_vertical_tiles=1,
        decode_overlap=1,
        output_type="pil",
    )


_CLIP = video(FRAMES, SIDE, SIDE)

FAMILIES = (
    Family(
        "ltx",
        lambda: LTXPipeline(**_components()),
        {
            "LTXPipeline": Call(_text_arguments, _CLIP),
            "LTXModularPipeline": Call(_text_arguments, _CLIP),
            "LTXImageToVideoPipeline": Call(lambda: _text_arguments(image=picture(SIDE, SIDE)), _CLIP),
        },
    ),
    Family(
        "ltx-condition",
        lambda: LTXConditionPipeline(**_components()),
        {"LTXConditionPipeline": Call(lambda: _text_arguments(video=clip(FRAMES, SIDE, SIDE), strength=0.5), _CLIP)},
    ),
    Family(
        "ltx-long",
        lambda: LTXI2VLongMultiPromptPipeline(**_components()),
        {"LTXI2VLongMultiPromptPipeline": Call(_long_arguments, video(13, SIDE, SIDE))},
    ),
    Family(
        "ltx-upsample",
        _latent_upsample,
        {
            "LTXLatentUpsamplePipeline": Call(
                lambda: {"video": clip(FRAMES, SIDE, SIDE), "width": SIDE, "height": SIDE},
                video(FRAMES, 2 * SIDE, 2 * SIDE),
            )
        },
    ),
)
