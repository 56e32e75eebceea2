"""unconditional-audio-generation."""

from __future__ import annotations

from farm.pipelines.spec import Media
from farm.tasks.params import Denoised, Heard
from farm.tasks.spec import TaskSpec, audio_cost


class Params(Heard, Denoised):
    """Steps and a length."""


SPEC = TaskSpec(
    "unconditional-audio-generation",
    "A sound of the kind that the model was trained on.",
    Params,
    output=Media.AUDIO,
    cost=audio_cost,
)
