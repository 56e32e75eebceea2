"""Qwen-Image, its edits and its layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImageLayeredPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from PIL import Image

from tests.contract.families.autoencoders import qwen_vae
from tests.contract.families.calls import SIDE, call, image_to_image, inpainting, text_to_image
from tests.contract.families.family import Family, image
from tests.contract.families.inputs import NEGATIVE_PROMPT, PROMPT, picture, pictures
from tests.contract.families.text_encoders import WIDTH, qwen2_5_vl, qwen2_vl_processor
from tests.contract.families.tokenizers import qwen2_tokenizer


def transformer(**changes: Any) -> QwenImageTransformer2DModel:
    """Qwen-Image's transformer, whose tokens are four latents."""
    return QwenImageTransformer2DModel(
        **{
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": WIDTH,
            "axes_dims_rope": (4, 6, 6),
        }
        | changes
    )


def components(**changes: Any) -> dict[str, Any]:
    """The components of Qwen-Image."""
    return {
        "transformer": transformer(),
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        "vae": qwen_vae(),
        "text_encoder": qwen2_5_vl(),
        "tokenizer": qwen2_tokenizer(),
    } | changes


def _edit_components(**changes: Any) -> dict[str, Any]:
    """The pipelines scale an input image to a megapixel: the autoencoder is narrow and makes few tokens of it."""
    return components(vae=qwen_vae(5, base_dim=2), processor=qwen2_vl_processor(), **changes)


def _layered() -> QwenImageLayeredPipeline:
    """The layers have an alpha channel; an input with as many channels as the latents would be taken for latents."""
    return QwenImageLayeredPipeline(
        **components(
            vae=qwen_vae(5, 8, base_dim=2, input_channels=4),
            transformer=transformer(in_channels=32, out_channels=8, use_additional_t_cond=True, use_layer3d_rope=True),
            processor=qwen2_vl_processor(),
        )
    )


def _rgba(width: int, height: int) -> Image.Image:
    return picture(width, height).convert("RGBA")


_SIZE = {"width": SIDE, "height": SIDE}

FAMILIES = (
    Family(
        "qwen-image",
        lambda: QwenImagePipeline(**components()),
        {
            "QwenImagePipeline": text_to_image(negative_prompt=NEGATIVE_PROMPT),
            "QwenImageModularPipeline": text_to_image(negative_prompt=NEGATIVE_PROMPT),
            "QwenImageImg2ImgPipeline": image_to_image(**_SIZE),
            "QwenImageInpaintPipeline": inpainting(),
        },
    ),
    Family(
        "qwen-image-edit",
        lambda: QwenImageEditPipeline(**_edit_components()),
        {
            "QwenImageEditPipeline": text_to_image(image=picture),
            # This class ignores width and height.
            "QwenImageEditInpaintPipeline": replace(inpainting(width=None, height=None), output=image(1024, 1024)),
        },
        requires=("torchvision",),
    ),
    Family(
        "qwen-image-edit-plus",
        lambda: QwenImageEditPlusPipeline(**_edit_components()),
        {"QwenImageEditPlusPipeline": text_to_image(image=pictures)},
        requires=("torchvision",),
    ),
    Family(
        "qwen-image-layered",
        _layered,
        {
            "QwenImageLayeredPipeline": call(
                image(640, 640, 2), prompt=PROMPT, image=_rgba, layers=2, resolution=640, num_inference_steps=2
            )
        },
        requires=("torchvision",),
    ),
)
