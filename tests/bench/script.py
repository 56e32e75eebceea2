"""The farm exactly as `farm up` starts it, beside the scripts that people write instead, by turns in one run.

``python -m tests.bench.script [--jobs N] [--rounds N]``. The sides:

* ``farm exact`` and ``farm throughput``: a batch of the jobs; the worker is the one that `farm up` starts, untouched;
* ``farm singly``: the same jobs, exact, by ``POST /v1/jobs`` from eight clients;
* ``celery 1`` and ``celery all``: a Celery task per job (`tests.bench.script_worker`), one torch thread or all of them;
* ``litserve``: a LitServe server with its own batching (`tests.bench.script_server`), asked by eight clients.

All write PNG files into the farm's S3 bucket, and the Celery script uses the farm's Valkey. Every side has rendered
some of the jobs before its first round. An idle side costs the others nothing but memory: LitServe, whose idle workers
turn in a loop, is frozen until its turn. A ratio is the median over the rounds of the farm to the better Celery worker
of that round.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx2
import psutil
from celery import Celery, group

from farm import model_registry
from farm.domain.job_spec import JobSpec
from farm.local import ports
from farm.local.ports import PortReservations
from tests.bench.engine import popular
from tests.bench.whole import CELERY, QUIETLY, Whole, whole
from tests.waiting import wait_until

OUT = Path("bench-out")
CLIENTS = 8
PACKAGES = Path(".bench")  #: where ``make bench`` puts LitServe, away from the farm's own libraries
SENT = ("prompt", "num_inference_steps", "guidance_scale", "scheduler", "seed", "width", "height")


@dataclass(frozen=True)
class Taken:
    """Seconds that one side took for all jobs."""

    all: float
    mean: float  #: from the start to a job's end


def request(spec: JobSpec) -> dict[str, Any]:
    """The parameters of a job, which all sides are given."""
    return {name: value for name, value in spec.request().items() if name in SENT}


class FarmSide:
    """The farm as its users have it."""

    def __init__(self, farm: Whole) -> None:
        self.farm = farm

    def batch(self, jobs: list[dict[str, Any]], *, exact: bool) -> Taken:
        """One request with all jobs."""
        begun = time.time()
        batch = self.farm.batch([job | {"exact": exact} for job in jobs], task="text-to-image")
        self.farm.wait(batch, len(jobs))
        return self._ends(begun)

    def singly(self, jobs: list[dict[str, Any]]) -> Taken:
        """A request per job, from several clients."""
        begun = time.time()
        with ThreadPoolExecutor(CLIENTS) as clients:
            submitted = list(clients.map(self._submit, jobs))
        for job in submitted:
            self.farm.client.wait(job)
        return self._ends(begun)

    def lone(self, job: dict[str, Any]) -> float:
        """Seconds from the submission of a job on an idle farm until its client knows that it succeeded."""
        begun = time.perf_counter()
        self.farm.client.wait(self._submit(job))
        return time.perf_counter() - begun

    def _submit(self, job: dict[str, Any]) -> Any:
        return self.farm.client.submit(task="text-to-image", **job)

    def _ends(self, begun: float) -> Taken:
        row = self.farm.database.execute(
            "SELECT extract(epoch FROM max(finished_at))::float8,"
            " extract(epoch FROM avg(finished_at - to_timestamp(%s)))::float8"
            " FROM job WHERE created_at >= to_timestamp(%s) AND state = 'succeeded'",
            [begun, begun],
        ).fetchone()
        assert row is not None
        return Taken(row[0] - begun, row[1])


class CelerySide:
    """A Celery worker with a task per job."""

    def __init__(self, farm: Whole, broker: str, threads: int) -> None:
        s3 = farm.up["s3"]
        given = {
            "SCRIPT_BROKER": broker,
            "SCRIPT_QUEUE": f"script-{threads}",
            "SCRIPT_THREADS": str(threads),
            "SCRIPT_S3": json.dumps(s3),
        }
        self.queue = given["SCRIPT_QUEUE"]
        worker = (*CELERY, "tests.bench.script_worker", *QUIETLY, "--pool", "solo", "--queues", self.queue)
        farm.start(*worker, **given)
        self.app = Celery("script", broker=broker, backend=broker, set_as_current=False)

    def all(self, jobs: list[dict[str, Any]]) -> Taken:
        """A message per job."""
        begun = time.time()
        tasks = group(self.app.signature("script.render", [job], queue=self.queue) for job in jobs)
        ends = tasks.apply_async().get(timeout=600)
        return Taken(time.time() - begun, statistics.fmean(end - begun for end in ends))

    def lone(self, job: dict[str, Any]) -> float:
        """Seconds from the message of a job until its result."""
        begun = time.perf_counter()
        self.app.signature("script.render", [job], queue=self.queue).apply_async().get(timeout=600)
        return time.perf_counter() - begun


class LitServeSide:
    """A LitServe server that batches equal settings."""

    def __init__(self, farm: Whole) -> None:
        with PortReservations() as reservations:
            port = ports.choose(reservations=reservations)
        paths = os.pathsep.join([str(PACKAGES.resolve()), str(Path.cwd())])
        given = {"SCRIPT_PORT": str(port), "SCRIPT_S3": json.dumps(farm.up["s3"]), "PYTHONPATH": paths}
        self.process = farm.start(sys.executable, "-m", "tests.bench.script_server", **given)
        self.client = httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=600)
        wait_until(self._answers, 120, every=0.2, what="LitServe answers")
        self._signal(signal.SIGSTOP)

    def _answers(self) -> bool:
        try:
            return self.client.get("/health").status_code == httpx2.codes.OK
        except httpx2.TransportError:
            return False

    def all(self, jobs: list[dict[str, Any]]) -> Taken:
        """A request per job, from several clients."""
        self._signal(signal.SIGCONT)
        begun = time.time()
        with ThreadPoolExecutor(len(jobs)) as clients:  # all jobs wait there from the start, as on the other sides
            ends = list(clients.map(self._ask, jobs))
        self._signal(signal.SIGSTOP)
        return Taken(time.time() - begun, statistics.fmean(end - begun for end in ends))

    def _signal(self, number: signal.Signals) -> None:
        main = psutil.Process(self.process.pid)
        for one in (main, *main.children(recursive=True)):
            one.send_signal(number)

    def _ask(self, job: dict[str, Any]) -> float:
        self.client.post("/predict", json=job).raise_for_status()
        return time.time()


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=36)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lone", type=int, default=9, help="jobs of which each is alone on its side")
    parser.add_argument("--side", type=int, default=0, help="pixels; the model's default size if absent")
    asked = parser.parse_args()

    model = model_registry.load(None).models[0]
    specs = popular(asked.jobs, model, asked.side or model.defaults["width"])
    jobs = [request(spec) for spec in specs]
    with ExitStack() as stack:
        farm = stack.enter_context(whole(workers=None))
        mine = FarmSide(farm)
        broker = farm.up["redis_url"].rsplit("/", 1)[0] + "/9"
        scripts = {f"celery {name}": CelerySide(farm, broker, threads) for name, threads in _threads().items()}
        sides: dict[str, Callable[[list[dict[str, Any]]], Taken]] = {
            "farm exact": lambda jobs: mine.batch(jobs, exact=True),
            "farm throughput": lambda jobs: mine.batch(jobs, exact=False),
            "farm singly": mine.singly,
        }
        sides |= {name: script.all for name, script in scripts.items()}
        if PACKAGES.is_dir() or find_spec("litserve"):
            sides["litserve"] = LitServeSide(farm).all
        for side in sides.values():  # loads models, and learns the rows
            side(jobs[:12])
        taken: dict[str, list[Taken]] = {name: [] for name in sides}
        for turn in range(asked.rounds):
            names = list(sides)[turn % len(sides) :] + list(sides)[: turn % len(sides)]
            for name in names:
                taken[name].append(sides[name](jobs))
        lone: dict[str, list[float]] = {"farm": [], **{name: [] for name in scripts}}
        for job in jobs[: asked.lone]:
            lone["farm"].append(mine.lone(job))
            for name, script in scripts.items():
                lone[name].append(script.lone(job))
        worker = farm.client.workers()[0]
    print_and_keep(asked, taken, lone, str(worker.device))


def _threads() -> dict[str, int]:
    most = len(os.sched_getaffinity(0))
    return {"1": 1} | ({"all": most} if most > 1 else {})


def print_and_keep(
    asked: argparse.Namespace, taken: dict[str, list[Taken]], lone: dict[str, list[float]], device: str
) -> None:
    """A line per side and per ratio, and the same as JSON."""
    scripts = [name for name in taken if name.startswith("celery")]

    def ratio(name: str, peers: Sequence[str], value: Callable[[Taken], float]) -> float:
        return round(
            statistics.median(
                min(value(taken[peer][turn]) for peer in peers) / value(mine) for turn, mine in enumerate(taken[name])
            ),
            3,
        )

    found: dict[str, Any] = {"about": vars(asked) | {"device": device, "processors": len(os.sched_getaffinity(0))}}
    for name, rounds in taken.items():
        found[name] = {
            "images_per_s": round(asked.jobs / statistics.median(one.all for one in rounds), 3),
            "mean_latency_s": round(statistics.median(one.mean for one in rounds), 3),
        }
    for name in (name for name in taken if name.startswith("farm")):
        found[f"{name} ÷ celery"] = {
            "images_per_s": ratio(name, scripts, lambda one: one.all),
            "latency": round(1 / ratio(name, scripts, lambda one: one.mean), 3),
        }
        if "litserve" in taken:
            found[f"{name} ÷ litserve"] = {"images_per_s": ratio(name, ["litserve"], lambda one: one.all)}
    found["lone job, s"] = {name: round(statistics.median(times), 3) for name, times in lone.items()}
    best = [min(times) for times in zip(*(lone[name] for name in scripts), strict=True)]
    found["lone job, celery ÷ farm"] = round(
        statistics.median(peer / own for peer, own in zip(best, lone["farm"], strict=True)), 3
    )
    OUT.mkdir(exist_ok=True)
    (OUT / "script.json").write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    for name, value in found.items():
        print(f"{name:28} {value}", flush=True)


if __name__ == "__main__":
    main()
