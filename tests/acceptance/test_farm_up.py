"""``farm up`` as its user meets it: one command, the whole farm, and nothing left after it.

What needs no worker runs without one, because each start of one imports torch.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from farm.client import Farm
from farm.local.state import DataDirectory, Part
from tests.integration.test_local_servers import farm, strays
from tests.waiting import wait_until

from .conftest import RunningFarm


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("farm") / "data"
    yield path
    farm("down", "--data-dir", path)
    assert strays(path) == []


@pytest.fixture(scope="module")
def told(data_dir: Path) -> dict[str, Any]:
    """What the first ``farm up --detach --json`` printed."""
    began = time.monotonic()
    found: dict[str, Any] = json.loads(up(data_dir))
    assert time.monotonic() - began < 60
    return found


def up(data_dir: Path) -> str:
    return farm("up", "--detach", "--json", "--workers", "0", "--data-dir", data_dir).stdout


def get(told: dict[str, Any], path: str, *, key: str | None = None) -> tuple[int, Any]:
    request = urllib.request.Request(told["url"] + path)
    if key is not None:
        request.add_header("Authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, None
    except OSError:
        return 0, None


def parts(data_dir: Path) -> dict[str, dict[str, Any]]:
    told = json.loads(farm("status", "--json", "--data-dir", data_dir, check=False).stdout)
    return {part["name"]: part for part in told["parts"]}


def test_up_returns_when_the_api_is_ready_and_its_key_works(told: dict[str, Any]) -> None:
    assert get(told, "/readyz")[0] == 200
    assert get(told, "/v1/workers")[0] == 401
    assert get(told, "/v1/workers", key=told["api_key"])[0] == 200


def test_flower_opens_with_the_login_that_up_printed_and_not_without(told: dict[str, Any]) -> None:
    place = urlsplit(told["flower_url"])
    login = base64.b64encode(f"{place.username}:{place.password}".encode()).decode()

    def status(**headers: str) -> int:
        request = urllib.request.Request(f"http://{place.hostname}:{place.port}/workers", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        except OSError:
            return 0

    wait_until(status, 30, every=0.2, what="Flower listens")
    assert status() == 401
    assert status(Authorization=f"Basic {login}") == 200


def test_every_part_becomes_healthy(running_farm: RunningFarm) -> None:
    data_dir = running_farm.data_dir
    with Farm(running_farm.url, running_farm.api_key) as client:
        wait_until(lambda: list(client.workers()), 60, every=0.2, what="the worker joins")

    def sick() -> list[str]:
        return [name for name, part in parts(data_dir).items() if part["condition"] != "healthy"]

    wait_until(lambda: not sick(), 60, every=2, what="every part is healthy")
    assert list(parts(data_dir)) == [
        "valkey", "postgres", "s3", "api", "dispatcher", "deliverer", "worker-cpu0", "flower",
    ]  # fmt: skip
    assert farm("status", "--data-dir", data_dir).returncode == 0
    found = json.loads(farm("doctor", "--json", "--data-dir", data_dir).stdout)
    assert found["ok"] is True
    assert {"migrations", "clock", "storage", "api ready", "workers"} <= {check["name"] for check in found["checks"]}


def test_a_killed_service_comes_back(told: dict[str, Any], data_dir: Path) -> None:
    def api() -> Part:
        run = DataDirectory(data_dir).run()  # what `farm status` shows, without a start of the CLI for each look
        assert run is not None
        return next(part for part in run.parts if part.name == "api")

    before = api().identity
    assert before is not None
    os.kill(before.pid, signal.SIGKILL)
    wait_until(lambda: api().identity not in {None, before}, 20, every=0.1, what="another API process")
    wait_until(lambda: get(told, "/readyz")[0] == 200, 20, what="the API is ready again")
    assert parts(data_dir)["api"]["restarts"] == 1


def test_up_after_kill_9_of_everything_s_parent_starts_afresh_and_keeps_the_key(
    told: dict[str, Any], data_dir: Path
) -> None:
    run = DataDirectory(data_dir).run()
    assert run is not None
    os.kill(run.supervisor.pid, signal.SIGKILL)
    assert json.loads(up(data_dir)) == told
    assert get(told, "/v1/workers", key=told["api_key"])[0] == 200
    assert not any(part.identity is not None and part.identity.alive() for part in run.parts)
    assert sum("farm.local.supervisor" in line for line in strays(data_dir)) == 1


def test_down_leaves_no_process_and_says_so(told: dict[str, Any], data_dir: Path) -> None:
    assert "stopped the farm" in farm("down", "--data-dir", data_dir).stdout
    assert strays(data_dir) == []
    assert get(told, "/readyz")[0] == 0
    assert "no farm is running" in farm("down", "--data-dir", data_dir).stderr
    assert farm("status", "--data-dir", data_dir, check=False).returncode == 1


def test_a_farm_whose_api_cannot_start_shows_why_and_is_stopped(tmp_path: Path) -> None:
    path = tmp_path / "data"
    failed = farm(
        "up", "--detach", "--json", "--workers", "0", "--data-dir", path,
        check=False, FARM_MODELS_FILE=str(tmp_path / "missing.toml"),
    )  # fmt: skip
    assert failed.returncode == 1
    assert failed.stdout == ""
    assert "missing.toml" in failed.stderr
    assert "api ended 2 times" in failed.stderr.splitlines()[-1]
    assert strays(path) == []


@pytest.mark.parametrize(("variable", "value"), [("FARM_MAX_ATTEMPTS", "0"), ("FARM_PRESIGN_SECONDS", "soon")])
def test_a_wrong_setting_is_named_in_one_sentence(tmp_path: Path, variable: str, value: str) -> None:
    failed = farm("up", "--detach", "--data-dir", tmp_path / "data", check=False, env={variable: value})
    assert failed.returncode == 1
    assert failed.stderr.count("\n") == 1
    assert f"{variable} is '{value}'" in failed.stderr
