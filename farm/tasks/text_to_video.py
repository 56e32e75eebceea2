"""text-to-video."""

from __future__ import annotations

from farm.pipelines.spec import Media
from farm.tasks.params import Filmed, Guided, Sized
from farm.tasks.roles import CONTROL_VIDEO, REFERENCES
from farm.tasks.spec import FRAME_RATE, TaskSpec, video_cost


class Params(Filmed, Sized, Guided):
    """A text, a size and a length."""


SPEC = TaskSpec(
    "text-to-video",
    "A video from text.",
    Params,
    inputs={**CONTROL_VIDEO, **REFERENCES},
    output=Media.VIDEO,
    cost=video_cost,
    honoured=FRAME_RATE,
)
