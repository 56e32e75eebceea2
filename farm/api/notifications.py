"""Changes of jobs, from one thread that listens to Postgres to every request that waits.

A wake-up is a hint, never the news: whoever wakes reads the job again, and does so every `REREAD_SECONDS` without being
notified, so a missed notification costs that long and nothing else.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import structlog

from farm.errors import DatabaseUnavailable, SetupError
from farm.store.connection import Database
from farm.store.events import JOB_CHANNEL, PREVIEW_CHANNEL, PROPAGATION_CHANNEL
from farm.store.listen import Listener

log = structlog.get_logger(__name__)

REREAD_SECONDS: Final = 2.0
RECONNECT_SECONDS: Final = 1.0


class Subscription:
    """One request's subscription to one job."""

    def __init__(self, notifier: ChangeNotifier) -> None:
        self._notifier = notifier
        self._event = asyncio.Event()
        self.preview: str | None = None  #: the newest one, as a data URL; it is read once

    def wake(self) -> None:
        """The job may have changed."""
        self._event.set()

    @property
    def closing(self) -> bool:
        """Whether the process is about to end: whoever waits answers with what there is."""
        return self._notifier.closing

    async def wait(self, at_most: float) -> bool:
        """Wait for a change, for ``at_most`` seconds; returns whether there was one."""
        try:
            async with asyncio.timeout(at_most):
                await self._event.wait()
        except TimeoutError:
            return False
        self._event.clear()
        return True


class ChangeNotifier:
    """The process's one listener. `start` and `subscribe` belong to the event loop's thread.

    ``on_propagation`` is called in its own thread when a job with many dependents has ended.
    """

    def __init__(self, database: Database, on_propagation: Callable[[], None]) -> None:
        self._listener = Listener(database, [JOB_CHANNEL, PREVIEW_CHANNEL, PROPAGATION_CHANNEL])
        self._on_propagation = on_propagation
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: dict[str, set[Subscription]] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="notifier", daemon=True)
        self.closing = False

    def start(self) -> None:
        """Begin to listen, and wake subscribers on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def close_subscriptions(self) -> None:
        """Let every request that waits answer now: the process is about to end."""
        self.closing = True
        for job_id in list(self._waiting):
            self._wake(job_id)

    def stop(self) -> None:
        """End the thread; blocks for at most two seconds."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(2)

    @contextmanager
    def subscribe(self, job_id: str) -> Iterator[Subscription]:
        """Get notified of changes of this job until the block ends. Subscribe first, then read the job."""
        one = Subscription(self)
        self._waiting.setdefault(job_id, set()).add(one)
        try:
            yield one
        finally:
            others = self._waiting[job_id]
            others.discard(one)
            if not others:
                del self._waiting[job_id]

    def _wake(self, job_id: str) -> None:
        for one in self._waiting.get(job_id, ()):
            one.wake()

    def _show(self, payload: str) -> None:
        """A preview: kept by the watchers of its job only."""
        job_id, _, preview = payload.partition(" ")
        for one in self._waiting.get(job_id, ()):
            one.preview = preview

    def _run(self) -> None:
        assert self._loop is not None
        lost = False
        while not self._stopping.is_set():
            try:
                notices = self._listener.wait(0.5)
            except SetupError as error:  # a pooler that loses notifications: whoever waits looks again by itself
                log.error("no notifications", action="listener_refused", error=str(error))  # noqa: TRY400
                return
            except DatabaseUnavailable as error:
                if not lost:
                    log.warning("cannot listen for changes", action="listener_lost", error=str(error))
                lost = True
                self._stopping.wait(RECONNECT_SECONDS)
                continue
            if lost:
                lost = False
                log.info("listening for changes again", action="listener_back")
            try:
                for notice in notices:
                    if notice.channel == PROPAGATION_CHANNEL:
                        self._on_propagation()
                        continue
                    heard = self._show if notice.channel == PREVIEW_CHANNEL else self._wake
                    self._loop.call_soon_threadsafe(heard, notice.payload)
            except RuntimeError:  # the loop has ended before us
                break
        self._listener.close()
