"""Jobs of several models on one device: two that fit its memory and three that do not, with affinity and without.

``python -m tests.bench.switching [--jobs N] [--rounds N]`` starts servers of its own, a dispatcher in this process and
one worker that holds two models. The models are the built-in one under three ids. N jobs of the models by turns wait at
the start; a side's time runs from the first claim to the last commit, and its ratio is to the same number of jobs of
one model. ``loads`` counts how often a model was brought into memory. Without affinity jobs go as they came.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from farm.dispatch.dispatcher import Dispatcher
from farm.dispatch.policy import Rules
from farm.domain.job import NewJob
from farm.objects.storage import Storage
from farm.settings import Settings, settings
from tests.bench.webhooks import Farm, farm_servers
from tests.bench.whole import CELERY, QUIETLY, ending
from tests.integration.conftest import spec

OUT = Path("bench-out")
#: By name: how many models, and how many dispatches a queue may be passed over for a loaded model.
SIDES = {
    "one model": (1, Rules().max_skips),
    "two that fit, affinity": (2, Rules().max_skips),
    "two that fit, none": (2, 0),
    "three that do not, affinity": (3, Rules().max_skips),
    "three that do not, none": (3, 0),
}
MODELS = "".join(
    f'[[model]]\nid = "model-{number}"\nsource = "builtin:starter"\ntasks = ["text-to-image"]\n'
    for number in range(3)
)  # fmt: skip


def rendered(farm: Farm, tenant: str, dispatcher: Dispatcher, models: int, max_skips: int, jobs: int) -> float:
    """Seconds that the jobs take."""
    dispatcher._rules = Rules(max_skips=max_skips)
    # a class of its own keeps what was remembered of the last side out of this one
    wanted = [
        NewJob(spec(seed=number).model_copy(update={"model": f"model-{number % models}", "num_inference_steps": 8}))
        for number in range(jobs)
    ]
    with farm.store.begin() as unit:
        unit.session.connection().exec_driver_sql("DELETE FROM queue_state")
        made = unit.jobs.insert(tenant, wanted)
    with farm.store.begin() as unit:
        unit.session.connection().exec_driver_sql("SELECT pg_notify('farm_queue', '')")
    deadline = time.monotonic() + 200
    while True:
        with farm.store.begin() as unit:
            found = unit.jobs.many(made).values()
        if all(one.finished_at is not None for one in found):
            break
        if time.monotonic() > deadline:
            raise SystemExit(f"not done: {[one.state.value for one in found]}")
        time.sleep(0.1)
    assert all(one.state.value == "succeeded" for one in found), [one.error for one in found]
    begun = min(one.claimed_at for one in found if one.claimed_at is not None)
    return (max(one.finished_at for one in found if one.finished_at is not None) - begun).total_seconds()


def measure(jobs: int, rounds: int) -> list[dict[str, Any]]:
    """Every side in every round."""
    with tempfile.TemporaryDirectory() as name, farm_servers(Path(name) / "data") as (farm, _):
        models = Path(name) / "models.toml"
        models.write_text(MODELS)
        log = Path(name) / "worker.log"
        more = {"FARM_MODELS_FILE": str(models), "FARM_DEVICE": "cpu0", "FARM_TORCH_THREADS": "1"}
        environment = os.environ | farm.env | more | {"FARM_METRICS_WORKER_PORT": "0", "FARM_DATA_DIR": name}
        os.environ |= farm.env | {"FARM_MODELS_FILE": str(models)}
        settings.cache_clear()
        storage = Storage(Settings())
        storage.ensure_bucket()
        storage.close()
        dispatcher = Dispatcher(Settings())
        threading.Thread(target=dispatcher.run, daemon=True).start()
        with farm.store.begin() as unit:
            tenant = unit.tenants.create("switching").id
        with log.open("wb") as file:
            started = subprocess.Popen(
                [*CELERY, "tests.bench.tight", *QUIETLY], env=environment, stdout=file, stderr=subprocess.STDOUT
            )
            with ending(started):
                loads = dict.fromkeys(SIDES, 0)
                seconds: dict[str, list[float]] = {name: [] for name in SIDES}
                rendered(farm, tenant, dispatcher, 1, 0, 6)  # load, and learn the rows
                for turn in range(rounds):
                    names = list(SIDES)
                    for name_ in names[turn % len(names) :] + names[: turn % len(names)]:
                        before = len(re.findall("action=model_loaded", log.read_text()))
                        seconds[name_].append(rendered(farm, tenant, dispatcher, *SIDES[name_], jobs))
                        loads[name_] += len(re.findall("action=model_loaded", log.read_text())) - before
        dispatcher.stop()
    return [
        {
            "side": name,
            "jobs_per_s": round(jobs / statistics.median(seconds[name]), 2),
            "to_one_model": round(
                statistics.median(a / b for a, b in zip(seconds["one model"], seconds[name], strict=True)), 3
            ),
            "loads_per_round": round(loads[name] / rounds, 1),
        }
        for name in SIDES
    ]


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=36)
    parser.add_argument("--rounds", type=int, default=2)
    asked = parser.parse_args()
    rows = measure(asked.jobs, asked.rounds)
    OUT.mkdir(exist_ok=True)
    (OUT / "switching.json").write_text(json.dumps({"about": vars(asked), "sides": rows}, indent=2) + "\n")
    print(f"{'':30}{'jobs/s':>8}{'x one model':>13}{'loads':>7}")
    for row in rows:
        print(f"{row['side']:30}{row['jobs_per_s']:>8}{row['to_one_model']:>13}{row['loads_per_round']:>7}")


if __name__ == "__main__":
    main()
