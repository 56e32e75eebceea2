"""Jobs through the engine, beside the same jobs as a loop over stock pipelines and as static batches, in one run.

``python -m tests.bench.engine [--work mixed|popular] [--jobs N] [--rounds N]``. Every side renders the same jobs in
every round, in an order that rotates; a ratio is the median over the rounds of a side to the loop. Beside wall time it
gives the ratio of processor time, which other work on the machine disturbs less. All jobs are there at the start.

``mixed`` jobs differ in task, steps (8 to 40), guidance and scheduler, so that next to none are equal; ``popular`` ones
have one of twelve settings, as a product's users send them: what static batching is for.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from farm import model_registry
from farm.domain.job_spec import JobSpec
from farm.domain.model import Model
from farm.domain.worker import Device
from tests.bench import peers
from tests.job_specs import STARTER_TASKS, job_spec
from workers import device as devices
from workers import numerics, pipelines
from workers.engine import Engine, EngineOptions
from workers.render_request import RenderRequest

OUT = Path("bench-out")
SCHEDULERS = ("ddim", "euler", "euler-ancestral", "dpm-solver", "unipc")
SIDES = ("loop", "static", "one slot", "exact", "throughput")


@dataclass(frozen=True)
class Taken:
    """What one side took for all jobs: seconds."""

    wall: float
    processor: float
    latency: float  #: mean, from the start to a job's end


def job(model: Model, side: int, seed: int, task: str, **chosen: object) -> JobSpec:
    """A job of the bench."""
    return job_spec(
        {
            "task": task,
            "model": model.id,
            "prompt": model.example_prompts[seed % len(model.example_prompts)],
            "negative_prompt": "",
            "seed": seed,
            "num_outputs": 1,
            "width": side,
            "height": side,
            "strength": None,
            "output_format": "png",
            "inputs": {},
        }
        | chosen
    )


def mixed(count: int, model: Model, side: int, seed: int = 5) -> list[JobSpec]:
    """Jobs that differ in everything."""
    draw = random.Random(seed)
    made = []
    for index in range(count):
        task = draw.choice(["text-to-image", "text-to-image", *STARTER_TASKS])
        chosen = {
            "num_inference_steps": draw.randint(8, 40),
            "guidance_scale": draw.choice([1.0, 3.0, 4.0, 7.5]),
            "scheduler": draw.choice(SCHEDULERS),
            "strength": None if task == "text-to-image" else draw.choice([0.5, 0.8, 1.0]),
        }
        made.append(job(model, side, 1000 * seed + index, task, **chosen))
    return made


def popular(count: int, model: Model, side: int, seed: int = 5) -> list[JobSpec]:
    """Jobs of some popular settings, as a product's users send them."""
    draw = random.Random(seed)
    return [
        job(
            model,
            side,
            1000 * seed + index,
            "text-to-image",
            num_inference_steps=draw.choice([10, 20, 30]),
            guidance_scale=draw.choice([2.0, 5.0]),
            scheduler=draw.choice(["ddim", "dpm-solver"]),
        )
        for index in range(count)
    ]


def timed(render: Callable[[Callable[[], None]], None]) -> Taken:
    """Measure what renders all jobs, and calls what it is given after each."""
    ends: list[float] = []
    start, used = time.perf_counter(), time.process_time()
    render(lambda: ends.append(time.perf_counter() - start))
    return Taken(time.perf_counter() - start, time.process_time() - used, statistics.fmean(ends))


def through(engine: Engine, model: Model, specs: list[JobSpec], ended: Callable[[], None], *, exact: bool) -> None:
    """All jobs through an engine."""
    futures = []
    for spec in specs:
        wanted = spec.model_copy(update={"exact": exact})
        work = RenderRequest(wanted, model, peers.inputs(spec), lambda _: None, lambda _: None, Event())
        work.future.add_done_callback(lambda _: ended())
        futures.append(engine.submit(work))
    for future in futures:
        future.result()


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", choices=("mixed", "popular"), default="mixed")
    parser.add_argument("--jobs", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=120.0, help="after which no other round begins")
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--side", type=int, default=0, help="pixels; the model's default size if absent")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    asked = parser.parse_args()

    model = model_registry.load(None).models[0]
    draw = mixed if asked.work == "mixed" else popular
    specs = draw(asked.jobs, model, asked.side or model.defaults["width"])
    choice = devices.choose(None)
    pipelines.silence_libraries()
    numerics.make_deterministic(asked.threads)
    profiles = OUT / "batch-profiles"
    one_slot = Engine(EngineOptions(choice, asked.threads, 1, asked.rows, profiles))
    shared = Engine(EngineOptions(choice, asked.threads, asked.slots, asked.rows, profiles))
    for engine in (one_slot, shared):
        engine.start()
    device: Device = shared.device.result()
    one_slot.device.result()
    loaded = pipelines.load(model, device)

    def side(name: str, jobs: list[JobSpec]) -> Taken:
        if name == "loop":
            return timed(lambda ended: peers.loop(loaded, jobs, ended))
        if name == "static":
            return timed(lambda ended: peers.static(loaded, jobs, asked.slots, ended))
        engine = one_slot if name == "one slot" else shared
        return timed(lambda ended: through(engine, model, jobs, ended, exact=name == "exact"))

    names = list(SIDES)
    for name in names:  # load, and learn the rows
        side(name, [spec.model_copy(update={"num_inference_steps": 2}) for spec in specs])
    taken: dict[str, list[Taken]] = {name: [] for name in names}
    begun = time.perf_counter()
    for turn in range(asked.rounds):
        if turn and time.perf_counter() - begun > asked.seconds:
            break
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            taken[name].append(side(name, specs))
    for engine in (one_slot, shared):
        engine.close()

    def ratio(name: str, of: Callable[[Taken], float], *, inverse: bool = False, to: str = "loop") -> float:
        pairs = [(of(one), of(base)) for one, base in zip(taken[name], taken[to], strict=True)]
        return round(statistics.median(base / one if inverse else one / base for one, base in pairs), 3)

    rows: dict[str, dict[str, Any]] = {
        name: {
            "images_per_s": round(asked.jobs / statistics.median(one.wall for one in taken[name]), 2),
            "throughput_to_loop": ratio(name, lambda one: one.wall, inverse=True),
            "throughput_to_loop_by_processor_time": ratio(name, lambda one: one.processor, inverse=True),
            "throughput_to_static": ratio(name, lambda one: one.wall, inverse=True, to="static"),
            "mean_latency_to_loop": ratio(name, lambda one: one.latency),
        }
        for name in names
    }
    OUT.mkdir(exist_ok=True)
    about = vars(asked) | {"rounds": len(taken["loop"]), "device": device.name, "side": specs[0].width}
    written = f"engine-{asked.work}-{specs[0].width}.json"
    (OUT / written).write_text(json.dumps({"about": about, "sides": rows}, indent=2) + "\n")
    size = f"{specs[0].width}x{specs[0].height}"
    print(f"{asked.jobs} {asked.work} jobs of {size}, {len(taken['loop'])} rounds, {device.name}")
    print(f"{'':12}{'images/s':>10}{'x loop':>9}{'x loop (cpu)':>14}{'x static':>10}{'latency ÷':>11}")
    for name, row in rows.items():
        widths = (10, 9, 14, 10, 11)
        print(f"{name:12}" + "".join(f"{value:>{width}}" for value, width in zip(row.values(), widths, strict=True)))


if __name__ == "__main__":
    main()
