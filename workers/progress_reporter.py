"""Live progress to the database, from a thread of its own: the device never waits for the database.

The engine leaves its newest step in a slot; whatever lies there is written at most twice a second.
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
from workers.leases import Right, Rights, Why
from workers.render_request import Preview

log = structlog.stdlib.get_logger()

SECONDS: Final = 0.5  #: between two writes


class Reporter(threading.Thread):
    """Writes steps to the rows of the jobs on the device, and hears of cancels on the way."""

    def __init__(self, store: Store, rights: Rights) -> None:
        super().__init__(name="reporter", daemon=True)
        self._store = store
        self._rights = rights
        self._begun: dict[Right, tuple[int, float]] = {}  #: steps, and when
        self._steps: dict[Right, int] = {}
        self._previews: dict[Right, Preview] = {}
        self._news = threading.Condition()
        self._closing = False

    def take_up(self, right: Right, steps: int) -> None:
        """The device begins with a job of that many denoising steps. Never waits for the database."""
        with self._news:
            self._begun[right] = steps, time.monotonic()
            self._news.notify()

    def step(self, right: Right, step: int) -> None:
        """So many denoising steps are done. Never waits for the database."""
        with self._news:
            self._steps[right] = step
            self._news.notify()

    def preview(self, right: Right, preview: Preview) -> None:
        """What an image looks like on its way; goes out with the next step. Never waits for the database."""
        with self._news:
            self._previews[right] = preview

    def unwritten(self, right: Right) -> tuple[int, float] | tuple[None, None]:
        """The denoising steps of a job whose taking up is not written yet, and when that was; the caller writes it."""
        with self._news:
            self._steps.pop(right, None)
            self._previews.pop(right, None)
            return self._begun.pop(right, (None, None))

    def close(self) -> None:
        """End after the write at hand."""
        with self._news:
            self._closing = True
            self._news.notify()

    def run(self) -> None:
        """Write that a job begins at once, because a death counts from there; steps twice a second."""
        next_steps_at = 0.0
        while True:
            with self._news:
                while not self._closing and not self._begun:
                    pause = next_steps_at - time.monotonic()
                    if self._steps and pause <= 0:
                        break
                    self._news.wait(pause if self._steps else None)
                if self._closing:
                    return
                begun, self._begun = self._begun, {}
                steps: dict[Right, int] = {}
                if time.monotonic() >= next_steps_at:
                    steps, self._steps = self._steps, {}
                    next_steps_at = time.monotonic() + SECONDS
            written = [self._write_begun(begun), self._write_steps(steps)]
            if not all(written):
                time.sleep(SECONDS)

    def _write_begun(self, begun: dict[Right, tuple[int, float]]) -> bool:
        """Write which jobs the device took up; False if that must be tried again."""
        held = {right.held: right for right in begun if self._rights.holds(right)}
        if not held:
            return True
        try:
            with self._store.begin() as unit:
                ours = lifecycle.start_all(unit, {one: begun[right][0] for one, right in held.items()})
        except DatabaseUnavailable:
            log.warning("progress is not written", action="progress_unwritten", jobs=len(held))
            with self._news:
                for right in held.values():
                    self._begun.setdefault(right, begun[right])
            return False
        except Exception:
            log.exception("progress is not written", action="progress_unwritten", jobs=len(held))
        else:
            self._stop_lost(held, ours)
        return True

    def _write_steps(self, steps: dict[Right, int]) -> bool:
        """Write how far jobs are, and stop those that are to be canceled; False if that must be tried again."""
        held = {right.held: right for right in steps if self._rights.holds(right)}
        if not held:
            return True
        with self._news:
            previews = {one.job_id: self._previews.pop(right, None) for one, right in held.items()}
        shown = {job_id: preview.data_url for job_id, preview in previews.items() if preview is not None}
        try:
            with self._store.begin() as unit:
                ours = lifecycle.progress_all(unit, {one: steps[right] for one, right in held.items()}, shown)
        except DatabaseUnavailable:
            log.warning("progress is not written", action="progress_unwritten", jobs=len(held))
            with self._news:  # what came in meanwhile is newer
                for right in held.values():
                    self._steps.setdefault(right, steps[right])
            return False
        except Exception:
            log.exception("progress is not written", action="progress_unwritten", jobs=len(held))
        else:
            self._stop_lost(held, ours)
            for one, right in held.items():
                if ours.get(one.job_id):
                    right.stop(Why.CANCELED)
        return True

    def _stop_lost(self, held: dict[HeldJob, Right], ours: Collection[str]) -> None:
        for one, right in held.items():
            if one.job_id not in ours and self._rights.holds(right):  # or else it ended while this was on its way
                right.stop(Why.LOST)
