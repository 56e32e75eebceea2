"""SkyReels-V2: Wan's architecture, also with diffusion forcing, in which each frame has a noise level of its own."""

from __future__ import annotations

from typing import Any

from diffusers import (
    DiffusionPipeline,
    SkyReelsV2DiffusionForcingPipeline,
    SkyReelsV2ImageToVideoPipeline,
    SkyReelsV2Pipeline,
    SkyReelsV2Transformer3DModel,
    UniPCMultistepScheduler,
)

from tests.contract.families import wan
from tests.contract.families.family import Call, Family, video
from tests.contract.families.inputs import clip
from tests.contract.families.text_encoders import WIDTH


def _components(**changes: Any) -> dict[str, Any]:
    return wan.components(
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0),
        transformer=SkyReelsV2Transformer3DModel(**wan.transformer_config(**changes)),
    )


def _image_to_video() -> DiffusionPipeline:
    components = _components(in_channels=2 * wan.LATENTS + 4, image_dim=WIDTH)
    return SkyReelsV2ImageToVideoPipeline(**components, **wan.image_encoder())


#: The output is the given clip and these frames.
_CONTINUATION = 9


def _video_arguments() -> dict[str, Any]:
    """Continue a clip by two windows of five frames, of which the second repeats one of the first."""
    return wan.text_arguments(
        video=clip(wan.FRAMES, wan.SIDE, wan.SIDE),
        num_frames=_CONTINUATION,
        base_num_frames=5,
        overlap_history=1,
    )


FAMILIES = (
    Family(
        "skyreels-v2",
        lambda: SkyReelsV2Pipeline(**_components()),
        {"SkyReelsV2Pipeline": Call(wan.text_arguments, wan.CLIP)},
        requires=("ftfy",),
    ),
    Family(
        "skyreels-v2-image",
        _image_to_video,
        {"SkyReelsV2ImageToVideoPipeline": Call(wan.image_arguments, wan.CLIP)},
        requires=("ftfy",),
    ),
    Family(
        "skyreels-v2-diffusion-forcing",
        lambda: SkyReelsV2DiffusionForcingPipeline(**_components(inject_sample_info=True)),
        {
            "SkyReelsV2DiffusionForcingPipeline": Call(wan.text_arguments, wan.CLIP),
            "SkyReelsV2DiffusionForcingImageToVideoPipeline": Call(wan.image_arguments, wan.CLIP),
            "SkyReelsV2DiffusionForcingVideoToVideoPipeline": Call(
                _video_arguments, video(wan.FRAMES + _CONTINUATION, wan.SIDE, wan.SIDE)
            ),
        },
        requires=("ftfy",),
    ),
)
