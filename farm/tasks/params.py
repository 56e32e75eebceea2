"""Parameters that several tasks have in common."""

from __future__ import annotations

from pydantic import AliasChoices, Field

from farm.fields import (
    FrameRate,
    Frames,
    Guidance,
    Kinds,
    Offset,
    Parts,
    Pixels,
    Prompt,
    Seconds,
    Side,
    Steps,
    Strength,
    Strengths,
    Weighting,
)
from farm.tasks.spec import TaskParams


class Described(TaskParams):
    """The text that a task follows."""

    prompt: Prompt = Field(description="What the output shows.")
    negative_prompt: Prompt | None = Field(
        None, description="What the output does not show. null: none, whatever the model's defaults say."
    )


class Denoised(TaskParams):
    """What every task takes whose output is denoised step by step."""

    num_inference_steps: Steps | None = Field(
        None,
        validation_alias=AliasChoices("num_inference_steps", "steps"),
        description="Denoising steps.",
    )


class Weighed(TaskParams):
    """How weights in a text are read."""

    prompt_weighting: Weighting | None = Field(
        None,
        description=(
            "a1111: (text:1.3) and [text] weigh parts of the prompts, BREAK and prompts beyond the encoder's window "
            "begin another chunk. none: prompts are read as they stand. For Stable Diffusion and Stable Diffusion XL."
        ),
    )


class Guided(Weighed, Denoised, Described):
    """What a task takes that follows a text."""

    guidance_scale: Guidance | None = Field(None, description="How closely the output follows the prompt.")


class Sized(TaskParams):
    """The size of an image or a video."""

    width: Side | None = Field(None, description="Pixels.")
    height: Side | None = Field(None, description="Pixels.")


class Framed(TaskParams):
    """The size of an image that no model renders: any number of pixels."""

    width: Pixels | None = Field(None, description="Pixels.")
    height: Pixels | None = Field(None, description="Pixels.")


class Placed(TaskParams):
    """Where a part of an image lies."""

    left: Offset | None = Field(None, description="Pixels from the left edge.")
    top: Offset | None = Field(None, description="Pixels from the upper edge.")


class Repainted(TaskParams):
    """How much of an input is replaced."""

    strength: Strength | None = Field(None, description="How much of the input is replaced: 0 keeps it, 1 ignores it.")


class MayBeGuided(Weighed, Denoised):
    """What a task takes whose pipelines follow a text, or do without one."""

    prompt: Prompt | None = Field(None, description="What the output shows, where the pipeline follows a text.")
    negative_prompt: Prompt | None = Field(
        None, description="What the output does not show. null: none, whatever the model's defaults say."
    )
    guidance_scale: Guidance | None = Field(None, description="How closely the output follows the prompt.")


class Filmed(TaskParams):
    """The length of a video."""

    num_frames: Frames | None = Field(None, description="Frames of the video.")
    fps: FrameRate | None = Field(
        None, description="Frames per second of the file. A pipeline that is conditioned on it gets it too."
    )


class Heard(TaskParams):
    """The length of a sound."""

    seconds: Seconds | None = Field(None, description="Length of the sound.")


class Controlled(TaskParams):
    """How control images are followed, where the pipeline has ControlNets or adapters."""

    control_scale: Strengths | None = Field(
        None, description="How closely control images are followed; a list has one value for each image."
    )
    control_start: Parts | None = Field(
        None, description="The part of the steps at which control begins, from 0 to 1; a list has one for each image."
    )
    control_end: Parts | None = Field(
        None, description="The part of the steps at which control ends, from 0 to 1; a list has one for each image."
    )
    control_kind: Kinds | None = Field(
        None, description="What control images show, as the number of the model's ControlNet mode."
    )
