"""A clock that goes on while this machine sleeps, to notice that the process was away."""

from __future__ import annotations

import time


def awake_clock() -> float:
    """Seconds on a clock that never goes back, and counts the time in which the machine was suspended."""
    boot_time = getattr(time, "CLOCK_BOOTTIME", None)  # Linux: the monotonic clock stands still in a suspended machine
    return time.monotonic() if boot_time is None else time.clock_gettime(boot_time)


class NapDetector:
    """Notices that a loop which comes by often was stopped: frozen, swapped out, or suspended with its machine."""

    def __init__(self, seconds: float) -> None:
        """``seconds``: the pause between two turns that counts as a nap."""
        self._limit = seconds
        self._last = awake_clock()

    def turn(self) -> float:
        """Call it at each turn of the loop: returns how long the nap before it was, 0 without one."""
        now = awake_clock()
        passed, self._last = now - self._last, now
        return passed if passed > self._limit else 0.0
