"""text-to-audio."""

from __future__ import annotations

from farm.pipelines.spec import Media
from farm.tasks.params import Guided, Heard
from farm.tasks.spec import TaskSpec, audio_cost


class Params(Heard, Guided):
    """A text and a length."""


SPEC = TaskSpec("text-to-audio", "A sound from text.", Params, output=Media.AUDIO, cost=audio_cost)
