"""The worker's sign of life, and the watch over it.

The heartbeat renews the leases of jobs that get further, and of those alone: a job whose work hangs loses its lease
like one whose worker died. The watch is a thread of its own, because a heartbeat that waits for the database cannot
watch itself: it stops jobs whose lease is about to end, and ends the process when the device hangs.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Final

import structlog

from farm import lifecycle
from farm.errors import DatabaseUnavailable, LeaseLost
from farm.settings import Settings
from workers.engine import Engine
from workers.job_runner import Bench
from workers.leases import Right, Rights, Stage

log = structlog.stdlib.get_logger()

EXIT_REPLACED: Final = 3  #: another process has this worker's name
EXIT_STALLED: Final = 75  #: EX_TEMPFAIL of sysexits.h: a fresh process may do better
WATCH_SECONDS: Final = 0.5


class Heartbeat(threading.Thread):
    """Tells the database that this worker lives, and learns what it must stop."""

    def __init__(self, bench: Bench, boot_id: str, stop: Callable[[], object]) -> None:
        """``stop`` is called once, when an operator wants this process ended."""
        super().__init__(name="heartbeat", daemon=True)
        self._stop_asked = False
        self._stop_process = stop
        self._bench = bench
        self._boot_id = boot_id
        self._closing = threading.Event()

    def close(self) -> None:
        """End after the beat at hand."""
        self._closing.set()

    def run(self) -> None:
        """Beat until closed. While the database is away, try more often: the leases run."""
        every = self._bench.settings.heartbeat_seconds
        pause = every
        while not self._closing.wait(pause):
            try:
                self.beat()
                pause = every
            except DatabaseUnavailable as error:
                log.warning("the heartbeat does not reach the database", action="heartbeat_missed", error=str(error))
                pause = min(1.0, every)
            except LeaseLost as error:
                if self._closing.is_set():
                    return
                # Two processes of one name would take each other's messages. The newer one has the row.
                log.critical("replaced", action="worker_replaced", worker=self._bench.worker, reason=str(error))
                os._exit(EXIT_REPLACED)
            except Exception:
                log.exception("the heartbeat failed", action="heartbeat_missed")

    def beat(self) -> None:
        """One sign of life. Raises `DatabaseUnavailable`, or `LeaseLost` if another process has the name."""
        bench = self._bench
        asked = [right for right in bench.rights.all() if gets_further(right, bench.engine, bench.settings)]
        asked_at = time.monotonic()
        with bench.store.begin() as unit:
            heard = lifecycle.heartbeat(
                unit,
                bench.worker,
                self._boot_id,
                [right.held for right in asked],
                bench.engine.models,
                bench.settings.run_lease_seconds,
                bench.engine.loaded,
            )
        bench.rights.keep(asked, heard.held, heard.canceled, bench.lease_until(asked_at))
        if heard.stop and not self._stop_asked:
            self._stop_asked = True
            log.info("an operator wants this process ended", action="worker_stop_asked", worker=bench.worker)
            self._stop_process()


class Watch(threading.Thread):
    """Stops what has no right to go on, and the process when its device hangs. Asks nobody."""

    def __init__(self, rights: Rights, engine: Engine, settings: Settings, worker: str) -> None:
        super().__init__(name="watch", daemon=True)
        self._rights = rights
        self._engine = engine
        self._settings = settings
        self._worker = worker
        self._closing = threading.Event()

    def close(self) -> None:
        """End."""
        self._closing.set()

    def run(self) -> None:
        """Look twice a second."""
        while not self._closing.wait(WATCH_SECONDS):
            for right in self._rights.fence():
                log.warning(
                    "stopped: its lease could not be renewed",
                    action="job_fenced",
                    worker=self._worker,
                    job=right.job.id,
                    epoch=right.epoch,
                )
            if stalled(self._engine, self._settings):
                log.critical("the device hangs", action="device_stalled", worker=self._worker)
                os._exit(EXIT_STALLED)


def stalled(engine: Engine, settings: Settings) -> bool:
    """Whether the device has had work for too long without getting further."""
    return engine.idle_seconds > (settings.load_timeout_seconds if engine.loading else settings.step_timeout_seconds)


def gets_further(right: Right, engine: Engine, settings: Settings) -> bool:
    """Whether a job's lease is worth renewing."""
    if right.stage in (Stage.WAITING, Stage.RENDERING):
        return not stalled(engine, settings)
    return time.monotonic() - right.moved_at < settings.step_timeout_seconds
