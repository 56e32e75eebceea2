"""The tasks' common names and what each pipeline calls the same thing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from farm.pipelines.spec import Media, PipelineParameter
from workers.catalogue.mappings import mapped_tasks

#: Common name → the names that pipelines give to the same thing, the most telling first. A pipeline that has the common
#: name itself needs no alias.
NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "prompt": ("content_prompt",),
    "negative_prompt": ("neg_prompt",),
    "num_inference_steps": ("steps", "decoder_num_inference_steps"),
    "guidance_scale": ("true_cfg_scale", "decoder_guidance_scale", "prior_guidance_scale"),
    "strength": ("denoise_strength", "inpaint_strength"),
    "control_scale": ("controlnet_conditioning_scale", "adapter_conditioning_scale", "controls_conditioning_scale"),
    "control_start": ("control_guidance_start",),
    "control_end": ("control_guidance_end",),
    "control_kind": ("control_mode",),
    "num_outputs": ("num_images_per_prompt", "num_videos_per_prompt", "num_waveforms_per_prompt", "batch_size"),
    "num_frames": ("video_length", "frames"),
    "fps": ("frame_rate", "target_fps"),
    "seconds": ("audio_length_in_s", "audio_end_in_s", "audio_duration", "audio_duration_s", "duration"),
    "image": ("images", "input_images", "cond_image", "reference_image"),
    "mask_image": ("mask",),
    "control_image": ("condtioning_image", "hint"),
    "reference_images": ("image_reference", "ref_image", "example_image"),
    "video": (),
    "mask_video": ("mask",),
    "control_video": ("conditioning_frames", "controls", "driving_video", "pose_video"),
    "audio": ("src_audio", "initial_audio_waveforms", "raw_audio"),
}
_MEDIA: Final = {
    "image": Media.IMAGE,
    "mask_image": Media.IMAGE,
    "control_image": Media.IMAGE,
    "reference_images": Media.IMAGE,
    "video": Media.VIDEO,
    "mask_video": Media.VIDEO,
    "control_video": Media.VIDEO,
    "audio": Media.AUDIO,
}
_CONTROL: Final = frozenset({"controlnet", "adapter"})
#: Guidance-distilled models take `guidance_scale` as a condition; in these its default says that it is off, and
#: classifier-free guidance goes by another name.
_CFG: Final = "true_cfg_scale"


def aliases_of(
    name: str, parameters: Mapping[str, PipelineParameter], components: Mapping[str, tuple[str, ...]]
) -> dict[str, str]:
    """Common name → the class's own name, where they differ.

    Args:
        name: of the class.
        parameters: of its call.
        components: that it registers.
    """
    found: dict[str, str] = {}
    for common, others in NAMES.items():
        if common in parameters and _fits(common, parameters[common]):
            continue
        own = next((other for other in others if other in parameters and _fits(common, parameters[other])), None)
        if own is not None:
            found[common] = own
    if "image" not in parameters and "image" not in found and "image-to-video" in mapped_tasks(name):
        found["image"] = "video"  # an image is a video of one frame
    guidance = parameters.get("guidance_scale")
    if _CFG in parameters and guidance is not None and guidance.default is None:
        found["guidance_scale"] = _CFG
    if "control_mask" in parameters and "image" not in parameters:
        # The image to repair is the ControlNet's image, and its mask the ControlNet's mask.
        return {**found, "image": "control_image", "mask_image": "control_mask"}
    if (
        _takes_control(components)
        and "image" in parameters
        and not {"control_image", *NAMES["control_image"]} & set(parameters)
    ):
        found["control_image"] = "image"
    return found


def _takes_control(components: Mapping[str, tuple[str, ...]]) -> bool:
    return bool(_CONTROL & set(components))


def _fits(common: str, parameter: PipelineParameter) -> bool:
    """Whether the parameter carries what the common name means: media where that is media."""
    if common == "guidance_scale" and parameter.default == 0:
        return False  # off unless asked for: the other stage's guidance is meant
    if common not in _MEDIA:
        return parameter.offered
    return parameter.input is not None and parameter.input.media is _MEDIA[common]
