"""Whether a model's weights do a task for which diffusers has another class of the same components.

Some weights are made for one task: a UNet with channels for a mask, a second denoiser that the other class leaves out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from farm.pipelines.spec import PipelineSpec

Configs = Mapping[str, Mapping[str, Any]]

#: Families whose class for inpainting takes no weights but those made for it; diffusers' others take both.
_OWN_INPAINTING: Final = frozenset({"kandinsky", "kandinsky2_2"})
#: Switches of a pipeline's own config with which the classes for these tasks do something else.
_SWITCHES: Final = {"requires_aesthetics_score": "text-to-image", "expand_timesteps": "video-to-video"}
#: What the config of a ControlNet says if it is made for inpainting.
_MASK_CHANNELS: Final = "extra_conditioning_channels"


def unfit_for(task: str, own: PipelineSpec, other: PipelineSpec, configs: Configs) -> str:
    """Why weights of the class ``own`` do not do a task with the class ``other``; empty if nothing is known.

    Args:
        task: That only ``other`` does.
        own: The class that the model's index names.
        other: A class that is made of the same components.
        configs: Of the components by name; under ``""`` the pipeline's own values.
    """
    for name in own.denoisers:
        if name in configs and name not in other.components:
            return f"{other.name} has no {name}, without which the model is another"
    switch = next((name for name, of in _SWITCHES.items() if of == task and configs.get("", {}).get(name)), None)
    if switch is not None:
        return f"{other.name} has no {switch}, which the model needs"
    masks = _has_mask_channels(configs)
    if task != "inpainting":
        return "the weights are made for inpainting" if masks else ""
    needs = own.family in _OWN_INPAINTING or any(_MASK_CHANNELS in config for config in configs.values())
    return f"{other.name} needs weights that are made for inpainting" if needs and masks is False else ""


def _has_mask_channels(configs: Configs) -> bool | None:
    """Whether the denoiser or the ControlNet takes a mask beside the latents; None where the configs do not say."""
    for config in configs.values():
        if _MASK_CHANNELS in config:
            return bool(config[_MASK_CHANNELS])
    taken = configs.get("unet", {}).get("in_channels")
    latents = configs.get("vae", configs.get("movq", {})).get("latent_channels")
    return None if taken is None or latents is None else taken != latents
