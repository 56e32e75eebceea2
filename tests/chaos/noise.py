"""The worker of `tests.chaos.worker` as a subprocess of a test."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.integration.worker_process import HOST, WorkerProcess

ROOT = Path(__file__).parents[2]
COMMAND = (
    *(sys.executable, "-m", "celery", "-A", "tests.chaos.worker", "--quiet", "worker"),
    *("--without-gossip", "--without-mingle", "--loglevel", "WARNING"),
)


@dataclass
class NoiseWorker(WorkerProcess):
    """A worker that paints noise; ``prefix`` stands before its command."""

    prefix: tuple[str, ...] = ()

    def start(self) -> NoiseWorker:
        env = os.environ | self.farm.env | {"FARM_DEVICE": self.device, "FARM_WORKER_HOST": HOST} | self.env
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.prefix, *COMMAND], env=env, cwd=ROOT, stdout=log, stderr=log, start_new_session=True
            )
        return self
