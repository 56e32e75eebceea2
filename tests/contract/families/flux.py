"""Flux.1 and what was made of it: Fill, Control, Kontext, Redux, Chroma, VisualCloze."""

from __future__ import annotations

from typing import Any

from diffusers import (
    ChromaPipeline,
    ChromaTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    FluxControlPipeline,
    FluxFillPipeline,
    FluxKontextPipeline,
    FluxPipeline,
    FluxPriorReduxPipeline,
    FluxTransformer2DModel,
)
from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

from tests.contract.families.autoencoders import flow_vae
from tests.contract.families.calls import SIDE, call, image_to_image, inpainting, text_to_image
from tests.contract.families.family import Family, embedding
from tests.contract.families.inputs import NEGATIVE_PROMPT, PROMPT, picture
from tests.contract.families.text_encoders import WIDTH, clip_text_encoder, t5_encoder
from tests.contract.families.tokenizers import clip_tokenizer, t5_tokenizer

#: Channels of four latents, which are one token.
TOKEN = 16


def transformer(**changes: Any) -> FluxTransformer2DModel:
    """Flux' transformer."""
    return FluxTransformer2DModel(
        **{
            "patch_size": 1,
            "in_channels": TOKEN,
            "out_channels": TOKEN,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": WIDTH,
            "pooled_projection_dim": WIDTH,
            "guidance_embeds": True,
            "axes_dims_rope": (4, 6, 6),
        }
        | changes
    )


def components(**changes: Any) -> dict[str, Any]:
    """The components of Flux."""
    return {
        "transformer": transformer(),
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        "vae": flow_vae(),
        "text_encoder": clip_text_encoder(),
        "tokenizer": clip_tokenizer(),
        "text_encoder_2": t5_encoder(t5_tokenizer()),
        "tokenizer_2": t5_tokenizer(),
    } | changes


def _schnell() -> FluxPipeline:
    """The distilled Flux takes no guidance and has a fixed noise schedule."""
    return FluxPipeline(
        **components(
            transformer=transformer(guidance_embeds=False),
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=False),
        )
    )


def _fill() -> FluxFillPipeline:
    """A token also holds the masked image's and four pixels of mask per latent: the mask has the image's size."""
    return FluxFillPipeline(**components(transformer=transformer(in_channels=2 * TOKEN + 16)))


def _control() -> FluxControlPipeline:
    return FluxControlPipeline(**components(transformer=transformer(in_channels=2 * TOKEN)))


def _redux() -> FluxPriorReduxPipeline:
    side = 32
    config = SiglipVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=side, patch_size=8
    )
    return FluxPriorReduxPipeline(
        image_encoder=SiglipVisionModel(config).eval(),
        feature_extractor=SiglipImageProcessor(size={"height": side, "width": side}),
        image_embedder=ReduxImageEncoder(redux_dim=16, txt_in_features=WIDTH),
        text_encoder=clip_text_encoder(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5_encoder(t5_tokenizer()),
        tokenizer_2=t5_tokenizer(),
    )


def _chroma() -> ChromaPipeline:
    return ChromaPipeline(
        transformer=ChromaTransformer2DModel(
            patch_size=1,
            in_channels=TOKEN,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(4, 6, 6),
            approximator_num_channels=16,
            approximator_hidden_dim=32,
            approximator_layers=1,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=flow_vae(),
        text_encoder=t5_encoder(t5_tokenizer()),
        tokenizer=t5_tokenizer(),
    )


_SIZE = {"width": SIDE, "height": SIDE}
#: Without it Kontext draws a megapixel, in one of the sizes of its training.
_AS_ASKED = {"max_area": SIDE * SIDE, "_auto_resize": False}

FAMILIES = (
    Family(
        "flux",
        lambda: FluxPipeline(**components()),
        {
            "FluxPipeline": text_to_image(),
            "FluxModularPipeline": text_to_image(),
            "FluxImg2ImgPipeline": image_to_image(**_SIZE),
            "FluxInpaintPipeline": inpainting(),
        },
    ),
    Family("flux-schnell", _schnell, {"FluxPipeline": text_to_image()}),
    Family("flux-fill", _fill, {"FluxFillPipeline": inpainting()}),
    Family(
        "flux-control",
        _control,
        {
            "FluxControlPipeline": text_to_image(control_image=picture),
            "FluxControlImg2ImgPipeline": image_to_image(control_image=picture, **_SIZE),
            "FluxControlInpaintPipeline": inpainting(control_image=picture),
        },
    ),
    Family(
        "flux-kontext",
        lambda: FluxKontextPipeline(**components()),
        {
            "FluxKontextPipeline": text_to_image(image=picture, **_AS_ASKED),
            "FluxKontextInpaintPipeline": inpainting(**_AS_ASKED),
        },
    ),
    Family(
        "flux-redux",
        _redux,
        {"FluxPriorReduxPipeline": call(embedding(1, 512 + 16, WIDTH), prompt=PROMPT, image=picture)},
    ),
    Family(
        "chroma",
        _chroma,
        {
            "ChromaPipeline": text_to_image(negative_prompt=NEGATIVE_PROMPT),
            "ChromaImg2ImgPipeline": image_to_image(**_SIZE),
        },
    ),
)

IMPOSSIBLE = {
    "ChromaInpaintPipeline": "diffusers 0.42.1 reads guidance_embeds, which Chroma's transformer does not have",
}
