"""Jobs that arrive one by one: the engine beside a loop of stock pipelines and beside static batching, in one run.

``python -m tests.bench.arrivals [--seconds N] [--rounds N] [--loads 0.6 0.9 1.2]``. A load is the rate of arrivals by
the rate at which the loop renders such jobs, measured at the start. Jobs arrive for N seconds, and every side of a
round gets the same arrivals, one side after the other in an order that rotates; a ratio is the median over the rounds
of a side to the loop. The whole takes about N x sides x loads x rounds seconds.

Static batching is what a queue without steps does: when the device is free it takes the oldest job and those that wait
with equal parameters, up to the engine's slots, as one call of the stock pipeline.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import random
import statistics
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farm import model_registry
from farm.domain.job_spec import JobSpec
from farm.domain.model import Model
from tests.bench import peers
from tests.bench.engine import popular
from workers import device as devices
from workers import numerics, pipelines
from workers.engine import Engine, EngineOptions
from workers.pipelines import LoadedModel
from workers.process import SLOTS
from workers.render_request import RenderRequest

OUT = Path("bench-out")
Submit = Callable[[JobSpec, Callable[[], None]], None]  #: a job, and what to call when it is done


@dataclass(frozen=True)
class Taken:
    """What one side took for all jobs: seconds."""

    wall: float
    latencies: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.latencies)

    @property
    def p95(self) -> float:
        return sorted(self.latencies)[int(0.95 * (len(self.latencies) - 1))]


class Static:
    """Takes the oldest job and those of equal parameters, up to ``most``, as one call. ``most`` 1 is the loop."""

    def __init__(self, loaded: LoadedModel, most: int) -> None:
        self._loaded = loaded
        self._most = most
        self._waiting: deque[tuple[JobSpec, Callable[[], None]]] = deque()
        self._news: queue.SimpleQueue[None] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def submit(self, spec: JobSpec, done: Callable[[], None]) -> None:
        self._waiting.append((spec, done))
        self._news.put(None)

    def _run(self) -> None:
        try:
            self._render_for_ever()
        except BaseException:  # noqa: BLE001 - told, and the end
            traceback.print_exc()
            os._exit(1)  # nobody would end the wait for its jobs

    def _render_for_ever(self) -> None:
        while True:
            self._news.get()
            while self._waiting:
                known = tuple(self._waiting)
                group = [known[place] for place in peers.next_group([spec for spec, _ in known], self._most)]
                for one in group:
                    self._waiting.remove(one)
                peers.render_equal(self._loaded, [spec for spec, _ in group])
                for _, done in group:
                    done()


def through(engine: Engine, model: Model, *, exact: bool) -> Submit:
    def submit(spec: JobSpec, done: Callable[[], None]) -> None:
        wanted = spec.model_copy(update={"exact": exact})
        work = RenderRequest(wanted, model, {}, lambda _: None, lambda _: None, threading.Event())
        work.future.add_done_callback(lambda _: done())
        engine.submit(work)

    return submit


def played(submit: Submit, specs: list[JobSpec], times: list[float]) -> Taken:
    """Let the jobs arrive at those times after the start; waits until all are done."""
    latencies: list[float] = []
    over = threading.Semaphore(0)
    start = time.perf_counter()
    for spec, at in zip(specs, times, strict=True):
        time.sleep(max(0.0, start + at - time.perf_counter()))

        def done(at: float = at) -> None:
            latencies.append(time.perf_counter() - start - at)
            over.release()

        submit(spec, done)
    for _ in specs:
        over.acquire()
    return Taken(time.perf_counter() - start, tuple(latencies))


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="in which jobs arrive, for each side and load")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument(
        "--slots", type=int, default=0, help="jobs on the device at once; the device's default if absent"
    )
    parser.add_argument("--side", type=int, default=0, help="pixels; the model's default size if absent")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--loads", type=float, nargs="*", default=[0.6, 0.9, 1.2])
    asked = parser.parse_args()

    model = model_registry.load(None).models[0]
    side = asked.side or model.defaults["width"]
    choice = devices.choose(None)
    pipelines.silence_libraries()
    numerics.make_deterministic(asked.threads)
    slots = asked.slots or SLOTS[choice.kind]
    engine = Engine(EngineOptions(choice, asked.threads, slots, profiles_dir=OUT / "batch-profiles"))
    engine.start()
    device = engine.device.result()
    sides: dict[str, Submit] = {
        "loop": Static(pipelines.load(model, device), 1).submit,
        "static": Static(pipelines.load(model, device), slots).submit,
        "exact": through(engine, model, exact=True),
        "throughput": through(engine, model, exact=False),
    }
    for submit in sides.values():  # load, and learn the rows
        played(submit, popular(slots, model, side, 1), [0.0] * slots)
    sample = popular(12, model, side, 2)
    capacity = len(sample) / played(sides["loop"], sample, [0.0] * len(sample)).wall

    taken: dict[float, dict[str, list[Taken]]] = {load: {name: [] for name in sides} for load in asked.loads}
    names = list(sides)
    for turn in range(asked.rounds):
        for load in asked.loads:
            draw = random.Random(100 * turn + load)
            times = [0.0]
            while times[-1] < asked.seconds:
                times.append(times[-1] + draw.expovariate(load * capacity))
            specs = popular(len(times), model, side, 3 + turn)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                taken[load][name].append(played(sides[name], specs, times))
    engine.close()

    def ratio(load: float, name: str, of: Callable[[Taken], float]) -> float:
        pairs = zip(taken[load][name], taken[load]["loop"], strict=True)
        return round(statistics.median(of(one) / of(base) for one, base in pairs), 3)

    rows: list[dict[str, Any]] = [
        {
            "load": load,
            "side": name,
            "jobs": sum(len(one.latencies) for one in taken[load][name]),
            "images_per_s": round(statistics.median(len(one.latencies) / one.wall for one in taken[load][name]), 2),
            "mean_latency_s": round(statistics.median(one.mean for one in taken[load][name]), 2),
            "throughput_to_loop": round(1 / ratio(load, name, lambda one: one.wall), 3),
            "mean_latency_to_loop": ratio(load, name, lambda one: one.mean),
            "p95_latency_to_loop": ratio(load, name, lambda one: one.p95),
        }
        for load in asked.loads
        for name in names
    ]
    OUT.mkdir(exist_ok=True)
    about = vars(asked) | {"device": device.name, "side": side, "slots": slots, "loop_images_per_s": round(capacity, 3)}
    written = "-".join(["arrivals", *map(str, asked.loads)]) + ".json"
    (OUT / written).write_text(json.dumps({"about": about, "rows": rows}, indent=2) + "\n")
    print(f"jobs of {side}x{side}, {slots} slots, loop {capacity:.2f} images/s, {device.name}")
    print(f"{'load':>5} {'side':12}{'jobs':>6}{'images/s':>9}{'mean s':>8}{'x loop':>8}{'mean ÷':>8}{'p95 ÷':>8}")
    for row in rows:
        print(
            f"{row['load']:>5} {row['side']:12}{row['jobs']:>6}{row['images_per_s']:>9}{row['mean_latency_s']:>8}"
            f"{row['throughput_to_loop']:>8}{row['mean_latency_to_loop']:>8}{row['p95_latency_to_loop']:>8}"
        )


if __name__ == "__main__":
    main()
