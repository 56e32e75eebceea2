"""Real workers of two numerics classes: one and two threads of a processor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from farm import lifecycle
from farm.cli.render import read_output
from farm.domain.job import Job, NewJob
from farm.domain.job_spec import JobSpec
from farm.domain.states import JobState
from farm.domain.worker import WorkerState
from tests.api_server import Api, running
from tests.conftest import TestServers
from tests.integration.worker_process import ROOT, Farm, WorkerProcess, spec
from tests.waiting import wait_until

#: Long enough for its worker to be killed in the middle.
LONG = spec(num_inference_steps=80, seed=11)


@pytest.fixture(scope="module")
def farm(servers: TestServers, migrated_template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    servers.postgres.create_database("numerics", template=migrated_template)
    env = servers.env(database_url=servers.postgres.url("numerics"), redis_url=servers.valkey.url(0))
    env |= {"FARM_HEARTBEAT_SECONDS": "2", "FARM_RUN_LEASE_SECONDS": "8", "FARM_DISPATCH_LEASE_SECONDS": "6"}
    farm = Farm(env, tmp_path_factory.mktemp("worker"))
    command = "from farm.cli.serve_dispatcher import dispatcher; dispatcher()"
    with subprocess.Popen([sys.executable, "-c", command], env=os.environ | env, cwd=ROOT) as dispatcher:
        yield farm
        dispatcher.kill()
    farm.close()
    servers.postgres.drop_database("numerics")


@pytest.fixture(scope="module")
def workers(farm: Farm) -> Iterator[list[WorkerProcess]]:
    """Two workers with two threads, and one with one thread."""
    threads = {"cpu0": "2", "cpu1": "2", "cpu2": "1"}
    with ExitStack() as stack:
        started = []
        for device, count in threads.items():
            worker = WorkerProcess(farm, device, env={"FARM_TORCH_THREADS": count})
            stack.callback(worker.kill)
            started.append(worker.start())
        yield [worker.wait_online() for worker in started]


def numerics_of(farm: Farm, worker: WorkerProcess) -> str:
    found = farm.worker(worker.name)
    assert found is not None
    assert found.info.numerics is not None
    return found.info.numerics.name


def submit(farm: Farm, wanted: JobSpec, numerics: str | None = None) -> Job:
    with farm.store.begin() as unit:
        return lifecycle.submit(unit, farm.tenant, NewJob(wanted, pin=numerics))[0]


def hashes(job: Job) -> list[str]:
    return [output.sha256 for output in job.outputs]


def rerun(api: Api, image: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "farm.cli", "rerun", str(image), "--url", api.url, "--api-key", api.key]
    env = os.environ | {"COLUMNS": "400", "PYTHONPATH": str(ROOT)}  # it writes beside the caller
    return subprocess.run([*command, *options], cwd=image.parent, env=env, capture_output=True, text=True, timeout=100)


@pytest.mark.timeout(300)
def test_exact_jobs_have_the_same_bytes_within_a_numerics_class_also_after_a_kill(
    farm: Farm, workers: list[WorkerProcess], tmp_path: Path
) -> None:
    first, second, third = workers
    two, one = numerics_of(farm, first), numerics_of(farm, third)
    assert numerics_of(farm, second) == two
    assert one != two

    # a pinned job goes where it should, and its recipe says so
    there = farm.wait(submit(farm, spec(), one), JobState.SUCCEEDED)
    assert (there.worker, there.recipe and there.recipe["numerics"]) == (third.name, one)
    image = tmp_path / "image.png"
    image.write_bytes(farm.storage.get(there.outputs[0].key))
    assert read_output(image).numerics == one

    # a worker is killed in the middle of a job: the retry stays in the class, although the other class is idle
    expected = farm.wait(submit(farm, LONG, two), JobState.SUCCEEDED, timeout=100)
    with farm.store.begin() as unit:
        lifecycle.drain_worker(unit, third.name, "so that the job begins in the class of the others")
    again = submit(farm, LONG)
    wait_until(lambda: (p := farm.job(again.id).progress) and p.step > 4, 60, what="the job is on a device")
    began = next(worker for worker in workers if worker.name == farm.job(again.id).worker)
    assert numerics_of(farm, began) == two
    with farm.store.begin() as unit:
        lifecycle.resume_worker(unit, third.name)
    began.kill()
    began.start()
    ended = farm.wait(again, JobState.SUCCEEDED, timeout=100)
    assert ended.attempts == 2
    assert ended.recipe is not None
    assert ended.recipe["numerics"] == two
    assert hashes(ended) == hashes(expected)
    began.wait_online()
    assert numerics_of(farm, began) == two, "the same after a restart"

    # `farm rerun` asks for the image's class while a worker has it; else it says what differs
    with running(farm.settings) as api:
        same = rerun(api, image)
        assert (same.returncode, "bit-identical" in same.stdout) == (0, True), same.stdout + same.stderr
        third.kill()
        with farm.store.begin() as unit:
            unit.workers.set_state(third.name, WorkerState.OFFLINE)
        other = rerun(api, image)
        assert other.returncode == 0, other.stdout + other.stderr
        assert f"another numerics class ({one} → {two}: threads 1 → 2)" in other.stdout
        assert "largest difference" in other.stdout or "same content" in other.stdout
        strict = json.loads(_waiting(api, image))
        assert strict["waiting_reason"] == f"no worker of numerics class {one} is online"


def _waiting(api: Api, image: Path) -> str:
    """The job of a strict rerun, which waits."""
    command = [
        sys.executable,
        "-m",
        "farm.cli",
        "rerun",
        str(image),
        "--strict",
        "--url",
        api.url,
        "--api-key",
        api.key,
    ]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        process.kill()
    assert "waits: no worker of numerics class" in line, line
    with api.client() as client:
        return client.get(f"/v1/jobs/{line.split()[1]}").text
