"""ControlNets, ControlNet-XS and T2I adapters of all families that have them."""

from __future__ import annotations

from typing import Any

from diffusers import (
    ControlNetModel,
    ControlNetUnionModel,
    ControlNetXSAdapter,
    FluxControlNetModel,
    FluxControlNetPipeline,
    HunyuanDiT2DControlNetModel,
    HunyuanDiTControlNetPipeline,
    QwenImageControlNetInpaintPipeline,
    QwenImageControlNetModel,
    QwenImageControlNetPipeline,
    SanaControlNetModel,
    SanaControlNetPipeline,
    SD3ControlNetModel,
    StableDiffusion3ControlNetInpaintingPipeline,
    StableDiffusion3ControlNetPipeline,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionControlNetXSPipeline,
    StableDiffusionXLAdapterPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLControlNetUnionPipeline,
    StableDiffusionXLControlNetXSPipeline,
    T2IAdapter,
    UNet2DConditionModel,
    ZImageControlNetInpaintPipeline,
    ZImageControlNetModel,
    ZImageControlNetPipeline,
)

from tests.contract.families import dit, flux, qwen_image, sd3, sdxl, stable_diffusion, z_image
from tests.contract.families.calls import SIDE, image_to_image, inpainting, text_to_image
from tests.contract.families.family import Family
from tests.contract.families.inputs import mask, picture, pictures
from tests.contract.families.stable_diffusion import UNCHECKED
from tests.contract.families.text_encoders import WIDTH

#: The channels of the first convolutions, which halve the sides of a control image as the autoencoder does.
_EMBEDDING = (8, 16)


def controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    """A ControlNet for a UNet of this package."""
    return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=_EMBEDDING)


def _stable_diffusion() -> StableDiffusionControlNetPipeline:
    components = stable_diffusion.components()
    return StableDiffusionControlNetPipeline(**components, controlnet=controlnet(components["unet"]), **UNCHECKED)


def _multiple() -> StableDiffusionControlNetPipeline:
    components = stable_diffusion.components()
    controlnets = [controlnet(components["unet"]), controlnet(components["unet"])]
    return StableDiffusionControlNetPipeline(**components, controlnet=controlnets, **UNCHECKED)


def _xs_adapter(unet: UNet2DConditionModel) -> ControlNetXSAdapter:
    return ControlNetXSAdapter.from_unet(unet, size_ratio=0.5, conditioning_embedding_out_channels=_EMBEDDING)


def _xs() -> StableDiffusionControlNetXSPipeline:
    """ControlNet-XS expects two layers in each block of the UNet."""
    components = stable_diffusion.components() | {"unet": stable_diffusion.unet(layers_per_block=2)}
    return StableDiffusionControlNetXSPipeline(**components, controlnet=_xs_adapter(components["unet"]), **UNCHECKED)


def _xl() -> StableDiffusionXLControlNetPipeline:
    components = sdxl.components()
    return StableDiffusionXLControlNetPipeline(**components, controlnet=controlnet(components["unet"]))


def _xl_union() -> StableDiffusionXLControlNetUnionPipeline:
    components = sdxl.components()
    # from_unet leaves the width of the union's own transformer as it is.
    config = {
        name: components["unet"].config[name]
        for name in (
            "in_channels",
            "down_block_types",
            "block_out_channels",
            "layers_per_block",
            "norm_num_groups",
            "cross_attention_dim",
            "transformer_layers_per_block",
            "attention_head_dim",
            "use_linear_projection",
            "addition_embed_type",
            "addition_time_embed_dim",
            "projection_class_embeddings_input_dim",
        )
    }
    union = ControlNetUnionModel(
        **config,
        conditioning_embedding_out_channels=_EMBEDDING,
        num_trans_channel=config["block_out_channels"][0],
        num_trans_head=2,
        num_proj_channel=config["block_out_channels"][0],
    )
    return StableDiffusionXLControlNetUnionPipeline(**components, controlnet=union)


def _xl_xs() -> StableDiffusionXLControlNetXSPipeline:
    components = sdxl.components(unet=sdxl.xl_unet(layers_per_block=2))
    return StableDiffusionXLControlNetXSPipeline(**components, controlnet=_xs_adapter(components["unet"]))


def _sd_adapter() -> StableDiffusionAdapterPipeline:
    """The first block of the UNet has attention, as in Stable Diffusion: it takes its features before halving."""
    unet = stable_diffusion.unet(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")
    )
    adapter = T2IAdapter(channels=unet.config.block_out_channels, num_res_blocks=1, downscale_factor=2)
    return StableDiffusionAdapterPipeline(
        **stable_diffusion.components() | {"unet": unet}, adapter=adapter, **UNCHECKED
    )


def _xl_adapter() -> StableDiffusionXLAdapterPipeline:
    """The first block of SDXL's UNet has no attention and takes its features after halving."""
    components = sdxl.components()
    adapter = T2IAdapter(
        channels=components["unet"].config.block_out_channels,
        num_res_blocks=1,
        downscale_factor=4,
        adapter_type="full_adapter_xl",
    )
    return StableDiffusionXLAdapterPipeline(**components, adapter=adapter)


def _sd3_controlnet(components: dict[str, Any], **changes: Any) -> SD3ControlNetModel:
    names = (
        "sample_size",
        "patch_size",
        "in_channels",
        "out_channels",
        "attention_head_dim",
        "num_attention_heads",
        "caption_projection_dim",
        "joint_attention_dim",
        "pooled_projection_dim",
        "pos_embed_max_size",
    )
    config = {name: components["transformer"].config[name] for name in names}
    return SD3ControlNetModel(**config | {"num_layers": 1} | changes)


def _sd3() -> StableDiffusion3ControlNetPipeline:
    components = sd3.components()
    return StableDiffusion3ControlNetPipeline(**components, controlnet=_sd3_controlnet(components))


def _sd3_inpainting() -> StableDiffusion3ControlNetInpaintingPipeline:
    components = sd3.components()
    network = _sd3_controlnet(components, extra_conditioning_channels=1)
    return StableDiffusion3ControlNetInpaintingPipeline(**components, controlnet=network)


def _flux(**changes: Any) -> FluxControlNetPipeline:
    return FluxControlNetPipeline(
        **flux.components(),
        controlnet=FluxControlNetModel(
            in_channels=flux.TOKEN,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            guidance_embeds=True,
            axes_dims_rope=[4, 6, 6],
            **changes,
        ),
    )


def _qwen_controlnet(*, extra_channels: int = 0) -> QwenImageControlNetModel:
    return QwenImageControlNetModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 6, 6),
        extra_condition_channels=extra_channels,
    )


def _sana() -> SanaControlNetPipeline:
    network = SanaControlNetModel(**dit.SANA | {"num_layers": 1})
    return SanaControlNetPipeline(**dit.sana_components(), controlnet=network)


def _hunyuan_dit() -> HunyuanDiTControlNetPipeline:
    components = dit.hunyuan_dit_components()
    names = (
        "sample_size",
        "in_channels",
        "patch_size",
        "num_attention_heads",
        "attention_head_dim",
        "hidden_size",
        "cross_attention_dim",
        "cross_attention_dim_t5",
        "pooled_projection_dim",
    )
    config = {name: components["transformer"].config[name] for name in names}
    network = HunyuanDiT2DControlNetModel(**config, transformer_num_layers=components["transformer"].config.num_layers)
    return HunyuanDiTControlNetPipeline(
        **components, controlnet=network, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


def _z_image(control_channels: int) -> ZImageControlNetModel:
    """The embedders and refiners are those of the transformer, which the pipeline shares with this model."""
    return ZImageControlNetModel(
        control_layers_places=[0],
        control_refiner_layers_places=[0],
        control_in_dim=control_channels,
        dim=32,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
    )


_SIZE = {"width": SIDE, "height": SIDE}
_AS_ASKED = {"use_resolution_binning": False}

FAMILIES = (
    Family(
        "controlnet",
        _stable_diffusion,
        {
            "StableDiffusionControlNetPipeline": text_to_image(image=picture),
            "StableDiffusionControlNetImg2ImgPipeline": image_to_image(control_image=picture, **_SIZE),
            "StableDiffusionControlNetInpaintPipeline": inpainting(control_image=picture, strength=1.0),
        },
    ),
    Family(
        "controlnet-multiple",
        _multiple,
        {
            "StableDiffusionControlNetPipeline": text_to_image(
                image=pictures,
                controlnet_conditioning_scale=[1.0, 0.5],
            )
        },
    ),
    Family("controlnet-xs", _xs, {"StableDiffusionControlNetXSPipeline": text_to_image(image=picture)}),
    Family(
        "controlnet-xl",
        _xl,
        {
            "StableDiffusionXLControlNetPipeline": text_to_image(image=picture),
            "StableDiffusionXLControlNetImg2ImgPipeline": image_to_image(control_image=picture, **_SIZE),
            "StableDiffusionXLControlNetInpaintPipeline": inpainting(control_image=picture),
        },
    ),
    Family(
        "controlnet-xl-union",
        _xl_union,
        {
            "StableDiffusionXLControlNetUnionPipeline": text_to_image(control_image=picture, control_mode=3),
            "StableDiffusionXLControlNetUnionImg2ImgPipeline": image_to_image(
                control_image=picture, control_mode=3, **_SIZE
            ),
            "StableDiffusionXLControlNetUnionInpaintPipeline": inpainting(control_image=picture, control_mode=3),
        },
    ),
    Family("controlnet-xl-xs", _xl_xs, {"StableDiffusionXLControlNetXSPipeline": text_to_image(image=picture)}),
    Family("t2i-adapter", _sd_adapter, {"StableDiffusionAdapterPipeline": text_to_image(image=picture)}),
    Family("t2i-adapter-xl", _xl_adapter, {"StableDiffusionXLAdapterPipeline": text_to_image(image=picture)}),
    Family("controlnet-sd3", _sd3, {"StableDiffusion3ControlNetPipeline": text_to_image(control_image=picture)}),
    Family(
        "controlnet-sd3-inpainting",
        _sd3_inpainting,
        {"StableDiffusion3ControlNetInpaintingPipeline": text_to_image(control_image=picture, control_mask=mask)},
    ),
    Family(
        "controlnet-flux",
        _flux,
        {
            "FluxControlNetPipeline": text_to_image(control_image=picture),
            "FluxControlNetImg2ImgPipeline": image_to_image(control_image=picture, **_SIZE),
            "FluxControlNetInpaintPipeline": inpainting(control_image=picture),
        },
    ),
    Family(
        "controlnet-flux-union",
        lambda: _flux(num_mode=4),
        {"FluxControlNetPipeline": text_to_image(control_image=picture, control_mode=2)},
    ),
    Family(
        "controlnet-qwen-image",
        lambda: QwenImageControlNetPipeline(**qwen_image.components(), controlnet=_qwen_controlnet()),
        {"QwenImageControlNetPipeline": text_to_image(control_image=picture)},
    ),
    Family(
        "controlnet-qwen-image-inpainting",
        # Four latents of mask are added to the four latents of a token.
        lambda: QwenImageControlNetInpaintPipeline(
            **qwen_image.components(), controlnet=_qwen_controlnet(extra_channels=4)
        ),
        {"QwenImageControlNetInpaintPipeline": text_to_image(control_image=picture, control_mask=mask)},
    ),
    Family("controlnet-sana", _sana, {"SanaControlNetPipeline": text_to_image(control_image=picture, **_AS_ASKED)}),
    Family(
        "controlnet-hunyuan-dit",
        _hunyuan_dit,
        {"HunyuanDiTControlNetPipeline": text_to_image(control_image=picture, **_AS_ASKED)},
    ),
    Family(
        "controlnet-z-image",
        lambda: ZImageControlNetPipeline(**z_image.components(), controlnet=_z_image(z_image.LATENTS)),
        {"ZImageControlNetPipeline": text_to_image(control_image=picture)},
    ),
    Family(
        "controlnet-z-image-inpainting",
        # The control's, the mask's and the masked image's latents side by side.
        lambda: ZImageControlNetInpaintPipeline(**z_image.components(), controlnet=_z_image(2 * z_image.LATENTS + 1)),
        {"ZImageControlNetInpaintPipeline": inpainting(control_image=picture, strength=None)},
    ),
)
