"""Sana Video."""

from __future__ import annotations

from typing import Any

from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    SanaImageToVideoPipeline,
    SanaVideoPipeline,
    SanaVideoTransformer3DModel,
)

from tests.contract.families import wan
from tests.contract.families.family import Call, Family
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
)
