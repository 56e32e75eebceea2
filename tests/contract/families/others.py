"""Estimators of depth, normals and materials, consistency models and the first latent diffusion models."""

from __future__ import annotations

from typing import Any

from diffusers import (
    DDIMScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    LDMSuperResolutionPipeline,
    LDMTextToImagePipeline,
    MarigoldDepthPipeline,
    MarigoldIntrinsicsPipeline,
    MarigoldNormalsPipeline,
    UNet2DModel,
    VQModel,
)

from tests.contract.families.autoencoders import vae
from tests.contract.families.calls import SIDE, call, image_to_image, text_to_image
from tests.contract.families.family import Family, image
from tests.contract.families.inputs import picture
from tests.contract.families.stable_diffusion import UNCHECKED, components, scheduler, unet
from tests.contract.families.text_encoders import clip_text_encoder
from tests.contract.families.tokenizers import clip_tokenizer


def _marigold(targets: int = 1) -> dict[str, Any]:
    """The UNet reads the latents of the image beside the noise of each target."""
    return components() | {
        "unet": unet(in_channels=4 + 4 * targets, out_channels=4 * targets),
        "scheduler": DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            clip_sample=False,
            timestep_spacing="trailing",
        ),
        "default_denoising_steps": 2,
        "default_processing_resolution": SIDE,
    }


def _intrinsics() -> MarigoldIntrinsicsPipeline:
    """Two targets, each with the space in which its values are."""
    properties = {
        "target_names": ["albedo", "material"],
        "albedo": {"prediction_space": "srgb", "up_to_scale": False},
        "material": {"prediction_space": "linear", "up_to_scale": False},
    }
    return MarigoldIntrinsicsPipeline(**_marigold(2), prediction_type="intrinsics", target_properties=properties)


def _lcm() -> LatentConsistencyModelPipeline:
    """The UNet embeds the guidance instead of being called twice."""
    lcm = LCMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    return LatentConsistencyModelPipeline(
        **components() | {"unet": unet(time_cond_proj_dim=32), "scheduler": lcm}, **UNCHECKED
    )


def _ldm() -> LDMTextToImagePipeline:
    """The pipeline expects that latents are an eighth of the image's sides."""
    return LDMTextToImagePipeline(
        vqvae=vae(8, 8, 8, 8), bert=clip_text_encoder(), tokenizer=clip_tokenizer(), unet=unet(), scheduler=scheduler()
    )


def _ldm_super_resolution() -> LDMSuperResolutionPipeline:
    """The latents have the size of the image that is enlarged."""
    return LDMSuperResolutionPipeline(
        vqvae=VQModel(
            latent_channels=3,
            num_vq_embeddings=16,
            block_out_channels=(8, 8, 16),
            norm_num_groups=4,
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
        ),
        unet=UNet2DModel(
            sample_size=16,
            in_channels=6,
            out_channels=3,
            block_out_channels=(16, 32),
            norm_num_groups=8,
            layers_per_block=1,
            attention_head_dim=8,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        ),
        scheduler=scheduler(),
    )


FAMILIES = (
    Family(
        "marigold-depth",
        lambda: MarigoldDepthPipeline(**_marigold(), prediction_type="depth"),
        {"MarigoldDepthPipeline": call(image(SIDE, SIDE), image=picture)},
    ),
    Family(
        "marigold-normals",
        lambda: MarigoldNormalsPipeline(**_marigold(), prediction_type="normals"),
        {"MarigoldNormalsPipeline": call(image(SIDE, SIDE), image=picture)},
    ),
    Family(
        "marigold-intrinsics",
        _intrinsics,
        {"MarigoldIntrinsicsPipeline": call(image(SIDE, SIDE, 2), image=picture)},
    ),
    Family(
        "latent-consistency",
        _lcm,
        {
            "LatentConsistencyModelPipeline": text_to_image(),
            "LatentConsistencyModelImg2ImgPipeline": image_to_image(),
        },
    ),
    Family("latent-diffusion", _ldm, {"LDMTextToImagePipeline": text_to_image()}),
    Family(
        "latent-diffusion-super-resolution",
        _ldm_super_resolution,
        {
            "LDMSuperResolutionPipeline": call(
                image(2 * SIDE, 2 * SIDE), SIDE // 2, image=picture, num_inference_steps=2
            )
        },
    ),
)
