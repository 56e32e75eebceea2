"""Deprecated pipelines with the components of Stable Diffusion 1."""

from __future__ import annotations

from diffusers import (
    CycleDiffusionPipeline,
    DDIMParallelScheduler,
    SemanticStableDiffusionPipeline,
    StableDiffusionAttendAndExcitePipeline,
    StableDiffusionGLIGENPipeline,
    StableDiffusionLDM3DPipeline,
    StableDiffusionModelEditingPipeline,
    StableDiffusionPanoramaPipeline,
    StableDiffusionParadigmsPipeline,
    StableDiffusionSAGPipeline,
)

from tests.contract.families.autoencoders import vae
from tests.contract.families.calls import image_to_image, text_to_image
from tests.contract.families.family import Family
from tests.contract.families.stable_diffusion import UNCHECKED, components, unet
from tests.contract.families.text_encoders import WIDTH


def _gligen() -> StableDiffusionGLIGENPipeline:
    """The UNet reads phrases with the places where they are to be."""
    return StableDiffusionGLIGENPipeline(
        **components() | {"unet": unet(attention_type="gated", cross_attention_dim=WIDTH)}, **UNCHECKED
    )


def _paradigms() -> StableDiffusionParadigmsPipeline:
    """Draws several steps at once, for which the scheduler is a special one."""
    scheduler = DDIMParallelScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False
    )
    return StableDiffusionParadigmsPipeline(**components() | {"scheduler": scheduler}, **UNCHECKED)


FAMILIES = (
    Family(
        "self-attention-guidance",
        lambda: StableDiffusionSAGPipeline(**components(), **UNCHECKED),
        {"StableDiffusionSAGPipeline": text_to_image()},
    ),
    Family(
        "gligen",
        _gligen,
        {
            "StableDiffusionGLIGENPipeline": text_to_image(
                gligen_phrases=["a red cube"],
                gligen_boxes=[[0.1, 0.1, 0.6, 0.6]],
                gligen_scheduled_sampling_beta=1.0,
            )
        },
    ),
    Family(
        "panorama",
        lambda: StableDiffusionPanoramaPipeline(**components(), **UNCHECKED),
        {"StableDiffusionPanoramaPipeline": text_to_image()},
    ),
    Family(
        "paradigms",
        _paradigms,
        {"StableDiffusionParadigmsPipeline": text_to_image(parallel=2)},
    ),
    Family(
        "model-editing",
        lambda: StableDiffusionModelEditingPipeline(**components(), **UNCHECKED),
        {"StableDiffusionModelEditingPipeline": text_to_image()},
    ),
    Family(
        "attend-and-excite",
        lambda: StableDiffusionAttendAndExcitePipeline(**components(), **UNCHECKED),
        {
            "StableDiffusionAttendAndExcitePipeline": text_to_image(
                token_indices=[2, 3], max_iter_to_alter=1, attn_res=[16, 16]
            )
        },
    ),
    Family(
        "semantic-guidance",
        lambda: SemanticStableDiffusionPipeline(**components(), **UNCHECKED),
        {
            "SemanticStableDiffusionPipeline": text_to_image(
                editing_prompt=["a green sphere"], edit_warmup_steps=0, edit_threshold=0.5
            )
        },
    ),
    Family(
        "cycle-diffusion",
        lambda: CycleDiffusionPipeline(**components(), **UNCHECKED),
        {"CycleDiffusionPipeline": image_to_image(source_prompt="a red cube")},
    ),
    Family(
        "ldm3d",
        lambda: StableDiffusionLDM3DPipeline(
            **components() | {"vae": vae(in_channels=6, out_channels=6), "image_encoder": None}, **UNCHECKED
        ),
        {"StableDiffusionLDM3DPipeline": text_to_image(output_type="np")},
    ),
)
