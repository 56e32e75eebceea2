"""Renders several jobs at once: their images run in one batcher and share forwards where they may."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import torch
from PIL import Image

from farm.domain.cost import steps_run
from farm.domain.job_spec import JobSpec
from farm.domain.states import Priority
from farm.errors import JobCanceled, OutOfMemory
from workers import device_errors, pipelines, previews
from workers.batch_profiles import BatchProfiles
from workers.batching.batcher import ContinuousBatcher
from workers.batching.calls import BatchMode, ModuleState, PipelineRun
from workers.model_cache import ModelCache
from workers.pipelines import LoadedModel
from workers.render_request import Preview, RenderRequest, RenderResult

#: The components whose calls park: denoisers, ControlNets, and the two halves of the VAE (a pipeline never calls the
#: forward of the VAE itself).
DENOISERS: Final = ("unet", "transformer", "transformer_2", "controlnet")
VAE_HALVES: Final = ("encoder", "decoder")

MAX_PREVIEWS: Final = 10  #: of one image
PREVIEW_SECONDS: Final = 0.4  #: between two previews of a job

Finished: TypeAlias = tuple[RenderRequest, RenderResult | BaseException]


@dataclass(eq=False)
class ActiveJob:
    """A job on the device."""

    request: RenderRequest
    loaded: LoadedModel
    made_with: dict[str, object]
    max_runs: int  #: images rendered at the same time
    state: ModuleState | None
    images: list[Image.Image | None]
    steps: list[int]  #: done, of each image
    runs: dict[PipelineRun, int] = field(default_factory=dict)  #: the index of the image that each renders
    started: int = 0  #: images
    error: BaseException | None = None
    previewed_at: float = 0.0  #: when its last preview was made


class BatchedRenderer:
    """Renders many jobs at a time on one device. Used by the engine's thread alone."""

    def __init__(
        self,
        models: ModelCache,
        max_rows: int,
        profiles: BatchProfiles | None = None,
        on_progress: Callable[[], None] = lambda: None,
    ) -> None:
        """Start without jobs.

        Args:
            models: Where models come from. The renderer takes its ``on_evict``.
            max_rows: Of one forward, on a device whose memory is not measured.
            profiles: What was measured about forwards before; None: profiles are not kept.
            on_progress: Called whenever rendering makes progress.
        """
        self.batcher = ContinuousBatcher(max_rows, profiles)
        self.refusals: dict[str, str] = {}  #: by model id: why its calls run alone; any thread may read it
        self._models = models
        self._max_rows = max_rows
        self._on_progress = on_progress
        self._jobs: list[ActiveJob] = []
        self._finished: list[Finished] = []
        self._hooked: dict[str, dict[int, torch.nn.Module]] = {}  # by the model's id and the module's
        models.on_evict = self._unhook

    @property
    def active(self) -> int:
        """Jobs on the device."""
        return len(self._jobs)

    def admit(self, request: RenderRequest) -> None:
        """Start a job. Raises `RenderError`, or what activating its LoRAs raises."""
        loaded = self._models.load(request.model)
        self._hook(loaded, request.spec.task)
        count = request.spec.num_outputs
        state = self._state(loaded, request.spec)
        if state is not None:
            state.apply()  # an invalid LoRA ends this job before it starts
        made_with = loaded.made_with(self._models.device, request.spec.loras)
        job = ActiveJob(request, loaded, made_with, self._max_rows, state, [None] * count, [0] * count)
        self._jobs.append(job)
        self._start_images(job)
        self._collect()

    def advance(self) -> list[Finished]:
        """Run one forward; returns the jobs that finished. One that ran out of memory has the error `OutOfMemory`."""
        for job in list(self._jobs):
            if job.error is None and job.request.stop.is_set():
                self._fail(job, JobCanceled("the job was stopped"))
        self._collect()
        if self.batcher.advance():
            self._on_progress()
            self._collect()
        finished, self._finished = self._finished, []
        if finished:
            self._update_refusals()
        return finished

    # -- jobs ---------------------------------------------------------------------------------------------------------

    def _start_images(self, job: ActiveJob) -> None:
        """Start as many of the job's images as may run at the same time."""
        request, spec = job.request, job.request.spec
        while job.error is None and job.started < spec.num_outputs and len(job.runs) < job.max_runs:
            index = job.started
            job.started += 1

            def on_step(step: int, index: int = index) -> None:
                job.steps[index] = step
                request.on_step(sum(job.steps))

            def render_image(index: int = index, on_step: Callable[[int], None] = on_step) -> Image.Image:
                on_latents = None if request.on_preview is None else functools.partial(self._preview, job, index)
                return pipelines.render(job.loaded, spec, index, request.inputs, on_step, request.stop, on_latents)

            run = self.batcher.start(
                render_image,
                BatchMode.EXACT if spec.exact else BatchMode.THROUGHPUT,
                interactive=request.priority is Priority.INTERACTIVE,
                state=job.state,
            )
            job.runs[run] = index
            self._on_progress()

    def _state(self, loaded: LoadedModel, spec: JobSpec) -> ModuleState | None:
        """The active LoRAs of a job; of a model that has any, no active LoRA is a state, too."""
        if not loaded.model.loras and not spec.loras:
            return None
        key = loaded.model.id, spec.task, spec.loras
        return ModuleState(key, lambda: loaded.activate_loras(spec.task, spec.loras))

    def _preview(self, job: ActiveJob, index: int, step: int, latents: torch.Tensor) -> None:
        """Make a preview of the job's first unfinished image, at most every `PREVIEW_SECONDS`."""
        request, spec = job.request, job.request.spec
        steps_each = steps_run(spec)
        first_unfinished = next((place for place, done in enumerate(job.steps) if done < steps_each), None)
        due = step % max(1, steps_each // MAX_PREVIEWS) == 0 and time.monotonic() - job.previewed_at >= PREVIEW_SECONDS
        if index != first_unfinished or not due or request.on_preview is None:
            return
        colour_map = job.loaded.preview_map(spec.task)
        image = None if colour_map is None else previews.make(latents, colour_map, spec.width or 0, spec.height or 0)
        if image is not None:
            request.on_preview(Preview(index, step, image))
            job.previewed_at = time.monotonic()

    def _fail(self, job: ActiveJob, error: BaseException) -> None:
        """Fail a job: end its images that are not finished."""
        job.error = error
        for run in list(job.runs):
            self.batcher.stop(run, JobCanceled("another image of the job failed"))

    def _collect(self) -> None:
        """Take the finished images from the batcher, start the next ones, and finish the jobs that have no more."""
        while finished := self.batcher.take_finished():
            for run in finished:
                job = next(job for job in self._jobs if run in job.runs)
                index = job.runs.pop(run)
                if run.error is None:
                    job.images[index] = run.result
                elif job.error is None:
                    self._fail(job, run.error)
                self._start_images(job)
        for job in [job for job in self._jobs if not job.runs]:
            self._jobs.remove(job)
            self._finished.append((job.request, self._outcome(job)))

    def _outcome(self, job: ActiveJob) -> RenderResult | BaseException:
        error = job.error
        if error is None:
            return RenderResult([image for image in job.images if image is not None], job.made_with)
        if device_errors.is_out_of_memory(error):
            error.__traceback__ = None  # its frames hold tensors
            return OutOfMemory("the device ran out of memory")
        return error

    # -- modules ------------------------------------------------------------------------------------------------------

    def _hook(self, loaded: LoadedModel, task: str) -> None:
        hooked = self._hooked.setdefault(loaded.model.id, {})
        for name, module in modules_to_hook(loaded.pipeline(task)):
            if id(module) not in hooked:
                hooked[id(module)] = module
                self.batcher.hook(
                    module,
                    f"{loaded.model.id}/{name}",
                    weights=loaded.fingerprint,
                    denoiser=not name.startswith("vae."),
                    check_finite=name == "vae.decoder",
                )

    def _unhook(self, model_id: str) -> None:
        """Hold no module of a model that is evicted."""
        for module in self._hooked.pop(model_id, {}).values():
            self.batcher.unhook(module)

    def _update_refusals(self) -> None:
        found: dict[str, str] = {}
        for model_id, hooked in self._hooked.items():
            for module in hooked.values():
                reason = self.batcher.refusal(module)
                if reason is not None:
                    found[model_id] = reason
        self.refusals = found


def modules_to_hook(pipeline: Any) -> list[tuple[str, torch.nn.Module]]:
    """The modules of a pipeline whose calls park, with names for the log."""
    found = [(name, getattr(pipeline, name, None)) for name in DENOISERS]
    vae = getattr(pipeline, "vae", None)
    found += [(f"vae.{half}", getattr(vae, half, None)) for half in VAE_HALVES]
    return [(name, module) for name, module in found if isinstance(module, torch.nn.Module)]
