"""Which pipelines may get weights in their prompts: those that take embeddings and read prompts with CLIP alone."""

from __future__ import annotations

import re
from typing import Final

from farm.pipelines.spec import PipelineParameter, PipelineSpec

NAME: Final = "prompt_weighting"
#: In the place of what the other pipelines declare in their signatures.
PARAMETER: Final = PipelineParameter(
    name=NAME,
    schema={"type": "string", "enum": ["none", "a1111"]},
    default="none",
    required=False,
    description="",
    input=None,
    internal=None,
)
#: What gives a prompt another meaning under A1111's rules: brackets, their escapes, and the word that ends a chunk.
_SYNTAX: Final = re.compile(r"[()\[\]\\]|\bBREAK\b")
#: Characters of a prompt that surely fits the encoder's window of 75 tokens: a token has at least one.
_SURELY_SHORT: Final = 75
_ENCODERS: Final = frozenset({"CLIPTextModel", "CLIPTextModelWithProjection"})
#: Packages of diffusers whose pipelines encode prompts as Stable Diffusion and Stable Diffusion XL do.
_FAMILIES: Final = frozenset(
    {
        *("animatediff", "controlnet", "controlnet_xs", "latent_consistency_models", "pag", "pia", "stable_diffusion"),
        *("stable_diffusion_xl", "t2i_adapter"),
    }
)
#: Those whose `encode_prompt` gives something else, with what.
_OTHERWISE: Final = {
    "StableDiffusionInstructPix2PixPipeline": "one tensor of three prompts",
    "StableUnCLIPPipeline": "a prior reads the prompt, too",
    "StableUnCLIPImg2ImgPipeline": "the prompt is empty without a text",
}


def may_matter(prompt: str) -> bool:
    """Whether A1111's rules may read a prompt otherwise than the pipeline does: a plain short one they do not."""
    return len(prompt) > _SURELY_SHORT or _SYNTAX.search(prompt) is not None


def weighs_prompts(pipeline: PipelineSpec) -> bool:
    """Whether a pipeline's jobs may have ``prompt_weighting``."""
    components = pipeline.components
    encoders = [name for name in components if name.startswith("text_encoder")]
    return (
        pipeline.family in _FAMILIES
        and pipeline.name not in _OTHERWISE
        and {"prompt", "prompt_embeds"} <= set(pipeline.parameters)
        and set(encoders) in ({"text_encoder"}, {"text_encoder", "text_encoder_2"})
        and all(_ENCODERS & set(components[name]) for name in encoders)
        and pipeline.takes("pooled_prompt_embeds") is (len(encoders) > 1)
    )
