"""Kandinsky 6: videos with sound, and their upscaling."""

from __future__ import annotations

from typing import Any

from diffusers import (
    AutoencoderKLHunyuanVideo,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    Kandinsky6SRPipeline,
    Kandinsky6SRTransformer3DModel,
    Kandinsky6SRVAE,
    Kandinsky6TI2VAPipeline,
    Kandinsky6Transformer3DModel,
    MMAudioVAE,
    MMAudioVocoder,
)
from transformers import Qwen2_5_VLProcessor

from tests.contract.families.family import Call, Family, video
from tests.contract.families.inputs import NEGATIVE_PROMPT, PROMPT, clip, picture
from tests.contract.families.text_encoders import WIDTH, clip_text_encoder, qwen2_5_vl, qwen2_vl_processor
from tests.contract.families.tokenizers import clip_tokenizer

SIDE = 32

#: The sides of a tile after upscaling, which the transformer sees as 8 × 8 latents.
TILE = 128
FRAMES = 5  #: 4 k + 1


def _upscaler() -> DiffusionPipeline:
    latents = 4
    return Kandinsky6SRPipeline(
        transformer=Kandinsky6SRTransformer3DModel(
            in_visual_dim=latents,
            out_visual_dim=latents,
            time_dim=16,
            model_dim=32,
            ff_dim=64,
            num_visual_blocks=2,
            axes_dims=(4, 6, 6),
            tile_sizes=((TILE, TILE),),
        ),
        vae=Kandinsky6SRVAE(
            latent_channels=latents,
            encoder_block_out_channels=(16, 32, 32, 32, 32),
            decoder_block_out_channels=(16, 32, 32, 32, 32),
            layers_per_block=1,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
    )


def _text_image_to_video() -> DiffusionPipeline:
    latents, mel_bins, hop = 4, 8, 64
    processor = qwen2_vl_processor()
    return Kandinsky6TI2VAPipeline(
        transformer=Kandinsky6Transformer3DModel(
            in_visual_dim=latents,
            out_visual_dim=latents,
            in_text_dim=WIDTH,
            in_text_dim2=WIDTH,
            time_dim=16,
            model_dim=24,
            ff_dim=48,
            num_text_blocks=1,
            num_visual_blocks=2,
            axes_dims=(4, 4, 4),
            in_audio_dim=latents,
            out_audio_dim=latents,
            visual_token_type_num_embeddings=2,
        ),
        vae=AutoencoderKLHunyuanVideo(
            latent_channels=latents, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
        ),
        text_encoder=qwen2_5_vl(),
        tokenizer=Qwen2_5_VLProcessor(
            image_processor=processor.image_processor,
            tokenizer=processor.tokenizer,
            video_processor=processor.video_processor,
            chat_template=processor.chat_template,
        ),
        text_encoder_2=clip_text_encoder(),
        tokenizer_2=clip_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        audio_vae=MMAudioVAE(
            mel_bins=mel_bins,
            latent_channels=latents,
            hidden_channels=16,
            layers_per_block=1,
            sample_rate=8000,
            n_fft=256,
            hop_length=hop,
        ),
        vocoder=MMAudioVocoder(
            num_mels=mel_bins,
            upsample_initial_channel=32,
            upsample_rates=(8, hop // 8),
            upsample_kernel_sizes=(16, 16),
            resblock_kernel_sizes=(3,),
            resblock_dilation_sizes=((1, 3, 5),),
        ),
    )


def _arguments(**changes: Any) -> dict[str, Any]:
    return {
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE_PROMPT,
        "image": picture(SIDE, SIDE),
        "width": SIDE,
        "height": SIDE,
        "num_frames": FRAMES,
        "num_inference_steps": 2,
    } | changes


FAMILIES = (
    Family(
        "kandinsky-6",
        _text_image_to_video,
        {"Kandinsky6TI2VAPipeline": Call(_arguments, video(FRAMES, SIDE, SIDE, sound=(1, 1792)))},
        requires=("ftfy", "torchvision"),
    ),
    Family(
        "kandinsky-6-upscaling",
        _upscaler,
        {
            "Kandinsky6SRPipeline": Call(
                lambda: {
                    "video": clip(FRAMES, TILE // 2, TILE // 2),
                    "resolution_scale": 2,
                    "num_inference_steps": 2,
                },
                video(FRAMES, TILE, TILE),
            )
        },
    ),
)
