"""Motif-Video."""

from __future__ import annotations

from typing import Any

from diffusers import (
    AdaptiveProjectedGuidance,
    FlowMatchEulerDiscreteScheduler,
    MotifVideoImage2VideoPipeline,
    MotifVideoPipeline,
    MotifVideoTransformer3DModel,
)

from tests.contract.families import wan
from tests.contract.families.family import Call, Family
from tests.contract.families.text_encoders import WIDTH
from tests.contract.families.text_encoders_video import siglip_processor, t5_gemma2
from tests.contract.families.tokenizers import gemma_tokenizer


def _components(**transformer: Any) -> dict[str, Any]:
    tokenizer = gemma_tokenizer()
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=7.0),
        "vae": wan.vae(),
        "text_encoder": t5_gemma2(tokenizer),
        "tokenizer": tokenizer,
        "transformer": MotifVideoTransformer3DModel(
            in_channels=2 * wan.LATENTS + 1,
            out_channels=wan.LATENTS,
            num_attention_heads=2,
            attention_head_dim=12,
            num_layers=1,
            num_single_layers=1,
            patch_size=1,
            text_embed_dim=WIDTH,
            rope_axes_dim=(4, 4, 4),
            **transformer,
        ),
        "guider": AdaptiveProjectedGuidance(guidance_scale=4.0),
    }


FAMILIES = (
    Family(
        "motif-video",
        lambda: MotifVideoPipeline(**_components(), feature_extractor=None),
        {"MotifVideoPipeline": Call(wan.text_arguments, wan.CLIP)},
    ),
    Family(
        "motif-video-image",
        lambda: MotifVideoImage2VideoPipeline(
            **_components(image_embed_dim=WIDTH), feature_extractor=siglip_processor()
        ),
        {"MotifVideoImage2VideoPipeline": Call(wan.image_arguments, wan.CLIP)},
    ),
)
