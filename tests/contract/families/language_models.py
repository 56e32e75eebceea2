"""Images from or with language models of their own kind: OmniGen, GLM-Image, ERNIE-Image, PRX."""

from __future__ import annotations

from typing import Any

from diffusers import (
    ErnieImagePipeline,
    ErnieImageTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    GlmImagePipeline,
    GlmImageTransformer2DModel,
    OmniGenPipeline,
    OmniGenTransformer2DModel,
    PRXPipeline,
    PRXPixelPipeline,
    PRXTransformer2DModel,
)
from transformers import (
    ByT5Tokenizer,
    GlmImageConfig,
    GlmImageForConditionalGeneration,
    GlmImageImageProcessor,
    GlmImageProcessor,
    Mistral3Config,
    Mistral3Model,
    Qwen3Model,
    T5GemmaConfig,
    T5GemmaModuleConfig,
)
from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

from tests.contract.families.autoencoders import flow_vae, vae
from tests.contract.families.calls import text_to_image
from tests.contract.families.family import Family
from tests.contract.families.flux2 import vae as flux2_vae
from tests.contract.families.inputs import NEGATIVE_PROMPT, pictures
from tests.contract.families.text_encoders import WIDTH, decoder_config, qwen3_config, t5_encoder
from tests.contract.families.tokenizers import byte_level_tokenizer, gemma_tokenizer, llama_tokenizer, qwen2_tokenizer


def _omnigen() -> OmniGenPipeline:
    """One transformer reads the prompt's tokens and the latents of the images; it has no text encoder."""
    tokenizer = llama_tokenizer(max_length=4096)
    return OmniGenPipeline(
        transformer=OmniGenTransformer2DModel(
            in_channels=4,
            hidden_size=32,
            num_attention_heads=2,
            num_key_value_heads=2,
            intermediate_size=64,
            num_layers=2,
            pad_token_id=tokenizer.pad_token_id,
            vocab_size=len(tokenizer),
            max_position_embeddings=4096,
            rope_scaling={"type": "su", "short_factor": [1.0] * 8, "long_factor": [1.0] * 8},
            pos_embed_max_size=64,
            time_step_dim=32,
        ),
        vae=vae(8, 8, 8, 8),
        scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True, num_train_timesteps=1),
        tokenizer=tokenizer,
    )


#: A chat template that names an image where the processor expects one.
_GLM_TEMPLATE = """\
{%- for message in messages -%}
<|user|>{% for part in message.content %}{{ '<|image|>' if part.type == 'image' else part.text }}{% endfor %}
{%- endfor -%}
"""


def _glm_image() -> GlmImagePipeline:
    """A language model writes the codes of a small image, which are a condition of the diffusion transformer.

    No code ends the text, so that the language model writes as many codes as the size asks for.
    """
    codes = 64
    pad = "<|endoftext|>"
    tokenizer = byte_level_tokenizer(
        "<|user|>", "<|image|>", "<|grid_bos|>", "<|grid_eos|>", bos_token="<|begin|>", eos_token=pad, pad_token=pad
    )
    tokenizer = type(tokenizer)(
        tokenizer_object=tokenizer.backend_tokenizer,
        model_max_length=2048,
        bos_token="<|begin|>",
        eos_token=pad,
        pad_token=pad,
        extra_special_tokens={
            "image_token": "<|image|>",
            "grid_bos_token": "<|grid_bos|>",
            "grid_eos_token": "<|grid_eos|>",
        },
    )
    config = GlmImageConfig(
        text_config=decoder_config(tokenizer)
        | {
            "eos_token_id": None,
            "vision_vocab_size": codes,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1]},
        },
        vision_config={
            "depth": 1,
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_heads": 2,
            "image_size": 64,
            "patch_size": 16,
        },
        vq_config={"embed_dim": 16, "num_embeddings": codes, "latent_channels": WIDTH},
        image_token_id=tokenizer.convert_tokens_to_ids("<|image|>"),
        image_start_token_id=tokenizer.convert_tokens_to_ids("<|grid_bos|>"),
        image_end_token_id=tokenizer.eos_token_id,
    )
    glyphs = ByT5Tokenizer()
    return GlmImagePipeline(
        transformer=GlmImageTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            text_embed_dim=WIDTH,
            time_embed_dim=16,
            condition_dim=8,
            prior_vq_quantizer_codebook_size=codes,
        ),
        vae=vae(8, 8, 8, 8, latents_mean=[0.1] * 4, latents_std=[1.2] * 4),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="linear"),
        text_encoder=t5_encoder(glyphs),
        tokenizer=glyphs,
        vision_language_encoder=GlmImageForConditionalGeneration(config).eval(),
        processor=GlmImageProcessor(
            image_processor=GlmImageImageProcessor(patch_size=16, merge_size=1),
            tokenizer=tokenizer,
            chat_template=_GLM_TEMPLATE,
        ),
    )


def _ernie_image() -> ErnieImagePipeline:
    tokenizer = byte_level_tokenizer(bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    config = Mistral3Config(
        text_config={"model_type": "ministral3", **decoder_config(tokenizer)},
        vision_config={
            "model_type": "pixtral",
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "head_dim": 8,
            "image_size": 32,
            "patch_size": 8,
        },
    )
    return ErnieImagePipeline(
        transformer=ErnieImageTransformer2DModel(
            hidden_size=32,
            num_attention_heads=2,
            num_layers=2,
            ffn_hidden_size=64,
            in_channels=16,
            out_channels=16,
            text_in_dim=WIDTH,
            rope_axes_dim=(4, 6, 6),
        ),
        vae=flux2_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=4.0),
        text_encoder=Mistral3Model(config).eval(),
        tokenizer=tokenizer,
    )


_PRX: dict[str, Any] = {"context_in_dim": WIDTH, "hidden_size": 32, "num_heads": 2, "depth": 2, "axes_dim": [8, 8]}


def _prx() -> PRXPipeline:
    tokenizer = gemma_tokenizer(256)
    config = T5GemmaModuleConfig(
        **decoder_config(tokenizer), query_pre_attn_scalar=8, layer_types=["full_attention"] * 2
    )
    # The encoder reads the same settings at the top of the file that it saves.
    settings = config.to_dict() | {"is_encoder_decoder": False, "model_type": T5GemmaConfig.model_type}
    text_encoder = T5GemmaEncoder(T5GemmaConfig(encoder=config, **settings))
    return PRXPipeline(
        transformer=PRXTransformer2DModel(in_channels=4, **_PRX),
        vae=flow_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        default_sample_size=256,
    )


def _prx_pixel() -> PRXPixelPipeline:
    """It has no autoencoder."""
    return PRXPixelPipeline(
        transformer=PRXTransformer2DModel(
            in_channels=3, patch_size=8, bottleneck_size=16, resolution_embeds=True, **_PRX
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=Qwen3Model(qwen3_config()).eval(),
        tokenizer=qwen2_tokenizer(),
    )


_AS_ASKED = {"use_resolution_binning": False}

FAMILIES = (
    Family("omnigen", _omnigen, {"OmniGenPipeline": text_to_image()}, requires=("torchvision",)),
    Family(
        "omnigen-edit",
        _omnigen,
        {
            "OmniGenPipeline": text_to_image(
                prompt="the cube of <img><|image_1|></img> on the table of <img><|image_2|></img>",
                input_images=pictures,
            )
        },
        requires=("torchvision",),
    ),
    Family("glm-image", _glm_image, {"GlmImagePipeline": text_to_image()}, requires=("torchvision",)),
    Family("ernie-image", _ernie_image, {"ErnieImagePipeline": text_to_image(negative_prompt=NEGATIVE_PROMPT)}),
    Family("prx", _prx, {"PRXPipeline": text_to_image(negative_prompt=NEGATIVE_PROMPT, **_AS_ASKED)}),
    Family("prx-pixel", _prx_pixel, {"PRXPixelPipeline": text_to_image(negative_prompt=NEGATIVE_PROMPT, **_AS_ASKED)}),
)
