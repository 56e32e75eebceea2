"""Celery's consumer, which tells its monitors of tasks a few times a second instead of at every turn of its loop.

Each telling is a message through kombu and Redis that every Flower reads: with quick jobs it cost the process that
renders more than claiming them.
"""

from __future__ import annotations

from typing import Any, Final

from celery.worker import consumer

FLUSH_SECONDS: Final = 0.25


class Consumer(consumer.Consumer):  # type: ignore[misc, unused-ignore]
    """As Celery's, but for when events of tasks go out."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._planned = False

    def on_send_event_buffered(self) -> None:
        """An event was added to those that wait, by any thread; Celery sends them itself when they are many."""
        if self.hub and not self._planned:
            self._planned = True
            self.hub.call_later(FLUSH_SECONDS, self._flush)

    def _flush(self) -> None:
        self._planned = False
        self._flush_events()
