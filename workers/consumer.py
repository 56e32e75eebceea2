"""Celery's consumer, except that it sends task events a few times a second instead of at every turn of its loop.

Each send is a message through kombu and Redis that every monitor reads. With short jobs, sending cost the worker more
CPU than claiming the jobs.
"""

from __future__ import annotations

import time
from typing import Any, Final

from celery.worker import consumer

FLUSH_SECONDS: Final = 0.25
#: Between two heartbeat events, which only monitors read: at Celery's own 2 s they would take a fifth of the time of a
#: consumer whose broker is 200 ms away.
HEARTBEAT_SECONDS: Final = 10.0
MAX_SHARE: Final = 0.05  #: of the consumer's time for sending events, where each send takes a long round trip


class Consumer(consumer.Consumer):  # type: ignore[misc, unused-ignore]
    """Celery's consumer with delayed task events."""

    def __init__(self, *args: Any, **more: Any) -> None:
        more["heartbeat_interval"] = more.get("heartbeat_interval") or HEARTBEAT_SECONDS
        super().__init__(*args, **more)
        self._scheduled = False
        self._pause = FLUSH_SECONDS

    def on_send_event_buffered(self) -> None:
        """Plan a send after an event was buffered, by any thread; Celery sends a full buffer itself."""
        if self.hub and not self._scheduled:
            self._scheduled = True
            self.hub.call_later(self._pause, self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        began = time.monotonic()
        self._flush_events()
        self._pause = max(FLUSH_SECONDS, (time.monotonic() - began) / MAX_SHARE)
