"""Python's garbage collector in a process that stands for weeks."""

from __future__ import annotations

import gc


def freeze_modules() -> None:
    """Take the loaded modules out of its sight: once, when all is loaded and no work has begun.

    They never become garbage, and each full collection would walk them all: a pause of 0.1 to 0.2 s, in the middle of
    somebody's request.
    """
    gc.collect()
    gc.freeze()
