"""How many pixels all decodes of one process hold at once.

A file of a few hundred bytes can be an image of 16 million pixels, which takes hundreds of megabytes while it is
decoded. The limits on one file do not bound many of them in parallel; this does.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from farm.errors import DecodersBusy
from farm.settings import Settings

RETRY_SECONDS: Final = 5.0  #: when a client that was refused may try again


class DecodeBudget:
    """Grants pixels in the order in which they are asked for. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._held = 0
        self._waiting: deque[object] = deque()

    @contextmanager
    def hold(self, pixels: int, settings: Settings) -> Iterator[None]:
        """Wait until the pixels are free, and hold them for the time of the block.

        Args:
            pixels: of the decoded image or frame. More than the whole budget is granted when nobody else holds any.
            settings: its limits (``max_decode_pixels``, ``decode_wait_seconds``).

        Raises:
            DecodersBusy: they were not free in time.
        """
        ticket = object()
        deadline = time.monotonic() + settings.decode_wait_seconds
        with self._changed:
            self._waiting.append(ticket)
            try:
                while not (
                    self._waiting[0] is ticket
                    and (self._held == 0 or self._held + pixels <= settings.max_decode_pixels)
                ):
                    left = deadline - time.monotonic()
                    if left <= 0:
                        raise DecodersBusy("other images and clips are being decoded; try again", RETRY_SECONDS)
                    self._changed.wait(left)
                self._held += pixels
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()  # the next one may fit as well
        try:
            yield
        finally:
            with self._changed:
                self._held -= pixels
                self._changed.notify_all()


BUDGET: Final = DecodeBudget()  #: of this process
