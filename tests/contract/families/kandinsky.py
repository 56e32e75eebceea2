"""Kandinsky 2.1, 2.2, 3 and the images of Kandinsky 5."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    Kandinsky3Pipeline,
    Kandinsky3UNet,
    Kandinsky5I2IPipeline,
    Kandinsky5T2IPipeline,
    Kandinsky5Transformer3DModel,
    KandinskyCombinedPipeline,
    KandinskyPriorPipeline,
    KandinskyV22CombinedPipeline,
    KandinskyV22ControlnetImg2ImgPipeline,
    KandinskyV22ControlnetPipeline,
    KandinskyV22InpaintCombinedPipeline,
    KandinskyV22Pipeline,
    KandinskyV22PriorPipeline,
    PriorTransformer,
    UnCLIPScheduler,
    UNet2DConditionModel,
    VQModel,
)
from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP

from tests.contract.families.autoencoders import flow_vae
from tests.contract.families.calls import SIDE, call, image_to_image, inpainting, text_to_image
from tests.contract.families.family import Family, embedding, image
from tests.contract.families.inputs import PROMPT, picture
from tests.contract.families.text_encoders import (
    WIDTH,
    clip_image_encoder,
    clip_image_processor,
    clip_text_encoder,
    clip_text_encoder_with_projection,
    qwen2_5_vl,
    qwen2_vl_processor,
    t5_encoder,
)
from tests.contract.families.tokenizers import clip_tokenizer, t5_tokenizer, xlm_roberta_tokenizer


def _unet(addition: str, projection: str, in_channels: int = 4) -> UNet2DConditionModel:
    """Predicts the noise and its variance."""
    return UNet2DConditionModel(
        in_channels=in_channels,
        out_channels=8,
        sample_size=32,
        addition_embed_type=addition,
        encoder_hid_dim=WIDTH,
        encoder_hid_dim_type=projection,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        block_out_channels=(16, 32),
        norm_num_groups=8,
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=8,
        resnet_time_scale_shift="scale_shift",
    )


def _movq() -> VQModel:
    """Kandinsky's autoencoder of three versions, which normalizes by the latents at each place."""
    return VQModel(
        latent_channels=4,
        vq_embed_dim=4,
        num_vq_embeddings=16,
        block_out_channels=(32, 32, 32, 32),
        norm_type="spatial",
        down_block_types=(*["DownEncoderBlock2D"] * 3, "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", *["UpDecoderBlock2D"] * 3),
    )


def _prior_components() -> dict[str, Any]:
    """The prior draws the embedding of an image for a text."""
    prior = PriorTransformer(num_attention_heads=2, attention_head_dim=16, embedding_dim=WIDTH, num_layers=1)
    return {
        "prior": prior,
        "image_encoder": clip_image_encoder(),
        "text_encoder": clip_text_encoder_with_projection(),
        "tokenizer": clip_tokenizer(),
        "scheduler": UnCLIPScheduler(variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=10.0),
        "image_processor": clip_image_processor(),
    }


def _with_prior(components: dict[str, Any]) -> dict[str, Any]:
    """The components of a combined pipeline."""
    return components | {f"prior_{name}": component for name, component in _prior_components().items()}


def _ddim() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="linear", clip_sample=False, set_alpha_to_one=False
    )


def _v1_components() -> dict[str, Any]:
    tokenizer = xlm_roberta_tokenizer()
    config = MCLIPConfig(
        transformerDimSize=WIDTH,
        imageDimSize=WIDTH,
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        pad_token_id=tokenizer.pad_token_id,
    )
    return {
        "text_encoder": MultilingualCLIP(config).eval(),
        "tokenizer": tokenizer,
        "unet": _unet("text_image", "text_image_proj"),
        "scheduler": _ddim(),
        "movq": _movq(),
    }


def _v22_components(**changes: Any) -> dict[str, Any]:
    return {"unet": _unet("image", "image_proj"), "scheduler": _ddim(), "movq": _movq()} | changes


def _hint() -> dict[str, Any]:
    """The UNet reads a hint, such as a depth map, of the image's size."""
    return _v22_components(unet=_unet("image_hint", "image_proj", 8))


def _kandinsky3() -> Kandinsky3Pipeline:
    return Kandinsky3Pipeline(
        unet=Kandinsky3UNet(
            time_embedding_dim=16,
            groups=4,
            attention_head_dim=8,
            block_out_channels=(16, 32),
            cross_attention_dim=16,
            encoder_hid_dim=WIDTH,
        ),
        scheduler=DDPMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="squaredcos_cap_v2", clip_sample=True
        ),
        movq=_movq(),
        text_encoder=t5_encoder(t5_tokenizer()),
        tokenizer=t5_tokenizer(),
    )


def _kandinsky5_components(*, edit: bool = False) -> dict[str, Any]:
    latents = 4
    return {
        "transformer": Kandinsky5Transformer3DModel(
            in_visual_dim=latents,
            in_text_dim=WIDTH,
            in_text_dim2=WIDTH,
            time_dim=16,
            out_visual_dim=latents,
            model_dim=16,
            ff_dim=32,
            num_text_blocks=1,
            num_visual_blocks=1,
            axes_dims=(4, 6, 6),
            visual_cond=edit,
        ),
        "vae": flow_vae(4, 4, 4, 4, latent_channels=latents, mid_block_add_attention=False),
        "text_encoder": qwen2_5_vl(),
        "tokenizer": qwen2_vl_processor(),
        "text_encoder_2": clip_text_encoder(),
        "tokenizer_2": clip_tokenizer(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    }


def _embedding(seed: int) -> torch.Tensor:
    """An image's embedding, as the prior draws it."""
    return torch.randn((1, WIDTH), generator=torch.Generator().manual_seed(seed))


def _pictured(width: int, height: int) -> torch.Tensor:
    """A hint as a tensor, the only form that the pipelines take."""
    pixels = torch.frombuffer(bytearray(picture(width, height).tobytes()), dtype=torch.uint8)
    return pixels.reshape(1, height, width, 3).permute(0, 3, 1, 2) / 255


def _embedded() -> dict[str, Any]:
    return {"prompt": None, "image_embeds": _embedding(1), "negative_image_embeds": _embedding(2)}


_SIZE = {"width": SIDE, "height": SIDE}
_PRIOR = {"prior_num_inference_steps": 2}

FAMILIES = (
    Family(
        "kandinsky",
        lambda: KandinskyCombinedPipeline(**_with_prior(_v1_components())),
        {
            "KandinskyCombinedPipeline": text_to_image(**_PRIOR),
            "KandinskyImg2ImgCombinedPipeline": image_to_image(**_PRIOR, **_SIZE),
        },
    ),
    Family(
        "kandinsky-prior",
        lambda: KandinskyPriorPipeline(**_prior_components()),
        {"KandinskyPriorPipeline": call(embedding(1, WIDTH), prompt=PROMPT, num_inference_steps=2)},
    ),
    Family(
        "kandinsky-2.2",
        lambda: KandinskyV22CombinedPipeline(**_with_prior(_v22_components())),
        {
            "KandinskyV22CombinedPipeline": text_to_image(**_PRIOR),
            "KandinskyV22Img2ImgCombinedPipeline": image_to_image(**_PRIOR, **_SIZE),
        },
    ),
    Family(
        "kandinsky-2.2-inpainting",
        lambda: KandinskyV22InpaintCombinedPipeline(
            **_with_prior(_v22_components(unet=_unet("image", "image_proj", 9)))
        ),
        {"KandinskyV22InpaintCombinedPipeline": inpainting(**_PRIOR, strength=None)},
    ),
    Family(
        "kandinsky-2.2-prior",
        lambda: KandinskyV22PriorPipeline(**_prior_components()),
        {
            "KandinskyV22PriorPipeline": call(embedding(1, WIDTH), prompt=PROMPT, num_inference_steps=2),
            "KandinskyV22PriorEmb2EmbPipeline": call(
                embedding(1, WIDTH), prompt=PROMPT, image=picture, strength=0.5, num_inference_steps=4
            ),
        },
    ),
    Family(
        "kandinsky-2.2-decoder",
        lambda: KandinskyV22Pipeline(**_v22_components()),
        {
            "KandinskyV22Pipeline": text_to_image(**_embedded()),
            "KandinskyV22Img2ImgPipeline": image_to_image(**_embedded(), **_SIZE),
        },
    ),
    Family(
        "kandinsky-2.2-controlnet",
        lambda: KandinskyV22ControlnetPipeline(**_hint()),
        {"KandinskyV22ControlnetPipeline": text_to_image(**_embedded(), hint=_pictured)},
    ),
    Family(
        "kandinsky-2.2-controlnet-img2img",
        lambda: KandinskyV22ControlnetImg2ImgPipeline(**_hint()),
        {"KandinskyV22ControlnetImg2ImgPipeline": image_to_image(**_embedded(), hint=_pictured, **_SIZE)},
    ),
    Family(
        "kandinsky3",
        _kandinsky3,
        {
            "Kandinsky3Pipeline": text_to_image(),
            "Kandinsky3Img2ImgPipeline": image_to_image(),
        },
    ),
    # Both classes of version 5 draw one of seven sizes of about a megapixel, whatever they are asked for.
    Family(
        "kandinsky5-image",
        lambda: Kandinsky5T2IPipeline(**_kandinsky5_components()),
        {"Kandinsky5T2IPipeline": replace(text_to_image(), output=image(1024, 1024))},
        requires=("torchvision",),
    ),
    Family(
        "kandinsky5-image-edit",
        lambda: Kandinsky5I2IPipeline(**_kandinsky5_components(edit=True)),
        {"Kandinsky5I2IPipeline": replace(text_to_image(image=picture), output=image(1024, 1024))},
        requires=("torchvision",),
    ),
)
