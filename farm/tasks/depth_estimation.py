"""depth-estimation."""

from __future__ import annotations

from farm.pipelines.spec import Media
from farm.tasks.params import Denoised
from farm.tasks.spec import InputSpec, TaskSpec


class Params(Denoised):
    """Steps."""


SPEC = TaskSpec(
    "depth-estimation",
    "The depth of an image.",
    Params,
    inputs={"image": InputSpec(Media.IMAGE, "The image to measure.")},
)
