"""Models with Qwen3-VL: Krea 2, Qwen-Image 2.1, JoyImage, Nucleus, DreamLite, Ideogram 4, Bria FIBO 2."""

from __future__ import annotations

from typing import Any

from diffusers import (
    AutoencoderKLQwenImage21,
    AutoencoderKLWan,
    AutoencoderTiny,
    BriaFibo2Pipeline,
    BriaFibo2Transformer2DModel,
    DreamLiteMobilePipeline,
    DreamLitePipeline,
    DreamLiteUNetModel,
    FlowMatchEulerDiscreteScheduler,
    Ideogram4Pipeline,
    Ideogram4Transformer2DModel,
    JoyImageEditPipeline,
    JoyImageEditPlusPipeline,
    JoyImageEditPlusTransformer3DModel,
    JoyImageEditTransformer3DModel,
    Krea2Pipeline,
    Krea2Transformer2DModel,
    NucleusMoEImagePipeline,
    NucleusMoEImageTransformer2DModel,
    QwenImage21Pipeline,
    QwenImage21Transformer2DModel,
)
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLModel

from tests.contract.families.autoencoders import qwen_vae
from tests.contract.families.calls import call, text_to_image
from tests.contract.families.family import Family, image
from tests.contract.families.flux2 import vae as flux2_vae
from tests.contract.families.inputs import NEGATIVE_PROMPT, PROMPT, picture, pictures
from tests.contract.families.text_encoders import WIDTH, qwen3_vl_config, qwen3_vl_processor
from tests.contract.families.tokenizers import qwen2_tokenizer

#: Ideogram 4 and Bria FIBO 2 read many layers of the text encoder side by side.
_NARROW = 16


def _encoder(width: int = WIDTH, layers: int = 2) -> Qwen3VLForConditionalGeneration:
    return Qwen3VLForConditionalGeneration(qwen3_vl_config(width, layers)).eval()


def _scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)


def _krea2() -> Krea2Pipeline:
    layers = (0, 1, 2)
    return Krea2Pipeline(
        transformer=Krea2Transformer2DModel(
            in_channels=16,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=32,
            timestep_embed_dim=16,
            text_hidden_dim=WIDTH,
            num_text_layers=len(layers),
            text_num_attention_heads=2,
            text_num_key_value_heads=1,
            text_intermediate_size=32,
            num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1,
            axes_dims_rope=(4, 6, 6),
        ),
        vae=qwen_vae(),
        scheduler=_scheduler(),
        text_encoder=Qwen3VLModel(qwen3_vl_config()).eval(),
        tokenizer=qwen2_tokenizer(),
        text_encoder_select_layers=layers,
    )


def _qwen_image_21() -> QwenImage21Pipeline:
    """Its autoencoder also encodes transparency and makes one token of 16² pixels."""
    latents = 8
    return QwenImage21Pipeline(
        transformer=QwenImage21Transformer2DModel(
            in_channels=latents,
            out_channels=latents,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            context_in_dim=WIDTH,
            axes_dims_rope=(4, 6, 6),
        ),
        vae=AutoencoderKLQwenImage21(
            base_dim=4,
            decoder_base_dim=4,
            z_dim=latents,
            dim_mult=[1, 1, 1, 1, 1],
            num_res_blocks=1,
            latents_mean=[0.1] * latents,
            latents_std=[1.2] * latents,
        ),
        scheduler=_scheduler(),
        text_encoder=_encoder(),
        processor=qwen3_vl_processor(),
    )


def _wan_vae() -> AutoencoderKLWan:
    """Takes patches of 2² pixels, because JoyImage scales an input image to a megapixel."""
    return AutoencoderKLWan(
        base_dim=4,
        z_dim=16,
        dim_mult=[1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        in_channels=12,
        out_channels=12,
        patch_size=2,
    )


_JOYIMAGE: dict[str, Any] = {
    "in_channels": 16,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "text_dim": WIDTH,
    "num_layers": 1,
    "rope_dim_list": [4, 6, 6],
}


def _joyimage_components() -> dict[str, Any]:
    return {
        "vae": _wan_vae(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=1.5),
        "text_encoder": _encoder(),
        "tokenizer": qwen2_tokenizer(),
        "processor": qwen3_vl_processor(),
    }


def _nucleus() -> NucleusMoEImagePipeline:
    """The pipeline reads the eighth layer from the end."""
    return NucleusMoEImagePipeline(
        transformer=NucleusMoEImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=5,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(4, 6, 6),
            num_experts=4,
            moe_intermediate_dim=16,
            capacity_factors=[2.0] * 5,
        ),
        vae=qwen_vae(),
        scheduler=_scheduler(),
        text_encoder=_encoder(layers=9),
        processor=qwen3_vl_processor(),
    )


def _dreamlite_components() -> dict[str, Any]:
    channels = (16, 16)
    return {
        "unet": DreamLiteUNetModel(
            sample_size=32,
            down_block_types=("DreamLiteCrossAttnNoSelfAttnDownBlock2D", "DreamLiteCrossAttnDownBlock2D"),
            up_block_types=("DreamLiteCrossAttnUpBlock2D", "DreamLiteUpBlock2D"),
            block_out_channels=(16, 32),
            layers_per_block=1,
            norm_num_groups=8,
            cross_attention_dim=WIDTH,
            attention_head_dim=8,
        ),
        "vae": AutoencoderTiny(
            encoder_block_out_channels=channels,
            decoder_block_out_channels=channels,
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
        ),
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        "text_encoder": _encoder(),
        "tokenizer": qwen2_tokenizer(),
        "processor": qwen3_vl_processor(),
    }


def _ideogram4() -> Ideogram4Pipeline:
    """The transformer reads 13 layers of the text encoder, the last of which is the 36th; another one reads none."""

    def transformer() -> Ideogram4Transformer2DModel:
        return Ideogram4Transformer2DModel(
            in_channels=16,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            intermediate_size=32,
            adaln_dim=16,
            llm_features_dim=13 * _NARROW,
            mrope_section=(4, 2, 2),
        )

    return Ideogram4Pipeline(
        transformer=transformer(),
        unconditional_transformer=transformer(),
        vae=flux2_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=Qwen3VLModel(qwen3_vl_config(_NARROW, 36)).eval(),
        tokenizer=qwen2_tokenizer(),
    )


def _bria_fibo2() -> BriaFibo2Pipeline:
    """The transformer reads 18 layers of the text encoder, three at each of six places."""
    return BriaFibo2Pipeline(
        transformer=BriaFibo2Transformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=6,
            n_refiner_layers=1,
            n_heads=2,
            cap_feat_dim=3 * _NARROW,
            injection_layer_ids=(1, 2, 3, 4, 5),
            perceiver_num_layers=1,
            min_num_gist_tokens=4,
            max_num_gist_tokens=16,
            gist_step=4,
            gist_min_text_len=16,
            gist_max_text_len=64,
            axes_dims=(4, 6, 6),
        ),
        vae=flux2_vae(),
        scheduler=_scheduler(),
        text_encoder=_encoder(_NARROW, 36),
        processor=qwen3_vl_processor(),
    )


_REQUIRES = ("torchvision",)

FAMILIES = (
    Family("krea2", _krea2, {"Krea2Pipeline": text_to_image(negative_prompt=NEGATIVE_PROMPT)}),
    Family(
        "qwen-image-2.1",
        _qwen_image_21,
        {"QwenImage21Pipeline": text_to_image(image=picture, output_resolution=64)},
        requires=_REQUIRES,
    ),
    Family(
        "joyimage-edit",
        lambda: JoyImageEditPipeline(transformer=JoyImageEditTransformer3DModel(**_JOYIMAGE), **_joyimage_components()),
        # This class ignores width and height: it draws a megapixel in the aspect ratio of the image.
        {"JoyImageEditPipeline": call(image(1024, 1024), prompt=PROMPT, image=picture, num_inference_steps=2)},
        requires=_REQUIRES,
    ),
    Family(
        "joyimage-edit-plus",
        lambda: JoyImageEditPlusPipeline(
            transformer=JoyImageEditPlusTransformer3DModel(**_JOYIMAGE), **_joyimage_components()
        ),
        {"JoyImageEditPlusPipeline": text_to_image(images=pictures)},
        requires=_REQUIRES,
    ),
    Family(
        "nucleus-moe-image",
        _nucleus,
        {"NucleusMoEImagePipeline": text_to_image(negative_prompt=NEGATIVE_PROMPT)},
        requires=_REQUIRES,
    ),
    Family(
        "dreamlite",
        lambda: DreamLitePipeline(**_dreamlite_components()),
        {"DreamLitePipeline": text_to_image(image=picture, negative_prompt=NEGATIVE_PROMPT)},
        requires=_REQUIRES,
    ),
    Family(
        "dreamlite-mobile",
        lambda: DreamLiteMobilePipeline(**_dreamlite_components()),
        {"DreamLiteMobilePipeline": text_to_image()},
        requires=_REQUIRES,
    ),
    Family("ideogram4", _ideogram4, {"Ideogram4Pipeline": text_to_image(guidance_schedule=[7.0, 3.0])}),
    Family("bria-fibo-2", _bria_fibo2, {"BriaFibo2Pipeline": text_to_image()}, requires=_REQUIRES),
)
