"""Diffusion transformers that read the text by cross-attention: DiT, PixArt, Sana, Hunyuan-DiT, Lumina."""

from __future__ import annotations

from typing import Any

from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    HunyuanDiT2DModel,
    HunyuanDiTPipeline,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    LuminaNextDiT2DModel,
    LuminaPipeline,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
)
from transformers import GemmaConfig, GemmaModel

from tests.contract.families.autoencoders import deep_compression_vae, flow_vae, vae
from tests.contract.families.calls import SIDE, call, image_to_image, text_to_image
from tests.contract.families.family import Family, image
from tests.contract.families.inputs import NEGATIVE_PROMPT
from tests.contract.families.text_encoders import WIDTH, bert, decoder_config, gemma2, t5_encoder
from tests.contract.families.tokenizers import bert_tokenizer, gemma_tokenizer, t5_tokenizer


def pixart_components() -> dict[str, Any]:
    """The components of PixArt; the size of the samples says among which sizes the pipeline chooses: those of 256²."""
    return {
        "transformer": PixArtTransformer2DModel(
            sample_size=32,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            cross_attention_dim=32,
            caption_channels=WIDTH,
            use_additional_conditions=False,
        ),
        "vae": vae(8, 8, 8, 8),
        "scheduler": DPMSolverMultistepScheduler(),
        "text_encoder": t5_encoder(t5_tokenizer()),
        "tokenizer": t5_tokenizer(),
    }


def sana_transformer(**changes: Any) -> SanaTransformer2DModel:
    """Sana's transformer with linear attention."""
    return SanaTransformer2DModel(**SANA | changes)


#: What the transformer and the ControlNet of Sana have in common.
SANA: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 16,
    "cross_attention_dim": 32,
    "caption_channels": WIDTH,
    "sample_size": 32,
}


def sana_components(**changes: Any) -> dict[str, Any]:
    """The components of Sana."""
    return {
        "transformer": sana_transformer(),
        "vae": deep_compression_vae(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        "text_encoder": gemma2(gemma_tokenizer()),
        "tokenizer": gemma_tokenizer(),
    } | changes


def _sana_sprint() -> SanaSprintPipeline:
    transformer = sana_transformer(guidance_embeds=True, qk_norm="rms_norm_across_heads")
    return SanaSprintPipeline(**sana_components(transformer=transformer, scheduler=SCMScheduler()))


def hunyuan_dit_components() -> dict[str, Any]:
    """The components of Hunyuan-DiT, which expects that latents are an eighth of the image's sides."""
    return {
        "transformer": HunyuanDiT2DModel(
            sample_size=32,
            in_channels=4,
            patch_size=2,
            num_layers=4,  # a ControlNet acts on those after the third
            num_attention_heads=2,
            attention_head_dim=16,
            hidden_size=32,
            cross_attention_dim=WIDTH,
            cross_attention_dim_t5=WIDTH,
            pooled_projection_dim=32,
        ),
        "vae": vae(8, 8, 8, 8),
        "scheduler": DDPMScheduler(),
        "text_encoder": bert(bert_tokenizer()),
        "tokenizer": bert_tokenizer(),
        "text_encoder_2": t5_encoder(t5_tokenizer()),
        "tokenizer_2": t5_tokenizer(256),
    }


def _hunyuan_dit() -> HunyuanDiTPipeline:
    return HunyuanDiTPipeline(
        **hunyuan_dit_components(), safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


def _lumina() -> LuminaPipeline:
    """The pipelines of both versions expect that latents are an eighth of the image's sides."""
    return LuminaPipeline(
        transformer=LuminaNextDiT2DModel(
            sample_size=32,
            hidden_size=32,
            num_layers=2,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            cross_attention_dim=WIDTH,
        ),
        vae=vae(8, 8, 8, 8),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=GemmaModel(GemmaConfig(**decoder_config(gemma_tokenizer()))).eval(),
        tokenizer=gemma_tokenizer(),
    )


def _lumina2() -> Lumina2Pipeline:
    return Lumina2Pipeline(
        transformer=Lumina2Transformer2DModel(
            sample_size=32,
            in_channels=4,
            hidden_size=32,
            num_layers=2,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            axes_dim_rope=(4, 6, 6),
            axes_lens=(300, 64, 64),
            cap_feat_dim=WIDTH,
        ),
        vae=flow_vae(8, 8, 8, 8),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
        text_encoder=gemma2(gemma_tokenizer()),
        tokenizer=gemma_tokenizer(),
    )


def _class_conditional() -> DiTPipeline:
    return DiTPipeline(
        transformer=DiTTransformer2DModel(
            sample_size=32,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            in_channels=4,
            out_channels=8,
            activation_fn="gelu-approximate",
        ),
        vae=vae(),
        scheduler=DDIMScheduler(),
        id2label={0: "cat", 1: "dog"},
    )


_AS_ASKED = {"use_resolution_binning": False}

FAMILIES = (
    Family(
        "dit", _class_conditional, {"DiTPipeline": call(image(SIDE, SIDE), class_labels=[1], num_inference_steps=2)}
    ),
    Family(
        "pixart-alpha",
        lambda: PixArtAlphaPipeline(**pixart_components()),
        {"PixArtAlphaPipeline": text_to_image(negative_prompt=NEGATIVE_PROMPT)},
    ),
    Family(
        "pixart-sigma",
        lambda: PixArtSigmaPipeline(**pixart_components()),
        {"PixArtSigmaPipeline": text_to_image(negative_prompt=NEGATIVE_PROMPT)},
    ),
    Family(
        "sana",
        lambda: SanaPipeline(**sana_components()),
        {"SanaPipeline": text_to_image(negative_prompt=NEGATIVE_PROMPT, **_AS_ASKED)},
    ),
    Family(
        "sana-sprint",
        _sana_sprint,
        {
            "SanaSprintPipeline": text_to_image(**_AS_ASKED),
            "SanaSprintImg2ImgPipeline": image_to_image(width=SIDE, height=SIDE, num_inference_steps=2, **_AS_ASKED),
        },
    ),
    Family(
        "hunyuan-dit",
        _hunyuan_dit,
        {"HunyuanDiTPipeline": text_to_image(negative_prompt=NEGATIVE_PROMPT, **_AS_ASKED)},
    ),
    Family("lumina", _lumina, {"LuminaPipeline": text_to_image(negative_prompt=NEGATIVE_PROMPT)}),
    Family("lumina2", _lumina2, {"Lumina2Pipeline": text_to_image(negative_prompt=NEGATIVE_PROMPT)}),
)
