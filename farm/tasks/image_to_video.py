"""image-to-video."""

from __future__ import annotations

from farm.pipelines.spec import Media
from farm.tasks.params import Filmed, MayBeGuided, Sized
from farm.tasks.roles import CONTROL_VIDEO
from farm.tasks.spec import FRAME_RATE, InputSpec, TaskSpec, video_cost


class Params(Filmed, Sized, MayBeGuided):
    """A size, a length, and a text where the pipeline follows one."""


SPEC = TaskSpec(
    "image-to-video",
    "A video that begins with an image.",
    Params,
    inputs={
        "image": InputSpec(Media.IMAGE, "The first frame."),
        "last_image": InputSpec(Media.IMAGE, "The last frame.", min=0),
        **CONTROL_VIDEO,
    },
    output=Media.VIDEO,
    cost=video_cost,
    honoured=FRAME_RATE,
)
