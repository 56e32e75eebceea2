"""Celery's consumer, except that it sends task events a few times a second instead of at every turn of its loop.

Each send is a message through kombu and Redis that every monitor reads. With short jobs, sending cost the worker more
CPU than claiming the jobs.
"""

from __future__ import annotations

from typing import Any, Final

from celery.worker import consumer

FLUSH_SECONDS: Final = 0.25


class Consumer(consumer.Consumer):  # type: ignore[misc, unused-ignore]
    """Celery's consumer with delayed task events."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._scheduled = False

    def on_send_event_buffered(self) -> None:
        """Plan a send after an event was buffered, by any thread; Celery sends a full buffer itself."""
        if self.hub and not self._scheduled:
            self._scheduled = True
            self.hub.call_later(FLUSH_SECONDS, self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        self._flush_events()
