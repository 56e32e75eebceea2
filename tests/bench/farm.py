"""Images a second through a whole farm, beside the engine alone on the same jobs, by turns in one run.

``python -m tests.bench.farm [--jobs N] [--rounds N]``. The farm's time runs from the request that submits the jobs to
the commit of the last one: HTTP, dispatch, Redis, claim, the device, encoding, S3, commit. The engine's runs from its
first job to its last image, with as many slots and rows and as much prefetch.

On a machine without an accelerator the last core is the device: the engine's thread has it for itself on both sides,
and everything else (servers, API, dispatcher, the worker's other threads, this bench) shares the others, as on a
machine with a GPU. Where there are only two processors, those others are one, and what they take may be late.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from threading import Event

from farm import model_registry
from farm.domain.job_spec import JobSpec
from farm.domain.model import Model
from tests.bench.engine import popular
from tests.bench.pinning import pin_engines
from tests.bench.whole import Whole, whole
from workers import device as devices
from workers import numerics, pipelines
from workers.engine import Engine, EngineOptions
from workers.process import SLOTS
from workers.render_request import RenderRequest

OUT = Path("bench-out")


def through_farm(farm: Whole, specs: list[JobSpec]) -> float:
    """Seconds from the request to the last commit."""
    wanted = ("prompt", "num_inference_steps", "guidance_scale", "scheduler", "seed", "width", "height", "exact")
    jobs = [{name: value for name, value in spec.request().items() if name in wanted} for spec in specs]
    begun = time.time()
    batch = farm.batch(jobs, task="text-to-image")
    farm.wait(batch, len(jobs))
    row = farm.database.execute("SELECT extract(epoch FROM max(finished_at))::float8 FROM job").fetchone()
    assert row is not None
    return float(row[0]) - begun


def through_engine(engine: Engine, model: Model, specs: list[JobSpec]) -> float:
    """Seconds from the first job to the last image."""
    begun = time.perf_counter()
    works = [RenderRequest(spec, model, {}, lambda _: None, lambda _: None, Event()) for spec in specs]
    for future in [engine.submit(work) for work in works]:
        future.result()
    return time.perf_counter() - begun


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", type=int, default=0, help="pixels; the model's default size if absent")
    asked = parser.parse_args()

    processors = os.sched_getaffinity(0)
    own = {max(processors)}
    rest = processors - own or own
    os.environ["BENCH_DEVICE"] = str(max(own))
    os.sched_setaffinity(0, rest)  # inherited by all that is started here
    pin_engines()
    model = model_registry.load(None).models[0]
    specs = [
        spec.model_copy(update={"exact": model.defaults.get("exact", True)})
        for spec in popular(asked.jobs, model, asked.side or model.defaults["width"])
    ]
    choice = devices.choose(None)
    pipelines.silence_libraries()
    numerics.make_deterministic(1)
    engine = Engine(EngineOptions(choice, 1, SLOTS[choice.kind], profiles_dir=OUT / "batch-profiles"))
    engine.start()
    device = engine.device.result()
    farms, alone = [], []
    with whole() as farm:
        farm.start_worker(choice.index, "tests.bench.pinned")
        through_farm(farm, specs[:6])  # load, and learn the rows
        through_engine(engine, model, specs[:6])
        for turn in range(asked.rounds):
            for side in (0, 1) if turn % 2 else (1, 0):
                if side:
                    farms.append(through_farm(farm, specs))
                else:
                    alone.append(through_engine(engine, model, specs))
    engine.close()
    found = {
        "about": vars(asked) | {"device": device.name, "side": specs[0].width, "processors": len(processors)},
        "farm_images_per_s": round(asked.jobs / statistics.median(farms), 3),
        "engine_images_per_s": round(asked.jobs / statistics.median(alone), 3),
        "farm_to_engine": round(statistics.median(b / a for a, b in zip(farms, alone, strict=True)), 3),
        "farm_to_engine_by_round": [round(b / a, 3) for a, b in zip(farms, alone, strict=True)],
    }
    OUT.mkdir(exist_ok=True)
    (OUT / "farm.json").write_text(json.dumps(found, indent=2) + "\n")
    for name, value in found.items():
        print(f"{name:28} {value}")


if __name__ == "__main__":
    main()
