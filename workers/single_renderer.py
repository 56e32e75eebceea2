"""Renders a job again that ran out of memory, alone on the device and with less memory."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from farm import metrics
from farm.domain.cost import steps_run
from farm.domain.job_spec import JobSpec
from farm.errors import OutOfMemory
from workers import device_errors, pipelines
from workers.device import torch_device
from workers.media.artifacts import Artifact
from workers.model_cache import ModelCache, free_memory
from workers.pipelines import LoadedModel
from workers.render_request import RenderRequest, RenderResult

log = structlog.stdlib.get_logger()


class SingleRenderer:
    """Renders one job at a time. Used by the engine's thread alone, when the device is empty."""

    def __init__(self, models: ModelCache, on_progress: Callable[[], None]) -> None:
        """``on_progress`` is called whenever rendering makes progress."""
        self._models = models
        self._on_progress = on_progress

    def render(self, request: RenderRequest) -> RenderResult:
        """All outputs of a job: with the VAE in tiles, then with only the component at work on the device.

        Raises `OutOfMemory` if neither is enough, or what the pipeline raises.
        """
        metrics.LOW_MEMORY_RENDERS.inc()
        log.warning("out of memory, rendering with less", action="out_of_memory", model=request.model.id)
        spec, loaded = request.spec, self._models.load(request.model)
        # Tiles change the pixels a little, so the recipe says so.
        made_with = loaded.made_with(self._models.device, spec.loras) | {"vae": "tiled"}
        self._models.evict_others(request.model.id)
        # A switch of the VAE that all jobs of a model share, so no other job may be on the device.
        pipelines.set_vae_tiling(loaded, spec.task, on=True)
        try:
            loaded.activate_loras(spec.task, spec.loras)
            warnings: list[str] = []
            artifacts = self._render_with_less_memory(loaded, request, warnings)
            return RenderResult(artifacts, made_with | loaded.compiled_fact(), tuple(warnings))
        except Exception as error:
            if not device_errors.is_out_of_memory(error):
                raise
            raise OutOfMemory(
                f"the job does not fit the device's memory with model {request.model.id}{_size_of(spec)}"
            ) from error
        finally:
            pipelines.set_vae_tiling(loaded, spec.task, on=False)

    def _render_with_less_memory(
        self, loaded: LoadedModel, request: RenderRequest, warnings: list[str]
    ) -> list[Artifact]:
        try:
            return self._outputs(loaded, request, warnings)
        except Exception as error:
            if not device_errors.is_out_of_memory(error) or not self._can_offload(loaded, request.spec.task):
                raise
            error.__traceback__ = None  # its frames hold tensors
        log.warning("out of memory, offloading weights", action="offloading", model=request.model.id)
        free_memory()
        with pipelines.cpu_offload(loaded, request.spec.task, torch_device(self._models.device)):
            return self._outputs(loaded, request, warnings)

    def _outputs(self, loaded: LoadedModel, request: RenderRequest, warnings: list[str]) -> list[Artifact]:
        steps_each = steps_run(request.spec)
        artifacts = []

        def warn(message: str) -> None:
            if message not in warnings:
                warnings.append(message)

        for index in range(request.spec.num_outputs):

            def on_step(step: int, done_before: int = index * steps_each) -> None:
                request.report(done_before + step)

            artifact = pipelines.render(
                loaded,
                request.spec,
                index,
                request.inputs,
                on_step,
                request.stop,
                None,
                self._on_progress,
                warn,
            )
            artifacts.append(artifact)
            self._on_progress()
        return artifacts

    def _can_offload(self, loaded: LoadedModel, task: str) -> bool:
        """Whether main memory and the device's memory are separate, and the pipeline says in what order it computes."""
        sequence = getattr(loaded.pipeline(task), "model_cpu_offload_seq", None)
        return self._models.device.kind == "cuda" and sequence is not None


def _size_of(spec: JobSpec) -> str:
    """The size that a job gives, as the end of a sentence."""
    return f" at {spec.width}x{spec.height} pixels" if spec.width and spec.height else ""
