"""The engine's process of `tests.bench.noop`: loading any model gives a pipeline that returns a black image."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput

from farm.domain.model import Model
from farm.domain.worker import Device
from workers import engine_child, pipelines
from workers.pipelines import LoadedModel


class StableDiffusionPipeline(diffusers.DiffusionPipeline):  # type: ignore[misc, unused-ignore]
    """Takes what the class of that name takes: the worker looks the name up in the catalogue."""

    def __init__(self, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(scheduler=scheduler)

    def __call__(self, *, width: int, height: int, **_: object) -> StableDiffusionPipelineOutput:
        """A black image, (1, H, W, 3)."""
        return StableDiffusionPipelineOutput(np.zeros((1, height, width, 3), np.float32), None)


def _load(model: Model, device: Device) -> LoadedModel:
    return LoadedModel(model, "float32", None, "sha256:0", 0, StableDiffusionPipeline(diffusers.DDIMScheduler()))


pipelines.load = _load

if __name__ == "__main__":
    engine_child.main()
