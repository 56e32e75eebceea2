"""When a delivery is retried, and when an endpoint is paused. All times in seconds."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

MINUTE: Final = 60.0
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR

MAX_RETRY_AFTER: Final = HOUR  #: an endpoint cannot put us off for longer


@dataclass(frozen=True)
class RetryPolicy:
    """The delays of all attempts: about 75 hours from the first to the last, as Standard Webhooks proposes."""

    #: before each attempt, counted from the one before; the first is made at once
    delays: tuple[float, ...] = (
        0,
        5,
        5 * MINUTE,
        30 * MINUTE,
        2 * HOUR,
        5 * HOUR,
        10 * HOUR,
        14 * HOUR,
        20 * HOUR,
        24 * HOUR,
    )
    jitter: float = 0.1  #: part of a delay by which it is lengthened or shortened at random
    give_up_after: float = 5 * DAY  #: an endpoint that fails for this long is disabled
    break_after: int = 5  #: failures in a row until an endpoint gets only single probes
    first_pause: float = 10  #: before the first probe; doubled by each further failure
    longest_pause: float = 10 * MINUTE
    #: a number of [0, 1)
    draw: Callable[[], float] = random.random

    def delay(self, attempts: int, retry_after: float | None = None) -> float | None:
        """The delay after ``attempts`` failed ones, at least what the endpoint asked for; None: no attempt is left."""
        if attempts >= len(self.delays):
            return None
        return max(self._spread(self.delays[attempts]), retry_after or 0)

    def pause(self, failures: int) -> float | None:
        """How long an endpoint is paused after this many failures in a row, if it is."""
        if failures < self.break_after:
            return None
        # the exponent is bounded: a float has no room for 2 ** 2000
        doubled = self.first_pause * 2.0 ** min(failures - self.break_after, 30)
        return self._spread(min(doubled, self.longest_pause))

    def _spread(self, delay: float) -> float:
        return delay * (1 + self.jitter * (2 * self.draw() - 1))


def retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """What a ``Retry-After`` header asks for (RFC 9110: seconds or a date), from 0 to an hour; None if unreadable."""
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        # int() refuses very long numbers
        return MAX_RETRY_AFTER if len(text) > 6 else min(float(text), MAX_RETRY_AFTER)
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return min(max((date - (now or datetime.now(UTC))).total_seconds(), 0.0), MAX_RETRY_AFTER)
