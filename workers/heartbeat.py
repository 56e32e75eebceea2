"""Renews the worker's leases, and stops work that may not continue.

The heartbeat renews the leases of jobs that make progress, and only those: a job that hangs loses its lease like one
whose worker crashed. The watchdog is a separate thread, because a heartbeat that waits for the database cannot check
itself: it stops jobs whose lease is about to end, and ends the engine's process when the device hangs.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from farm import lifecycle
from farm.clock import NapDetector
from farm.errors import DatabaseUnavailable, LeaseLost
from farm.settings import Settings
from farm.store.unit_of_work import MAX_SKEW_SECONDS, Store
from workers.leases import Lease, Leases, Stage, lease_deadline
from workers.prefetch import PrefetchControl
from workers.render_request import RenderEngine

log = structlog.stdlib.get_logger()

EXIT_REPLACED: Final = 3  #: another process has this worker's name
EXIT_STALLED: Final = 75  #: EX_TEMPFAIL of sysexits.h: a new process may succeed
CHECK_SECONDS: Final = 0.5  #: between two checks of the watchdog
NAP_SECONDS: Final = 4.0  #: without a check: the process was frozen, or its machine slept


class HeartbeatThread(threading.Thread):
    """Tells the database that this worker is alive, renews its leases, and stops what the response says."""

    def __init__(
        self,
        worker: str,
        boot_id: str,
        settings: Settings,
        store: Store,
        engine: RenderEngine,
        leases: Leases,
        prefetch: PrefetchControl,
        on_stop_request: Callable[[], object],
    ) -> None:
        """``on_stop_request`` is called once, when an operator asks this process to end."""
        super().__init__(name="heartbeat", daemon=True)
        self._worker = worker
        self._boot_id = boot_id
        self._settings = settings
        self._store = store
        self._engine = engine
        self._leases = leases
        self._prefetch = prefetch
        self._on_stop_request = on_stop_request
        self._stop_requested = False
        self._closing = False
        self._wake = threading.Event()  #: ends the pause between two heartbeats

    def close(self) -> None:
        """End the thread after the current heartbeat."""
        self._closing = True
        self._wake.set()

    def beat_now(self) -> None:
        """Send the next heartbeat at once."""
        self._wake.set()

    def run(self) -> None:
        """Beat until closed; more often while the database does not answer, because the leases run out."""
        interval = self._settings.heartbeat_seconds
        pause = interval
        while True:
            self._wake.wait(pause)
            self._wake.clear()
            if self._closing:
                return
            try:
                self.beat()
                pause = interval
            except DatabaseUnavailable as error:
                log.warning("cannot reach the database", action="heartbeat_missed", error=str(error))
                pause = min(1.0, interval)
            except LeaseLost as error:
                if self._closing:
                    return
                # Two processes of one name would take each other's messages. The newer one has the row.
                log.critical("replaced", action="worker_replaced", worker=self._worker, reason=str(error))
                os._exit(EXIT_REPLACED)
            except Exception:
                log.exception("the heartbeat failed", action="heartbeat_missed")

    def beat(self) -> None:
        """Send one heartbeat. Raises `DatabaseUnavailable`, or `LeaseLost` if another process has the name."""
        sent = [lease for lease in self._leases.all() if makes_progress(lease, self._engine, self._settings)]
        sent_at = time.monotonic()
        lease_seconds = self._settings.run_lease_seconds
        loaded = self._engine.loaded
        with self._store.begin() as unit:
            skew = unit.clock_skew()
            response = lifecycle.heartbeat(
                unit,
                self._worker,
                self._boot_id,
                [lease.held for lease in sent],
                tuple(one.model for one in loaded),
                lease_seconds,
                loaded,
                self._prefetch.jobs,
            )
        self._leases.apply_heartbeat(sent, response.held, response.canceled, lease_deadline(sent_at, lease_seconds))
        if abs(skew) > MAX_SKEW_SECONDS and not self._stop_requested:
            # its jobs go back to their queues, and a new process joins when the clock is right
            self._stop_requested = True
            log.critical(describe_skew(skew), action="clock_skewed", worker=self._worker, skew=round(skew, 1))
            self._on_stop_request()
        if response.stop and not self._stop_requested:
            self._stop_requested = True
            log.info("an operator asked this process to end", action="worker_stop_requested", worker=self._worker)
            self._on_stop_request()


def describe_skew(skew: float) -> str:
    """What a wrong clock means; ``skew`` is in seconds ahead of the database's clock."""
    return (
        f"this machine's clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the database's, and S3 "
        f"refuses signatures of such a clock: at most {MAX_SKEW_SECONDS:.0f} s are allowed; switch on NTP"
    )


class Watchdog(threading.Thread):
    """Stops jobs whose lease was not renewed, and ends the engine when the device hangs. Needs no server."""

    def __init__(
        self,
        leases: Leases,
        engine: RenderEngine,
        settings: Settings,
        worker: str,
        alive_file: Path | None,
        on_nap: Callable[[], object],
    ) -> None:
        """Prepare the thread.

        Args:
            leases: Those of this process.
            engine: Whose progress is watched.
            settings: The process's settings.
            worker: The worker's name.
            alive_file: Touched at each check: a supervisor replaces a process that stopped doing so.
            on_nap: Called when the whole process was stopped for a while: the leases are to be renewed at once.
        """
        super().__init__(name="watchdog", daemon=True)
        self._on_nap = on_nap
        self._naps = NapDetector(NAP_SECONDS)
        self._leases = leases
        self._engine = engine
        self._settings = settings
        self._worker = worker
        self._alive_file = alive_file
        self._closing = threading.Event()

    def close(self) -> None:
        """End the thread."""
        self._closing.set()

    def run(self) -> None:
        """Check twice a second until closed."""
        while not self._closing.wait(CHECK_SECONDS):
            if self._alive_file is not None:
                self._alive_file.touch()
            nap = self._naps.turn()
            if nap:
                # The database decides whether the leases are still ours: the fences hold for whatever is written.
                log.warning("was stopped", action="worker_nap", worker=self._worker, seconds=round(nap, 1))
                self._engine.resume_after_nap()
                for lease in self._leases.all():
                    lease.resume_after_nap(2 * self._settings.heartbeat_seconds)
                self._on_nap()
            for lease in self._leases.stop_expired():
                log.warning(
                    "stopped: the lease could not be renewed",
                    action="lease_expired",
                    worker=self._worker,
                    job=lease.job.id,
                    epoch=lease.epoch,
                )
            if is_stalled(self._engine, self._settings):
                log.critical("the device hangs", action="device_stalled", worker=self._worker)
                if not self._engine.kill("the device hangs"):
                    os._exit(EXIT_STALLED)


def is_stalled(engine: RenderEngine, settings: Settings) -> bool:
    """Whether the device has had work for too long without progress."""
    limit = settings.load_timeout_seconds if engine.loading else settings.step_timeout_seconds
    return engine.seconds_without_progress > limit


def makes_progress(lease: Lease, engine: RenderEngine, settings: Settings) -> bool:
    """Whether the work on a job makes progress, so that its lease is to be renewed."""
    if lease.stage in (Stage.WAITING, Stage.RENDERING):
        return not is_stalled(engine, settings)
    return time.monotonic() - lease.progress_at < settings.step_timeout_seconds
