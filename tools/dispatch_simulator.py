"""The real policy over synthetic farms: ``python -m tools.dispatch_simulator --workers 10000 --jobs 100000000``.

Everything but the measured times follows from the seed. A backlog is a counter and a formula for its n-th job, so
that memory holds the candidates of the queues and what is at the workers, whatever the number of jobs.

The farm: devices of two sorts, models that differ in size and cost, and four sorts of tenants:

* ``studio-k`` with weight k and a share of the backlog: they compete for the whole run, so their shares must follow
  their weights;
* ``nightly`` with as much again in the bulk class: it gets what nobody else wants, and its ageing jobs;
* ``product``: interactive jobs that arrive all the time, a small part of what the farm can do;
* ``lone``: now and then a single normal job. How long it waits is what the others' backlog costs it.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
import sys
import time
from collections import Counter, deque
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from PIL import Image, ImageDraw

from farm.dispatch.policy import Decision, ModelRequirements, Rules, choose
from farm.domain.queue import Queue, QueuedJob, QueueState, ShareState, TenantShare
from farm.domain.states import Priority
from farm.domain.worker import WorkerCapacity

GIB: Final = 2**30
MASK: Final = 2**64 - 1
SAMPLES: Final = 60  #: points of the plot's curves
ROUNDS_AT_ONCE: Final = 1_000  #: the most that follow each other without time passing


@dataclass(frozen=True)
class Scenario:
    """A farm and what is asked of it."""

    workers: int = 100
    jobs: int = 100_000  #: that wait at the start
    seconds: float = 600.0  #: simulated
    studios: int = 5  #: tenants that compete, of weights 1, 2, 3, …
    models: int = 6
    slots: int = 2
    prefetch: int = 2
    load_seconds: float = 20.0  #: to bring 8 GiB of model into a device's memory
    loss_hours: float = 12.0  #: mean time until a worker is lost
    lease_seconds: float = 30.0  #: until its jobs are requeued
    absent_seconds: float = 120.0  #: until it is there again, with nothing loaded
    round_seconds: float = 0.05  #: between the dispatcher's rounds
    seed: int = 1


@dataclass(frozen=True)
class SimulatedModel:
    """A model of the synthetic farm."""

    name: str
    memory_bytes: int
    cost: float  #: of a mean job, megapixel-steps


@dataclass
class JobStream:
    """The jobs of one line: the n-th one is a formula of n."""

    tenant: str
    model: SimulatedModel
    priority: Priority
    number: int  #: of the stream
    count: int  #: jobs in all
    rate: float | None  #: arrivals per second; None: all wait from the start
    seed: int
    following: int = 0  #: the first job that was never read
    known: deque[QueuedJob] = field(default_factory=deque)  #: read and waiting
    skips: int = 0
    served_at: float | None = None

    def _noise(self, n: int) -> float:
        """A number in [0, 1) that belongs to job ``n`` (the finaliser of splitmix64)."""
        x = (n * 0x9E3779B97F4A7C15 + self.number * 0xD1B54A32D192ED03 + self.seed) & MASK
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
        return ((x ^ (x >> 31)) >> 11) / 2**53

    def heads(self, now: float, limit: int) -> tuple[QueuedJob, ...]:
        """The first ``limit`` waiting jobs."""
        while len(self.known) < limit and self.following < self.count:
            n = self.following
            noise = self._noise(n)
            since = 0.0 if self.rate is None else (n + noise) / self.rate
            if since > now:
                break
            self.known.append(QueuedJob(f"{n:012d}.{self.number}", self.model.cost * (0.5 + noise), since))
            self.following += 1
        known = self.known
        return tuple(known) if len(known) <= limit else tuple(known[index] for index in range(limit))

    @property
    def dry(self) -> bool:
        """Whether nothing waits and nothing will."""
        return self.following >= self.count and not self.known


@dataclass(frozen=True)
class Running:
    """A job in a slot."""

    stream: JobStream
    job: QueuedJob
    began_at: float
    loaded_at: float  #: when its model is there
    ends_at: float


@dataclass
class SimulatedDevice:
    """A worker of the synthetic farm."""

    name: str
    memory_bytes: int
    speed: float  #: megapixel-steps per second
    there: bool = True
    boots: int = 0  #: events of an earlier one are void
    queue: deque[tuple[JobStream, QueuedJob]] = field(default_factory=deque)
    running: dict[str, Running] = field(default_factory=dict)  #: by job
    loaded: dict[str, int] = field(default_factory=dict)  #: bytes by model, least recently used first

    @property
    def held(self) -> int:
        """Jobs at it."""
        return len(self.queue) + len(self.running)

    def models(self) -> frozenset[str]:
        """Loaded, or of the jobs that it holds."""
        # what runs is loaded
        return frozenset({stream.model.name for stream, _ in self.queue}.union(self.loaded))


class Waits:
    """Waiting times, in buckets of 10 %, so that their number does not matter."""

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self.count = 0
        self.total = 0.0
        self.longest = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self._buckets[math.ceil(math.log(max(seconds, 0.001)) / math.log(1.1))] += 1
        self.count += 1
        self.total += seconds
        self.longest = max(self.longest, seconds)

    def quantile(self, part: float) -> float:
        """The waiting time, in seconds, that this part of the jobs did not exceed."""
        left = part * self.count
        for bucket in sorted(self._buckets):
            left -= self._buckets[bucket]
            if left <= 0:
                return min(1.1**bucket, self.longest)
        return self.longest

    def summary(self) -> dict[str, float]:
        """Seconds."""
        return {
            "mean": round(self.total / self.count, 3) if self.count else 0.0,
            "p50": round(self.quantile(0.5), 3),
            "p95": round(self.quantile(0.95), 3),
            "max": round(self.longest, 3),
        }


class Simulation:
    """One run of a scenario."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.rules = Rules()
        self.now = 0.0
        self._random = random.Random(scenario.seed)  # noqa: S311 - repeatable, not secret
        sizes = (4, 6, 8, 12, 20, 30)
        self.models = [
            SimulatedModel(f"model-{n}", sizes[n % len(sizes)] * GIB, 8.0 * (1 + n % len(sizes) / 2))
            for n in range(scenario.models)
        ]
        self.requirements = {model.name: ModelRequirements(model.memory_bytes) for model in self.models}
        self.devices = [
            SimulatedDevice(f"host{n // 8:05d}/cuda{n % 8}", 80 * GIB, 2.5)
            if n % 10 < 3
            else SimulatedDevice(f"host{n // 8:05d}/cuda{n % 8}", 24 * GIB, 1.0)
            for n in range(scenario.workers)
        ]
        self._device_of = {device.name: index for index, device in enumerate(self.devices)}
        self._open = set(range(len(self.devices)))
        self.streams = self._streams()
        self._by_queue = {(s.tenant, s.model.name, s.priority): s for s in self.streams}
        names = sorted({stream.tenant for stream in self.streams})
        self.shares = {
            name: TenantShare(name, float(name[7:]) if name.startswith("studio-") else 1.0) for name in names
        }
        self._events: list[tuple[float, int, str, int, int, str]] = []  #: (when, number, what, device, boots, job)
        self._returning: dict[str, tuple[JobStream, QueuedJob]] = {}
        self._number = 0
        self.waits = {name: Waits() for name in names}
        self.cost: dict[str, float] = dict.fromkeys(names, 0.0)  #: dispatched, by tenant, while all studios compete
        self.dispatched: Counter[str] = Counter()
        self.competing_until: float | None = None
        self.switches = 0
        self.losses = 0
        self.rounds = 0
        self.rendering = 0.0  #: slot-seconds
        self.loading = 0.0  #: slot-seconds
        self.there = 0.0  #: slot-seconds
        self.policy_seconds = 0.0
        self.samples: list[dict[str, Any]] = []

    def _streams(self) -> list[JobStream]:
        s = self.scenario
        mean_cost = sum(model.cost for model in self.models) / len(self.models)
        capacity = sum(device.speed for device in self.devices) / mean_cost  # jobs per second
        lines: list[tuple[str, Priority, int, float | None]] = [
            (f"studio-{k}", Priority.NORMAL, s.jobs // (s.studios + 1), None) for k in range(1, s.studios + 1)
        ]
        lines += [
            ("nightly", Priority.BULK, s.jobs // (s.studios + 1), None),
            ("product", Priority.INTERACTIVE, s.jobs, 0.03 * capacity),
            ("lone", Priority.NORMAL, s.jobs, min(0.2, 0.005 * capacity)),
        ]
        made: list[JobStream] = []
        for tenant, priority, count, rate in lines:
            for model in self.models:
                part = None if rate is None else rate / len(self.models)
                made.append(
                    JobStream(tenant, model, priority, len(made), max(1, count // len(self.models)), part, s.seed)
                )
        return made

    def run(self) -> dict[str, Any]:
        """The report: ``scenario`` and ``results`` follow from the seed, ``measured`` from this machine."""
        s = self.scenario
        began = time.perf_counter()
        for index in range(len(self.devices)):
            self._doom(index)
        ticks = int(s.seconds / s.round_seconds)
        for tick in range(ticks):
            self.now = tick * s.round_seconds
            self._until(self.now)
            for _ in range(ROUNDS_AT_ONCE):
                if not self._open or not self._round():
                    break
            self.there += s.round_seconds * s.slots * sum_there(self.devices, self.losses)
            if tick % max(1, ticks // SAMPLES) == 0:
                self._sample()
        for device in self.devices:
            for one in device.running.values():
                self._count(one, self.now)
        return self._report(time.perf_counter() - began)

    # -- the dispatcher -----------------------------------------------------------------------------------------------

    def _round(self) -> bool:
        s = self.scenario
        workers = []
        for index in sorted(self._open):
            device = self.devices[index]
            free_slots = s.slots + s.prefetch - device.held
            workers.append(WorkerCapacity(device.name, free_slots, device.models(), s.prefetch, device.memory_bytes))
        free_slots = sum(worker.free_slots for worker in workers)
        read = max(8, 2 * min(free_slots, self.rules.max_assignments) // len(self.streams))
        queues = []
        for stream in self.streams:
            candidates = stream.heads(self.now, read)
            if candidates:
                queues.append(
                    Queue(
                        stream.tenant,
                        stream.model.name,
                        stream.priority,
                        candidates,
                        len(candidates) == read,
                        stream.skips,
                        stream.served_at,
                    )
                )
        began = time.perf_counter()
        decision = choose(
            workers, queues, list(self.shares.values()), self.now, requirements=self.requirements, rules=self.rules
        )
        self.policy_seconds += time.perf_counter() - began
        self.rounds += 1
        self._apply(decision)
        return decision.more

    def _apply(self, decision: Decision) -> None:
        for share_state in decision.share_states:
            self._keep_share(share_state)
        for queue_state in decision.queue_states:
            self._keep_queue(queue_state)
        for one in decision.assignments:
            stream = self.streams[int(one.job_id[13:])]
            job = stream.known.popleft()  # a line is served from its front
            index = self._device_of[one.worker]
            device = self.devices[index]
            device.queue.append((stream, job))
            self.dispatched[stream.tenant] += 1
            if self.competing_until is None:
                self.cost[stream.tenant] += job.cost
            self._start(index)
            if device.held >= self.scenario.slots + self.scenario.prefetch:
                self._open.discard(index)
        if self.competing_until is None:
            waiting = {stream.tenant for stream in self.streams if not stream.dry}
            if any(f"studio-{k}" not in waiting for k in range(1, self.scenario.studios + 1)):
                self.competing_until = self.now

    def _keep_share(self, one: ShareState) -> None:
        share = self.shares[one.tenant_id]
        self.shares[one.tenant_id] = share._replace(vtime=one.vtime, backlogged=one.backlogged)

    def _keep_queue(self, one: QueueState) -> None:
        stream = self._by_queue[one.tenant_id, one.model, one.priority]
        stream.skips, stream.served_at = one.skips, one.served_at

    # -- the devices --------------------------------------------------------------------------------------------------

    def _start(self, index: int) -> None:
        """Let the device begin what it has slots for."""
        s = self.scenario
        device = self.devices[index]
        while device.queue and len(device.running) < s.slots:
            stream, job = device.queue.popleft()
            model = stream.model
            load = 0.0
            if model.name in device.loaded:
                device.loaded[model.name] = device.loaded.pop(model.name)  # most recently used
            else:
                self.switches += 1
                load = s.load_seconds * model.memory_bytes / (8 * GIB)
                in_use = {one.stream.model.name for one in device.running.values()}
                for name in [name for name in device.loaded if name not in in_use]:
                    if sum(device.loaded.values()) + model.memory_bytes <= device.memory_bytes:
                        break
                    del device.loaded[name]
                device.loaded[model.name] = model.memory_bytes
            seconds = job.cost / device.speed * s.slots  # the slots share the device
            loaded_at = self.now + load
            device.running[job.job_id] = Running(stream, job, self.now, loaded_at, loaded_at + seconds)
            self.waits[stream.tenant].add(self.now - job.queued_at)
            self._schedule(self.now + load + seconds, "done", index, job.job_id)

    def _schedule(self, when: float, what: str, index: int, job_id: str = "") -> None:
        self._number += 1
        heapq.heappush(self._events, (when, self._number, what, index, self.devices[index].boots, job_id))

    def _until(self, now: float) -> None:
        """Let everything happen that is due."""
        while self._events and self._events[0][0] <= now:
            _, _, what, index, boots, job_id = heapq.heappop(self._events)
            device = self.devices[index]
            if what == "back":  # a job, whose lease ran out
                stream, job = self._returning.pop(job_id)
                stream.known = deque(sorted((*stream.known, job), key=lambda one: (one.queued_at, one.job_id)))
            elif what == "there":
                device.there = True
                self._open.add(index)
                self._schedule(
                    self.now + self._random.expovariate(1 / (self.scenario.loss_hours * 3600)), "lost", index
                )
            elif boots == device.boots and what == "done":
                self._count(device.running.pop(job_id), self.now)
                self._open.add(index)
                self._start(index)
            elif boots == device.boots and what == "lost":
                self._lose(index)

    def _count(self, one: Running, until: float) -> None:
        """Add what a slot did for a job, up to that time."""
        until = min(until, one.ends_at)
        self.rendering += max(0.0, until - one.loaded_at)
        self.loading += min(one.loaded_at, until) - one.began_at

    def _doom(self, index: int) -> None:
        """Decide when the worker will be lost."""
        self._schedule(self.now + self._random.expovariate(1 / (self.scenario.loss_hours * 3600)), "lost", index)

    def _lose(self, index: int) -> None:
        device = self.devices[index]
        self.losses += 1
        device.boots += 1
        device.there = False
        self._open.discard(index)
        for one in device.running.values():
            self._count(one, self.now)
        for stream, job in (*[(one.stream, one.job) for one in device.running.values()], *device.queue):
            self._returning[job.job_id] = (stream, job)
            self._schedule(self.now + self.scenario.lease_seconds, "back", index, job.job_id)
        device.running.clear()
        device.queue.clear()
        device.loaded.clear()
        self._schedule(self.now + self.scenario.absent_seconds, "there", index)

    # -- what came of it ----------------------------------------------------------------------------------------------

    def _shares(self) -> dict[str, float]:
        studios = [f"studio-{k}" for k in range(1, self.scenario.studios + 1)]
        total = sum(self.cost[name] for name in studios) or 1
        return {name: self.cost[name] / total for name in studios}

    def _sample(self) -> None:
        slots = len(self.devices) * self.scenario.slots
        busy = sum(len(device.running) for device in self.devices)
        self.samples.append({"at": round(self.now, 3), "busy": busy / slots, "shares": self._shares()})

    def _report(self, wall: float) -> dict[str, Any]:
        weights = {name: self.shares[name].weight for name in self._shares()}
        shares = self._shares()
        target = {name: weight / sum(weights.values()) for name, weight in weights.items()}
        made = sum(self.dispatched.values())
        return {
            "scenario": asdict(self.scenario),
            "results": {
                "assignments": made,
                "rounds": self.rounds,
                "rendering": round(self.rendering / self.there, 4),
                "loading": round(self.loading / self.there, 4),
                "model_loads": self.switches,
                "model_loads_per_job": round(self.switches / max(1, made), 5),
                "workers_lost": self.losses,
                "competing_seconds": round(self.competing_until or self.scenario.seconds, 3),
                "largest_share_error": round(max(abs(shares[name] - target[name]) for name in shares), 5),
                "tenants": {
                    name: {
                        "weight": share.weight,
                        "jobs": self.dispatched[name],
                        "share": round(shares[name], 5) if name in shares else None,
                        "fair_share": round(target[name], 5) if name in target else None,
                        "wait_seconds": self.waits[name].summary(),
                    }
                    for name, share in self.shares.items()
                },
                "samples": self.samples,
            },
            "measured": {
                "policy_microseconds_per_assignment": round(1e6 * self.policy_seconds / max(1, made), 2),
                "policy_milliseconds_per_round": round(1e3 * self.policy_seconds / max(1, self.rounds), 3),
                "policy_share_of_simulated_time": round(self.policy_seconds / self.scenario.seconds, 4),
                "wall_seconds": round(wall, 2),
            },
        }


def sum_there(devices: list[SimulatedDevice], losses: int) -> int:
    """How many workers are there."""
    return len(devices) if not losses else sum(device.there for device in devices)


# -- for people ------------------------------------------------------------------------------------------------------

COLOURS: Final = ("#1b6ca8", "#d1495b", "#3a7d44", "#edae49", "#6a4c93", "#00798c", "#8d6a9f", "#5c5c5c")


def plot(report: dict[str, Any], path: Path) -> None:
    """Two panels over simulated time: the competing tenants' shares against their fair ones, and the busy slots."""
    width, height, left, top, panel = 960, 640, 70, 40, 250
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    results = report["results"]
    samples = [sample for sample in results["samples"] if any(sample["shares"].values())]
    span: float = max(1e-9, report["scenario"]["seconds"])
    right = width - 150

    def x(at: float) -> float:
        return left + (right - left) * at / span

    def axes(y0: int, title: str, highest: float) -> None:
        draw.rectangle((left, y0, right, y0 + panel), outline="#999999")
        draw.text((left, y0 - 16), title, fill="black")
        for part in range(5):
            value = highest * part / 4
            y = y0 + panel - panel * part / 4
            draw.line((left, y, right, y), fill="#eeeeee")
            draw.text((left - 45, y - 6), f"{value:.0%}", fill="black")

    shares = {name: one["fair_share"] for name, one in results["tenants"].items() if one["fair_share"] is not None}
    highest = min(1.0, 1.3 * max(shares.values()))
    axes(top, "share of the dispatched cost so far (line) and fair share by weight (dashes)", highest)
    for (name, fair), colour in zip(shares.items(), COLOURS * len(shares), strict=False):
        y = top + panel - panel * fair / highest
        for dash in range(left, right, 14):
            draw.line((dash, y, dash + 6, y), fill=colour)
        points = [
            (x(sample["at"]), top + panel - panel * min(1, sample["shares"][name] / highest)) for sample in samples
        ]
        if len(points) > 1:
            draw.line(points, fill=colour, width=2)
        draw.text((right + 8, y - 6), f"{name} {fair:.1%}", fill=colour)
    below = top + panel + 50
    axes(below, "slots in use", 1.0)
    busy = [(x(sample["at"]), below + panel - panel * sample["busy"]) for sample in samples]
    if len(busy) > 1:
        draw.line(busy, fill=COLOURS[0], width=2)
    draw.text((left, below + panel + 8), "0 s", fill="black")
    draw.text((right - 40, below + panel + 8), f"{span:g} s", fill="black")
    image.save(path)


def describe(report: dict[str, Any]) -> str:
    """The report as text."""
    s, r, m = report["scenario"], report["results"], report["measured"]
    lines = [
        f"{s['workers']:,} workers, {s['jobs']:,} jobs waiting, {s['seconds']:g} s simulated, seed {s['seed']}",
        f"assignments     {r['assignments']:,} in {r['rounds']:,} rounds; {r['workers_lost']:,} workers lost",
        f"slots           {r['rendering']:.1%} rendering, {r['loading']:.1%} loading models",
        f"model loads     {r['model_loads']:,}, {r['model_loads_per_job']:.2%} of the jobs",
        f"the policy      {m['policy_microseconds_per_assignment']:.1f} us per assignment",
        f"                {m['policy_milliseconds_per_round']:.2f} ms per round",
        f"                {m['policy_share_of_simulated_time']:.1%} of one core",
        f"fair share      largest error {r['largest_share_error']:.2%} of the whole",
        "",
        f"{'tenant':<12}{'weight':>7}{'jobs':>10}{'share':>9}{'fair':>9}{'wait p50':>10}{'p95':>9}{'max':>9}  seconds",
    ]
    for name, one in r["tenants"].items():
        share, fair = ("-" if one[key] is None else f"{one[key]:.2%}" for key in ("share", "fair_share"))
        wait = one["wait_seconds"]
        lines.append(
            f"{name:<12}{one['weight']:>7g}{one['jobs']:>10,}{share:>9}{fair:>9}"
            f"{wait['p50']:>10.2f}{wait['p95']:>9.2f}{wait['max']:>9.2f}"
        )
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Run a scenario, print what came of it, and write ``simulation.json`` and ``simulation.png``."""
    parser = argparse.ArgumentParser(prog="python -m tools.dispatch_simulator", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    standard = Scenario()
    for name, value in asdict(standard).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"default: {value:,}")
    parser.add_argument("--out", type=Path, default=Path("simulation"), help="directory of the report")
    given = vars(parser.parse_args(arguments))
    out: Path = given.pop("out")
    report = Simulation(Scenario(**given)).run()
    out.mkdir(parents=True, exist_ok=True)
    (out / "simulation.json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    plot(report, out / "simulation.png")
    sys.stdout.write(describe(report))


if __name__ == "__main__":
    main()
