"""Memory in a process that stands for weeks: Python's garbage collector and the C library's heaps."""

from __future__ import annotations

import ctypes
import gc
import sys
from typing import Final

_M_MMAP_THRESHOLD: Final = -3  #: of glibc's mallopt
_LARGE: Final = 2**20  #: bytes


def freeze_modules() -> None:
    """Take the loaded modules out of the collector's sight: once, when all is loaded and no work has begun.

    They never become garbage, and each full collection would walk them all: a pause of 0.1 to 0.2 s, in the middle of
    somebody's request.
    """
    gc.collect()
    gc.freeze()


def return_large_blocks() -> None:
    """Give freed blocks of a megabyte or more back to the system, as the pixels of an image are.

    glibc would keep up to 32 MiB of each in the heap of the thread that freed it: with 16 threads that decode images,
    that is over 600 MiB which nobody uses.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none, and keeps nothing
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, _LARGE)
