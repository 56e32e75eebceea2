"""image-to-image."""

from __future__ import annotations

from farm.pipelines.spec import Media
from farm.tasks.params import Controlled, Guided, Repainted, Sized
from farm.tasks.roles import CONTROL
from farm.tasks.spec import SIZE, InputSpec, TaskSpec


class Params(Controlled, Repainted, Sized, Guided):
    """A text, a size, and how much of the image is replaced."""


SPEC = TaskSpec(
    "image-to-image",
    "An image from text and an image.",
    Params,
    inputs={"image": InputSpec(Media.IMAGE, "The image to begin with."), **CONTROL},
    resized="image",
    honoured=SIZE,
)
