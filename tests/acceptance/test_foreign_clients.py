"""Other people's clients against a whole farm with a real device."""

from __future__ import annotations

from tests.acceptance.conftest import RunningFarm
from tests.compat.environment import run_client


def test_three_clients_get_the_same_bytes_for_the_same_recipe(running_farm: RunningFarm) -> None:
    told = run_client("one_image.py", FARM_URL=running_farm.url, FARM_KEY=running_farm.api_key)
    assert int(told) > 1_000
