"""text-to-image."""

from __future__ import annotations

from farm.tasks.params import Controlled, Guided, Sized
from farm.tasks.roles import CONTROL
from farm.tasks.spec import TaskSpec


class Params(Controlled, Sized, Guided):
    """A text, a size, and how control images are followed."""


SPEC = TaskSpec("text-to-image", "An image from text.", Params, inputs=CONTROL)
