"""Videos by UNets: Stable Video Diffusion, I2VGen-XL, ModelScope's text-to-video, Text2Video-Zero."""

from __future__ import annotations

from typing import Any

from diffusers import (
    AutoencoderKLTemporalDecoder,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    I2VGenXLPipeline,
    I2VGenXLUNet,
    StableVideoDiffusionPipeline,
    TextToVideoSDPipeline,
    TextToVideoZeroPipeline,
    TextToVideoZeroSDXLPipeline,
    UNet3DConditionModel,
    UNetSpatioTemporalConditionModel,
)
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPConfig

from tests.contract.families import stable_diffusion
from tests.contract.families.family import Call, Family, video
from tests.contract.families.inputs import NEGATIVE_PROMPT, PROMPT, clip, picture
from tests.contract.families.text_encoders import (
    WIDTH,
    clip_image_encoder,
    clip_image_processor,
    clip_text_encoder_with_projection,
)
from tests.contract.families.tokenizers import clip_tokenizer

SIDE = 32
FRAMES = 4


#: The pipeline itself scales the image for the encoder.
_CLIP_SIDE = 224


def _stable_video_diffusion() -> DiffusionPipeline:
    number = 32
    return StableVideoDiffusionPipeline(
        vae=AutoencoderKLTemporalDecoder(
            block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2, sample_size=SIDE
        ),
        image_encoder=clip_image_encoder(side=_CLIP_SIDE),
        unet=UNetSpatioTemporalConditionModel(
            sample_size=SIDE // 2,
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
            cross_attention_dim=WIDTH,
            num_attention_heads=(2, 2),
            addition_time_embed_dim=number,
            projection_class_embeddings_input_dim=3 * number,
            num_frames=FRAMES,
        ),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            sigma_max=700.0,
            sigma_min=0.002,
            timestep_spacing="leading",
            timestep_type="continuous",
            steps_offset=1,
            use_karras_sigmas=True,
        ),
        feature_extractor=clip_image_processor(side=_CLIP_SIDE),
    )


def _unet_config() -> dict[str, Any]:
    return {
        "sample_size": SIDE // 2,
        "block_out_channels": (16, 32),
        "norm_num_groups": 8,
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
        "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
        "cross_attention_dim": WIDTH,
    }


def _text_to_video() -> DiffusionPipeline:
    components = stable_diffusion.components()
    return TextToVideoSDPipeline(**components | {"unet": UNet3DConditionModel(**_unet_config(), attention_head_dim=4)})


def _i2vgen_xl() -> DiffusionPipeline:
    unet = I2VGenXLUNet(**_unet_config(), attention_head_dim=4)
    return I2VGenXLPipeline(
        **stable_diffusion.components() | {"unet": unet},
        image_encoder=clip_image_encoder(),
        feature_extractor=clip_image_processor(),
    )


def _zero() -> DiffusionPipeline:
    clip = CLIPConfig(vision_config=clip_image_encoder().config.to_dict(), projection_dim=WIDTH)
    return TextToVideoZeroPipeline(
        **stable_diffusion.components(),
        safety_checker=StableDiffusionSafetyChecker(clip),
        feature_extractor=clip_image_processor(),
    )


def _zero_sdxl() -> DiffusionPipeline:
    numbers = 8
    unet = stable_diffusion.unet(
        cross_attention_dim=2 * WIDTH,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=numbers,
        projection_class_embeddings_input_dim=6 * numbers + WIDTH,
    )
    return TextToVideoZeroSDXLPipeline(
        **stable_diffusion.components() | {"unet": unet, "scheduler": DDIMScheduler()},
        text_encoder_2=clip_text_encoder_with_projection(),
        tokenizer_2=clip_tokenizer(),
    )


def _image_arguments(**changes: Any) -> dict[str, Any]:
    return {"image": picture(SIDE, SIDE), "width": SIDE, "height": SIDE, "num_inference_steps": 2} | changes


def _text_arguments(**changes: Any) -> dict[str, Any]:
    return {
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE_PROMPT,
        "width": SIDE,
        "height": SIDE,
        "num_inference_steps": 2,
    } | changes


def _video_arguments() -> dict[str, Any]:
    arguments = _text_arguments(video=clip(FRAMES, SIDE, SIDE), num_inference_steps=4)
    del arguments["width"], arguments["height"]
    return arguments


def _zero_arguments() -> dict[str, Any]:
    """``t0`` and ``t1`` are the steps between which the background moves."""
    return _text_arguments(video_length=FRAMES, num_inference_steps=3, t0=0, t1=1)


_CLIP = video(FRAMES, SIDE, SIDE)

FAMILIES = (
    Family(
        "stable-video-diffusion",
        _stable_video_diffusion,
        {"StableVideoDiffusionPipeline": Call(_image_arguments, _CLIP)},
    ),
    Family(
        "text-to-video",
        _text_to_video,
        {
            "TextToVideoSDPipeline": Call(lambda: _text_arguments(num_frames=FRAMES), _CLIP),
            "VideoToVideoSDPipeline": Call(_video_arguments, _CLIP),
        },
    ),
    Family(
        "i2vgen-xl",
        _i2vgen_xl,
        {
            "I2VGenXLPipeline": Call(
                # the default clip_skip=1 needs an attribute that the CLIPTextModel of transformers 5 does not have
                lambda: _text_arguments(image=picture(SIDE, SIDE), num_frames=FRAMES, clip_skip=None),
                _CLIP,
            )
        },
    ),
    Family("text-to-video-zero", _zero, {"TextToVideoZeroPipeline": Call(_zero_arguments, _CLIP)}),
    Family("text-to-video-zero-sdxl", _zero_sdxl, {"TextToVideoZeroSDXLPipeline": Call(_zero_arguments, _CLIP)}),
)
