"""The engine's process with a renderer that returns noise: ``python -m tests.noise_device``.

The engine and its thread, its messages, steps and cancels are the real ones. Only the forward passes are replaced, so
that no torch is imported: that takes ten seconds of a processor for each worker.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Self

from PIL import Image

from farm.domain.job_spec import JobSpec
from farm.domain.model import Model
from farm.domain.numerics import Numerics
from farm.domain.worker import Device
from farm.errors import JobCanceled
from tests.job_specs import size_of
from workers import device as devices
from workers import engine, engine_child, failpoints
from workers.device import DeviceChoice
from workers.media.artifacts import Artifact
from workers.render_request import RenderRequest, RenderResult

#: The device fails when a job whose prompt contains this text has done a step.
FAILS_AT = os.environ.get("FARM_NOISE_DEVICE_FAILS_AT")
STEP_SECONDS = float(os.environ.get("FARM_NOISE_STEP_SECONDS", "0.02"))


class NoiseDeviceFailure(Exception):
    """In place of a CUDA error."""


class NoiseModels:
    """In place of `ModelCache`: a model is loaded at once and stays."""

    def __init__(self) -> None:
        self.sizes: tuple[tuple[str, int], ...] = ()

    def __contains__(self, model: Model) -> bool:
        return (model.id, 1) in self.sizes

    def load(self, model: Model) -> None:
        if model not in self:
            failpoints.at("loading_model")
            self.sizes += ((model.id, 1),)

    def prefetch(self, model: Model) -> None: ...


@dataclass(frozen=True)
class NoisePart:
    """In place of `Snapshot`: from which step to which a job came."""

    first: int
    steps: int
    fresh: bool
    size: int = 64

    def to_bytes(self) -> bytes:
        return json.dumps([self.first, self.steps]).encode()


@dataclass
class NoiseJob:
    """A job that is being rendered."""

    done: int = 0  #: steps
    saved: int = 0  #: steps in a checkpoint
    saved_at: float = field(default_factory=time.monotonic)

    @classmethod
    def begin(cls, request: RenderRequest) -> Self:
        """Go on where the parts of earlier attempts end, each of which must begin where the one before it ends."""
        found = cls()
        for body in request.checkpoint_parts:
            first, steps = json.loads(bytes(body))
            assert first == found.done, f"a part begins at step {first}, not {found.done}"
            found.done = found.saved = steps
        if found.done and request.on_resumed is not None:
            request.on_resumed(found.done)
        return found

    def save(self, request: RenderRequest) -> None:
        """As the renderer does: after so many seconds, and when the job is stopped."""
        if request.on_checkpoint is None or self.done <= self.saved:
            return
        if request.stop.is_set() or time.monotonic() - self.saved_at >= request.checkpoint_seconds:
            request.on_checkpoint(NoisePart(self.saved, self.done, fresh=not self.saved))
            self.saved, self.saved_at = self.done, time.monotonic()


class NoiseRenderer:
    """In place of `BatchedRenderer`: one step of every job at each call, then noise from its seed."""

    refusals: ClassVar[dict[str, str]] = {}

    def __init__(self, models: NoiseModels, on_progress: Callable[[], None]) -> None:
        self._models = models
        self._on_progress = on_progress
        self._jobs: dict[RenderRequest, NoiseJob] = {}

    @property
    def active(self) -> int:
        return len(self._jobs)

    @property
    def held_up(self) -> list[RenderRequest]:
        return []

    def admit(self, request: RenderRequest) -> None:
        self._models.load(request.model)
        self._jobs[request] = NoiseJob.begin(request)
        request.recorded = request.on_checkpoint is not None

    def advance(self) -> list[tuple[RenderRequest, RenderResult | BaseException]]:
        time.sleep(STEP_SECONDS)
        self._on_progress()
        finished: list[tuple[RenderRequest, RenderResult | BaseException]] = []
        for request, job in list(self._jobs.items()):
            job.save(request)
            if request.stop.is_set():
                finished.append((request, JobCanceled("the job was stopped")))
                continue
            if FAILS_AT is not None and job.done and FAILS_AT in request.spec.prompt:
                raise NoiseDeviceFailure("CUDA error: device-side assert triggered")
            job.done += 1
            request.report(job.done)
            if job.done >= request.total_steps:
                made_with: dict[str, object] = {"model": request.model.id, "dtype": "float32"}
                finished.append((request, RenderResult(_images(request.spec), made_with)))
        for request, _ in finished:
            del self._jobs[request]
        return finished


def _images(spec: JobSpec) -> list[Artifact]:
    size = size_of(spec)
    return [
        Image.frombytes("RGB", size, random.Random(spec.seed_of(index)).randbytes(3 * size[0] * size[1]))
        for index in range(spec.num_outputs)
    ]


def _describe(choice: DeviceChoice) -> Device:
    return Device("cpu", choice.index, "a processor that renders noise", devices.main_memory(), "float32")


def _make_renderers(device: Device, options: engine.EngineOptions, on_progress: Callable[[], None]) -> engine.Renderers:
    models = NoiseModels()
    return engine.Renderers(
        models,  # type: ignore[arg-type]
        NoiseRenderer(models, on_progress),  # type: ignore[arg-type]
        None,  # type: ignore[arg-type]
        lambda error: isinstance(error, NoiseDeviceFailure),
    )


def _prepare_numerics(device: Device, options: engine.EngineOptions) -> Numerics:
    return Numerics.of("cpu", {"device": device.name, "threads": str(options.torch_threads)})


devices.describe = _describe
engine.prepare_numerics = _prepare_numerics
engine.make_renderers = _make_renderers

if __name__ == "__main__":
    engine_child.main()
