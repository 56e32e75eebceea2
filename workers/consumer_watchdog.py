"""Whether Celery's consumer still listens.

A consumer can fall silent and its process live on: the heartbeat beats, the device is idle, and each job that is handed
over waits for the end of its dispatch lease. What tells it from one that has nothing to do is its list in Redis: there
are messages, there are places for them, and none is taken.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

import structlog
from celery import Celery

from farm.dispatch import broker
from farm.errors import BrokerUnavailable

log = structlog.stdlib.get_logger()

LOOKS: Final = 6  #: within the time that makes a silent consumer a deaf one


class Ear(threading.Thread):
    """Asks the broker over a connection of its own, for the consumer's may be what is dead."""

    def __init__(
        self,
        app: Celery,
        worker: str,
        seconds: float,
        busy: Callable[[], bool],
        deaf: Callable[[], object],
    ) -> None:
        """``busy``: whether all places for jobs are taken; ``deaf`` is called once, after ``seconds`` of silence."""
        super().__init__(name="ear", daemon=True)
        self._app = app
        self._worker = worker
        self._seconds = seconds
        self._busy = busy
        self._deaf = deaf
        self._heard = 0
        self._closing = threading.Event()

    def hear(self) -> None:
        """A message was taken."""
        self._heard += 1

    def close(self) -> None:
        """End: from here on nobody listens on purpose."""
        self._closing.set()

    def run(self) -> None:
        """Look until closed."""
        heard, since = self._heard, time.monotonic()
        while not self._closing.wait(self._seconds / LOOKS):
            try:
                waiting = broker.queue_lengths(self._app, [self._worker])[self._worker]
            except BrokerUnavailable:
                waiting = 0  # nobody can hear anything
            now = time.monotonic()
            if not waiting or self._heard != heard or self._busy():
                heard, since = self._heard, now
            elif now - since >= self._seconds:
                log.critical(
                    "messages wait and none is taken", action="consumer_deaf", worker=self._worker, waiting=waiting
                )
                self._deaf()
                return
