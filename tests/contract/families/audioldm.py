"""AudioLDM and AudioLDM 2: sounds from spectrograms."""

from __future__ import annotations

from typing import Any

from diffusers import (
    AudioLDM2Pipeline,
    AudioLDM2UNet2DConditionModel,
    AudioLDMPipeline,
    AutoencoderKL,
    DiffusionPipeline,
)
from diffusers.pipelines.audioldm2 import AudioLDM2ProjectionModel
from transformers import ClapFeatureExtractor, GPT2Config, GPT2LMHeadModel, SpeechT5HifiGan, SpeechT5HifiGanConfig

from tests.contract.families import stable_diffusion
from tests.contract.families.autoencoders import vae
from tests.contract.families.family import Call, Family, audio
from tests.contract.families.inputs import NEGATIVE_PROMPT, PROMPT
from tests.contract.families.text_encoders import WIDTH, t5_encoder
from tests.contract.families.text_encoders_video import clap, clap_text
from tests.contract.families.tokenizers import roberta_tokenizer, t5_tokenizer

SAMPLING_RATE = 16000
SECONDS = 0.05

_MEL_BINS = 8


def _vae() -> AutoencoderKL:
    """Latents of half the sides of a spectrogram."""
    return vae(in_channels=1, out_channels=1)


def _vocoder() -> SpeechT5HifiGan:
    """Gives 16 samples for a column of the spectrogram."""
    return SpeechT5HifiGan(
        SpeechT5HifiGanConfig(
            model_in_dim=_MEL_BINS,
            sampling_rate=SAMPLING_RATE,
            upsample_initial_channel=16,
            upsample_rates=[4, 4],
            upsample_kernel_sizes=[8, 8],
            resblock_kernel_sizes=[3, 7],
            resblock_dilation_sizes=[[1, 3, 5], [1, 3, 5]],
            normalize_before=False,
        )
    ).eval()


def _feature_extractor() -> ClapFeatureExtractor:
    return ClapFeatureExtractor(feature_size=_MEL_BINS)


def _shared() -> dict[str, Any]:
    return {"vae": _vae(), "scheduler": stable_diffusion.scheduler(), "vocoder": _vocoder()}


def _audioldm() -> DiffusionPipeline:
    """The text is one embedding, which the UNet takes as the embedding of a class."""
    tokenizer = roberta_tokenizer()
    unet = stable_diffusion.unet(
        sample_size=32,
        cross_attention_dim=(16, 32),  # the blocks' own channels: there is no sequence to attend to
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=WIDTH,
        class_embeddings_concat=True,
    )
    return AudioLDMPipeline(**_shared(), text_encoder=clap_text(tokenizer), tokenizer=tokenizer, unet=unet)


def _audioldm2() -> DiffusionPipeline:
    """A language model continues the embeddings of two text encoders; the UNet attends to both."""
    tokenizer, second = roberta_tokenizer(), t5_tokenizer(max_length=77)
    language_model = GPT2LMHeadModel(
        GPT2Config(n_embd=16, n_head=2, n_layer=2, vocab_size=64, n_positions=128, bos_token_id=0, eos_token_id=0)
    ).eval()
    language_model.config.max_new_tokens = 8
    return AudioLDM2Pipeline(
        **_shared(),
        text_encoder=clap(tokenizer),
        text_encoder_2=t5_encoder(second),
        projection_model=AudioLDM2ProjectionModel(
            text_encoder_dim=WIDTH, text_encoder_1_dim=WIDTH, langauge_model_dim=language_model.config.n_embd
        ),
        language_model=language_model,
        tokenizer=tokenizer,
        tokenizer_2=second,
        feature_extractor=_feature_extractor(),
        unet=AudioLDM2UNet2DConditionModel(
            sample_size=32,
            block_out_channels=(16, 32),
            norm_num_groups=8,
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=((None, language_model.config.n_embd, WIDTH),) * 2,
            attention_head_dim=4,
        ),
    )


def _arguments() -> dict[str, Any]:
    return {
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE_PROMPT,
        "audio_length_in_s": SECONDS,
        "num_inference_steps": 2,
    }


_SOUND = audio(1, round(SECONDS * SAMPLING_RATE))

FAMILIES = (
    Family("audioldm", _audioldm, {"AudioLDMPipeline": Call(_arguments, _SOUND)}),
    Family("audioldm-2", _audioldm2, {"AudioLDM2Pipeline": Call(_arguments, _SOUND)}),
)

IMPOSSIBLE = {
    "MusicLDMPipeline": "a call fails: diffusers 0.42.1 expects of ClapModel.get_text_features what transformers 4 gave"
}
