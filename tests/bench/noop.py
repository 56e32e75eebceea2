"""A worker whose pipeline does nothing, for measuring what everything else costs: ``celery -A tests.bench.noop``.

It is the farm's own worker (claim, engine thread, encode, upload, commit) with one thing replaced: loading any model
gives a diffusers pipeline that returns a black image without a step.
"""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput

from farm.domain.model import Model
from farm.domain.worker import Device
from workers import pipelines
from workers.app import app
from workers.pipelines import LoadedModel

__all__ = ["app"]


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
