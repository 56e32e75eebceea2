"""How many jobs wait at this worker beside those on its device, by Little's law.

A job is this worker's from its dispatch to its commit, and on the device for a part of that time. The rest (the
message, the claim, the inputs, the upload, the commit) takes round trips to the servers: milliseconds beside them,
seconds for a rented GPU on another continent. For the device never to wait, as many jobs must be in that rest as the
device finishes meanwhile: its rate times the time.
"""

from __future__ import annotations

import threading
from typing import Final

_WEIGHT: Final = 0.1  #: of a new measurement in the running means
_LONGEST_SECONDS: Final = 10.0  #: a longer time beside the device is an outage, which more jobs would not bridge
_SHORTEST_SECONDS: Final = 0.01  #: on the device


class PrefetchControl:
    """Measures jobs and says how many may wait. Safe to share between threads."""

    def __init__(self, slots: int, least: int, most: int) -> None:
        """``slots``: jobs on the device at once; the others bound the result."""
        self._slots = slots
        self._least = least
        self._most = max(least, most)
        self._beside: float | None = None  #: mean seconds of a job beside the device
        self._on_device: float | None = None  #: mean seconds of a job on the device
        self._lock = threading.Lock()

    @property
    def most(self) -> int:
        """The most jobs that will ever wait."""
        return self._most

    def record(self, *, beside: float, on_device: float) -> None:
        """Record a job that succeeded: its seconds from dispatch to commit, beside the device and on it."""
        with self._lock:
            self._beside = _mean(self._beside, min(beside, _LONGEST_SECONDS))
            self._on_device = _mean(self._on_device, max(on_device, _SHORTEST_SECONDS))

    @property
    def jobs(self) -> int:
        """How many jobs may wait now."""
        with self._lock:
            if self._beside is None or self._on_device is None:
                return self._least
            beside = self._slots / self._on_device * self._beside
        return min(self._most, self._least + round(beside))


def _mean(before: float | None, value: float) -> float:
    return value if before is None else before + _WEIGHT * (value - before)
