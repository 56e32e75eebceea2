"""Kandinsky 6's upscaling of videos."""

from __future__ import annotations

from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    Kandinsky6SRPipeline,
    Kandinsky6SRTransformer3DModel,
    Kandinsky6SRVAE,
)

from tests.contract.families.family import Call, Family, video
from tests.contract.families.inputs import clip

#: The sides of a tile after upscaling, which the transformer sees as 8 × 8 latents.
TILE = 128
FRAMES = 5  #: 4 k + 1


def _upscaler() -> DiffusionPipeline:
    latents = 4
    return Kandinsky6SRPipeline(
        transformer=Kandinsky6SRTransformer3DModel(
            in_visual_dim=latents,
            out_visual_dim=latents,
            time_dim=16,
            model_dim=32,
            ff_dim=64,
            num_visual_blocks=2,
            axes_dims=(4, 6, 6),
            tile_sizes=((TILE, TILE),),
        ),
        vae=Kandinsky6SRVAE(
            latent_channels=latents,
            encoder_block_out_channels=(16, 32, 32, 32, 32),
            decoder_block_out_channels=(16, 32, 32, 32, 32),
            layers_per_block=1,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
    )


FAMILIES = (
    Family(
        "kandinsky-6-upscaling",
        _upscaler,
        {
            "Kandinsky6SRPipeline": Call(
                lambda: {
                    "video": clip(FRAMES, TILE // 2, TILE // 2),
                    "resolution_scale": 2,
                    "num_inference_steps": 2,
                },
                video(FRAMES, TILE, TILE),
            )
        },
    ),
)
