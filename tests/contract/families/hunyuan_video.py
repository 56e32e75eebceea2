"""HunyuanVideo, FramePack and HunyuanVideo 1.5."""

from __future__ import annotations

from typing import Any

from diffusers import (
    AutoencoderKLHunyuanVideo,
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    HunyuanSkyreelsImageToVideoPipeline,
    HunyuanVideo15ImageToVideoPipeline,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoFramepackPipeline,
    HunyuanVideoFramepackTransformer3DModel,
    HunyuanVideoImageToVideoPipeline,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from transformers import ByT5Tokenizer

from tests.contract.families.family import Call, Family, video
from tests.contract.families.inputs import NEGATIVE_PROMPT, PROMPT, picture
from tests.contract.families.text_encoders import WIDTH, clip_image_processor, clip_text_encoder, t5_encoder
from tests.contract.families.text_encoders_video import (
    llama,
    llama3_tokenizer,
    llava,
    qwen2_5_vl_text,
    siglip,
    siglip_processor,
)
from tests.contract.families.tokenizers import clip_tokenizer, qwen2_tokenizer

SIDE = 32
FRAMES = 5  #: 4 k + 1

_LATENTS = 4


def _vae() -> AutoencoderKLHunyuanVideo:
    """Latents of an eighth of the sides and a quarter of the frames."""
    return AutoencoderKLHunyuanVideo(
        latent_channels=_LATENTS, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
    )


def _transformer_config(**changes: Any) -> dict[str, Any]:
    return {
        "in_channels": _LATENTS,
        "out_channels": _LATENTS,
        "num_attention_heads": 2,
        "attention_head_dim": 10,
        "num_layers": 1,
        "num_single_layers": 1,
        "num_refiner_layers": 1,
        "patch_size": 1,
        "text_embed_dim": WIDTH,
        "pooled_projection_dim": WIDTH,
        "rope_axes_dim": (2, 4, 4),
    } | changes


def _components(**changes: Any) -> dict[str, Any]:
    tokenizer = changes.pop("tokenizer", None) or llama3_tokenizer()
    return {
        "text_encoder": llama(tokenizer),
        "tokenizer": tokenizer,
        "transformer": HunyuanVideoTransformer3DModel(**_transformer_config()),
        "vae": _vae(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=7.0),
        "text_encoder_2": clip_text_encoder(),
        "tokenizer_2": clip_tokenizer(),
    } | changes


def _image_to_video(**transformer: Any) -> DiffusionPipeline:
    tokenizer = llama3_tokenizer()
    return HunyuanVideoImageToVideoPipeline(
        **_components(
            tokenizer=tokenizer,
            text_encoder=llava(tokenizer),
            transformer=HunyuanVideoTransformer3DModel(**_transformer_config(**transformer)),
        ),
        image_processor=clip_image_processor(side=48),
    )


def _skyreels() -> DiffusionPipeline:
    transformer = HunyuanVideoTransformer3DModel(**_transformer_config(in_channels=2 * _LATENTS))
    return HunyuanSkyreelsImageToVideoPipeline(**_components(transformer=transformer))


def _framepack() -> DiffusionPipeline:
    transformer = HunyuanVideoFramepackTransformer3DModel(
        **_transformer_config(patch_size=2), has_image_proj=True, image_proj_dim=WIDTH, has_clean_x_embedder=True
    )
    return HunyuanVideoFramepackPipeline(
        **_components(transformer=transformer), feature_extractor=siglip_processor(), image_encoder=siglip()
    )


def _components_1_5(task: str) -> dict[str, Any]:
    tokenizer, glyph_tokenizer = qwen2_tokenizer(), ByT5Tokenizer()
    return {
        "text_encoder": qwen2_5_vl_text(tokenizer),
        "tokenizer": tokenizer,
        "transformer": HunyuanVideo15Transformer3DModel(
            in_channels=2 * _LATENTS + 1,
            out_channels=_LATENTS,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            num_refiner_layers=1,
            mlp_ratio=2.0,
            text_embed_dim=WIDTH,
            text_embed_2_dim=WIDTH,
            image_embed_dim=WIDTH,
            rope_axes_dim=(2, 2, 4),
            target_size=SIDE,
            task_type=task,
        ),
        "vae": AutoencoderKLHunyuanVideo15(
            latent_channels=_LATENTS,
            block_out_channels=(16, 16, 16),
            layers_per_block=1,
            spatial_compression_ratio=4,
            temporal_compression_ratio=2,
            downsample_match_channel=False,
            upsample_match_channel=False,
        ),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=7.0),
        "text_encoder_2": t5_encoder(glyph_tokenizer),
        "tokenizer_2": glyph_tokenizer,
        "guider": ClassifierFreeGuidance(guidance_scale=6.0),
    }


def _image_to_video_1_5() -> DiffusionPipeline:
    return HunyuanVideo15ImageToVideoPipeline(
        **_components_1_5("i2v"), image_encoder=siglip(), feature_extractor=siglip_processor()
    )


def _text_arguments(**changes: Any) -> dict[str, Any]:
    return {
        "prompt": PROMPT,
        "width": SIDE,
        "height": SIDE,
        "num_frames": FRAMES,
        "num_inference_steps": 2,
    } | changes


def _image_arguments(**changes: Any) -> dict[str, Any]:
    return _text_arguments(image=picture(SIDE, SIDE)) | changes


def _arguments_1_5(**changes: Any) -> dict[str, Any]:
    """The text in quotation marks is one that the video shows: a second encoder reads it."""
    return {
        "prompt": f'{PROMPT} and the text "stop"',
        "negative_prompt": NEGATIVE_PROMPT,
        "num_frames": FRAMES,
        "num_inference_steps": 2,
    } | changes


_CLIP = video(FRAMES, SIDE, SIDE)

FAMILIES = (
    Family(
        "hunyuan-video",
        lambda: HunyuanVideoPipeline(**_components()),
        {
            "HunyuanVideoPipeline": Call(
                lambda: _text_arguments(negative_prompt=NEGATIVE_PROMPT, true_cfg_scale=2.0), _CLIP
            )
        },
    ),
    Family(
        "hunyuan-video-image",
        lambda: _image_to_video(
            in_channels=2 * _LATENTS + 1, guidance_embeds=False, image_condition_type="latent_concat"
        ),
        # The pipeline cuts off the first four frames.
        {"HunyuanVideoImageToVideoPipeline": Call(lambda: _image_arguments(num_frames=FRAMES + 4), _CLIP)},
    ),
    Family(
        "hunyuan-video-image-token-replace",
        lambda: _image_to_video(image_condition_type="token_replace"),
        {"HunyuanVideoImageToVideoPipeline": Call(_image_arguments, _CLIP)},
    ),
    Family(
        "hunyuan-skyreels",
        _skyreels,
        {"HunyuanSkyreelsImageToVideoPipeline": Call(lambda: _image_arguments(negative_prompt=NEGATIVE_PROMPT), _CLIP)},
    ),
    Family(
        "framepack",
        _framepack,
        {
            "HunyuanVideoFramepackPipeline": Call(
                lambda: _image_arguments(last_image=picture(SIDE, SIDE, seed=1), latent_window_size=2),
                # whole windows: one of five frames, and four more for the second
                video(9, SIDE, SIDE),
            )
        },
    ),
    Family(
        "hunyuan-video-1.5",
        lambda: HunyuanVideo15Pipeline(**_components_1_5("t2v")),
        {"HunyuanVideo15Pipeline": Call(lambda: _arguments_1_5(width=SIDE, height=SIDE), _CLIP)},
    ),
    Family(
        "hunyuan-video-1.5-image",
        _image_to_video_1_5,
        {"HunyuanVideo15ImageToVideoPipeline": Call(lambda: _arguments_1_5(image=picture(SIDE, SIDE)), _CLIP)},
    ),
)
