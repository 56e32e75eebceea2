"""A whole farm for a bench, in a temporary directory, with workers that the bench starts and stops itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg

from farm.client import Farm
from farm.domain import ids

CELERY = (sys.executable, "-m", "celery", "-A")
QUIETLY = ("--quiet", "worker", "--without-gossip", "--without-mingle", "--loglevel", "WARNING")


def farm_command(*words: str, **more: str) -> str:
    """What a command of the program says; ``more`` are further variables for it."""
    done = subprocess.run(
        [sys.executable, "-m", "farm.cli", *words], check=True, capture_output=True, text=True, env=os.environ | more
    )
    return done.stdout


class Whole:
    """A running farm, and the processes that a bench adds to it."""

    def __init__(self, up: dict[str, Any], directory: Path, stack: ExitStack) -> None:
        self.up = up
        self.client = Farm(up["url"], up["api_key"], timeout=1_200)
        self.database = psycopg.connect(up["database_url"], autocommit=True)
        self._directory = directory
        self._stack = stack

    def start(self, *argv: str, **more: str) -> subprocess.Popen[bytes]:
        """A process of the bench, ended with it."""
        log = self._stack.enter_context((self._directory / "processes.log").open("ab"))
        return self._stack.enter_context(ending(subprocess.Popen(argv, env=os.environ | more, stdout=log, stderr=log)))

    def start_worker(self, device: str, app: str = "workers.app", **more: str) -> subprocess.Popen[bytes]:
        """A worker on a device of that name, which is online when this returns."""
        s3 = self.up["s3"]
        own = {
            "FARM_DATABASE_URL": self.up["database_url"],
            "FARM_REDIS_URL": self.up["redis_url"],
            "FARM_S3_ENDPOINT_URL": s3["endpoint_url"],
            "FARM_S3_ACCESS_KEY": s3["access_key"],
            "FARM_S3_SECRET_KEY": s3["secret_key"],
            "FARM_S3_BUCKET": s3["bucket"],
            "FARM_DATA_DIR": str(self._directory),
            "FARM_DEVICE": device,
            "FARM_METRICS_WORKER_PORT": "0",
            "FARM_TORCH_THREADS": "1",
        }
        process = self.start(*CELERY, app, *QUIETLY, **(own | more))
        deadline = time.monotonic() + 120
        while not any(one.name.endswith(f"/{device}") and one.state == "online" for one in self.client.workers()):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit((self._directory / "processes.log").read_text()[-3_000:])
            time.sleep(0.2)
        return process

    def batch(self, jobs: list[dict[str, Any]], **defaults: Any) -> str:
        """Submit jobs in one request; returns the batch's id."""
        path = self._directory / "jobs.jsonl"
        path.write_text("".join(json.dumps(job) + "\n" for job in jobs))
        return self.client.submit_batch(path, **defaults).id

    def wait(self, batch_id: str, count: int, seconds: float = 280) -> float:
        """Wait until that many jobs of a batch have succeeded; seconds from the first claim to the last commit."""
        key = ids.to_uuid(ids.BATCH, batch_id)
        deadline = time.monotonic() + seconds
        while True:
            row = self.database.execute(
                "SELECT count(*), extract(epoch FROM max(finished_at) - min(claimed_at))::float8 FROM job"
                " WHERE batch_id = %s AND state = 'succeeded'",
                [key],
            ).fetchone()
            assert row is not None
            if row[0] >= count:
                return float(row[1])
            if time.monotonic() > deadline:
                raise SystemExit(f"{row[0]} of {count} jobs succeeded in {seconds} s")
            time.sleep(0.1)


@contextmanager
def ending(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """End a process in the end, and what it started."""
    try:
        yield process
    finally:
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.terminate()
        process.send_signal(signal.SIGCONT)  # if it was frozen
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for child in family:
            with suppress(psutil.NoSuchProcess):
                child.kill()


@contextmanager
def whole(workers: int | None = 0, **more: str) -> Iterator[Whole]:
    """A farm; ``more`` are variables for its services. SIGTERM ends it, too.

    ``workers``: how many of its own it has; None: what ``farm up`` starts on this machine.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name) / "farm"
        own = () if workers is None else ("--workers", str(workers))
        up = json.loads(farm_command("up", "--detach", "--json", "--data-dir", str(directory), *own, **more))
        try:
            with ExitStack() as stack:
                made = Whole(up, directory, stack)
                stack.callback(made.database.close)
                yield made
        finally:
            farm_command("down", "--data-dir", str(directory))
