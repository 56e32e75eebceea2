"""upscaling."""

from __future__ import annotations

from farm.pipelines.spec import Media
from farm.tasks.params import MayBeGuided
from farm.tasks.spec import InputSpec, TaskSpec


class Params(MayBeGuided):
    """A text, where the pipeline follows one."""


SPEC = TaskSpec(
    "upscaling",
    "An image with more pixels.",
    Params,
    inputs={"image": InputSpec(Media.IMAGE, "The image to enlarge.")},
)
