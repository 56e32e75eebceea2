"""Sounds from latents of the waveform: Stable Audio, Stable Audio 3, ACE-Step, LongCat-AudioDiT, Dance Diffusion."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AceStepPipeline,
    AceStepTransformer1DModel,
    AutoencoderOobleck,
    AutoencoderSAME,
    CosineDPMSolverMultistepScheduler,
    DanceDiffusionPipeline,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    IPNDMScheduler,
    LongCatAudioDiTPipeline,
    LongCatAudioDiTTransformer,
    LongCatAudioDiTVae,
    StableAudio3DiTModel,
    StableAudio3Pipeline,
    StableAudioDiTModel,
    StableAudioPipeline,
    UNet1DModel,
)
from diffusers.pipelines.ace_step import (
    AceStepAudioTokenDetokenizer,
    AceStepAudioTokenizer,
    AceStepConditionEncoder,
)
from diffusers.pipelines.stable_audio import StableAudioProjectionModel
from diffusers.pipelines.stable_audio_3.modeling_stable_audio_3 import StableAudio3DurationEmbedder
from transformers import Qwen3Model

from tests.contract.families.family import Call, Family, audio
from tests.contract.families.inputs import NEGATIVE_PROMPT, PROMPT
from tests.contract.families.text_encoders import WIDTH, qwen3_config, t5_encoder, umt5_encoder
from tests.contract.families.text_encoders_video import t5_gemma
from tests.contract.families.tokenizers import gemma_tokenizer, qwen2_tokenizer, t5_tokenizer

SAMPLING_RATE = 8000


def _oobleck(latents: int, ratios: tuple[int, ...]) -> AutoencoderOobleck:
    return AutoencoderOobleck(
        encoder_hidden_size=8,
        downsampling_ratios=list(ratios),
        decoder_channels=8,
        decoder_input_channels=latents,
        channel_multiples=[1] * len(ratios),
        sampling_rate=SAMPLING_RATE,
    )


def _stable_audio() -> DiffusionPipeline:
    tokenizer = t5_tokenizer(max_length=128)
    latents = 8
    return StableAudioPipeline(
        vae=_oobleck(latents, (2, 4)),
        text_encoder=t5_encoder(tokenizer),
        projection_model=StableAudioProjectionModel(
            text_encoder_dim=WIDTH, conditioning_dim=16, min_value=0, max_value=2
        ),
        tokenizer=tokenizer,
        transformer=StableAudioDiTModel(
            sample_size=512,
            in_channels=latents,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            num_key_value_attention_heads=2,
            out_channels=latents,
            cross_attention_dim=16,
            time_proj_dim=8,
            global_states_input_dim=32,
            cross_attention_input_dim=16,
        ),
        scheduler=CosineDPMSolverMultistepScheduler(
            solver_order=2, prediction_type="v_prediction", sigma_data=1.0, sigma_schedule="exponential"
        ),
    )


def _stable_audio_3() -> DiffusionPipeline:
    tokenizer = gemma_tokenizer(max_length=64)
    latents = 8
    return StableAudio3Pipeline(
        vae=AutoencoderSAME(
            patch_size=4,
            encoder_channels=8,
            encoder_c_mults=(2,),
            encoder_strides=(2,),
            encoder_transformer_depths=(1,),
            latent_dim=latents,
            use_differential_attention=False,
            dim_heads=4,
            ff_mult=2,
            sampling_rate=SAMPLING_RATE,
        ),
        text_encoder=t5_gemma(tokenizer),
        tokenizer=tokenizer,
        duration_embedder=StableAudio3DurationEmbedder(output_dim=WIDTH, fourier_dim=16),
        transformer=StableAudio3DiTModel(
            io_channels=latents,
            embed_dim=32,
            depth=2,
            num_heads=4,
            cond_token_dim=WIDTH,
            global_cond_dim=WIDTH,
            local_add_cond_dim=latents + 1,
            timestep_features_dim=16,
            ff_mult=2,
            num_memory_tokens=3,
            use_differential_attention=False,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
    )


def _ace_step() -> DiffusionPipeline:
    tokenizer = qwen2_tokenizer()
    latents = 8
    attention = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 16}
    model = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH} | attention
    pooling = model | {
        "audio_acoustic_hidden_dim": latents,
        "pool_window_size": 5,
        "num_attention_pooler_hidden_layers": 1,
    }
    return AceStepPipeline(
        vae=_oobleck(latents, (8, 8, 4)),  # few latents a second: the model listens to 30 seconds of silence
        text_encoder=Qwen3Model(qwen3_config()).eval(),
        tokenizer=tokenizer,
        transformer=AceStepTransformer1DModel(
            **model,
            num_hidden_layers=2,
            in_channels=3 * latents,
            audio_acoustic_hidden_dim=latents,
        ),
        condition_encoder=AceStepConditionEncoder(
            **model,
            text_hidden_dim=WIDTH,
            timbre_hidden_dim=latents,
            num_lyric_encoder_hidden_layers=1,
            num_timbre_encoder_hidden_layers=1,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
        audio_tokenizer=AceStepAudioTokenizer(
            **pooling, fsq_dim=WIDTH, fsq_input_levels=[4, 4, 4], fsq_input_num_quantizers=1
        ),
        audio_token_detokenizer=AceStepAudioTokenDetokenizer(**pooling),
    )


def _longcat() -> DiffusionPipeline:
    tokenizer = t5_tokenizer()
    latents = 8
    return LongCatAudioDiTPipeline(
        vae=LongCatAudioDiTVae(
            channels=16,
            c_mults=[1, 2],
            strides=[2, 4],
            latent_dim=latents,
            encoder_latent_dim=2 * latents,
            downsampling_ratio=8,
            sample_rate=SAMPLING_RATE,
        ),
        text_encoder=umt5_encoder(tokenizer),
        tokenizer=tokenizer,
        transformer=LongCatAudioDiTTransformer(
            dit_dim=32, dit_depth=2, dit_heads=4, dit_text_dim=WIDTH, latent_dim=latents, text_conv=False
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
    )


def _dance_diffusion() -> DiffusionPipeline:
    unet = UNet1DModel(
        block_out_channels=(32, 32, 32),
        extra_in_channels=64,  # the embedding of the time step
        sample_size=512,
        sample_rate=SAMPLING_RATE,
    )
    return DanceDiffusionPipeline(unet=unet, scheduler=IPNDMScheduler())


def _arguments(**changes: Any) -> dict[str, Any]:
    return {"prompt": PROMPT, "negative_prompt": NEGATIVE_PROMPT, "num_inference_steps": 2} | changes


def _waveform(samples: int) -> torch.Tensor:
    """A tone in stereo, (1, 2, samples)."""
    tone = torch.sin(torch.arange(samples) * 2 * torch.pi * 440 / SAMPLING_RATE)
    return torch.stack([tone, 0.5 * tone])[None]


FAMILIES = (
    Family(
        "stable-audio",
        _stable_audio,
        {"StableAudioPipeline": Call(lambda: _arguments(audio_end_in_s=0.25), audio(2, 2000))},
        requires=("torchsde",),
    ),
    Family(
        "stable-audio-3",
        _stable_audio_3,
        {
            "StableAudio3Pipeline": Call(lambda: _arguments(duration=0.25, guidance_scale=2.0), audio(2, 2000)),
            "StableAudio3AudioToAudioPipeline": Call(
                lambda: {
                    "prompt": PROMPT,
                    "audio": _waveform(2000),
                    "duration": 0.25,
                    "init_noise_level": 0.5,
                    "num_inference_steps": 2,
                },
                audio(2, 2000),
            ),
            "StableAudio3InpaintPipeline": Call(
                lambda: {
                    "prompt": PROMPT,
                    "audio": _waveform(2000),
                    "duration": 0.25,
                    "mask_start_seconds": 0.1,
                    "mask_end_seconds": 0.2,
                    "num_inference_steps": 2,
                },
                audio(2, 2000),
            ),
        },
    ),
    Family(
        "ace-step",
        _ace_step,
        {
            "AceStepPipeline": Call(
                lambda: {
                    "prompt": PROMPT,
                    "lyrics": "[verse]\nsoft rain at night",
                    "audio_duration": 0.512,
                    "num_inference_steps": 2,
                },
                audio(2, 4096),
            )
        },
    ),
    Family(
        "longcat-audio-dit",
        _longcat,
        {"LongCatAudioDiTPipeline": Call(lambda: _arguments(audio_duration_s=0.25), audio(1, 2000))},
    ),
    Family(
        "dance-diffusion",
        _dance_diffusion,
        {"DanceDiffusionPipeline": Call(lambda: {"audio_length_in_s": 0.064, "num_inference_steps": 2}, audio(2, 512))},
    ),
)
