"""How long jobs will take: from the device time that finished ones took, the same for every place that says it.

A device's time counts only while it renders, and once for all jobs that share it: jobs that run at the same time on one
worker overlap. What is said is a range, from the fastest to the slowest part of what was measured.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

PARTS: Final = 5  #: into which the finished jobs of a model are divided, oldest first
MARGIN: Final = 1.25  #: around what was measured, because the next jobs are never quite like the last
UNKNOWN_MARGIN: Final = 3.0  #: around the speed of other models, for one that has rendered nothing lately


@dataclass(frozen=True)
class FinishedWork:
    """A job that a worker has rendered."""

    model: str
    worker: str
    cost: float  #: megapixel-steps
    started_at: float  #: seconds since 1970
    finished_at: float


@dataclass(frozen=True)
class SecondsRange:
    """A time that is not known exactly."""

    low: float
    high: float

    @property
    def middle(self) -> float:
        """The geometric mean: as many times more than the low end as less than the high one."""
        return math.sqrt(self.low * self.high)


@dataclass(frozen=True)
class _Rate:
    """Device seconds per megapixel-step."""

    low: float
    high: float


class Estimator:
    """Estimates from what was rendered lately.

    Args:
        finished: jobs, in the order in which they finished.
        devices: workers that render at the same time.
    """

    def __init__(self, finished: Sequence[FinishedWork], devices: int) -> None:
        self._devices = max(1, devices)
        by_model: dict[str, list[FinishedWork]] = defaultdict(list)
        for one in finished:
            by_model[one.model].append(one)
        self._rates = {model: rate for model, done in by_model.items() if (rate := _rate(done)) is not None}
        self._any = _rate(finished)

    def seconds(self, work: Mapping[str, float]) -> SecondsRange | None:
        """How long that many megapixel-steps by model will take, for them alone; None while nothing was measured."""
        if not work:
            return SecondsRange(0.0, 0.0)
        if self._any is None:
            return None
        low = high = 0.0
        for model, cost in work.items():
            rate = self._rates.get(model) or _Rate(self._any.low / UNKNOWN_MARGIN, self._any.high * UNKNOWN_MARGIN)
            low += cost * rate.low
            high += cost * rate.high
        return SecondsRange(low / self._devices, high / self._devices)

    def job_seconds(self, model: str, cost: float) -> SecondsRange | None:
        """How long one job of so many megapixel-steps will take on its device; None while nothing was measured."""
        found = self.seconds({model: cost})
        return None if found is None else SecondsRange(found.low * self._devices, found.high * self._devices)


def _rate(finished: Sequence[FinishedWork]) -> _Rate | None:
    """The lowest and the highest rate among the parts of what was rendered; None if nothing took any time."""
    size = -(-len(finished) // PARTS)
    rates = [rate for at in range(0, len(finished), size or 1) if (rate := _device_rate(finished[at : at + size]))]
    if not rates:
        return None
    return _Rate(min(rates) / MARGIN, max(rates) * MARGIN)


def _device_rate(finished: Iterable[FinishedWork]) -> float:
    done = sorted(finished, key=lambda one: (one.worker, one.started_at))
    busy = sum(_busy_seconds(jobs) for _, jobs in groupby(done, key=lambda one: one.worker))
    cost = sum(one.cost for one in done)
    return busy / cost if cost > 0 else 0.0


def _busy_seconds(jobs: Iterable[FinishedWork]) -> float:
    """The time in which one worker rendered any of its jobs, which are in the order of their starts."""
    busy, until = 0.0, float("-inf")
    for one in jobs:
        busy += max(0.0, one.finished_at - max(one.started_at, until))
        until = max(until, one.finished_at)
    return busy
