"""Waiting for a condition with a deadline, instead of sleeping and hoping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal, TypeVar

T = TypeVar("T")


def wait_until(
    condition: Callable[[], T | Literal[False] | None], timeout: float = 10.0, *, every: float = 0.02, what: str = ""
) -> T:
    """Ask until the condition is truthy and return its value; AssertionError after ``timeout`` seconds.

    ``what`` names the condition in the error; without it the condition's own name is shown.
    """
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            name = what or getattr(condition, "__name__", "the condition")
            raise AssertionError(f"not within {timeout:g} s: {name} (last value: {value!r})")
        time.sleep(every)
