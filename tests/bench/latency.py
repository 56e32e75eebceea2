"""How long a job waits on an idle farm, beside a bare Celery message over the same Redis in the same run.

``python -m tests.bench.latency [--jobs N]`` starts a farm of its own in a temporary directory and stops it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from celery import Celery
from celery.contrib.testing.worker import start_worker

from farm.client import Farm

OUT = Path("bench-out")


def farm(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "farm.cli", *words], check=True, capture_output=True, text=True)
    return done.stdout


def moments(job: dict[str, Any], start: str, end: str) -> float:
    """Seconds between two of a job's times."""
    return (datetime.fromisoformat(job[end]) - datetime.fromisoformat(job[start])).total_seconds()


def measure(url: str, api_key: str, redis_url: str, jobs: int) -> dict[str, float]:
    """Interleaved: one job through the farm, one bare message through Celery, and so on. Seconds."""
    client = Farm(url, api_key)
    client.run("warm up", num_inference_steps=1)
    bare = Celery("bare", broker=redis_url, backend=redis_url, set_as_current=False)

    @bare.task(name="bare.nothing")
    def nothing() -> None:
        pass

    starts, ends, rounds = [], [], []
    with start_worker(bare, pool="solo", perform_ping_check=False):
        nothing.delay().get(timeout=10)
        for number in range(jobs):
            job = client.run("a red ball", num_inference_steps=1, seed=number).job.raw
            starts.append(moments(job, "created_at", "claimed_at"))
            ends.append(moments(job, "created_at", "finished_at"))
            begun = time.perf_counter()
            nothing.delay().get(timeout=10)
            rounds.append(time.perf_counter() - begun)
    p50 = statistics.median
    return {
        "jobs": jobs,
        "submit_to_start_p50_s": p50(starts),
        "submit_to_end_p50_s": p50(ends),
        "celery_round_trip_p50_s": p50(rounds),
        "submit_to_start_over_celery_round_trip": p50(starts) / p50(rounds),
    }


def main() -> None:
    """Start a farm, measure, stop it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=50)
    jobs = parser.parse_args().jobs
    with tempfile.TemporaryDirectory() as directory:
        up = json.loads(farm("up", "--detach", "--json", "--data-dir", directory, "--workers", "1"))
        try:
            found = measure(up["url"], up["api_key"], up["redis_url"].rsplit("/", 1)[0] + "/9", jobs)
        finally:
            farm("down", "--data-dir", directory)
    OUT.mkdir(exist_ok=True)
    (OUT / "latency.json").write_text(json.dumps(found, indent=2) + "\n")
    for name, value in found.items():
        print(f"{name:42} {value:10.4f}")


if __name__ == "__main__":
    main()
