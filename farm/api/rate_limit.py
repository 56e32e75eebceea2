"""How many requests a tenant may send: a bucket of tokens for each tenant, in the memory of one API process.

A bucket holds ``burst`` requests and fills by ``limit`` a second. It is kept as one number, the time at which it will
be full again (as in the generic cell rate algorithm of ATM), and one that is full need not be kept at all.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from farm.errors import QuotaExceeded

KEPT: Final = 10_000  #: buckets, before the full ones are thrown away


@dataclass(frozen=True)
class RateLimitState:
    """Where a tenant stands after a request."""

    burst: int  #: requests that a full bucket holds
    window: float  #: seconds in which an empty bucket fills
    left: int  #: requests that may come at once now
    reset: float  #: seconds until the bucket is full again
    retry_after: float | None = None  #: seconds until a request may come; None: this one may

    def headers(self) -> dict[str, str]:
        """``RateLimit-Policy`` and ``RateLimit`` (draft-ietf-httpapi-ratelimit-headers-10)."""
        return {
            "RateLimit-Policy": f'"requests";q={self.burst};w={math.ceil(self.window)}',
            "RateLimit": f'"requests";r={self.left};t={math.ceil(self.reset)}',
        }

    def admit(self) -> None:
        """Raise `QuotaExceeded` if the request came too early."""
        if self.retry_after is not None:
            raise QuotaExceeded(
                f"more requests came than {self.burst} at once and {self.burst / self.window:g} a second: "
                "wait as Retry-After says",
                self.retry_after,
            )


class RateLimiter:
    """The buckets of one process.

    Args:
        limit: requests a second of one tenant, in the long run.
        burst: requests that may come at once.
        clock: seconds that never go back.
    """

    def __init__(self, limit: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._one = 1 / limit
        self._burst = burst
        self._clock = clock
        self._full_at: dict[str, float] = {}
        self._lock = threading.Lock()

    def take(self, tenant_id: str) -> RateLimitState:
        """Count one request of a tenant, unless it comes too early: a refused one costs nothing."""
        window = self._burst * self._one
        with self._lock:
            now = self._clock()
            if len(self._full_at) >= KEPT:
                self._full_at = {name: at for name, at in self._full_at.items() if at > now}
            gap = max(0.0, self._full_at.get(tenant_id, now) - now)
            early = gap + self._one - window
            if early > 1e-9:
                return RateLimitState(self._burst, window, 0, gap, early)
            gap += self._one
            self._full_at[tenant_id] = now + gap
        return RateLimitState(self._burst, window, int((window - gap) / self._one + 1e-6), gap)
