"""depth-to-image."""

from __future__ import annotations

from farm.pipelines.spec import Media
from farm.tasks.params import Guided, Repainted, Sized
from farm.tasks.spec import SIZE, InputSpec, TaskSpec


class Params(Repainted, Sized, Guided):
    """A text, a size, and how much of the image is replaced."""


SPEC = TaskSpec(
    "depth-to-image",
    "An image from text with the depth of another image.",
    Params,
    inputs={
        "image": InputSpec(Media.IMAGE, "The image to begin with."),
        "depth_map": InputSpec(
            Media.IMAGE,
            "Brighter is nearer; estimated from the image by the model if absent.",
            min=0,
            same_size_as="image",
        ),
    },
    resized="image",
    honoured=SIZE,
)
