"""What a job costs beside its rendering: a pipeline that does nothing, beside Celery by itself on the same Redis.

``python -m tests.bench.overhead [--workers 1 4 8] [--jobs N] [--rounds N]`` starts a farm of its own in a temporary
directory. For each number of workers, by turns in one run: N jobs through the farm (claimed, "rendered", encoded,
uploaded and committed, each durable when its worker says so) and M messages with a task that does nothing through as
many Celery processes with as many threads. A rate counts from the first claim to the last commit. Before that, one job
at a time on an idle farm: from the commit of its row to its claim.

``--depth 1000 100000`` lays backlogs of that many jobs and measures with one worker at each depth: the rate at which it
works them off, and, while it does, from the row of an interactive job to its claim. Once more at the first depth when
they are gone: that says how much of a difference is drift.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, LiteralString

import redis
from celery import Celery

from farm.domain import ids
from tests.bench.whole import CELERY, QUIETLY, Whole, whole

OUT = Path("bench-out")
THREADS = 6  #: of a worker on a processor: four slots and two that look ahead
WINDOW_SECONDS = 3.0
SHAPE: dict[str, Any] = {"task": "text-to-image", "width": 64, "height": 64, "num_inference_steps": 1}


class Bench:
    """One farm, and the peer beside it."""

    def __init__(self, farm: Whole, messages: int) -> None:
        self.farm = farm
        self.messages = messages
        self.workers = 0
        self.broker = farm.up["redis_url"].rsplit("/", 1)[0] + "/9"
        self.redis = redis.Redis.from_url(self.broker)
        self.celery = Celery("bare", broker=self.broker, set_as_current=False)

    def grow(self, workers: int) -> None:
        """Have that many workers of both kinds."""
        for number in range(self.workers, workers):
            self.farm.start_worker(f"cpu{number}", "tests.bench.noop")
            self.farm.start(*CELERY, "tests.bench.bare", *QUIETLY, "-P", "threads", "-c", str(THREADS),
                            "-n", f"bare{number}@bench", BARE_BROKER=self.broker)  # fmt: skip
        self.workers = workers
        self.drain(12 * workers)  # whatever is made once is made now
        self.drain_celery(12 * workers)

    def drain(self, jobs: int) -> float:
        """Jobs a second through the farm."""
        self.farm.client.pause()
        batch = self.farm.batch(
            [{"prompt": "nothing", "seed": seed} for seed in range(jobs)], priority="normal", **SHAPE
        )
        self.farm.client.resume()
        return jobs / self.farm.wait(batch, jobs)

    def drain_celery(self, messages: int) -> float:
        """Messages a second through as many Celery workers."""
        with self.celery.producer_or_acquire() as producer:
            for _ in range(messages):
                self.celery.send_task(
                    "bare.nothing", kwargs={"job": "job_0", "epoch": 1}, queue="held", producer=producer
                )
        self.redis.rename("held", "celery")  # all at once, as a farm that is resumed
        begun = time.perf_counter()
        while self.redis.llen("celery") or self.redis.hlen("unacked"):
            time.sleep(0.005)
        return messages / (time.perf_counter() - begun)

    def claims(self, count: int, **more: Any) -> float:
        """Milliseconds from a job's row to its claim: the median of jobs that come one by one."""
        waits = []
        for seed in range(count):
            job = self.farm.client.submit(prompt="nothing", seed=seed, **SHAPE, **more)
            deadline = time.monotonic() + 60
            row = None
            while row is None and time.monotonic() < deadline:
                row = self.farm.database.execute(
                    "SELECT extract(epoch FROM claimed_at - created_at)::float8 FROM job"
                    " WHERE id = %s::uuid AND state = 'succeeded'",
                    [job.id.removeprefix("job_")],
                ).fetchone()
                time.sleep(0.01)
            assert row is not None, job.id
            waits.append(float(row[0]))
        return statistics.median(waits) * 1e3

    def lay(self, depth: int) -> None:
        """Bring the backlog to that many jobs: copies of one that was submitted. The farm must be paused."""
        have = self._one("SELECT count(*) FROM job WHERE state = 'queued'")
        if have > depth:
            self.farm.database.execute("DELETE FROM job WHERE state = 'queued'")
            have = 0
        self.farm.database.execute(
            "INSERT INTO job (id, tenant_id, state, task, model, priority, spec, cost, max_attempts, metadata)"
            # ids that ascend, as the farm's do
            " SELECT CAST(%s || lpad(to_hex(place), 8, '0') || substr(md5(random()::text), 1, 7) AS uuid),"
            " tenant_id, 'queued', task, model, 0, spec, cost, max_attempts, metadata"
            " FROM (SELECT * FROM job ORDER BY id LIMIT 1) AS one, generate_series(1, %s) AS place",
            [ids.IdSeries(ids.JOB).prefix, depth - have],
        )
        self.farm.database.execute("VACUUM ANALYZE job")

    def work_off(self, seconds: float) -> float:
        """Jobs of the backlog a second, over a stretch that begins when the work is under way."""
        self.farm.client.resume()
        time.sleep(1.0)
        begun = self._one("SELECT now()")
        time.sleep(seconds)
        self.farm.client.pause()
        return float(
            self._one(
                "SELECT count(*) / %s::float8 FROM job WHERE finished_at BETWEEN %s AND %s::timestamptz"
                " + make_interval(secs => %s) AND tenant_id = (SELECT tenant_id FROM job LIMIT 1)",
                [seconds, begun, begun, seconds],
            )
        )

    def _one(self, statement: LiteralString, values: Sequence[object] = ()) -> Any:
        row = self.farm.database.execute(statement, values).fetchone()
        assert row is not None
        return row[0]


def beside_celery(bench: Bench, workers: list[int], jobs: int, rounds: int) -> list[dict[str, Any]]:
    """The rates of both, by the number of workers."""
    rows = []
    for count in workers:
        bench.grow(count)
        farm, celery = [], []
        for _ in range(rounds):
            farm.append(bench.drain(jobs))
            celery.append(bench.drain_celery(bench.messages))
        ratio = statistics.median(one / other for one, other in zip(farm, celery, strict=True))
        rows.append(
            {
                "workers": count,
                "farm_jobs_per_s": round(statistics.median(farm), 1),
                "celery_messages_per_s": round(statistics.median(celery), 1),
                "farm_to_celery": round(ratio, 3),
            }
        )
        print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    return rows


def by_depth(bench: Bench, depths: list[int]) -> list[dict[str, Any]]:
    """The rate of a backlog and the wait of interactive jobs, with backlogs of several depths."""
    rows: list[dict[str, Any]] = []
    for depth in [*depths, depths[0]]:
        bench.farm.client.pause()
        bench.lay(depth)
        rates = []
        for _ in range(3):
            rates.append(bench.work_off(WINDOW_SECONDS))
            bench.lay(depth)
        rate = statistics.median(rates)
        bench.farm.client.resume()
        wait = bench.claims(60, priority="interactive")
        rows.append({"depth": depth, "jobs_per_s": round(rate, 1), "submit_to_claim_p50_ms": round(wait, 2)})
        rows[-1] |= {"jobs_per_s_to_first": round(rate / rows[0]["jobs_per_s"], 3)}
        rows[-1] |= {"wait_to_first": round(wait / rows[0]["submit_to_claim_p50_ms"], 3)}
        print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    return rows


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 4, 8])
    parser.add_argument("--jobs", type=int, default=400)
    parser.add_argument("--messages", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--depth", type=int, nargs="*", default=[])
    asked = parser.parse_args()
    found: dict[str, Any] = {"about": vars(asked)}
    OUT.mkdir(exist_ok=True)
    with whole() as farm:
        bench = Bench(farm, asked.messages)
        bench.grow(1)
        if asked.depth:
            found["depths"] = by_depth(bench, asked.depth)
        else:
            found["submit_to_claim_p50_ms"] = round(bench.claims(60), 2)
            print(f"submit_to_claim_p50_ms {found['submit_to_claim_p50_ms']}", flush=True)
            found["drain"] = beside_celery(bench, asked.workers, asked.jobs, asked.rounds)
    name = "depth.json" if asked.depth else "overhead.json"
    (OUT / name).write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
