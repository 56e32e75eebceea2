"""aMUSEd, which draws tokens instead of removing noise, and DALL-E 2's design, which upscales twice."""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers import (
    AmusedPipeline,
    AmusedScheduler,
    PriorTransformer,
    UnCLIPPipeline,
    UnCLIPScheduler,
    UNet2DConditionModel,
    UNet2DModel,
    UVit2DModel,
    VQModel,
)

from tests.contract.families.calls import call, image_to_image, inpainting, text_to_image
from tests.contract.families.family import Family, image
from tests.contract.families.inputs import PROMPT
from tests.contract.families.text_encoders import WIDTH, clip_text_encoder_with_projection
from tests.contract.families.tokenizers import clip_tokenizer
from workers.pipelines.model_index import find_moved_package

find_moved_package("unclip")
_unclip: Any = diffusers.pipelines.unclip


def _amused() -> AmusedPipeline:
    return AmusedPipeline(
        vqvae=VQModel(
            act_fn="silu",
            block_out_channels=[8],
            down_block_types=["DownEncoderBlock2D"],
            up_block_types=["UpDecoderBlock2D"],
            latent_channels=8,
            layers_per_block=1,
            norm_num_groups=8,
            num_vq_embeddings=32,
            sample_size=32,
            mid_block_add_attention=False,
            lookup_from_codebook=True,
        ),
        tokenizer=clip_tokenizer(),
        text_encoder=clip_text_encoder_with_projection(),
        transformer=UVit2DModel(
            hidden_size=32,
            use_bias=False,
            hidden_dropout=0.0,
            cond_embed_dim=WIDTH,
            micro_cond_encode_dim=2,
            micro_cond_embed_dim=10,
            encoder_hidden_size=WIDTH,
            vocab_size=33,
            codebook_size=32,
            in_channels=32,
            block_out_channels=32,
            num_res_blocks=1,
            downsample=True,
            upsample=True,
            block_num_heads=1,
            num_hidden_layers=1,
            num_attention_heads=1,
            attention_dropout=0.0,
            intermediate_size=32,
            layer_norm_eps=1e-6,
            ln_elementwise_affine=True,
        ),
        scheduler=AmusedScheduler(mask_token_id=32),
    )


def _karlo() -> UnCLIPPipeline:
    upscaler = {
        "sample_size": 32,
        "layers_per_block": 1,
        "in_channels": 6,
        "out_channels": 3,
        "down_block_types": ("ResnetDownsampleBlock2D",) * 2,
        "up_block_types": ("ResnetUpsampleBlock2D",) * 2,
        "block_out_channels": (32, 64),
    }
    return UnCLIPPipeline(
        prior=PriorTransformer(num_attention_heads=2, attention_head_dim=16, embedding_dim=WIDTH, num_layers=1),
        decoder=UNet2DConditionModel(
            sample_size=16,
            in_channels=3,
            out_channels=6,
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            block_out_channels=(32, 64),
            layers_per_block=1,
            cross_attention_dim=WIDTH,
            attention_head_dim=16,
            resnet_time_scale_shift="scale_shift",
            class_embed_type="identity",
        ),
        text_encoder=clip_text_encoder_with_projection(),
        tokenizer=clip_tokenizer(),
        text_proj=_unclip.UnCLIPTextProjModel(clip_embeddings_dim=WIDTH, time_embed_dim=128, cross_attention_dim=WIDTH),
        super_res_first=UNet2DModel(**upscaler),
        super_res_last=UNet2DModel(**upscaler),
        prior_scheduler=UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", num_train_timesteps=1000, clip_sample_range=5.0
        ),
        decoder_scheduler=UnCLIPScheduler(
            variance_type="learned_range", prediction_type="epsilon", num_train_timesteps=1000
        ),
        super_res_scheduler=UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="epsilon", num_train_timesteps=1000
        ),
    )


FAMILIES = (
    Family(
        "amused",
        _amused,
        {
            "AmusedPipeline": text_to_image(),
            "AmusedImg2ImgPipeline": image_to_image(),
            "AmusedInpaintPipeline": inpainting(width=None, height=None),
        },
    ),
    Family(
        "karlo",
        _karlo,
        {
            "UnCLIPPipeline": call(
                image(32, 32),
                prompt=PROMPT,
                prior_num_inference_steps=2,
                decoder_num_inference_steps=2,
                super_res_num_inference_steps=2,
            )
        },
    ),
)
