"""How fast the device works on a job."""

from __future__ import annotations

import time
from collections import deque
from typing import Final

#: The speed is that between the last marks; they are at least so many seconds apart.
MARKS: Final = 8
MARK_SECONDS: Final = 0.25


class Speed:
    """The speed of one job, by its last seconds on the device: steps that are not computed count for little."""

    def __init__(self) -> None:
        self._steps = 0  # of the job
        self._done = 0
        self._marks: deque[tuple[float, int]] = deque(maxlen=MARKS)  # times, and the steps done then

    def start(self, steps: int) -> None:
        """The device starts the job, which has so many denoising steps."""
        self._steps = steps
        self._marks.append((time.monotonic(), 0))

    def record(self, done: int) -> None:
        """So many steps are done."""
        self._done = done
        now = time.monotonic()
        if not self._marks or now - self._marks[-1][0] >= MARK_SECONDS:
            self._marks.append((now, done))

    @property
    def seconds_left(self) -> float | None:
        """How long the device will take for the steps that are left; None: not known yet. Any thread may ask."""
        marks = tuple(self._marks)
        if len(marks) < 2:
            return None
        (began_at, before), (ended_at, done) = marks[0], marks[-1]
        return (self._steps - self._done) * (ended_at - began_at) / (done - before) if done > before else None
