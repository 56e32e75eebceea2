"""Stable Diffusion 1 and 2 and what was made of them."""

from __future__ import annotations

from typing import Any

from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    PriorTransformer,
    StableDiffusionDepth2ImgPipeline,
    StableDiffusionImageVariationPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionLatentUpscalePipeline,
    StableDiffusionPipeline,
    StableDiffusionUpscalePipeline,
    StableUnCLIPImg2ImgPipeline,
    StableUnCLIPPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

from tests.contract.families.autoencoders import vae
from tests.contract.families.calls import SIDE, call, image_to_image, inpainting, text_to_image
from tests.contract.families.family import Family, image
from tests.contract.families.inputs import NEGATIVE_PROMPT, PROMPT, picture
from tests.contract.families.text_encoders import (
    WIDTH,
    clip_image_encoder,
    clip_image_processor,
    clip_text_encoder,
    clip_text_encoder_with_projection,
)
from tests.contract.families.tokenizers import clip_tokenizer


def unet(**changes: Any) -> UNet2DConditionModel:
    """A UNet for latents of four channels."""
    return UNet2DConditionModel(
        **{
            "sample_size": 32,
            "in_channels": 4,
            "out_channels": 4,
            "block_out_channels": (16, 32),
            "norm_num_groups": 8,
            "layers_per_block": 1,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": WIDTH,
            "attention_head_dim": 2,
        }
        | changes
    )


def scheduler() -> DDIMScheduler:
    """The noise schedule of Stable Diffusion 1.5."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
    )


def components() -> dict[str, Any]:
    """What most pipelines of this module take."""
    return {
        "vae": vae(),
        "text_encoder": clip_text_encoder(),
        "tokenizer": clip_tokenizer(),
        "unet": unet(),
        "scheduler": scheduler(),
    }


#: No safety checker: the pipelines warn about that unless it is said in this way.
UNCHECKED = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def _stable_diffusion() -> StableDiffusionPipeline:
    return StableDiffusionPipeline(**components(), **UNCHECKED)


def _inpaint() -> StableDiffusionInpaintPipeline:
    return StableDiffusionInpaintPipeline(**components() | {"unet": unet(in_channels=9)}, **UNCHECKED)


def _pix2pix() -> StableDiffusionInstructPix2PixPipeline:
    return StableDiffusionInstructPix2PixPipeline(**components() | {"unet": unet(in_channels=8)}, **UNCHECKED)


def _depth() -> StableDiffusionDepth2ImgPipeline:
    depth_estimator = DPTForDepthEstimation(
        DPTConfig(
            image_size=32,
            patch_size=8,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=4,
            num_attention_heads=2,
            backbone_out_indices=[0, 1, 2, 3],
            neck_hidden_sizes=[8, 8, 8, 8],
            fusion_hidden_size=8,
            is_hybrid=False,
        )
    )
    return StableDiffusionDepth2ImgPipeline(
        **components() | {"unet": unet(in_channels=5)},
        depth_estimator=depth_estimator.eval(),
        feature_extractor=DPTImageProcessor(size={"height": 32, "width": 32}),
    )


def _upscale() -> StableDiffusionUpscalePipeline:
    return StableDiffusionUpscalePipeline(
        **components()
        | {
            "unet": unet(in_channels=7, num_class_embeds=1000, sample_size=16),
            "vae": vae(8, 8, 16),
        },
        low_res_scheduler=DDPMScheduler(),
        max_noise_level=350,
    )


def _latent_upscale() -> StableDiffusionLatentUpscalePipeline:
    denoiser = UNet2DConditionModel(
        in_channels=8,
        out_channels=5,
        block_out_channels=(32, 32, 64, 64),
        down_block_types=("KDownBlock2D", *["KCrossAttnDownBlock2D"] * 3),
        mid_block_type=None,
        up_block_types=(*["KCrossAttnUpBlock2D"] * 3, "KUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=8,
        norm_num_groups=None,
        act_fn="gelu",
        conv_in_kernel=1,
        conv_out_kernel=1,
        resnet_time_scale_shift="scale_shift",
        time_embedding_type="fourier",
        timestep_post_act="gelu",
        time_cond_proj_dim=128 + WIDTH,  # the noise level and the pooled text
    )
    return StableDiffusionLatentUpscalePipeline(
        **components() | {"unet": denoiser, "scheduler": EulerDiscreteScheduler(prediction_type="sample")}
    )


def _image_variation() -> StableDiffusionImageVariationPipeline:
    return StableDiffusionImageVariationPipeline(
        vae=vae(),
        image_encoder=clip_image_encoder(),
        unet=unet(),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=clip_image_processor(),
        requires_safety_checker=False,
    )


def _unclip_components() -> dict[str, Any]:
    """The noise of the image embedding is a part of the UNet's class embedding."""
    return components() | {
        "unet": unet(class_embed_type="projection", projection_class_embeddings_input_dim=2 * WIDTH),
        "image_normalizer": StableUnCLIPImageNormalizer(embedding_dim=WIDTH),
        "image_noising_scheduler": DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
    }


def _unclip() -> StableUnCLIPPipeline:
    return StableUnCLIPPipeline(
        **_unclip_components(),
        prior_tokenizer=clip_tokenizer(),
        prior_text_encoder=clip_text_encoder_with_projection(),
        prior=PriorTransformer(num_attention_heads=2, attention_head_dim=16, embedding_dim=WIDTH, num_layers=1),
        prior_scheduler=DDPMScheduler(
            variance_type="fixed_small_log",
            prediction_type="sample",
            clip_sample_range=5.0,
            beta_schedule="squaredcos_cap_v2",
        ),
    )


def _unclip_img2img() -> StableUnCLIPImg2ImgPipeline:
    return StableUnCLIPImg2ImgPipeline(
        **_unclip_components(), image_encoder=clip_image_encoder(), feature_extractor=clip_image_processor()
    )


FAMILIES = (
    Family(
        "stable-diffusion",
        _stable_diffusion,
        {
            "StableDiffusionPipeline": text_to_image(negative_prompt=NEGATIVE_PROMPT),
            "StableDiffusionImg2ImgPipeline": image_to_image(),
            "StableDiffusionInpaintPipeline": inpainting(),
        },
    ),
    Family("stable-diffusion-inpainting", _inpaint, {"StableDiffusionInpaintPipeline": inpainting()}),
    Family("stable-diffusion-depth", _depth, {"StableDiffusionDepth2ImgPipeline": image_to_image()}),
    Family("instruct-pix2pix", _pix2pix, {"StableDiffusionInstructPix2PixPipeline": image_to_image(strength=None)}),
    Family(
        "stable-diffusion-upscale",
        _upscale,
        {
            "StableDiffusionUpscalePipeline": call(
                image(SIDE, SIDE), SIDE // 4, prompt=PROMPT, image=picture, num_inference_steps=2
            )
        },
    ),
    Family(
        "stable-diffusion-latent-upscale",
        _latent_upscale,
        {
            "StableDiffusionLatentUpscalePipeline": call(
                image(2 * SIDE, 2 * SIDE), prompt=PROMPT, image=picture, num_inference_steps=2
            )
        },
    ),
    Family(
        "stable-diffusion-image-variation",
        _image_variation,
        {"StableDiffusionImageVariationPipeline": text_to_image(prompt=None, image=picture)},
    ),
    Family("stable-unclip", _unclip, {"StableUnCLIPPipeline": text_to_image(prior_num_inference_steps=2)}),
    Family("stable-unclip-img2img", _unclip_img2img, {"StableUnCLIPImg2ImgPipeline": text_to_image(image=picture)}),
)
