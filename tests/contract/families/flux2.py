"""Flux.2 and Flux.2 Klein."""

from __future__ import annotations

from typing import Any

from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinKVPipeline,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
)
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PixtralImageProcessor,
    PixtralProcessor,
    Qwen3ForCausalLM,
)

from tests.contract.families.calls import inpainting, text_to_image
from tests.contract.families.family import Family
from tests.contract.families.inputs import picture, pictures
from tests.contract.families.text_encoders import decoder_config, qwen3_config
from tests.contract.families.tokenizers import byte_level_tokenizer, qwen2_tokenizer

#: The width of the text encoders. The transformer reads three of their layers side by side.
_WIDTH = 16

#: A chat template in Mistral's format.
_CHAT_TEMPLATE = """\
{{ bos_token }}{%- for message in messages -%}
{{ '[SYSTEM_PROMPT]' if message.role == 'system' else '[INST]' }}{% for part in message.content %}\
{{ '[IMG]' if part.type == 'image' else part.text }}{% endfor %}\
{{ '[/SYSTEM_PROMPT]' if message.role == 'system' else '[/INST]' }}{% endfor -%}
"""


def transformer(**changes: Any) -> Flux2Transformer2DModel:
    """Flux.2's transformer, whose tokens are four latents of four channels."""
    return Flux2Transformer2DModel(
        **{
            "in_channels": 16,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 3 * _WIDTH,
            "timestep_guidance_channels": 32,
            "axes_dims_rope": (4, 4, 4, 4),
        }
        | changes
    )


def vae() -> AutoencoderKLFlux2:
    """Flux.2's autoencoder, which normalizes groups of four latents."""
    return AutoencoderKLFlux2(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
    )


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """The noise schedule of Flux.2, which depends on the size."""
    return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)


def _flux2() -> Flux2Pipeline:
    """The layers that the transformer reads are the 10th, the 20th and the 30th."""
    tokenizer = byte_level_tokenizer(
        "[IMG]",
        "[IMG_BREAK]",
        "[IMG_END]",
        "[INST]",
        "[/INST]",
        "[SYSTEM_PROMPT]",
        "[/SYSTEM_PROMPT]",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        padding_side="left",
    )
    processor = PixtralProcessor(
        image_processor=PixtralImageProcessor(size={"longest_edge": 32}, patch_size=8),
        tokenizer=tokenizer,
        patch_size=8,
        chat_template=_CHAT_TEMPLATE,
    )
    config = Mistral3Config(
        text_config={"model_type": "mistral", **decoder_config(tokenizer, _WIDTH), "num_hidden_layers": 30},
        vision_config={
            "model_type": "pixtral",
            "hidden_size": _WIDTH,
            "intermediate_size": 2 * _WIDTH,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "head_dim": _WIDTH // 2,
            "image_size": 32,
            "patch_size": 8,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        vision_feature_layer=-1,
        spatial_merge_size=1,
    )
    return Flux2Pipeline(
        transformer=transformer(),
        vae=vae(),
        scheduler=scheduler(),
        text_encoder=Mistral3ForConditionalGeneration(config).eval(),
        tokenizer=processor,
    )


def _klein_components() -> dict[str, Any]:
    """The layers that the transformer reads are the 9th, the 18th and the 27th."""
    return {
        "transformer": transformer(guidance_embeds=False),
        "vae": vae(),
        "scheduler": scheduler(),
        "text_encoder": Qwen3ForCausalLM(qwen3_config(_WIDTH, num_hidden_layers=27)).eval(),
        "tokenizer": qwen2_tokenizer(),
    }


FAMILIES = (
    Family(
        "flux2",
        _flux2,
        {"Flux2Pipeline": text_to_image(image=pictures)},
        requires=("torchvision",),
    ),
    Family(
        "flux2-klein",
        lambda: Flux2KleinPipeline(**_klein_components(), is_distilled=False),
        {
            "Flux2KleinPipeline": text_to_image(image=picture),
            "Flux2KleinBaseModularPipeline": text_to_image(image=picture),
            "Flux2KleinInpaintPipeline": inpainting(),
        },
    ),
    Family(
        "flux2-klein-kv",
        lambda: Flux2KleinKVPipeline(**_klein_components(), is_distilled=True),
        {"Flux2KleinKVPipeline": text_to_image(image=picture)},
    ),
)
