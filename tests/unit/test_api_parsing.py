"""How the API reads what clients write in headers, and what it repeats of a refused value."""

from __future__ import annotations

import json

import pytest

from farm.api.sse import position
from farm.api.waiting import parse_prefer_wait
from farm.services.validation import MAX_VALUE, shown


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("", None),
        ("wait", 60),
        ("wait=5", 5),
        ('wait="5"', 5),
        ("respond-async, Wait = 7; x=y", 7),
        ("wait=100000", 60),
        ("wait=0", 0),
        ("wait=-1", None),
        ("wait=soon", None),
        ("waiting=5", None),
        ("return=minimal", None),
    ],
)
def test_prefer_is_read_as_rfc_7240_says(header: str | None, seconds: float | None) -> None:
    assert parse_prefer_wait(header, 60) == seconds


@pytest.mark.parametrize(
    ("header", "after"), [(None, 0), ("", 0), ("17", 17), ("-1", 0), ("x", 0), ("9" * 40, 0), ("²", 0), ("1.5", 0)]
)
def test_an_event_id_that_is_not_ours_means_from_the_beginning(header: str | None, after: int) -> None:
    assert position(header) == after


@pytest.mark.parametrize(
    "value",
    ["\ud800", "x" * 5000, 10**4000, float("nan"), float("-inf"), {"a": ["\ud800"] * 900}, object(), None, True],
)
def test_any_refused_value_can_be_sent_back_short(value: object) -> None:
    told = shown(value)
    text = json.dumps(told, ensure_ascii=False, allow_nan=False)
    text.encode()
    assert len(str(told)) <= MAX_VALUE
