"""Detects a stalled Celery consumer.

A consumer can stop taking messages while its process lives: the heartbeat continues, the device is idle, and each job
dispatched to the worker waits for the end of its dispatch lease. A stalled consumer differs from an idle one in its
Redis list: there are messages, there are free slots, and no message is taken.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

import structlog
from celery import Celery

from farm.clock import NapDetector
from farm.dispatch import broker
from farm.errors import BrokerUnavailable

log = structlog.stdlib.get_logger()

CHECKS: Final = 6  #: within the time after which a consumer counts as stalled


class ConsumerWatchdog(threading.Thread):
    """Reads the length of the worker's list over a connection of its own, because the consumer's may be broken."""

    def __init__(
        self,
        app: Celery,
        worker: str,
        stall_seconds: float,
        is_full: Callable[[], bool],
        on_stall: Callable[[], object],
    ) -> None:
        """Prepare the thread.

        Args:
            app: For its connection to the broker.
            worker: The worker's name.
            stall_seconds: How long messages may wait without one being taken.
            is_full: Whether the worker holds as many jobs as it may.
            on_stall: Called once, from the watchdog's thread, when the consumer has stalled.
        """
        super().__init__(name="consumer watchdog", daemon=True)
        self._app = app
        self._worker = worker
        self._stall_seconds = stall_seconds
        self._is_full = is_full
        self._on_stall = on_stall
        self._received = 0
        self._closing = threading.Event()

    def record_message(self) -> None:
        """Record that the consumer took a message."""
        self._received += 1

    def close(self) -> None:
        """End the thread: from here on the consumer stops on purpose."""
        self._closing.set()

    def run(self) -> None:
        """Check until closed."""
        received, since = self._received, time.monotonic()
        pause = self._stall_seconds / CHECKS
        naps = NapDetector(2 * pause)
        while not self._closing.wait(pause):
            if naps.turn():  # the consumer was stopped with this thread
                since = time.monotonic()
            try:
                waiting = broker.queue_lengths(self._app, [self._worker])[self._worker]
            except BrokerUnavailable:
                waiting = 0  # no consumer can take messages now
            now = time.monotonic()
            if not waiting or self._received != received or self._is_full():
                received, since = self._received, now
            elif now - since >= self._stall_seconds:
                log.critical(
                    "the consumer takes no messages", action="consumer_stalled", worker=self._worker, waiting=waiting
                )
                self._on_stall()
                return
