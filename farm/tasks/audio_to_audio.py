"""audio-to-audio."""

from __future__ import annotations

from farm.pipelines.spec import Media
from farm.tasks.params import Heard, MayBeGuided
from farm.tasks.spec import InputSpec, TaskSpec, audio_cost


class Params(Heard, MayBeGuided):
    """A text and a length."""


SPEC = TaskSpec(
    "audio-to-audio",
    "A sound from text and a sound.",
    Params,
    inputs={"audio": InputSpec(Media.AUDIO, "The sound to begin with.")},
    output=Media.AUDIO,
    cost=audio_cost,
)
