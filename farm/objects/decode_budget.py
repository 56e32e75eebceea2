"""How much all decodes of one process hold at once.

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

RETRY_SECONDS: Final = 5.0  #: when a client that was refused may try again


class DecodeBudget:
    """Grants an amount in the order in which it is asked for. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._held = 0
        self._waiting: deque[object] = deque()

    @contextmanager
    def hold(self, amount: int, limit: int, wait_seconds: float) -> Iterator[None]:
        """Wait until the amount is free, and hold it for the time of the block.

        Args:
            amount: more than the limit is granted when nobody else holds any.
            limit: of what all hold at once.
            wait_seconds: how long to wait for others.

        Raises:
            DecodersBusy: it was not free in time.
        """
        ticket = object()
        deadline = time.monotonic() + wait_seconds
        with self._changed:
            self._waiting.append(ticket)
            try:
                while self._waiting[0] is not ticket or (self._held and self._held + amount > limit):
                    left = deadline - time.monotonic()
                    if left <= 0:
                        raise DecodersBusy("other files are being decoded; try again", RETRY_SECONDS)
                    self._changed.wait(left)
                self._held += amount
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()  # the next one may fit as well
        try:
            yield
        finally:
            with self._changed:
                self._held -= amount
                self._changed.notify_all()


PIXELS: Final = DecodeBudget()  #: pixels of the images that this process decodes
PROBES: Final = DecodeBudget()  #: processes that look into clips and sounds
