"""The steps of ``make containers`` that use the farm alone, against the processes of ``farm up``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import RunningFarm
from tests.containers.client import Client, Load
from tests.containers.engine import Done, Engine
from tests.containers.scenario import Broken, Scenario
from tests.waiting import wait_until


class Here(Engine):
    """Commands that run on this machine instead of in a container."""

    farm: RunningFarm
    asked: list[tuple[str, ...]]

    def containers(self, service: str) -> list[str]:
        return [service]

    def services(self) -> list[str]:
        return ["api"]

    def inspect(self, *containers: str) -> list[dict[str, Any]]:
        return [{"State": {"Running": True, "Status": "running", "Health": {"Status": "healthy"}}} for _ in containers]

    def docker(self, *arguments: str, **_: Any) -> Done:
        self.asked.append(arguments)
        return Done("", "", 0)

    def execute(self, service: str, *command: str, seconds: float = 120, check: bool = True) -> Done:  # noqa: ARG002
        assert service == "api"
        assert command[0] == "farm"
        done = self.farm(*command[1:], cwd=self.directory, check=check)
        return Done(done.stdout, done.stderr, done.returncode)


@pytest.fixture
def scenario(running_farm: RunningFarm, tmp_path: Path) -> Scenario:
    """With a tenant of its own."""
    tenant = json.loads(running_farm("tenants", "create", tmp_path.name, "--json", cwd=tmp_path).stdout)
    said = running_farm("keys", "create", "all", "--tenant", tenant["id"], "--scope", "submit", "--scope", "read",
                        "--scope", "operate", cwd=tmp_path).stdout  # fmt: skip
    key = re.search(r"farm_\S+", said)
    assert key is not None
    engine = Here("p", [], {}, "docker", tmp_path)
    engine.farm = RunningFarm(running_farm.url, key[0], "", "", running_farm.data_dir)
    engine.asked = []
    return Scenario(engine, Client(running_farm.url, key[0]), "", pace=0.3)


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


def test_every_failure_is_played_and_judged(scenario: Scenario) -> None:
    """Nothing is really killed here: what is seen is that each step does what it says and judges a farm that holds."""
    engine = scenario.engine
    assert isinstance(engine, Here)
    assert scenario.rolling_restart().startswith("0 errors of ")
    assert [asked[0] for asked in engine.asked] == ["restart"]
    engine.asked.clear()
    assert scenario.killed_api().startswith("0 errors of ")
    assert [asked[0] for asked in engine.asked] == ["kill", "start"]
    engine.asked.clear()
    assert "all rendered" in scenario.kill("postgres")
    assert engine.asked == [("kill", "postgres"), ("start", "postgres")]
    assert "cpu0" in scenario.recreate_worker()
    assert "ready" in scenario.stop_and_start()
    assert scenario.outputs().endswith("none damaged")
    assert scenario.history().endswith("each succeeded once")


def test_an_api_that_is_away_is_an_error_of_a_client_that_does_not_repeat() -> None:
    with Load(Client("http://127.0.0.1:9", seconds=1), every=0.05) as load:
        wait_until(lambda: load.errors, 30)
    assert load.jobs == []
