"""Perturbed-attention guidance in all families that have it."""

from __future__ import annotations

from diffusers import (
    HunyuanDiTPAGPipeline,
    PixArtSigmaPAGPipeline,
    SanaPAGPipeline,
    StableDiffusion3PAGPipeline,
    StableDiffusionControlNetPAGPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionXLControlNetPAGPipeline,
    StableDiffusionXLPAGPipeline,
)

from tests.contract.families import dit, sd3, sdxl, stable_diffusion
from tests.contract.families.calls import SIDE, image_to_image, inpainting, text_to_image
from tests.contract.families.controlnet import controlnet
from tests.contract.families.family import Family
from tests.contract.families.inputs import picture
from tests.contract.families.stable_diffusion import UNCHECKED


def _controlnet() -> StableDiffusionControlNetPAGPipeline:
    components = stable_diffusion.components()
    return StableDiffusionControlNetPAGPipeline(**components, controlnet=controlnet(components["unet"]), **UNCHECKED)


def _controlnet_xl() -> StableDiffusionXLControlNetPAGPipeline:
    components = sdxl.components()
    return StableDiffusionXLControlNetPAGPipeline(**components, controlnet=controlnet(components["unet"]))


_SIZE = {"width": SIDE, "height": SIDE}
_AS_ASKED = {"use_resolution_binning": False}

FAMILIES = (
    Family(
        "pag",
        lambda: StableDiffusionPAGPipeline(**stable_diffusion.components(), **UNCHECKED),
        {
            "StableDiffusionPAGPipeline": text_to_image(),
            "StableDiffusionPAGImg2ImgPipeline": image_to_image(),
            "StableDiffusionPAGInpaintPipeline": inpainting(strength=1.0),
        },
    ),
    Family(
        "pag-controlnet",
        _controlnet,
        {
            "StableDiffusionControlNetPAGPipeline": text_to_image(image=picture),
            "StableDiffusionControlNetPAGInpaintPipeline": inpainting(control_image=picture, strength=1.0),
        },
    ),
    Family(
        "pag-xl",
        lambda: StableDiffusionXLPAGPipeline(**sdxl.components()),
        {
            "StableDiffusionXLPAGPipeline": text_to_image(),
            "StableDiffusionXLPAGImg2ImgPipeline": image_to_image(),
            "StableDiffusionXLPAGInpaintPipeline": inpainting(),
        },
    ),
    Family(
        "pag-controlnet-xl",
        _controlnet_xl,
        {
            "StableDiffusionXLControlNetPAGPipeline": text_to_image(image=picture),
            "StableDiffusionXLControlNetPAGImg2ImgPipeline": image_to_image(control_image=picture, **_SIZE),
        },
    ),
    Family(
        "pag-sd3",
        lambda: StableDiffusion3PAGPipeline(**sd3.components()),
        {
            "StableDiffusion3PAGPipeline": text_to_image(),
            "StableDiffusion3PAGImg2ImgPipeline": image_to_image(**_SIZE),
        },
    ),
    Family(
        "pag-pixart-sigma",
        lambda: PixArtSigmaPAGPipeline(**dit.pixart_components()),
        {"PixArtSigmaPAGPipeline": text_to_image()},
    ),
    Family(
        "pag-sana",
        lambda: SanaPAGPipeline(**dit.sana_components()),
        {"SanaPAGPipeline": text_to_image(**_AS_ASKED)},
    ),
    Family(
        "pag-hunyuan-dit",
        lambda: HunyuanDiTPAGPipeline(
            **dit.hunyuan_dit_components(), safety_checker=None, feature_extractor=None, requires_safety_checker=False
        ),
        {"HunyuanDiTPAGPipeline": text_to_image(**_AS_ASKED)},
    ),
)
