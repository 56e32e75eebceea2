"""Each program in examples/ does what its first line says, against a real API."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from farm.settings import Settings
from farm.webhooks import signature
from tests.api_server import Api, Hand, running
from tests.conftest import TestServers
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def api(servers: TestServers, migrated_template: str) -> Iterator[Api]:
    """An API whose jobs are rendered at once."""
    servers.postgres.create_database("examples", template=migrated_template)
    given = servers.env(database_url=servers.postgres.url("examples"))
    settings = Settings.model_validate({name.removeprefix("FARM_").lower(): value for name, value in given.items()})
    with running(settings) as one:
        hand, stopping = Hand(one), threading.Event()

        def render_all() -> None:
            while not stopping.wait(0.02):
                for job_id in hand.queued():
                    hand.succeed(hand.begin(job_id))

        rendering = threading.Thread(target=render_all)
        rendering.start()
        try:
            yield one
        finally:
            stopping.set()
            rendering.join()
    servers.postgres.drop_database("examples")


def run(api: Api, cwd: Path, name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        capture_output=True, text=True, timeout=120, check=False, cwd=cwd,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "FARM_URL": api.url, "FARM_API_KEY": api.key},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_one_job(api: Api, tmp_path: Path) -> None:
    assert "ball.png: seed 7, 128x128, image/png" in run(api, tmp_path, "one_job.py", "a red ball", "ball.png")
    assert (tmp_path / "ball.png").read_bytes().startswith(b"\x89PNG")


def test_sweep(api: Api, tmp_path: Path) -> None:
    run(api, tmp_path, "sweep.py", "a red ball", "out")
    assert len(list((tmp_path / "out").glob("seed-*-guidance-*.png"))) == 8


def test_asyncio_client(api: Api, tmp_path: Path) -> None:
    told = run(api, tmp_path, "asyncio_client.py", "a red ball", "a green cube").splitlines()
    assert [line.partition(":")[0] for line in told] == ["a red ball", "a green cube"]
    assert len(list(tmp_path.glob("job_*.png"))) == 2


def test_csv_campaign(api: Api, tmp_path: Path) -> None:
    arguments = (str(EXAMPLES / "campaign.csv"), "out")
    first = run(api, tmp_path, "csv_campaign.py", *arguments)
    assert first.count("rendered") == 3
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"ball.png", "cube.png", "cone.png"}
    assert run(api, tmp_path, "csv_campaign.py", *arguments) == first, "the same table is the same batch"


def test_webhook_receiver(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    secret = signature.new_secret()
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLES / "webhook_receiver.py"), str(port)],
        stdout=subprocess.PIPE, text=True, cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "FARM_WEBHOOK_SECRET": secret},
    )  # fmt: skip
    body = json.dumps({"type": "job.succeeded", "data": {"id": "job_1"}}).encode()

    def listens() -> bool:
        with socket.socket() as one:
            return one.connect_ex(("127.0.0.1", port)) == 0

    with process:
        try:
            wait_until(listens, 30, what="the receiver listens")
            good = signature.Signer([secret]).headers("msg_1", int(time.time()), body)
            bad = signature.Signer([signature.new_secret()]).headers("msg_2", int(time.time()), body)
            with httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
                answers = [client.post("/", content=body, headers=headers).status_code for headers in (good, good, bad)]
        finally:
            process.terminate()
        told, _ = process.communicate(timeout=20)
    assert answers == [204, 204, 401]
    assert told.count("job.succeeded job_1") == 1
    assert told.count("refused:") == 1


def test_each_example_is_listed_and_tried() -> None:
    programs = {file.name for file in EXAMPLES.glob("*.py")}
    assert programs == {name for name in programs if f"]({name})" in (EXAMPLES / "README.md").read_text()}
    source = Path(__file__).read_text()
    assert all(f"def test_{name.removesuffix('.py')}(" in source for name in programs)
