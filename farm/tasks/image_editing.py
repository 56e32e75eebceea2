"""image-editing."""

from __future__ import annotations

from farm.pipelines.spec import Media
from farm.tasks.params import Guided, Sized
from farm.tasks.spec import InputSpec, TaskSpec


class Params(Sized, Guided):
    """An instruction and a size."""


SPEC = TaskSpec(
    "image-editing",
    "Images changed as an instruction says.",
    Params,
    inputs={
        "image": InputSpec(Media.IMAGE, "The images that the instruction is about, in the order it counts them.", max=4)
    },
)
