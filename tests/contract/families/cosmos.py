"""Cosmos 3."""

from __future__ import annotations

from typing import Any

from diffusers import Cosmos3OmniPipeline, Cosmos3OmniTransformer, DiffusionPipeline, UniPCMultistepScheduler

from tests.contract.families import wan
from tests.contract.families.family import Call, Family, video
from tests.contract.families.inputs import picture
from tests.contract.families.tokenizers import qwen2_tokenizer


def _omni() -> DiffusionPipeline:
    tokenizer = qwen2_tokenizer()
    width = 16
    return Cosmos3OmniPipeline(
        transformer=Cosmos3OmniTransformer(
            head_dim=width // 2,
            hidden_size=width,
            intermediate_size=2 * width,
            latent_channel=wan.LATENTS,
            latent_patch_size=1,
            num_attention_heads=2,
            num_hidden_layers=2,
            num_key_value_heads=1,
            patch_latent_dim=wan.LATENTS,
            rope_axes_dim=[2, 1, 1],
            vocab_size=len(tokenizer),
            dtype="float32",
        ),
        text_tokenizer=tokenizer,
        vae=wan.vae(),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
        enable_safety_checker=False,
    )


def _arguments(**changes: Any) -> dict[str, Any]:
    return wan.text_arguments(image=picture(wan.SIDE, wan.SIDE), enable_safety_check=False) | changes


FAMILIES = (
    Family(
        "cosmos-3-omni",
        _omni,
        {"Cosmos3OmniPipeline": Call(_arguments, video(wan.FRAMES, wan.SIDE, wan.SIDE))},
    ),
)

_GUARDED = (
    "CosmosTextToWorldPipeline",
    "CosmosVideoToWorldPipeline",
    "Cosmos2TextToImagePipeline",
    "Cosmos2VideoToWorldPipeline",
    "Cosmos2_5_PredictBasePipeline",
    "Cosmos2_5_TransferPipeline",
)

IMPOSSIBLE = dict.fromkeys(_GUARDED, "needs the package cosmos_guardrail, which loads weights of its own from the Hub")
