"""The farm's worker with a renderer that only paints noise: ``celery -A tests.chaos.worker worker``.

Claims, leases, the engine and its thread, steps and cancels, encoding, storing and committing are the real ones; what
is left out is torch, so that a killed worker is back in two seconds instead of twelve.
"""

from __future__ import annotations

import os
import random
import sys
import time
import types
from collections.abc import Callable

if ahead := float(os.environ.get("FARM_CHAOS_CLOCK", "0")):
    # Everything in this process that asks Python for the time of day is told a wrong one. Not moved: the monotonic
    # clock, as a clock that is set leaves it, and `datetime.now`, with which the storage's requests are signed.
    _true = time.time
    time.time = lambda: _true() + ahead

from PIL import Image

from farm.domain.cost import steps_run
from farm.domain.model import Model
from farm.domain.worker import Device, ResidentModel
from farm.errors import JobCanceled
from workers import device as devices
from workers import failpoints
from workers.device import Choice
from workers.render_request import Rendered, RenderWork

STEP_SECONDS = 0.02


class NoiseRenderer:
    """In place of `SharedRenderer`: a step of every job at each call, then noise of its seed."""

    def __init__(self, _device: Device, _torch_threads: int, move: Callable[[], None], *_: object) -> None:
        self._move = move
        self._jobs: dict[RenderWork, int] = {}
        self._loaded: set[str] = set()

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(self._loaded)

    @property
    def loaded(self) -> tuple[ResidentModel, ...]:
        return tuple(ResidentModel(name, 1) for name in self._loaded)

    def holds(self, model: Model) -> bool:
        return model.id in self._loaded

    @property
    def active(self) -> int:
        return len(self._jobs)

    def takes(self, _: Model) -> bool:
        return True

    def admit(self, work: RenderWork) -> None:
        if not self.holds(work.model):
            failpoints.at("loading_model")
            self._loaded.add(work.model.id)
        self._jobs[work] = 0

    def advance(self) -> list[tuple[RenderWork, Rendered | BaseException]]:
        time.sleep(STEP_SECONDS)
        self._move()
        ended: list[tuple[RenderWork, Rendered | BaseException]] = []
        for work, done in list(self._jobs.items()):
            if work.stop.is_set():
                ended.append((work, JobCanceled("the job was stopped")))
                continue
            self._jobs[work] = done + 1
            work.on_step(done + 1)
            if done + 1 >= steps_run(work.spec) * work.spec.num_images_per_prompt:
                ended.append((work, Rendered(_images(work), {"model": work.model.id, "dtype": "float32"})))
        for work, _ in ended:
            del self._jobs[work]
        return ended


def _images(work: RenderWork) -> list[Image.Image]:
    spec = work.spec
    size = (spec.width, spec.height)
    return [
        Image.frombytes("RGB", size, random.Random(spec.seed_of(index)).randbytes(3 * size[0] * size[1]))
        for index in range(spec.num_images_per_prompt)
    ]


def _describe(choice: Choice) -> Device:
    return Device("cpu", choice.index, "a processor that paints noise", devices.main_memory(), "float32")


devices.describe = _describe
_stand_in = types.ModuleType("workers.batched_renderer")
_stand_in.SharedRenderer = NoiseRenderer  # type: ignore[attr-defined]
sys.modules["workers.batched_renderer"] = _stand_in

from workers.app import app  # noqa: E402, F401 - Celery finds it here
