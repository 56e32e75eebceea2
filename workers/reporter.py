"""Live progress to the database, from a thread of its own: the card never waits for the database.

The engine leaves its newest step in a slot; whatever lies there is written at most twice a second.
"""

from __future__ import annotations

import threading
import time
from typing import Final

import structlog

from farm import lifecycle
from farm.errors import DatabaseUnavailable, RightLost
from farm.store.unit import Store
from workers.engine import Preview
from workers.rights import Right, Rights, Why

log = structlog.stdlib.get_logger()

SECONDS: Final = 0.5  #: between two writes


class Reporter(threading.Thread):
    """Writes steps to the rows of the jobs on the card, and hears of cancels on the way."""

    def __init__(self, store: Store, rights: Rights) -> None:
        super().__init__(name="reporter", daemon=True)
        self._store = store
        self._rights = rights
        self._begun: dict[Right, int] = {}
        self._steps: dict[Right, int] = {}
        self._previews: dict[Right, Preview] = {}
        self._news = threading.Condition()
        self._closing = False

    def take_up(self, right: Right, steps: int) -> None:
        """The card begins with a job of that many denoising steps. Never waits for the database."""
        with self._news:
            self._begun[right] = steps
            self._news.notify()

    def step(self, right: Right, step: int) -> None:
        """So many denoising steps are done. Never waits for the database."""
        with self._news:
            self._steps[right] = step
            self._news.notify()

    def preview(self, right: Right, preview: Preview) -> None:
        """What a picture looks like on its way; goes out with the next step. Never waits for the database."""
        with self._news:
            self._previews[right] = preview

    def unwritten(self, right: Right) -> int | None:
        """The denoising steps of a job whose taking up is not written yet; the caller writes it instead."""
        with self._news:
            self._steps.pop(right, None)
            self._previews.pop(right, None)
            return self._begun.pop(right, None)

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
            reached = [self._write(right, begun.get(right), steps.get(right)) for right in {*begun, *steps}]
            if not all(reached):
                time.sleep(SECONDS)

    def _write(self, right: Right, steps: int | None, step: int | None) -> bool:
        """Write what is new of one job; False if it must be tried again."""
        if not self._rights.holds(right):
            return True
        with self._news:
            preview = None if step is None else self._previews.pop(right, None)
        shown = None if preview is None else preview.data_url
        try:
            with self._store.begin() as unit:
                if steps is not None:
                    lifecycle.take_up(unit, right.job.id, right.epoch, steps)
                wanted_stopped = step is not None and lifecycle.progress(unit, right.job.id, right.epoch, step, shown)
        except RightLost:
            if self._rights.holds(right):  # or else it ended while this was on its way
                right.stop(Why.LOST)
        except DatabaseUnavailable:
            log.warning("progress is not written", action="progress_unwritten", job=right.job.id, epoch=right.epoch)
            with self._news:  # what came in meanwhile is newer
                if steps is not None:
                    self._begun.setdefault(right, steps)
                if step is not None:
                    self._steps.setdefault(right, step)
            return False
        except Exception:
            log.exception("progress is not written", action="progress_unwritten", job=right.job.id, epoch=right.epoch)
        else:
            if wanted_stopped:
                right.stop(Why.CANCELED)
        return True
