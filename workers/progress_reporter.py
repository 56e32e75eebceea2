"""Writes live progress to the database from a thread of its own, so that the device never waits for the database.

The engine stores the latest step of each job here; the thread writes the stored steps at most twice a second.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection
from typing import Final

import structlog

from farm import lifecycle
from farm.domain.job import HeldJob
from farm.errors import DatabaseUnavailable
from farm.store.unit_of_work import Store
from workers.leases import Lease, Leases, StopReason
from workers.render_request import Preview

log = structlog.stdlib.get_logger()

INTERVAL_SECONDS: Final = 0.5  #: between two writes


class ProgressReporter(threading.Thread):
    """Writes starts and steps to the jobs' rows, and stops jobs that the rows say are canceled or lost.

    `started`, `step` and `preview` never wait for the database.
    """

    def __init__(self, store: Store, leases: Leases) -> None:
        super().__init__(name="progress reporter", daemon=True)
        self._store = store
        self._leases = leases
        self._running_since: dict[
            Lease, tuple[int, float]
        ] = {}  #: of each job: its steps, and when the device started it
        self._starts: dict[Lease, tuple[int, float]] = {}  #: those that are not written yet
        self._steps: dict[Lease, int] = {}
        self._previews: dict[Lease, Preview] = {}
        self._changed = threading.Condition()
        self._closing = False

    def started(self, lease: Lease, steps: int) -> None:
        """Report that the device started a job of ``steps`` denoising steps."""
        with self._changed:
            self._running_since[lease] = self._starts[lease] = steps, time.monotonic()
            self._changed.notify()

    def step(self, lease: Lease, step: int) -> None:
        """Report how many denoising steps are done."""
        with self._changed:
            self._steps[lease] = step
            self._changed.notify()

    def preview(self, lease: Lease, preview: Preview) -> None:
        """Report a preview; it is written with the next step."""
        with self._changed:
            self._previews[lease] = preview

    def take_start(self, lease: Lease) -> tuple[int, float] | tuple[None, None]:
        """The number of steps and the time of the start, which the caller writes with the job's end.

        They may be on their way to the database in another transaction, which comes too late if the job's end commits
        first. Drops the job's unwritten progress: it has ended.
        """
        with self._changed:
            self._steps.pop(lease, None)
            self._previews.pop(lease, None)
            self._starts.pop(lease, None)
            return self._running_since.pop(lease, (None, None))

    def forget(self, lease: Lease) -> None:
        """Drop what is known of a job on which this worker no longer works."""
        self.take_start(lease)

    def close(self) -> None:
        """End the thread after the current write."""
        with self._changed:
            self._closing = True
            self._changed.notify()

    def run(self) -> None:
        """Write starts at once, because a crash counts from there, and steps twice a second."""
        next_steps_at = 0.0
        while True:
            with self._changed:
                while not self._closing and not self._starts:
                    pause = next_steps_at - time.monotonic()
                    if self._steps and pause <= 0:
                        break
                    self._changed.wait(pause if self._steps else None)
                if self._closing:
                    return
                starts, self._starts = self._starts, {}
                steps: dict[Lease, int] = {}
                if time.monotonic() >= next_steps_at:
                    steps, self._steps = self._steps, {}
                    next_steps_at = time.monotonic() + INTERVAL_SECONDS
            written = [self._write_starts(starts), self._write_steps(steps)]
            if not all(written):
                time.sleep(INTERVAL_SECONDS)

    def _write_starts(self, starts: dict[Lease, tuple[int, float]]) -> bool:
        """Write which jobs the device started; False if the write must be repeated."""
        held = {lease.held: lease for lease in starts if lease in self._leases}
        if not held:
            return True
        try:
            with self._store.begin() as unit:
                ours = lifecycle.start_all(unit, {one: starts[lease][0] for one, lease in held.items()})
        except DatabaseUnavailable:
            log.warning("cannot write that jobs started", action="progress_unwritten", jobs=len(held))
            with self._changed:
                for lease in held.values():
                    self._starts.setdefault(lease, starts[lease])
            return False
        except Exception:
            log.exception("cannot write that jobs started", action="progress_unwritten", jobs=len(held))
        else:
            self._stop_lost(held, ours)
        return True

    def _write_steps(self, steps: dict[Lease, int]) -> bool:
        """Write the steps done, and stop jobs that are to be canceled; False if the write must be repeated."""
        held = {lease.held: lease for lease in steps if lease in self._leases}
        if not held:
            return True
        with self._changed:
            previews = {one.job_id: self._previews.pop(lease, None) for one, lease in held.items()}
        data_urls = {job_id: preview.data_url for job_id, preview in previews.items() if preview is not None}
        try:
            with self._store.begin() as unit:
                ours = lifecycle.progress_all(unit, {one: steps[lease] for one, lease in held.items()}, data_urls)
        except DatabaseUnavailable:
            log.warning("cannot write progress", action="progress_unwritten", jobs=len(held))
            with self._changed:  # a step that came in meanwhile is newer
                for lease in held.values():
                    self._steps.setdefault(lease, steps[lease])
            return False
        except Exception:
            log.exception("cannot write progress", action="progress_unwritten", jobs=len(held))
        else:
            self._stop_lost(held, ours)
            for one, lease in held.items():
                if ours.get(one.job_id):
                    lease.stop(StopReason.CANCELED)
        return True

    def _stop_lost(self, held: dict[HeldJob, Lease], ours: Collection[str]) -> None:
        for one, lease in held.items():
            if one.job_id not in ours and lease in self._leases:  # otherwise it ended during the write
                lease.stop(StopReason.LOST)
