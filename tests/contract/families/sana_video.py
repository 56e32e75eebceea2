"""Sana Video and SANA-WM, which moves a camera through the scene of an image."""

from __future__ import annotations

from typing import Any

from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    SanaImageToVideoPipeline,
    SanaVideoPipeline,
    SanaVideoTransformer3DModel,
    SanaWMPipeline,
    SanaWMTransformer3DModel,
)

from tests.contract.families import ltx2, wan
from tests.contract.families.family import Call, Family, video
from tests.contract.families.inputs import NEGATIVE_PROMPT, PROMPT, picture
from tests.contract.families.text_encoders import WIDTH, gemma2
from tests.contract.families.tokenizers import gemma_tokenizer


def _components(scheduler: Any) -> dict[str, Any]:
    tokenizer = gemma_tokenizer()
    return {
        "tokenizer": tokenizer,
        "text_encoder": gemma2(tokenizer),
        "vae": wan.vae(),
        "transformer": SanaVideoTransformer3DModel(
            in_channels=wan.LATENTS,
            out_channels=wan.LATENTS,
            num_attention_heads=2,
            attention_head_dim=12,
            num_layers=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=12,
            cross_attention_dim=24,
            caption_channels=WIDTH,
            sample_size=wan.SIDE // 8,
            rope_max_seq_len=32,
        ),
        "scheduler": scheduler,
    }


def _world_model() -> SanaWMPipeline:
    tokenizer = gemma_tokenizer()
    autoencoder = ltx2.vae()
    return SanaWMPipeline(
        tokenizer=tokenizer,
        text_encoder=gemma2(tokenizer),
        vae=autoencoder,
        transformer=SanaWMTransformer3DModel(
            in_channels=ltx2.LATENTS,
            num_layers=2,
            hidden_size=32,
            num_attention_heads=2,
            softmax_every_n=2,
            linear_head_dim=16,
            chunk_plucker_channels=6 * autoencoder.temporal_compression_ratio,
            chunk_plucker_post_attn_blocks=2,
            caption_channels=WIDTH,
            image_size=ltx2.SIDE,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def _arguments(**changes: Any) -> dict[str, Any]:
    return {
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE_PROMPT,
        "width": wan.SIDE,
        "height": wan.SIDE,
        "frames": wan.FRAMES,
        "use_resolution_binning": False,
        "num_inference_steps": 2,
    } | changes


def _world_arguments() -> dict[str, Any]:
    """The camera goes forward for the whole clip."""
    return {
        "image": picture(ltx2.SIDE, ltx2.SIDE),
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE_PROMPT,
        "action": f"w-{ltx2.FRAMES}",
        "intrinsics": [32.0, 32.0, 16.0, 16.0],
        "width": ltx2.SIDE,
        "height": ltx2.SIDE,
        "num_frames": ltx2.FRAMES,
        "num_inference_steps": 2,
    }


FAMILIES = (
    Family(
        "sana-video",
        lambda: SanaVideoPipeline(
            **_components(
                DPMSolverMultistepScheduler(
                    prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, final_sigmas_type="zero"
                )
            )
        ),
        {"SanaVideoPipeline": Call(_arguments, wan.CLIP)},
    ),
    Family(
        "sana-video-image",
        lambda: SanaImageToVideoPipeline(**_components(FlowMatchEulerDiscreteScheduler(shift=3.0))),
        {"SanaImageToVideoPipeline": Call(lambda: _arguments(image=picture(wan.SIDE, wan.SIDE)), wan.CLIP)},
    ),
    Family(
        "sana-wm",
        _world_model,
        {"SanaWMPipeline": Call(_world_arguments, video(ltx2.FRAMES, ltx2.SIDE, ltx2.SIDE))},
    ),
)
