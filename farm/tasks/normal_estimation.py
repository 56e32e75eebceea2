"""normal-estimation."""

from __future__ import annotations

from farm.pipelines.spec import Media
from farm.tasks.params import Denoised
from farm.tasks.spec import InputSpec, TaskSpec


class Params(Denoised):
    """Steps."""


SPEC = TaskSpec(
    "normal-estimation",
    "The surface normals of an image, as colours.",
    Params,
    inputs={"image": InputSpec(Media.IMAGE, "The image to measure.")},
)
