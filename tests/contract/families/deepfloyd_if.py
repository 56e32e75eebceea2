"""DeepFloyd IF, which draws pixels: a first stage and one that enlarges its images."""

from __future__ import annotations

from typing import Any

from diffusers import (
    DDPMScheduler,
    IFImg2ImgSuperResolutionPipeline,
    IFInpaintingSuperResolutionPipeline,
    IFPipeline,
    IFSuperResolutionPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.deepfloyd_if.watermark import IFWatermarker
from PIL import Image

from tests.contract.families.calls import SIDE, image_to_image, text_to_image
from tests.contract.families.family import Family
from tests.contract.families.inputs import mask, picture
from tests.contract.families.text_encoders import WIDTH, t5_encoder
from tests.contract.families.tokenizers import t5_tokenizer


def _unet(**changes: Any) -> UNet2DConditionModel:
    """Predicts the noise of three colours and its variance."""
    return UNet2DConditionModel(
        **{
            "sample_size": SIDE,
            "in_channels": 3,
            "out_channels": 6,
            "block_out_channels": (16, 32),
            "norm_num_groups": 8,
            "layers_per_block": 1,
            "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
            "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            "cross_attention_dim": 32,
            "encoder_hid_dim": WIDTH,
            "attention_head_dim": 8,
            "addition_embed_type": "text",
            "addition_embed_type_num_heads": 2,
            "cross_attention_norm": "group_norm",
            "resnet_time_scale_shift": "scale_shift",
            "act_fn": "gelu",
        }
        | changes
    )


def _components(**changes: Any) -> dict[str, Any]:
    return {
        "tokenizer": t5_tokenizer(),
        "text_encoder": t5_encoder(t5_tokenizer()),
        "unet": _unet(),
        "scheduler": DDPMScheduler(
            beta_schedule="squaredcos_cap_v2",
            thresholding=True,
            dynamic_thresholding_ratio=0.95,
            sample_max_value=1.0,
            variance_type="learned_range",
        ),
        "safety_checker": None,
        "feature_extractor": None,
        "watermarker": IFWatermarker(),
        "requires_safety_checker": False,
    } | changes


def _second_stage() -> dict[str, Any]:
    """The small image is enlarged and made noisy before the UNet reads it."""
    return _components(
        unet=_unet(in_channels=6, class_embed_type="timestep"),
        image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
    )


def _small(width: int, height: int) -> Image.Image:
    """What a first stage returns: a quarter of the sides."""
    return picture(width // 4, height // 4)


FAMILIES = (
    Family(
        "deepfloyd-if",
        lambda: IFPipeline(**_components()),
        {
            "IFPipeline": text_to_image(),
            "IFImg2ImgPipeline": image_to_image(),
            "IFInpaintingPipeline": image_to_image(mask_image=mask),
        },
    ),
    Family(
        "deepfloyd-if-super-resolution",
        lambda: IFSuperResolutionPipeline(**_second_stage()),
        {"IFSuperResolutionPipeline": text_to_image(image=_small)},
    ),
    Family(
        "deepfloyd-if-img2img-super-resolution",
        lambda: IFImg2ImgSuperResolutionPipeline(**_second_stage()),
        {"IFImg2ImgSuperResolutionPipeline": image_to_image(image=_small, original_image=picture)},
    ),
    Family(
        "deepfloyd-if-inpainting-super-resolution",
        lambda: IFInpaintingSuperResolutionPipeline(**_second_stage()),
        {"IFInpaintingSuperResolutionPipeline": image_to_image(image=_small, original_image=picture, mask_image=mask)},
    ),
)
