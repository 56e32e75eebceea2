"""video-upscaling."""

from __future__ import annotations

from farm.pipelines.spec import Media
from farm.tasks.params import Filmed, MayBeGuided, Sized
from farm.tasks.spec import FRAME_RATE, InputSpec, TaskSpec, video_cost


class Params(Filmed, Sized, MayBeGuided):
    """A size, and a text where the pipeline follows one."""


SPEC = TaskSpec(
    "video-upscaling",
    "A video with more pixels.",
    Params,
    inputs={"video": InputSpec(Media.VIDEO, "The video to enlarge.")},
    output=Media.VIDEO,
    cost=video_cost,
    honoured=FRAME_RATE,
)
