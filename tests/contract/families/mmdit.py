"""Diffusion transformers in which texts and images are one sequence: AuraFlow, CogView, HiDream, Hunyuan-Image, …."""

from __future__ import annotations

from dataclasses import replace

from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    CogVideoXDDIMScheduler,
    CogView3PlusPipeline,
    CogView3PlusTransformer2DModel,
    CogView4ControlPipeline,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
    LongCatImageEditPipeline,
    LongCatImagePipeline,
    LongCatImageTransformer2DModel,
    OvisImagePipeline,
    OvisImageTransformer2DModel,
)
from transformers import GlmConfig, GlmModel, LlamaConfig, LlamaForCausalLM, Qwen3Model

from tests.contract.families.autoencoders import flow_vae, vae
from tests.contract.families.calls import call, text_to_image
from tests.contract.families.family import Family, image
from tests.contract.families.inputs import NEGATIVE_PROMPT, PROMPT, picture
from tests.contract.families.text_encoders import (
    WIDTH,
    clip_text_encoder_with_projection,
    decoder_config,
    qwen2_5_vl,
    qwen2_vl_processor,
    qwen3_config,
    t5_encoder,
    umt5_encoder,
)
from tests.contract.families.tokenizers import (
    byte_level_tokenizer,
    clip_tokenizer,
    llama_tokenizer,
    qwen2_tokenizer,
    t5_tokenizer,
)


def _aura_flow() -> AuraFlowPipeline:
    return AuraFlowPipeline(
        transformer=AuraFlowTransformer2DModel(
            sample_size=32,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            caption_projection_dim=32,
            pos_embed_max_size=1024,
        ),
        vae=vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
        text_encoder=umt5_encoder(llama_tokenizer()),
        tokenizer=llama_tokenizer(padding_side="right"),
    )


def _cogview3() -> CogView3PlusPipeline:
    return CogView3PlusPipeline(
        transformer=CogView3PlusTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            text_embed_dim=WIDTH,
            time_embed_dim=16,
            condition_dim=8,
            pos_embed_max_size=32,
            sample_size=32,
        ),
        vae=vae(),
        scheduler=CogVideoXDDIMScheduler(),
        text_encoder=t5_encoder(t5_tokenizer()),
        tokenizer=t5_tokenizer(),
    )


def _cogview4(*, control: bool = False) -> CogView4Pipeline:
    """The latents of a control image are concatenated with the noise."""
    pad = "<|endoftext|>"
    tokenizer = byte_level_tokenizer(prefix=("[gMASK]", "<sop>"), pad_token=pad, eos_token=pad, padding_side="left")
    pipeline_class = CogView4ControlPipeline if control else CogView4Pipeline
    return pipeline_class(
        transformer=CogView4Transformer2DModel(
            in_channels=8 if control else 4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            text_embed_dim=WIDTH,
            time_embed_dim=16,
            condition_dim=8,
            rope_axes_dim=(32, 32),
        ),
        vae=vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="linear"),
        text_encoder=GlmModel(GlmConfig(**decoder_config(tokenizer))).eval(),
        tokenizer=tokenizer,
    )


def _hidream() -> HiDreamImagePipeline:
    """The transformer reads chosen layers of Llama, and T5's output."""
    llama = byte_level_tokenizer(bos_token="<|begin_of_text|>", eos_token="<|eot_id|>", pad_token="<|eot_id|>")
    layers = 2
    return HiDreamImagePipeline(
        transformer=HiDreamImageTransformer2DModel(
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            caption_channels=[WIDTH, WIDTH],
            text_emb_dim=2 * WIDTH,
            num_routed_experts=4,
            num_activated_experts=2,
            axes_dims_rope=(4, 6, 6),
            max_resolution=(32, 32),
            llama_layers=list(range(layers)),
        ),
        vae=flow_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=clip_text_encoder_with_projection(max_position_embeddings=128),
        tokenizer=clip_tokenizer(128),
        text_encoder_2=clip_text_encoder_with_projection(max_position_embeddings=128),
        tokenizer_2=clip_tokenizer(128),
        text_encoder_3=t5_encoder(t5_tokenizer()),
        tokenizer_3=t5_tokenizer(),
        text_encoder_4=LlamaForCausalLM(LlamaConfig(**decoder_config(llama) | {"num_hidden_layers": layers})).eval(),
        tokenizer_4=llama,
    )


def _ovis() -> OvisImagePipeline:
    return OvisImagePipeline(
        transformer=OvisImageTransformer2DModel(
            in_channels=16,
            out_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(4, 6, 6),
        ),
        vae=flow_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        text_encoder=Qwen3Model(qwen3_config()).eval(),
        tokenizer=qwen2_tokenizer(),
    )


def _longcat(pipeline_class: type[LongCatImagePipeline | LongCatImageEditPipeline], *vae_channels: int) -> object:
    return pipeline_class(
        transformer=LongCatImageTransformer2DModel(
            in_channels=64,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            axes_dims_rope=[4, 6, 6],
        ),
        vae=flow_vae(*vae_channels, latent_channels=16),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        text_encoder=qwen2_5_vl(),
        tokenizer=qwen2_tokenizer(),
        text_processor=qwen2_vl_processor(),
    )


FAMILIES = (
    Family("aura-flow", _aura_flow, {"AuraFlowPipeline": text_to_image(negative_prompt=NEGATIVE_PROMPT)}),
    Family("cogview3", _cogview3, {"CogView3PlusPipeline": text_to_image(negative_prompt=NEGATIVE_PROMPT)}),
    Family("cogview4", _cogview4, {"CogView4Pipeline": text_to_image(negative_prompt=NEGATIVE_PROMPT)}),
    Family(
        "cogview4-control",
        lambda: _cogview4(control=True),
        {"CogView4ControlPipeline": text_to_image(control_image=picture)},
    ),
    Family(
        "hidream",
        _hidream,
        # This class keeps the aspect ratio and draws always as many pixels: 1024² with a full-size autoencoder.
        {"HiDreamImagePipeline": replace(text_to_image(negative_prompt=NEGATIVE_PROMPT), output=image(256, 256))},
    ),
    Family("ovis-image", _ovis, {"OvisImagePipeline": text_to_image(negative_prompt=NEGATIVE_PROMPT)}),
    Family(
        "longcat-image",
        lambda: _longcat(LongCatImagePipeline),
        {"LongCatImagePipeline": text_to_image(negative_prompt=NEGATIVE_PROMPT, enable_prompt_rewrite=False)},
        requires=("torchvision",),
    ),
    Family(
        "longcat-image-edit",
        lambda: _longcat(LongCatImageEditPipeline, 4, 4, 4, 4),
        # This class draws a megapixel in the aspect ratio of the image.
        {
            "LongCatImageEditPipeline": call(
                image(1024, 1024), prompt=PROMPT, image=picture, negative_prompt=NEGATIVE_PROMPT, num_inference_steps=2
            )
        },
        requires=("torchvision",),
    ),
)
