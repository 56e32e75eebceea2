"""``farm webhooks`` as a person uses it: real processes against a real API and deliverer."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from farm.client import Farm
from farm.settings import Settings
from farm.webhooks.deliverer import Deliverer
from tests.api_server import Api, running
from tests.integration.receiver import Receiver, answer, receiver
from tests.integration.test_webhook_delivery import LIMITS, SCHEDULE
from tests.waiting import wait_until


@pytest.fixture
def api(farm_env: dict[str, str]) -> Iterator[Api]:
    config = Settings(webhook_allow=(ip_network("127.0.0.0/8"),), webhook_allow_http=True)
    retry_policy = replace(SCHEDULE, break_after=50)  # these tests count failures, and do not wait for probes
    deliverer = Deliverer(config, lambda key: f"https://bucket.example/{key}", retry_policy=retry_policy, limits=LIMITS)
    thread = threading.Thread(target=deliverer.run)
    with running(config) as one:
        thread.start()
        try:
            yield one
        finally:
            deliverer.stop()
            thread.join(10)


@pytest.fixture
def farm(api: Api) -> Iterator[Farm]:
    with Farm(api.url, api.key) as one:
        yield one


@pytest.fixture
def hooks() -> Iterator[Receiver]:
    with receiver() as made:
        yield made


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "farm.cli", "webhooks", *arguments]


def environment(api: Api) -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "FARM_URL": api.url,
        "FARM_API_KEY": api.key,
        "COLUMNS": "250",
    }


def run(api: Api, cwd: Path, *arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        command(*arguments), env=environment(api), cwd=cwd, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


class Listening:
    """A running ``farm webhooks listen``."""

    def __init__(self, api: Api, cwd: Path, *arguments: str) -> None:
        self.child = subprocess.Popen(
            command("listen", *arguments),
            env=environment(api),
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _read(self) -> None:
        assert self.child.stdout is not None
        for line in self.child.stdout:
            self.lines.append(line.rstrip("\n"))

    def end(self, number: int = signal.SIGINT) -> int:
        self.child.send_signal(number)
        code = self.child.wait(20)
        self._reading.join(5)
        return code

    def close(self) -> None:
        self.child.kill()
        self.child.wait(10)
        assert self.child.stdout is not None
        assert self.child.stderr is not None
        self._reading.join(5)
        self.child.stdout.close()
        self.child.stderr.close()


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def endpoint_id(farm: Farm) -> str:
    (one,) = wait_until(lambda: list(farm.endpoints()), 30, what="the listener registers itself")
    assert one.description == "farm webhooks listen"
    return one.id


def test_listen_prints_what_arrives_verified_and_leaves_nothing(api: Api, farm: Farm, tmp_path: Path) -> None:
    listening = Listening(api, tmp_path)
    try:
        sent = farm.test_endpoint(endpoint_id(farm))
        (line,) = wait_until(lambda: listening.lines, 20)
        assert "farm.test" in line
        assert f"verified, {sent.id}" in line
        job = farm.cancel(farm.submit("a red ball on a blue background").id)
        about = wait_until(lambda: [line for line in listening.lines if job.id in line], 20)[0]
        assert "job.canceled" in about
        assert "canceled  verified" in about
        assert listening.end() == 0
        assert list(farm.endpoints()) == []
    finally:
        listening.close()


def test_listen_tells_each_event_as_json_and_passes_it_on(
    api: Api, farm: Farm, hooks: Receiver, tmp_path: Path
) -> None:
    hooks.behaviours["/handler"] = answer(418)
    listening = Listening(api, tmp_path, "--json", "--event", "job.canceled", "--forward", hooks.url("/handler"))
    try:
        made = endpoint_id(farm)
        job = farm.cancel(farm.submit("a red ball on a blue background").id)
        first: dict[str, Any] = json.loads(wait_until(lambda: listening.lines, 20)[0])
        assert (first["verified"], first["status"], first["problem"]) == (True, 418, None)
        assert first["event"]["data"]["id"] == job.id
        got = hooks.at("/handler")[0]
        assert got.id == first["id"]
        assert got.event == first["event"]
        # the farm hears what the handler answered
        (delivery,) = wait_until(lambda: list(farm.deliveries(endpoint_id=made, state="dead")), 20)
        assert delivery.status == 418
        assert listening.end(signal.SIGTERM) == 0
        assert list(farm.endpoints()) == []
    finally:
        listening.close()


def test_what_a_killed_listener_left_is_removed_by_the_next_one(api: Api, farm: Farm, tmp_path: Path) -> None:
    first = Listening(api, tmp_path)
    try:
        left = endpoint_id(farm)
        port = farm.endpoint(left).url.rstrip("/").rpartition(":")[2]
    finally:
        first.close()
    second = Listening(api, tmp_path, "--port", port)
    try:
        wait_until(lambda: [one.id for one in farm.endpoints()] not in ([], [left]), 30)
        assert len(list(farm.endpoints())) == 1
        assert second.end() == 0
    finally:
        second.close()


def test_the_receiver_of_the_documentation_verifies(api: Api, farm: Farm, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/guides/webhooks.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    made = farm.add_endpoint(f"http://127.0.0.1:{port}/")
    assert made.secret is not None
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"WEBHOOK_SECRET": made.secret, "PORT": str(port)},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        wait_until(lambda: listens(port), 30, what="the receiver listens")
        sent = farm.test_endpoint(made.id)
        wait_until(lambda: farm.delivery(sent.id).state == "delivered", 20)
        farm.rotate_secret(made.id, overlap_seconds=0)
        forged = farm.test_endpoint(made.id)
        wait_until(lambda: farm.delivery(forged.id).status == 401, 20)
    finally:
        child.kill()
        told, _ = child.communicate(timeout=10)
    assert told == f"{sent.id} farm.test\n"


def test_every_command_does_what_it_says(api: Api, farm: Farm, hooks: Receiver, tmp_path: Path) -> None:
    made = json.loads(run(api, tmp_path, "add", hooks.url(), "--description", "orders", "--json"))
    one = made["id"]
    assert one in run(api, tmp_path)
    assert [each["id"] for each in json.loads(run(api, tmp_path, "ls", "--json"))] == [one]
    assert made["secret"] in run(api, tmp_path, "show", one, "--secret")
    assert "delivered  200" in run(api, tmp_path, "test", one)
    assert json.loads(run(api, tmp_path, "edit", one, "--event", "job.failed", "--json"))["events"] == ["job.failed"]
    assert run(api, tmp_path, "edit", one, "--event", "job.canceled").startswith(one)
    new = run(api, tmp_path, "rotate", one).strip()
    assert farm.endpoint_secret(one).secret == new
    hooks.behaviours["/hook"] = answer(500, b"no")
    assert run(api, tmp_path, "test", one, code=1)
    job = farm.cancel(farm.submit("a red ball on a blue background").id)
    wait_until(lambda: len(list(farm.deliveries(state="dead"))) == 2, 20)
    (dead,) = json.loads(run(api, tmp_path, "deliveries", "--state", "dead", "--job", job.id, "--json"))
    table = run(api, tmp_path, "deliveries", "--state", "dead")
    assert dead["id"] in table
    assert job.id in table
    assert "500" in run(api, tmp_path, "show-delivery", dead["id"])
    hooks.behaviours.clear()
    assert dead["id"] in run(api, tmp_path, "resend", dead["id"])
    wait_until(lambda: farm.delivery(dead["id"]).state == "delivered", 20)
    assert run(api, tmp_path, "resend", "--all-dead") == "1 are sent again\n"
    run(api, tmp_path, "resend", code=2)
    run(api, tmp_path, "add", "http://10.0.0.1/", code=2)
    assert run(api, tmp_path, "rm", one) == f"{one} is deleted\n"
    assert json.loads(run(api, tmp_path, "ls", "--json")) == []
