"""Models that others have made of Wan: AnyFlow, ChronoEdit, Helios, Lucy Edit."""

from __future__ import annotations

from typing import Any

from diffusers import (
    AnyFlowFARPipeline,
    AnyFlowFARTransformer3DModel,
    AnyFlowPipeline,
    AnyFlowTransformer3DModel,
    ChronoEditPipeline,
    ChronoEditTransformer3DModel,
    DiffusionPipeline,
    FlowMapEulerDiscreteScheduler,
    HeliosDMDScheduler,
    HeliosPipeline,
    HeliosPyramidPipeline,
    HeliosScheduler,
    HeliosTransformer3DModel,
    LucyEditPipeline,
    WanTransformer3DModel,
)

from tests.contract.families import wan
from tests.contract.families.family import Call, Family, video
from tests.contract.families.inputs import clip
from tests.contract.families.text_encoders import WIDTH


def _anyflow() -> DiffusionPipeline:
    transformer = AnyFlowTransformer3DModel(**_without_norm(wan.transformer_config()))
    return AnyFlowPipeline(**wan.components(scheduler=_flow_map(), transformer=transformer))


def _anyflow_far() -> DiffusionPipeline:
    transformer = AnyFlowFARTransformer3DModel(
        **_without_norm(wan.transformer_config()), full_chunk_limit=2, chunk_partition=(1, 1)
    )
    return AnyFlowFARPipeline(**wan.components(scheduler=_flow_map(), transformer=transformer))


def _flow_map() -> FlowMapEulerDiscreteScheduler:
    return FlowMapEulerDiscreteScheduler(shift=5.0)


def _without_norm(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "qk_norm"}


def _guided_arguments() -> dict[str, Any]:
    """AnyFlow's own default is a call without guidance, which ignores the negative prompt."""
    return wan.text_arguments(guidance_scale=4.0)


def _chronoedit() -> DiffusionPipeline:
    transformer = ChronoEditTransformer3DModel(
        **wan.transformer_config(in_channels=2 * wan.LATENTS + 4), image_dim=WIDTH
    )
    return ChronoEditPipeline(**wan.components(transformer=transformer), **wan.image_encoder())


def _lucy_edit() -> DiffusionPipeline:
    components = wan.components_5b()
    latents = components["vae"].config.z_dim
    components["transformer"] = WanTransformer3DModel(
        **wan.transformer_config(in_channels=2 * latents, out_channels=latents)
    )
    return LucyEditPipeline(**components, expand_timesteps=True)


def _helios_transformer() -> HeliosTransformer3DModel:
    config = wan.transformer_config(rope_dim=(4, 4, 4))
    del config["rope_max_seq_len"]
    return HeliosTransformer3DModel(**config)


def _helios() -> DiffusionPipeline:
    scheduler = HeliosScheduler(stage_range=[0, 1], stages=1, use_dynamic_shifting=True)
    return HeliosPipeline(**wan.components(scheduler=scheduler, transformer=_helios_transformer()))


#: Helios's own gamma is a third, with which the covariance of its block noise is singular: on a CPU its Cholesky
#: decomposition fails.
_GAMMA = 0.3


def _helios_pyramid() -> DiffusionPipeline:
    components = wan.components(scheduler=HeliosScheduler(gamma=_GAMMA), transformer=_helios_transformer())
    return HeliosPyramidPipeline(**components, is_cfg_zero_star=True)


def _helios_distilled() -> DiffusionPipeline:
    components = wan.components(scheduler=HeliosDMDScheduler(gamma=_GAMMA), transformer=_helios_transformer())
    return HeliosPyramidPipeline(**components, is_distilled=True)


def _helios_arguments(**changes: Any) -> dict[str, Any]:
    """One chunk of two frames of latents."""
    return wan.text_arguments(num_latent_frames_per_chunk=2) | changes


#: The coarsest of the three stages has a quarter of the sides.
_PYRAMID_SIDE = 128


def _pyramid_arguments(**changes: Any) -> dict[str, Any]:
    """One step in each stage."""
    arguments = _helios_arguments(width=_PYRAMID_SIDE, height=_PYRAMID_SIDE, pyramid_num_inference_steps_list=[1, 1, 1])
    del arguments["num_inference_steps"]
    return arguments | changes


FAMILIES = (
    Family("anyflow", _anyflow, {"AnyFlowPipeline": Call(_guided_arguments, wan.CLIP)}, requires=("ftfy",)),
    Family("anyflow-far", _anyflow_far, {"AnyFlowFARPipeline": Call(_guided_arguments, wan.CLIP)}, requires=("ftfy",)),
    Family("chronoedit", _chronoedit, {"ChronoEditPipeline": Call(wan.image_arguments, wan.CLIP)}, requires=("ftfy",)),
    Family(
        "lucy-edit",
        _lucy_edit,
        {"LucyEditPipeline": Call(lambda: wan.text_arguments(video=clip(wan.FRAMES, wan.SIDE, wan.SIDE)), wan.CLIP)},
        requires=("ftfy",),
    ),
    Family(
        "helios",
        _helios,
        {
            "HeliosPipeline": Call(_helios_arguments, wan.CLIP),
            "HeliosModularPipeline": Call(_helios_arguments, wan.CLIP),
        },
        requires=("ftfy",),
    ),
    Family(
        "helios-pyramid",
        _helios_pyramid,
        {
            "HeliosPyramidPipeline": Call(_pyramid_arguments, video(wan.FRAMES, _PYRAMID_SIDE, _PYRAMID_SIDE)),
            "HeliosPyramidModularPipeline": Call(_pyramid_arguments, video(wan.FRAMES, _PYRAMID_SIDE, _PYRAMID_SIDE)),
        },
        requires=("ftfy",),
    ),
    Family(
        "helios-distilled",
        _helios_distilled,
        {"HeliosPyramidPipeline": Call(_pyramid_arguments, video(wan.FRAMES, _PYRAMID_SIDE, _PYRAMID_SIDE))},
        requires=("ftfy",),
    ),
)
