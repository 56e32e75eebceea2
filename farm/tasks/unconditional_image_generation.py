"""unconditional-image-generation."""

from __future__ import annotations

from farm.tasks.params import Denoised, Sized
from farm.tasks.spec import TaskSpec


class Params(Sized, Denoised):
    """Steps, and a size where the pipeline takes one."""


SPEC = TaskSpec("unconditional-image-generation", "An image of the kind that the model was trained on.", Params)
