"""Z-Image."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImageOmniPipeline, ZImagePipeline, ZImageTransformer2DModel
from transformers import Qwen3Model, Siglip2ImageProcessor, Siglip2VisionConfig, Siglip2VisionModel

from tests.contract.families.autoencoders import flow_vae
from tests.contract.families.calls import SIDE, image_to_image, inpainting, text_to_image
from tests.contract.families.family import Family
from tests.contract.families.inputs import NEGATIVE_PROMPT, picture
from tests.contract.families.text_encoders import WIDTH, qwen3_config
from tests.contract.families.tokenizers import qwen2_tokenizer

LATENTS = 16
_SIGLIP = 16


def transformer(**changes: Any) -> ZImageTransformer2DModel:
    """Z-Image's transformer, in which texts and images are one sequence."""
    return ZImageTransformer2DModel(
        **{
            "in_channels": LATENTS,
            "dim": 32,
            "n_layers": 2,
            "n_refiner_layers": 1,
            "n_heads": 2,
            "n_kv_heads": 2,
            "cap_feat_dim": WIDTH,
            "axes_dims": (4, 6, 6),
            "axes_lens": (1024, 64, 64),
        }
        | changes
    )


def components(**changes: Any) -> dict[str, Any]:
    """The components of Z-Image."""
    return {
        "transformer": transformer(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        "vae": flow_vae(latent_channels=LATENTS),
        "text_encoder": Qwen3Model(qwen3_config()).eval(),
        "tokenizer": qwen2_tokenizer(),
    } | changes


def _omni() -> ZImageOmniPipeline:
    config = Siglip2VisionConfig(
        hidden_size=_SIGLIP,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_patches=16,
        patch_size=16,
    )
    return ZImageOmniPipeline(
        **components(transformer=transformer(siglip_feat_dim=_SIGLIP)),
        siglip=Siglip2VisionModel(config).eval(),
        siglip_processor=Siglip2ImageProcessor(patch_size=16, max_num_patches=16),
    )


FAMILIES = (
    Family(
        "z-image",
        lambda: ZImagePipeline(**components()),
        {
            "ZImagePipeline": text_to_image(negative_prompt=NEGATIVE_PROMPT),
            "ZImageModularPipeline": text_to_image(),
            "ZImageImg2ImgPipeline": image_to_image(width=SIDE, height=SIDE),
            "ZImageInpaintPipeline": inpainting(),
        },
    ),
    Family(
        "z-image-omni",
        _omni,
        {"ZImageOmniPipeline": text_to_image(image=lambda width, height: [picture(width, height)])},
        dtype=torch.bfloat16,
    ),
)
