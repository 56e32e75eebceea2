"""The steps of ``make containers`` that use the farm alone, against the processes of ``farm up``."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.acceptance.conftest import RunningFarm
from tests.containers.client import Client, Load
from tests.containers.engine import Done, Engine
from tests.containers.scenario import Broken, Scenario
from tests.waiting import wait_until


class Here(Engine):
    """Commands that run on this machine instead of in a container."""

    farm: RunningFarm

    def execute(self, service: str, *command: str, seconds: float = 120, check: bool = True) -> Done:  # noqa: ARG002
        assert service == "api"
        assert command[0] == "farm"
        done = self.farm(*command[1:], cwd=self.directory, check=check)
        return Done(done.stdout, done.stderr, done.returncode)


@pytest.fixture
def scenario(running_farm: RunningFarm, tmp_path: Path) -> Scenario:
    """With a tenant of its own."""
    tenant = json.loads(running_farm("tenants", "create", "containers", "--json", cwd=tmp_path).stdout)
    said = running_farm("keys", "create", "all", "--tenant", tenant["id"], "--scope", "submit", "--scope", "read",
                        "--scope", "operate", cwd=tmp_path).stdout  # fmt: skip
    key = re.search(r"farm_\S+", said)
    assert key is not None
    engine = Here("p", [], {}, "docker", tmp_path)
    engine.farm = RunningFarm(running_farm.url, key[0], "", "", running_farm.data_dir)
    return Scenario(engine, Client(running_farm.url, key[0]), "")


def test_the_steps_hold_on_a_farm_and_a_lost_job_breaks_them(scenario: Scenario) -> None:
    assert "inpainting" in scenario.tasks()
    with Load(scenario.client, every=0.05) as load:
        scenario.client.wait(scenario.jobs[0])
        wait_until(lambda: len(load.jobs) >= 3 or load.errors, 30)
    assert load.errors == []
    for job_id in load.jobs:
        scenario.client.wait(job_id)
    with pytest.raises(Broken, match="made twice"):
        scenario.history()
    scenario.jobs += load.jobs
    assert scenario.history() == f"{len(scenario.jobs)} jobs, each succeeded once"
    scenario.jobs.append("job_" + "0" * 32)
    with pytest.raises(Broken, match="1 lost"):
        scenario.history()


def test_an_api_that_is_away_is_an_error_of_a_client_that_does_not_repeat() -> None:
    with Load(Client("http://127.0.0.1:9", seconds=1), every=0.05) as load:
        wait_until(lambda: load.errors, 30)
    assert load.jobs == []
