"""AnimateDiff and PIA: an image model with layers that connect the frames."""

from __future__ import annotations

from typing import Any

from diffusers import (
    AnimateDiffControlNetPipeline,
    AnimateDiffPAGPipeline,
    AnimateDiffPipeline,
    AnimateDiffSDXLPipeline,
    AnimateDiffSparseControlNetPipeline,
    ControlNetModel,
    MotionAdapter,
    PIAPipeline,
    SparseControlNetModel,
)

from tests.contract.families import stable_diffusion
from tests.contract.families.family import Call, Family, video
from tests.contract.families.inputs import NEGATIVE_PROMPT, PROMPT, clip, picture
from tests.contract.families.text_encoders import WIDTH, clip_text_encoder_with_projection
from tests.contract.families.tokenizers import clip_tokenizer

SIDE = 32
FRAMES = 4

_CHANNELS = (16, 32)


def _motion_adapter(**changes: Any) -> MotionAdapter:
    return MotionAdapter(
        **{
            "block_out_channels": _CHANNELS,
            "motion_layers_per_block": 1,
            "motion_norm_num_groups": 8,
            "motion_num_attention_heads": 4,
            "motion_max_seq_length": 16,
        }
        | changes
    )


def _components(**changes: Any) -> dict[str, Any]:
    return stable_diffusion.components() | {"motion_adapter": _motion_adapter()} | changes


def _controlnet() -> ControlNetModel:
    return ControlNetModel(
        block_out_channels=_CHANNELS,
        norm_num_groups=8,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        conditioning_embedding_out_channels=(8, 16),
    )


def _sparse_controlnet() -> SparseControlNetModel:
    """Takes the frames that are given as latents, and noise for the others."""
    return SparseControlNetModel(
        block_out_channels=_CHANNELS,
        norm_num_groups=8,
        layers_per_block=1,
        down_block_types=("DownBlockMotion", "CrossAttnDownBlockMotion"),
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        motion_num_attention_heads=4,
        conditioning_channels=4,
    )


def _sdxl() -> AnimateDiffSDXLPipeline:
    numbers = 8
    unet = stable_diffusion.unet(
        cross_attention_dim=2 * WIDTH,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=numbers,
        projection_class_embeddings_input_dim=6 * numbers + WIDTH,
    )
    return AnimateDiffSDXLPipeline(
        **_components(unet=unet, motion_adapter=_motion_adapter(use_motion_mid_block=False)),
        text_encoder_2=clip_text_encoder_with_projection(),
        tokenizer_2=clip_tokenizer(),
    )


def _pia() -> PIAPipeline:
    """The adapter has a first convolution of its own, which takes the image and the mask beside the noise."""
    return PIAPipeline(**_components(motion_adapter=_motion_adapter(conv_in_channels=9)))


def _arguments(**changes: Any) -> dict[str, Any]:
    return {
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE_PROMPT,
        "width": SIDE,
        "height": SIDE,
        "num_frames": FRAMES,
        "num_inference_steps": 2,
    } | changes


def _video_arguments(**changes: Any) -> dict[str, Any]:
    arguments = _arguments(video=clip(FRAMES, SIDE, SIDE), num_inference_steps=3, **changes)
    del arguments["num_frames"]
    return arguments


def _control_frames() -> list[Any]:
    return clip(FRAMES, SIDE, SIDE, seed=1)


_CLIP = video(FRAMES, SIDE, SIDE)

FAMILIES = (
    Family(
        "animatediff",
        lambda: AnimateDiffPipeline(**_components()),
        {
            "AnimateDiffPipeline": Call(_arguments, _CLIP),
            "AnimateDiffVideoToVideoPipeline": Call(_video_arguments, _CLIP),
        },
    ),
    Family(
        "animatediff-controlnet",
        lambda: AnimateDiffControlNetPipeline(**_components(), controlnet=_controlnet()),
        {
            "AnimateDiffControlNetPipeline": Call(lambda: _arguments(conditioning_frames=_control_frames()), _CLIP),
            "AnimateDiffVideoToVideoControlNetPipeline": Call(
                lambda: _video_arguments(conditioning_frames=_control_frames()), _CLIP
            ),
        },
    ),
    Family(
        "animatediff-sparse-controlnet",
        lambda: AnimateDiffSparseControlNetPipeline(**_components(), controlnet=_sparse_controlnet()),
        {
            "AnimateDiffSparseControlNetPipeline": Call(
                lambda: _arguments(conditioning_frames=clip(2, SIDE, SIDE), controlnet_frame_indices=[0, 3]), _CLIP
            )
        },
    ),
    Family("animatediff-sdxl", _sdxl, {"AnimateDiffSDXLPipeline": Call(_arguments, _CLIP)}),
    Family(
        "animatediff-pag",
        lambda: AnimateDiffPAGPipeline(**_components(), pag_applied_layers=["mid"]),
        {"AnimateDiffPAGPipeline": Call(_arguments, _CLIP)},
    ),
    Family("pia", _pia, {"PIAPipeline": Call(lambda: _arguments(image=picture(SIDE, SIDE)), _CLIP)}),
)
