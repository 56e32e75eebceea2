"""image-variation."""

from __future__ import annotations

from farm.pipelines.spec import Media
from farm.tasks.params import MayBeGuided, Sized
from farm.tasks.spec import InputSpec, TaskSpec


class Params(Sized, MayBeGuided):
    """A size, and a text where the pipeline follows one."""


SPEC = TaskSpec(
    "image-variation",
    "An image with the content of another one.",
    Params,
    inputs={"image": InputSpec(Media.IMAGE, "The image to vary.", max=4)},
)
