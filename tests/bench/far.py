"""A worker far from its servers: ``python -m tests.bench.far [--rtt 0 80 200] [--jobs 60]``.

The servers and the dispatcher are here; the worker's ways to PostgreSQL, Valkey and S3 take a round trip. Its device
takes the time of the built-in model for each step, without using the processor, so that the round trips are measured
and not the machine. Prints jobs per second, and each figure's ratio to the first.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from farm.domain.job import Job
from farm.domain.states import JobState
from farm.local import servers as local
from farm.local.bootstrap import prepare_storage
from farm.local.ports import PortReservations
from farm.local.process_manager import ProcessManager
from farm.local.state import DataDirectory
from farm.settings import Settings
from farm.store.migrate import upgrade
from tests.far import FarServers
from tests.integration.worker_process import Farm, NoiseWorker, spec

STEPS = 8
STEP_SECONDS = 0.096  #: four jobs at once: 5.2 jobs a second
FAR = ("FARM_DATABASE_URL", "FARM_REDIS_URL", "FARM_S3_ENDPOINT_URL")
SMALL = {f"FARM_METRICS_{name}_PORT": "0" for name in ("API", "DISPATCHER", "DELIVERER", "WORKER")}


def measure(farm: Farm, rtt: float, jobs: int) -> dict[str, float]:
    """Jobs per second of one worker at that distance under a backlog, once it has found its prefetch."""
    far = FarServers(rtt)
    ways = {name: far.url(farm.env[name]) for name in FAR}
    worker = NoiseWorker(farm, device=f"cpu{int(rtt)}", env=ways | {"FARM_NOISE_STEP_SECONDS": str(STEP_SECONDS)})
    try:
        worker.start().wait_online()
        # the first half is for connections, prepared statements and the prefetch
        done = sorted(_run(farm, 2 * jobs), key=lambda one: str(one.finished_at))
        ended = [one.finished_at for one in done if one.finished_at is not None]
        seconds = (ended[-1] - ended[jobs - 1]).total_seconds()
        found = farm.worker(worker.name)
        assert found is not None
        without = sum(one.started_at is None or one.progress is None for one in done)
        return {
            "rtt_ms": rtt,
            "jobs_per_second": round(jobs / seconds, 2),
            "prefetch": found.info.prefetch,
            "successes_without_start_or_steps": without,
        }
    finally:
        worker.kill()
        far.close()


def _run(farm: Farm, count: int) -> list[Job]:
    jobs = [farm.submit(spec(num_inference_steps=STEPS, seed=seed)) for seed in range(count)]
    return [farm.wait(job, JobState.SUCCEEDED, timeout=300) for job in jobs]


def main() -> None:
    """Measure at each distance."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rtt", type=float, nargs="+", default=[0, 80, 200], help="milliseconds")
    parser.add_argument("--jobs", type=int, default=60)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, PortReservations() as reservations:
        directory = DataDirectory(Path(place))
        directory.create()
        group = local.Servers.of(directory, local.prepare(directory, reservations), Settings())
        manager = ProcessManager(group.programs(), directory)
        try:
            manager.start()
            manager.wait_ready()
            group.create_database()
            upgrade(group.addresses.database_url)
            farm = Farm(group.addresses.environment() | SMALL, Path(place))
            prepare_storage(farm.storage)
            command = "from farm.cli.serve_dispatcher import dispatcher; dispatcher()"
            log = (Path(place) / "dispatcher.log").open("wb")
            dispatcher = subprocess.Popen([sys.executable, "-c", command], env=os.environ | farm.env, stderr=log)
            try:
                found = [measure(farm, rtt, options.jobs) for rtt in options.rtt]
            finally:
                dispatcher.kill()
                dispatcher.wait()
                farm.close()
        finally:
            manager.stop()
    for one in found:
        one["ratio"] = round(one["jobs_per_second"] / found[0]["jobs_per_second"], 2)
        print(json.dumps(one))


if __name__ == "__main__":
    main()
