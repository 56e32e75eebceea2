"""Estimates: of busy device time only, for each model by itself, as a range that holds what was measured."""

from __future__ import annotations

import pytest

from farm.domain.estimate import MARGIN, Estimator, FinishedWork


def jobs(model: str, seconds: float, *, together: int = 1, idle: float = 0.0, worker: str = "a") -> list[FinishedWork]:
    """Twenty jobs of one megapixel-step, of which so many share the device, with pauses in between."""
    made = []
    for number in range(20):
        at = number // together * (seconds + idle)
        made.append(FinishedWork(model, worker, 1.0, at, at + seconds))
    return made


@pytest.mark.parametrize(("together", "idle"), [(1, 0.0), (1, 500.0), (4, 0.0), (4, 60.0)])
def test_idle_time_does_not_count_and_shared_time_counts_once(together: int, idle: float) -> None:
    found = Estimator(jobs("m", 2.0, together=together, idle=idle), 1).seconds({"m": 100.0})
    assert found is not None
    expected = 100 * 2.0 / together
    assert found.low == pytest.approx(expected / MARGIN)
    assert found.high == pytest.approx(expected * MARGIN)


def test_each_model_has_its_own_speed_and_devices_share_the_work() -> None:
    finished = jobs("quick", 1.0) + jobs("slow", 30.0, worker="b")
    estimator = Estimator(finished, 2)
    quick, slow = estimator.seconds({"quick": 10.0}), estimator.seconds({"slow": 10.0})
    both = estimator.seconds({"quick": 10.0, "slow": 10.0})
    assert quick is not None
    assert slow is not None
    assert both is not None
    assert quick.high == pytest.approx(5 * MARGIN)
    assert slow.low == pytest.approx(150 / MARGIN)
    assert both.high == pytest.approx(quick.high + slow.high)
    unknown = estimator.seconds({"new": 10.0})
    assert unknown is not None
    assert unknown.low < quick.high < slow.low < unknown.high


def test_a_speed_that_changes_makes_a_wider_range() -> None:
    changed = [FinishedWork("m", "a", 1.0, 100.0 * n, 100.0 * n + (1 if n < 10 else 9)) for n in range(20)]
    found = Estimator(changed, 1).seconds({"m": 1.0})
    assert found is not None
    assert found.low < 1
    assert found.high > 9


def test_nothing_is_said_where_nothing_was_measured() -> None:
    assert Estimator([], 1).seconds({"m": 1.0}) is None
