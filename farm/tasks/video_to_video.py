"""video-to-video."""

from __future__ import annotations

from farm.pipelines.spec import Media
from farm.tasks.params import Filmed, MayBeGuided, Repainted, Sized
from farm.tasks.roles import CONTROL_VIDEO, REFERENCES
from farm.tasks.spec import FRAME_RATE, InputSpec, TaskSpec, video_cost


class Params(Filmed, Repainted, Sized, MayBeGuided):
    """A text, a size, and how much of the video is replaced."""


SPEC = TaskSpec(
    "video-to-video",
    "A video from text and a video.",
    Params,
    inputs={
        "video": InputSpec(Media.VIDEO, "The video to begin with."),
        "mask_video": InputSpec(Media.VIDEO, "Its white part is replaced.", min=0),
        **CONTROL_VIDEO,
        **REFERENCES,
    },
    output=Media.VIDEO,
    cost=video_cost,
    honoured=FRAME_RATE,
)
