"""text-to-image."""

from __future__ import annotations

from farm.tasks.params import Guided, Sized
from farm.tasks.spec import TaskSpec


class Params(Sized, Guided):
    """A text and a size."""


SPEC = TaskSpec("text-to-image", "An image from text.", Params)
