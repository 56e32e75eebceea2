"""Parameters that several tasks have in common."""

from __future__ import annotations

from pydantic import AliasChoices, Field

from farm.fields import Guidance, Prompt, Side, Steps, Strength
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


class Guided(Denoised, Described):
    """What a task takes that follows a text."""

    guidance_scale: Guidance | None = Field(None, description="How closely the output follows the prompt.")


class Sized(TaskParams):
    """The size of an image or a video."""

    width: Side | None = Field(None, description="Pixels.")
    height: Side | None = Field(None, description="Pixels.")


class Repainted(TaskParams):
    """How much of an input is replaced."""

    strength: Strength | None = Field(None, description="How much of the input is replaced: 0 keeps it, 1 ignores it.")
