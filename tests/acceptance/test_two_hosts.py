"""Two hosts, made of network namespaces: a farm on one, a worker on the other, and the cable between them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import wait_until

#: How long the cable is out: longer than a lease either way. By hand: TWO_HOSTS_CUT_SECONDS=60.
CUT_SECONDS = float(os.environ.get("TWO_HOSTS_CUT_SECONDS", "10"))
LEASE = {"FARM_RUN_LEASE_SECONDS": "5", "FARM_HEARTBEAT_SECONDS": "1", "FARM_DISPATCH_LEASE_SECONDS": "5"}
#: Answers each batch on stdin with the states of its jobs: one process, because each start of the CLI costs a second.
STATES = """
import json, sys
from farm.client import Farm
farm = Farm()
for batch in sys.stdin:
    print(json.dumps(sorted(job.state for job in farm.list(batch_id=batch.strip()))), flush=True)
"""
FARM, WORKER = "10.77.0.1", "10.77.0.2"  #: addresses of the namespaces' own network


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@dataclass(frozen=True)
class Host:
    """A network namespace."""

    name: str
    home: Path

    def command(self, *arguments: str | Path) -> list[str]:
        return ["ip", "netns", "exec", self.name, sys.executable, "-m", "farm.cli", *map(str, arguments)]

    def environment(self, **more: str) -> dict[str, str]:
        plain = {name: value for name, value in os.environ.items() if not name.startswith("FARM_")}
        return {**plain, "PYTHONPATH": str(Path(__file__).parents[2]), **LEASE, **more}

    def farm(self, *arguments: str | Path, **more: str) -> Any:
        done = subprocess.run(
            self.command(*arguments), env=self.environment(**more), cwd=self.home, capture_output=True, text=True,
            timeout=150, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) if "--json" in arguments else done.stdout

    @contextlib.contextmanager
    def states(self, addresses: dict[str, str]) -> Iterator[Callable[[str], list[str]]]:
        """Gives the states of a batch's jobs, asked for from this host."""
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.name, sys.executable, "-c", STATES],
            env=self.environment(FARM_URL=addresses["url"], FARM_API_KEY=addresses["api_key"]),
            cwd=self.home, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        asks, answers = process.stdin, process.stdout

        def read(batch: str) -> list[str]:
            print(batch, file=asks, flush=True)
            found: list[str] = json.loads(answers.readline())
            return found

        with process:
            yield read
            asks.close()


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[tuple[Host, Host]]:
    """Two hosts on one cable."""
    mark = f"{os.getpid():x}"
    names = (f"farm-a-{mark}", f"farm-b-{mark}")
    with contextlib.ExitStack() as stack:
        for name in names:
            try:
                ip("netns", "add", name)
            except (OSError, subprocess.CalledProcessError):
                pytest.skip("this machine does not allow network namespaces")
            stack.callback(ip, "netns", "delete", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
        for name, address in zip(names, (FARM, WORKER), strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
            (tmp_path / name).mkdir()
        yield Host(names[0], tmp_path / names[0]), Host(names[1], tmp_path / names[1])


@pytest.mark.timeout(300)
def test_a_worker_of_another_host_joins_by_one_command_and_outlives_a_cut_of_the_cable(
    hosts: tuple[Host, Host],
) -> None:
    here, there = hosts
    told = here.farm("up", "--detach", "--json", "--workers", "0", "--listen", FARM)
    try:
        with (there.home / "worker.log").open("wb") as log:
            worker = subprocess.Popen(
                there.command("worker", "--join", told["external_url"], "--device", "cpu"),
                env=there.environment(FARM_JOIN_TOKEN=told["join_token"]), cwd=there.home, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            with here.states(told) as states:
                _render_through_a_cut(here, there, worker, states)
        except AssertionError:
            print((there.home / "worker.log").read_text())
            raise
        finally:
            worker.terminate()
            worker.wait(60)
    finally:
        here.farm("down")


def _render_through_a_cut(
    here: Host, there: Host, worker: subprocess.Popen[bytes], states_of: Callable[[str], list[str]]
) -> None:
    here.farm("render", "a red ball on a blue background", "--steps", "4", "-o", "ball.png")
    assert (here.home / "ball.png").read_bytes().startswith(b"\x89PNG")

    lines = [json.dumps({"prompt": f"a green cube {n}", "num_inference_steps": 60, "width": 192, "height": 192})
             for n in range(2)]  # fmt: skip
    (here.home / "night.jsonl").write_text("\n".join(lines))
    batch = here.farm("submit", "night.jsonl", "--json")["id"]

    def states() -> list[str]:
        return states_of(batch)

    wait_until(lambda: "running" in states(), 60, every=0.2, what="a job on the device")
    ip("-n", there.name, "link", "set", "cable", "down")
    began = time.monotonic()
    # Its lease runs out and the job waits again; nobody else is there to take it.
    wait_until(lambda: "running" not in states(), 60, every=0.2, what="the lost worker's job requeued")
    wait_until(lambda: time.monotonic() - began > CUT_SECONDS, CUT_SECONDS + 5, what="the end of the cut")
    assert worker.poll() is None, "the worker must outlive the cut"
    ip("-n", there.name, "link", "set", "cable", "up")
    wait_until(lambda: states() == ["succeeded"] * 2, 120, every=0.5, what="the batch rendered after the cut")
    assert worker.poll() is None
