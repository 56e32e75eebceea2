"""Options and names that a worker cannot have: refused at its start, in one sentence."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def start(*options: str, **variables: str) -> str:
    """What a worker says that does not start."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FARM_")}
    environment |= {"FARM_REDIS_URL": "redis://127.0.0.1:1/0", "FARM_DATABASE_URL": "postgresql://127.0.0.1:1/x"}
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "workers.app", "--quiet", "worker", *options],
        env=environment | {"FARM_DEVICE": "cpu"} | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode != 0
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (("--autoscale", "4,1"), "--autoscale"),
        (("-c", "8"), "--concurrency"),
        (("-Q", "celery"), "--queues"),
        (("-B",), "--beat"),
        (("-P", "solo"), "-P"),
    ],
)
def test_options_of_celery_that_cannot_work_are_refused(options: tuple[str, ...], name: str) -> None:
    said = start(*options)
    assert said.startswith("farm worker: ")
    assert name in said


def test_a_name_that_could_not_be_drained_is_refused() -> None:
    assert "FARM_WORKER_HOST" in start(FARM_WORKER_HOST="rack 3/gpu?")
