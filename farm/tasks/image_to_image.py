"""image-to-image."""

from __future__ import annotations

from farm.pipelines.spec import Media
from farm.tasks.params import Guided, Repainted, Sized
from farm.tasks.spec import InputSpec, TaskSpec


class Params(Repainted, Sized, Guided):
    """A text, a size, and how much of the image is replaced."""


SPEC = TaskSpec(
    "image-to-image",
    "An image from text and an image.",
    Params,
    inputs={"image": InputSpec(Media.IMAGE, "The image to begin with.")},
    resized="image",
)
