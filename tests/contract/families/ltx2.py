"""LTX-2: videos with sound."""

from __future__ import annotations

from typing import Any

from diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    LTX2ConditionPipeline,
    LTX2DFRPipeline,
    LTX2HDRPipeline,
    LTX2InContextPipeline,
    LTX2LatentUpsamplePipeline,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
)
from diffusers.pipelines.ltx2 import LTX2LatentUpsamplerModel, LTX2TextConnectors, LTX2Vocoder
from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition
from diffusers.pipelines.ltx2.pipeline_ltx2_hdr_lora import LTX2HDRReferenceCondition
from diffusers.pipelines.ltx2.pipeline_ltx2_ic_lora import LTX2ReferenceCondition

from tests.contract.families.family import Call, Family, video
from tests.contract.families.inputs import NEGATIVE_PROMPT, PROMPT, clip, picture
from tests.contract.families.text_encoders import WIDTH
from tests.contract.families.text_encoders_video import gemma3
from tests.contract.families.tokenizers import gemma_tokenizer

SIDE = 32
FRAMES = 5

LATENTS = 4
_MEL_BINS = 8


def vae() -> AutoencoderKLLTX2Video:
    """Latents of half the sides and of half the frames."""
    return AutoencoderKLLTX2Video(
        latent_channels=LATENTS,
        block_out_channels=(8,),
        decoder_block_out_channels=(8,),
        layers_per_block=(1,),
        decoder_layers_per_block=(1, 1),
        spatio_temporal_scaling=(True,),
        decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False),
        downsample_type=("spatiotemporal",),
        upsample_residual=(False,),
        upsample_factor=(1,),
        patch_size=1,
    )


def _audio_vae() -> AutoencoderKLLTX2Audio:
    return AutoencoderKLLTX2Audio(
        base_channels=4,
        output_channels=2,
        ch_mult=(1,),
        num_res_blocks=1,
        in_channels=2,
        resolution=32,
        latent_channels=2,
        mel_bins=_MEL_BINS,
    )


def _vocoder() -> LTX2Vocoder:
    return LTX2Vocoder(
        in_channels=2 * _MEL_BINS,
        hidden_channels=32,
        upsample_kernel_sizes=[4, 4],
        upsample_factors=[2, 2],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1, 3, 5]],
        output_sampling_rate=16000,
    )


def _components(**transformer: Any) -> dict[str, Any]:
    tokenizer = gemma_tokenizer()
    text_encoder = gemma3(tokenizer)
    layers = text_encoder.config.text_config.num_hidden_layers
    connector = {
        "num_attention_heads": 4,
        "attention_head_dim": WIDTH // 4,
        "num_layers": 1,
        "num_learnable_registers": 8,
    }
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        "vae": vae(),
        "audio_vae": _audio_vae(),
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "connectors": LTX2TextConnectors(
            caption_channels=WIDTH,
            text_proj_in_factor=layers + 1,
            connector_rope_base_seq_len=32,
            **{f"{media}_connector_{name}": value for media in ("video", "audio") for name, value in connector.items()},
        ),
        "transformer": LTX2VideoTransformer3DModel(
            in_channels=LATENTS,
            out_channels=LATENTS,
            num_attention_heads=2,
            attention_head_dim=8,
            cross_attention_dim=16,
            audio_in_channels=2 * _MEL_BINS // 4,
            audio_out_channels=2 * _MEL_BINS // 4,
            audio_num_attention_heads=2,
            audio_attention_head_dim=4,
            audio_cross_attention_dim=8,
            num_layers=2,
            caption_channels=WIDTH,
            **transformer,
        ),
        "vocoder": _vocoder(),
    }


def _latent_upsample() -> DiffusionPipeline:
    upsampler = LTX2LatentUpsamplerModel(in_channels=LATENTS, mid_channels=32, num_blocks_per_stage=1)
    return LTX2LatentUpsamplePipeline(vae=vae(), latent_upsampler=upsampler)


def _text_arguments(**changes: Any) -> dict[str, Any]:
    return {
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE_PROMPT,
        "width": SIDE,
        "height": SIDE,
        "num_frames": FRAMES,
        "num_inference_steps": 2,
        "max_sequence_length": 64,
    } | changes


def _dfr_arguments() -> dict[str, Any]:
    arguments = _text_arguments(sigmas=[1.0, 0.5], conditions=[LTX2VideoCondition(picture(SIDE, SIDE))])
    del arguments["negative_prompt"], arguments["num_inference_steps"]
    return arguments


_CLIP = video(FRAMES, SIDE, SIDE, sound=(2, 68))

FAMILIES = (
    Family(
        "ltx-2",
        lambda: LTX2Pipeline(**_components()),
        {
            "LTX2Pipeline": Call(_text_arguments, _CLIP),
            "LTX2ImageToVideoPipeline": Call(lambda: _text_arguments(image=picture(SIDE, SIDE)), _CLIP),
        },
        requires=("av",),
    ),
    Family(
        "ltx-2-condition",
        lambda: LTX2ConditionPipeline(**_components()),
        {
            "LTX2ConditionPipeline": Call(
                lambda: _text_arguments(conditions=[LTX2VideoCondition(picture(SIDE, SIDE))]), _CLIP
            )
        },
        requires=("av",),
    ),
    Family(
        "ltx-2-in-context",
        lambda: LTX2InContextPipeline(**_components()),
        {
            "LTX2InContextPipeline": Call(
                lambda: _text_arguments(
                    reference_conditions=[LTX2ReferenceCondition(clip(FRAMES, SIDE, SIDE))],
                    conditions=[LTX2VideoCondition(picture(SIDE, SIDE))],
                ),
                _CLIP,
            )
        },
        requires=("av",),
    ),
    Family(
        "ltx-2-hdr",
        lambda: LTX2HDRPipeline(**_components()),
        {
            "LTX2HDRPipeline": Call(
                lambda: _text_arguments(
                    guidance_scale=3.0, reference_conditions=[LTX2HDRReferenceCondition(clip(FRAMES, SIDE, SIDE))]
                ),
                video(FRAMES, SIDE, SIDE),
            )
        },
    ),
    Family(
        "ltx-2-dfr",
        lambda: LTX2DFRPipeline(**_components(use_keyframes_abs_pos_embedding=True)),
        {"LTX2DFRPipeline": Call(_dfr_arguments, video(FRAMES, SIDE, SIDE, sound=(2, 100)))},
        requires=("av",),
    ),
    Family(
        "ltx-2-upsample",
        _latent_upsample,
        {
            "LTX2LatentUpsamplePipeline": Call(
                lambda: {
                    "video": clip(FRAMES, SIDE, SIDE),
                    "width": SIDE,
                    "height": SIDE,
                    "num_frames": FRAMES,
                },
                video(FRAMES, 2 * SIDE, 2 * SIDE),
            )
        },
    ),
)

IMPOSSIBLE = {
    "LTX2DFRTemporalRefinePipeline": "takes the latents of LTX2DFRPipeline",
    "LTX2VideoDiffusionDecodePipeline": "takes the latents of another pipeline, and compiles its attention",
}
