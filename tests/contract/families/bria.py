"""Bria 3.2 and Bria FIBO."""

from __future__ import annotations

from typing import Any

from diffusers import (
    AutoencoderKLWan,
    BriaFiboEditPipeline,
    BriaFiboPipeline,
    BriaFiboTransformer2DModel,
    BriaPipeline,
    BriaTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
)
from transformers import SmolLM3Config, SmolLM3ForCausalLM

from tests.contract.families.autoencoders import vae
from tests.contract.families.calls import text_to_image
from tests.contract.families.family import Family
from tests.contract.families.inputs import NEGATIVE_PROMPT, picture
from tests.contract.families.text_encoders import WIDTH, decoder_config, t5_encoder
from tests.contract.families.tokenizers import byte_level_tokenizer, t5_tokenizer

#: The width of FIBO's text encoder, which has many tokens.
_WIDTH = 16

#: A prompt of FIBO is a description in JSON.
_JSON = '{"short_description": "a red cube on a blue table", "objects": ["cube", "table"]}'

#: One for an edit names the instruction, too.
_EDIT = '{"short_description": "a red cube on a blue table", "edit_instruction": "make the cube green"}'

_TRANSFORMER: dict[str, Any] = {
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "axes_dims_rope": [4, 6, 6],
}


def _bria() -> BriaPipeline:
    return BriaPipeline(
        transformer=BriaTransformer2DModel(in_channels=16, joint_attention_dim=WIDTH, **_TRANSFORMER),
        vae=vae(shift_factor=0.0),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        text_encoder=t5_encoder(t5_tokenizer()),
        tokenizer=t5_tokenizer(),
    )


def _fibo_components() -> dict[str, Any]:
    """The autoencoder makes one latent of 16² pixels; the last two layers of the text encoder are read side by side."""
    tokenizer = byte_level_tokenizer(
        bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>", pad_token="<|end_of_text|>"
    )
    # The pipelines give an empty prompt the number of Llama's first token.
    config = SmolLM3Config(**decoder_config(tokenizer, _WIDTH) | {"vocab_size": 128_001})
    return {
        "transformer": BriaFiboTransformer2DModel(
            in_channels=16, joint_attention_dim=2 * _WIDTH, text_encoder_dim=_WIDTH, **_TRANSFORMER
        ),
        "vae": AutoencoderKLWan(
            base_dim=4,
            z_dim=16,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            in_channels=12,
            out_channels=12,
            patch_size=2,
            scale_factor_spatial=16,
        ),
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        "text_encoder": SmolLM3ForCausalLM(config).eval(),
        "tokenizer": tokenizer,
    }


FAMILIES = (
    Family("bria", _bria, {"BriaPipeline": text_to_image(negative_prompt=NEGATIVE_PROMPT)}),
    Family(
        "bria-fibo",
        lambda: BriaFiboPipeline(**_fibo_components()),
        {"BriaFiboPipeline": text_to_image(prompt=_JSON, negative_prompt=NEGATIVE_PROMPT)},
    ),
    Family(
        "bria-fibo-edit",
        lambda: BriaFiboEditPipeline(**_fibo_components()),
        {"BriaFiboEditPipeline": text_to_image(prompt=_EDIT, image=picture)},
    ),
)
