"""Break a whole farm, let it heal, judge its history: ``python -m tests.chaos --seconds N --seed S --report out.json``.

The seed decides every choice; what the choices meet depends on the machine's timing, so a run is not repeated exactly.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import psycopg
import redis

from farm.domain.states import Priority
from farm.errors import StorageUnavailable
from tests.chaos.farm import MAX_PREFETCH, SLOTS, ChaosFarm
from tests.chaos.faults import FAULTS
from tests.chaos.history import History, Sample, Violation, check, look, read
from tests.chaos.partition import allowed
from tests.chaos.submitter import Submitter

SAMPLE_SECONDS = 0.5
HEAL_SECONDS = 150.0  #: for the farm to finish everything after the last fault


@dataclass
class Done:
    """A fault that was injected."""

    kind: str
    victim: str
    began: float  #: seconds since 1970
    ended: float = 0.0


@dataclass
class Running:
    """A fault that lasts."""

    done: Done
    steps: Iterator[tuple[str, float]]
    until: float


@dataclass
class Run:
    """One run of the driver."""

    farm: ChaosFarm
    seconds: float
    chance: Random
    at_once: int = 2  #: faults
    ahead: int = 60  #: jobs that have not finished, at most
    poison: float = 0.01  #: of the jobs, which kill two workers each
    samples: list[Sample] = field(default_factory=list)
    faults: list[Done] = field(default_factory=list)
    running: list[Running] = field(default_factory=list)

    def __post_init__(self) -> None:
        chance = Random(self.chance.random())
        self.submitter = Submitter(self.farm.url, self.farm.keys, chance, self.ahead, self.poison)
        self._connection: psycopg.Connection[Any] | None = None
        self._began = time.monotonic()
        self._told = self._sampled = 0.0

    def go(self) -> tuple[History, list[Violation]]:
        """Break it, heal it, judge it."""
        self.submitter.start()
        due = time.monotonic() + 3
        while time.monotonic() - self._began < self.seconds:
            self._tick()
            if time.monotonic() >= due and len(self.running) < self.at_once:
                self._inject()
                due = time.monotonic() + self.chance.uniform(1.0, 8.0)
        self._mend(time.monotonic() + 3600)
        self.submitter.close()
        self.farm.heal()
        print("everything is mended; waiting for the farm to finish", flush=True)
        at_rest = self._wait_for_rest()
        unrepaired: dict[str, str] = {}
        if self.farm.bucket_was_lost:
            print("repairing what was in the lost bucket", flush=True)
            unrepaired = self.farm.repair()
            at_rest = self._wait_for_rest() and at_rest
        history = self._read()
        found = check(history)
        found += [Violation("comes back", job, reason) for job, reason in unrepaired.items()]
        if not any(job.state == "succeeded" for job in history.jobs):
            found.append(Violation("does work", "farm", "finished no job at all"))
        if not at_rest:
            found.append(Violation("comes to rest", "farm", f"not within {HEAL_SECONDS:g} s after the last fault"))
        return history, found

    def close(self) -> None:
        """End what looks at the farm."""
        self.submitter.close()
        if self._connection is not None:
            self._connection.close()

    # -- faults -------------------------------------------------------------------------------------------------------

    def _inject(self) -> None:
        kind = self.chance.choices(list(FAULTS), [weight for weight, _ in FAULTS.values()])[0]
        if any(one.done.kind == kind for one in self.running):
            return
        steps = FAULTS[kind][1](self.farm, self.chance)
        began = time.time()
        victim, seconds = next(steps, ("", -1.0))
        if seconds < 0:
            return  # there is nothing to break just now
        done = Done(kind, victim, began)
        self.faults.append(done)
        self.running.append(Running(done, steps, time.monotonic() + seconds))
        print(f"[{time.monotonic() - self._began:6.1f} s] {kind}: {victim} for {seconds:.1f} s", flush=True)

    def _mend(self, now: float) -> None:
        for one in [one for one in self.running if one.until <= now]:
            self.running.remove(one)
            next(one.steps, None)
            one.done.ended = time.time()

    def _tick(self) -> None:
        self.farm.watch()
        self._mend(time.monotonic())
        now = time.monotonic()
        if now - self._sampled >= SAMPLE_SECONDS:
            self._sampled = now
            self._sample()
        if now - self._told >= 5:
            self._told = now
            self._tell()
        time.sleep(0.05)

    # -- looking ------------------------------------------------------------------------------------------------------

    def _sample(self) -> None:
        if any(one.done.victim == "postgres" for one in self.running):
            return  # a stopped server would stop this thread, which is to let it go on
        with contextlib.suppress(psycopg.Error):
            if self._connection is None or self._connection.closed:
                self._connection = self.farm.connect()
                self._connection.execute("SET statement_timeout = '2s'")
            seen = look(self._connection)
            self.submitter.open = sum(state not in ENDED for state, _ in seen.states.values())
            self.samples.append(replace(seen, lengths=self._lengths()))

    def _lengths(self) -> dict[str, int]:
        if any(one.done.victim == "valkey" for one in self.running):
            return {}
        found: dict[str, int] = {}
        with contextlib.suppress(redis.RedisError), self.farm.redis() as client:
            for name in self.farm.named("worker"):
                queue = self.farm.queue(name)
                length = int(client.llen(queue))
                if queue not in self.farm.tampered:
                    found[name] = length
                elif not length:
                    self.farm.tampered.discard(queue)
        return found

    def _tell(self) -> None:
        states = Counter(state for state, _ in self.samples[-1].states.values()) if self.samples else Counter()
        says = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        longest = max((max(one.lengths.values(), default=0) for one in self.samples[-10:]), default=0)
        print(
            f"[{time.monotonic() - self._began:6.1f} s] {says or 'no job yet'} | {len(self.faults)} faults,"
            f" {len(self.running)} now | {len(self.farm.receiver.posts)} webhooks | longest list {longest}"
            f" | {self.submitter.refused} calls refused",
            flush=True,
        )

    def _wait_for_rest(self) -> bool:
        give_up_at = time.monotonic() + HEAL_SECONDS
        while time.monotonic() < give_up_at:
            self._tick()
            with contextlib.suppress(psycopg.Error), self.farm.connect() as connection:
                left = connection.execute(
                    "SELECT (SELECT count(*) FROM job WHERE state IN ('queued', 'dispatched', 'running'))"
                    " + (SELECT count(*) FROM event WHERE NOT fanned_out)"
                    " + (SELECT count(*) FROM delivery WHERE state = 'pending')"
                ).fetchone()
                if left == (0,):
                    return True
        return False

    def _read(self) -> History:
        give_up_at = time.monotonic() + 60
        while True:
            try:
                with self.farm.connect() as connection:
                    return read(
                        connection,
                        self.farm.sha256_of,
                        endpoints=tuple(self.farm.receiver.endpoints.values()),
                        posts=tuple(self.farm.receiver.posts),
                        samples=tuple(self.samples),
                        accepted=frozenset(self.submitter.accepted),
                        window=SLOTS + MAX_PREFETCH,
                    )
            except (psycopg.Error, StorageUnavailable):
                if time.monotonic() > give_up_at:
                    raise
                self.farm.watch()
                time.sleep(0.2)

    def _requeued_after_kills(self) -> list[float]:
        """For each worker that was killed with jobs: seconds until the last of them was requeued."""
        found = []
        with self.farm.connect() as connection:
            for fault in self.faults:
                if fault.kind != "kill worker":
                    continue
                row = connection.execute(
                    "SELECT extract(epoch FROM max(later.created_at)) - %(at)s FROM event later WHERE"
                    " later.type = 'job.requeued' AND later.created_at BETWEEN to_timestamp(%(at)s)"
                    " AND to_timestamp(%(at)s + 60) AND EXISTS (SELECT FROM event started WHERE"
                    " started.job_id = later.job_id AND started.epoch = later.epoch AND started.type = 'job.started'"
                    " AND started.data ->> 'worker' = %(worker)s AND started.created_at < to_timestamp(%(at)s))",
                    {"at": fault.began, "worker": f"chaos/cpu{fault.victim.partition('-')[2]}"},
                ).fetchone()
                if row is not None and row[0] is not None:
                    found.append(float(row[0]))
        return found

    # -- the report ---------------------------------------------------------------------------------------------------

    def report(self, history: History, violations: list[Violation]) -> dict[str, Any]:
        """What happened, for people and for programs."""
        claims = Counter(event.job for event in history.events if event.type == "job.started")
        with self.farm.connect() as connection:
            ends = [
                float(row[0])
                for row in connection.execute(
                    "SELECT extract(epoch FROM finished_at) FROM job WHERE state = 'succeeded' ORDER BY finished_at"
                )
            ]
            again: dict[int, list[float]] = {}
            for priority, pause in connection.execute(
                "SELECT job.priority, extract(epoch FROM (SELECT min(later.created_at) FROM event later WHERE"
                " later.job_id = event.job_id AND later.id > event.id AND later.type <> 'job.progress')"
                " - event.created_at) FROM event JOIN job ON job.id = event.job_id WHERE event.type = 'job.requeued'"
            ):
                if pause is not None:
                    again.setdefault(priority, []).append(float(pause))
        after = [
            next((end - fault.ended for end in ends if end >= fault.ended), None)
            for fault in self.faults
            if fault.ended
        ]
        recovered = [seconds for seconds in after if seconds is not None]
        requeued = self._requeued_after_kills()
        lengths = [length for sample in self.samples for length in sample.lengths.values()]
        return {
            "seconds": self.seconds,
            "faults": dict(sorted(Counter(fault.kind for fault in self.faults).items())),
            "faults_total": len(self.faults),
            "jobs": dict(sorted(Counter(job.state for job in history.jobs).items())),
            "jobs_total": len(history.jobs),
            "batches": len(history.batches),
            "jobs_claimed_more_than_once": sum(1 for count in claims.values() if count > 1),
            "jobs_rendered_more_than_once": sum(1 for job in history.jobs if job.attempts > 1),
            "most_claims_of_one_job": max(claims.values(), default=0),
            "webhooks_received": len(history.posts),
            "webhooks_delivered": sum(1 for one in history.deliveries if one.state == "delivered"),
            "calls_refused": self.submitter.refused,
            "longest_list": max(lengths, default=0),
            "recovery_seconds": {
                "from a fault's end to the next finished job": spread(recovered),
                # those of a batch wait for the others, until their line has aged
                "from a job's requeue to its next claim or end, by class": {
                    Priority.of_rank(priority).value: spread(pauses) for priority, pauses in sorted(again.items())
                },
            },
            "seconds from a worker's kill to the requeueing of all that it held": spread(requeued),
            "violations": [str(violation) for violation in violations],
        }


ENDED = ("succeeded", "failed", "canceled")


def spread(values: list[float]) -> dict[str, float | int]:
    """Count, median and maximum."""
    if not values:
        return {"count": 0}
    return {"count": len(values), "p50": round(statistics.median(values), 2), "max": round(max(values), 2)}


def run(
    seconds: float,
    seed: int,
    *,
    directory: Path,
    workers: int = 3,
    ahead: int = 60,
    poison: float = 0.01,
    unpluggable: bool = False,
) -> dict[str, Any]:
    """One run; returns its report."""
    chance = Random(seed)
    farm = ChaosFarm(directory, chance, workers, unpluggable=unpluggable)
    try:
        with contextlib.closing(Run(farm, seconds, chance, ahead=ahead, poison=poison)) as one:
            history, violations = one.go()
            return {"seed": seed, **one.report(history, violations)}
    finally:
        farm.close()


def main() -> int:
    """Run, print the report, write it; 1 for a violation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1800.0, help="how long the farm is broken")
    parser.add_argument("--seed", type=int, default=None, help="of every choice; drawn and printed if absent")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--report", type=Path, default=None, help="a JSON file to write")
    parser.add_argument("--keep", action="store_true", help="keep the farm's directory, with its logs")
    options = parser.parse_args()
    for name in [name for name in os.environ if name.startswith("FARM_")]:
        del os.environ[name]
    # the farm's processes and its mount are released however this ends
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    seed = random.SystemRandom().randrange(2**31) if options.seed is None else options.seed
    directory = Path(tempfile.mkdtemp(prefix="farm-chaos-"))
    unpluggable = allowed()
    print(f"seed {seed}, {options.seconds:g} s, {options.workers} workers", flush=True)
    if not unpluggable:
        print("no worker has a host of its own: network namespaces cannot be made here", flush=True)
    bad = True
    try:
        report = run(options.seconds, seed, workers=options.workers, unpluggable=unpluggable, directory=directory)
        bad = bool(report["violations"])
    finally:
        if options.keep or bad:
            print(f"the farm's logs are in {directory / 'logs'}", flush=True)
        else:
            shutil.rmtree(directory, ignore_errors=True)
    text = json.dumps(report, indent=2)
    print(text)
    if options.report is not None:
        options.report.parent.mkdir(parents=True, exist_ok=True)
        options.report.write_text(text + "\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
