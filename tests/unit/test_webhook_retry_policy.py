"""When a delivery is retried, and when an endpoint is paused."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.webhooks.retry_policy import DAY, HOUR, MAX_RETRY_AFTER, MINUTE, RetryPolicy, retry_after

EXACT = RetryPolicy(jitter=0)


def test_the_plan_is_the_one_that_is_promised() -> None:
    delays = [EXACT.delay(attempts) for attempts in range(1, 10)]
    assert delays == [5, 5 * MINUTE, 30 * MINUTE, 2 * HOUR, 5 * HOUR, 10 * HOUR, 14 * HOUR, 20 * HOUR, 24 * HOUR]
    assert sum(delay or 0 for delay in delays) > 3 * DAY
    assert EXACT.delay(10) is None
    assert EXACT.delay(11, retry_after=5) is None


@given(attempts=st.integers(1, 9), draw=st.floats(0, 1, exclude_max=True))
def test_jitter_stays_within_its_part(attempts: int, draw: float) -> None:
    plain, spread = EXACT.delay(attempts), RetryPolicy(draw=lambda: draw).delay(attempts)
    assert plain is not None
    assert spread is not None
    assert 0.9 * plain <= spread <= 1.1 * plain


def test_retry_after_lengthens_a_delay_and_never_shortens_it() -> None:
    assert EXACT.delay(1, retry_after=60) == 60
    assert EXACT.delay(4, retry_after=60) == 2 * HOUR


def test_an_endpoint_rests_after_failures_in_a_row_and_longer_each_time() -> None:
    assert [EXACT.pause(failures) for failures in (0, 4, 5, 6, 7)] == [None, None, 10, 20, 40]
    assert EXACT.pause(10_000) == 10 * MINUTE


NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("²", None),
        ("0", 0),
        (" 120 ", 120),
        ("7200", MAX_RETRY_AFTER),
        ("9" * 5000, MAX_RETRY_AFTER),
        ("Thu, 01 Jan 2026 12:02:00 GMT", 120),
        ("Thu, 01 Jan 2026 12:02:00 -0000", 120),
        ("Thu, 01 Jan 2026 11:00:00 GMT", 0),
        ("Fri, 01 Jan 2027 12:00:00 GMT", MAX_RETRY_AFTER),
        ("Thu, 99 Jan 2026 12:00:00 GMT", None),
    ],
)
def test_retry_after_is_read_and_capped(value: str | None, expected: float | None) -> None:
    assert retry_after(value, NOW) == expected


@given(st.text())
def test_no_retry_after_header_breaks_the_reader(value: str) -> None:
    found = retry_after(value, NOW)
    assert found is None or 0 <= found <= MAX_RETRY_AFTER
