"""Mixed jobs through the engine, beside the same jobs as a loop over stock pipelines in the same run.

``python -m tests.bench.engine [--jobs N] [--rounds N]``. Every side renders the same jobs in every round, in an order
that rotates; a ratio is the median over the rounds of a side to the loop. Beside wall time it gives the ratio of
processor time, which other work on the machine disturbs less. All jobs are there at the start.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from farm import registry
from farm.domain.model import Model
from farm.domain.tasks import JobSpec, Scheduler, Task
from farm.domain.worker import Card
from workers import card as cards
from workers import pipelines, shared
from workers.batching import Sharing
from workers.engine import Engine, RenderWork
from workers.pipelines import LoadedModel

OUT = Path("bench-out")
SCHEDULERS = (Scheduler.DDIM, Scheduler.EULER, Scheduler.EULER_ANCESTRAL, Scheduler.DPM_SOLVER, Scheduler.UNIPC)


@dataclass(frozen=True)
class Taken:
    """What one side took for all jobs: seconds."""

    wall: float
    processor: float
    latency: float  #: mean, from the start to a job's end


def drawn(count: int, model: Model, side: int) -> list[JobSpec]:
    draw = random.Random(5)
    made = []
    for index in range(count):
        task = draw.choice([Task.TEXT_TO_IMAGE, Task.TEXT_TO_IMAGE, *Task])
        made.append(
            JobSpec.model_validate(
                {
                    "task": task,
                    "model": model.id,
                    "prompt": "a red sphere on a blue background",
                    "negative_prompt": "",
                    "num_inference_steps": draw.randint(8, 40),
                    "guidance_scale": draw.choice([1.0, 3.0, 4.0, 7.5]),
                    "scheduler": draw.choice(SCHEDULERS),
                    "seed": index,
                    "num_images_per_prompt": 1,
                    "width": side,
                    "height": side,
                    "strength": None if task is Task.TEXT_TO_IMAGE else draw.choice([0.5, 0.8, 1.0]),
                    "output_format": "png",
                    "inputs": {},
                }
            )
        )
    return made


def inputs(spec: JobSpec) -> dict[str, Image.Image]:
    size = spec.width, spec.height
    scene, mask = Image.new("RGB", size, (40, 60, 200)), Image.new("L", size, 0)
    ImageDraw.Draw(scene).ellipse((8, 8, spec.width // 2, spec.height // 2), (220, 40, 40))
    mask.paste(255, (4, 4, spec.width // 2, spec.height // 2))
    if spec.task is Task.TEXT_TO_IMAGE:
        return {}
    return {"image": scene} | ({"mask_image": mask} if spec.task is Task.INPAINTING else {})


def timed(render: Callable[[Callable[[], None]], None]) -> Taken:
    ends: list[float] = []
    start, used = time.perf_counter(), time.process_time()
    render(lambda: ends.append(time.perf_counter() - start))
    return Taken(time.perf_counter() - start, time.process_time() - used, statistics.fmean(ends))


def loop(loaded: LoadedModel, specs: list[JobSpec]) -> Taken:
    def render(ended: Callable[[], None]) -> None:
        for spec in specs:
            pipelines.render(loaded, spec, 0, inputs(spec), lambda _: None, threading.Event())
            ended()

    return timed(render)


def through(engine: Engine, model: Model, specs: list[JobSpec]) -> Taken:
    def render(ended: Callable[[], None]) -> None:
        futures = []
        for spec in specs:
            work = RenderWork(spec, model, inputs(spec), lambda: None, lambda _: None, threading.Event())
            work.future.add_done_callback(lambda _: ended())
            futures.append(engine.submit(work))
        for future in futures:
            future.result()

    return timed(render)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--side", type=int, default=0, help="pixels; the model's default size if absent")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    asked = parser.parse_args()

    exact = registry.load(None).models[0]
    equal, throughput = exact, exact.model_copy(update={"mode": "throughput"})
    specs = drawn(asked.jobs, exact, asked.side or exact.defaults.width)
    choice = cards.choose(None)
    pipelines.quiet()
    pipelines.be_deterministic(asked.threads)
    engines = {
        name: Engine(choice, asked.threads, slots, asked.rows)
        for name, slots in (
            ("one slot", 1),
            ("alone", asked.slots),
            ("exact", asked.slots),
            ("throughput", asked.slots),
        )
    }
    for engine in engines.values():
        engine.start()
    card: Card = engines["one slot"].card.result()
    loaded = pipelines.load(exact, card)
    models = {"one slot": exact, "alone": exact, "exact": equal, "throughput": throughput}

    def side(name: str, jobs: list[JobSpec]) -> Taken:
        if name == "loop":
            return loop(loaded, jobs)
        # no registry entry asks for it yet, see `workers.shared.SHARING`
        shared.SHARING["exact"] = Sharing.EXACT if name == "exact" else Sharing.ALONE
        return through(engines[name], models[name], jobs)

    names = ["loop", *engines]
    for name in names:  # load, and learn the rows
        side(name, [spec.model_copy(update={"num_inference_steps": 5}) for spec in specs])
    taken: dict[str, list[Taken]] = {name: [] for name in names}
    for turn in range(asked.rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            taken[name].append(side(name, specs))
    for engine in engines.values():
        engine.close()

    def ratio(name: str, of: Callable[[Taken], float], *, inverse: bool = False) -> float:
        pairs = [(of(one), of(base)) for one, base in zip(taken[name], taken["loop"], strict=True)]
        return round(statistics.median(base / one if inverse else one / base for one, base in pairs), 3)

    rows: dict[str, dict[str, Any]] = {
        name: {
            "images_per_s": round(asked.jobs / statistics.median(one.wall for one in taken[name]), 2),
            "throughput_to_loop": ratio(name, lambda one: one.wall, inverse=True),
            "throughput_to_loop_by_processor_time": ratio(name, lambda one: one.processor, inverse=True),
            "mean_latency_to_loop": ratio(name, lambda one: one.latency),
        }
        for name in names
    }
    OUT.mkdir(exist_ok=True)
    about = vars(asked) | {"device": card.device, "side": specs[0].width}
    (OUT / "engine.json").write_text(json.dumps({"about": about, "sides": rows}, indent=2) + "\n")
    print(f"{asked.jobs} jobs of {specs[0].width}x{specs[0].height}, {asked.rounds} rounds, {card.device}")
    print(f"{'':12}{'images/s':>10}{'x loop':>9}{'x loop (cpu)':>14}{'latency':>9}")
    for name, row in rows.items():
        print(
            f"{name:12}"
            + "".join(f"{value:>{width}}" for value, width in zip(row.values(), (10, 9, 14, 9), strict=True))
        )


if __name__ == "__main__":
    main()
