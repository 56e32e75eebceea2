"""Renders several jobs at once: their images run in one batcher and share forwards where they may."""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import structlog
import torch

from farm.domain.cost import steps_run
from farm.domain.job_spec import JobSpec
from farm.domain.states import Priority
from farm.errors import JobCanceled, OutOfMemory
from workers import device_errors, pipelines, previews
from workers.batch_profiles import BatchProfiles
from workers.batching.batcher import ContinuousBatcher
from workers.batching.calls import BatchMode, ModuleState, PipelineRun
from workers.checkpoints.job_checkpoints import JobCheckpoints
from workers.checkpoints.record import Recording, RecordMismatch
from workers.media.artifacts import Artifact
from workers.model_cache import ModelCache
from workers.pipelines import LoadedModel
from workers.pipelines.isolation import Sharing, Trial
from workers.pipelines.loaded_model import ParkingModule
from workers.render_request import Preview, RenderRequest, RenderResult

log = structlog.stdlib.get_logger()

MAX_PREVIEWS: Final = 10  #: of one image
PREVIEW_SECONDS: Final = 0.4  #: between two previews of a job

Finished: TypeAlias = tuple[RenderRequest, RenderResult | BaseException]


@dataclass(eq=False)
class ActiveJob:
    """A job on the device."""

    request: RenderRequest
    loaded: LoadedModel
    made_with: dict[str, object]
    max_runs: int  #: outputs rendered at the same time
    state: ModuleState | None
    artifacts: list[Artifact | None]
    steps: list[int]  #: done, of each output
    warnings: list[str] = field(default_factory=list)
    runs: dict[PipelineRun, int] = field(default_factory=dict)  #: the index of the output that each renders
    checkpoints: JobCheckpoints | None = None  #: None: nothing is kept
    error: BaseException | None = None
    trial: Trial | None = None  #: of its run, if that is compared
    is_alone: bool = False  #: whether no other call may run beside its run
    previewed_at: float = 0.0  #: when its last preview was made

    def __post_init__(self) -> None:
        self.to_start = deque(range(len(self.artifacts)))  #: the outputs that are not being rendered yet

    def warn(self, message: str) -> None:
        """Add a warning; the outputs of one job mostly have the same ones."""
        if message not in self.warnings:
            self.warnings.append(message)


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
        self._hooked: dict[str, dict[int, ParkingModule]] = {}  # by the model's id and the module's
        self._alone: dict[str, str] = {}  # by model id: what a call of it changes that others read
        models.on_evict = self._unhook

    @property
    def active(self) -> int:
        """Jobs on the device."""
        return len(self._jobs)

    @property
    def held_up(self) -> list[RenderRequest]:
        """The jobs on the device of which nothing runs, because another call may not run beside one of theirs."""
        return [job.request for job in self._jobs if not job.runs and job.to_start and job.error is None]

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
        if request.checkpoint_seconds:
            job.checkpoints = JobCheckpoints(request, made_with)
        self._jobs.append(job)
        self._start_outputs()
        self._collect()

    def advance(self) -> list[Finished]:
        """Run one forward; returns the jobs that finished. One that ran out of memory has the error `OutOfMemory`."""
        for job in list(self._jobs):
            stopped = job.request.stop.is_set()
            if job.error is None:
                self._save_checkpoint(job, now=stopped)
            if job.error is None and stopped:
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

    def _start_outputs(self) -> None:
        """Start the outputs that may run now, in the order of the jobs.

        A call that may not run beside others waits until the device is empty, and those behind it wait for it.
        """
        started = True
        while started:
            started = False
            for job in self._jobs:
                if job.error is not None or not job.to_start:
                    continue
                alone = job.loaded.isolation_of(job.request.spec.task).sharing is not Sharing.SHARES
                running = [other for other in self._jobs if other.runs]
                if (alone and running) or any(other.trial is not None or other.is_alone for other in running):
                    return
                if len(job.runs) < job.max_runs:
                    self._start_output(job, alone=alone)
                    started = True
                    if alone:
                        break

    def _start_output(self, job: ActiveJob, *, alone: bool) -> None:
        request, spec = job.request, job.request.spec
        isolation = job.loaded.isolation_of(spec.task)
        job.is_alone = alone
        if isolation.sharing is Sharing.UNTRIED:
            job.trial = Trial(isolation, job.loaded.pipeline(spec.task).components)
        index = job.to_start.popleft()
        # calls that change a denoiser do not begin anew as they began: what they changed is missing
        kept = isolation.sharing is not Sharing.ALONE
        record = None if job.checkpoints is None or not kept else job.checkpoints.record.output(index)
        request.recorded = record is not None and record.enabled

        def on_step(step: int) -> None:
            job.steps[index] = step
            request.report(sum(job.steps))

        def render_output() -> Artifact:
            return pipelines.render(
                job.loaded,
                spec,
                index,
                request.inputs,
                on_step,
                request.stop,
                None if request.on_preview is None else functools.partial(self._preview, job, index),
                self._on_progress,
                job.warn,
                recorded=record is not None,
            )

        run = self.batcher.start(
            render_output,
            BatchMode.EXACT if spec.exact else BatchMode.THROUGHPUT,
            interactive=request.priority is Priority.INTERACTIVE,
            state=job.state,
            on_park=None if job.trial is None else job.trial.at_park,
            record=record,
            stop=request.stop,
        )
        job.runs[run] = index
        self._on_progress()

    def _state(self, loaded: LoadedModel, spec: JobSpec) -> ModuleState | None:
        """The active LoRAs of a job; of a model that has any, no active LoRA is a state, too."""
        if not loaded.model.loras and not spec.loras:
            return None
        key = loaded.model.id, loaded.denoiser_id(spec.task), spec.loras
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
        size = spec.width or latents.shape[-1], spec.height or latents.shape[-2]
        image = None if colour_map is None else previews.make(latents, colour_map, *size)
        if image is not None:
            request.on_preview(Preview(index, step, image))
            job.previewed_at = time.monotonic()

    def _save_checkpoint(self, job: ActiveJob, *, now: bool) -> None:
        """Keep the job's work if that is due. All its runs are parked."""
        checkpoints = job.checkpoints
        if checkpoints is None or not (now or checkpoints.is_due()):
            return
        if job.trial is not None and job.trial.changed(self._halves(job)):
            return  # what the call has changed in its modules would be missing
        checkpoints.save(sum(job.steps), {index: self.batcher.moment_of(run) for run, index in job.runs.items()})
        job.request.recorded = checkpoints.record.enabled

    def _halves(self, job: ActiveJob) -> frozenset[str]:
        """The components of the job's model that park in their encoder and decoder."""
        return frozenset(one.component for one in self._hooked[job.loaded.model.id].values() if one.half)

    def _fail(self, job: ActiveJob, error: BaseException) -> None:
        """Fail a job: end its outputs that are not finished."""
        job.error = error
        for run in list(job.runs):
            self.batcher.stop(run, JobCanceled("another output of the job failed"))

    def _collect(self) -> None:
        """Take the finished outputs from the batcher, start the next ones, and finish the jobs that have no more."""
        while finished := self.batcher.take_finished():
            for run in finished:
                job = next(job for job in self._jobs if run in job.runs)
                index = job.runs.pop(run)
                if job.trial is not None:
                    self._finish_trial(job, completed=run.error is None)
                if run.error is None:
                    job.artifacts[index] = run.result
                elif isinstance(run.error, RecordMismatch) and job.checkpoints is not None and job.error is None:
                    job.checkpoints.begin_anew(run.error)
                    job.steps[index] = 0
                    job.to_start.append(index)
                elif job.error is None:
                    self._fail(job, run.error)
            self._start_outputs()
        ended = [job for job in self._jobs if not job.runs and (job.error or not job.to_start)]
        for job in ended:
            self._jobs.remove(job)
            self._finished.append((job.request, self._outcome(job)))
        if ended:
            self._start_outputs()

    def _finish_trial(self, job: ActiveJob, *, completed: bool) -> None:
        """Record what a compared call changed; one that did not come to its end proves nothing."""
        trial, job.trial = job.trial, None
        if trial is None or not completed:
            return
        task = job.request.spec.task
        unparked = trial.finish(self._halves(job))
        for key, parking in list(self._hooked[job.loaded.model.id].items()):
            if parking.component in unparked:
                self.batcher.unhook(parking.module)
                del self._hooked[job.loaded.model.id][key]
        isolation = job.loaded.isolation_of(task)
        if isolation.reason is not None:
            self._alone[job.loaded.model.id] = isolation.reason
        log.info(
            "compared a call",
            action="isolation_tried",
            model=job.loaded.model.id,
            pipeline=type(job.loaded.pipeline(task)).__name__,
            sharing=isolation.sharing.value,
            reason=isolation.reason,
            unparked=sorted(isolation.unparked),
        )

    def _outcome(self, job: ActiveJob) -> RenderResult | BaseException:
        error = job.error
        if error is None:
            artifacts = [artifact for artifact in job.artifacts if artifact is not None]
            return RenderResult(artifacts, job.made_with | job.loaded.compiled_fact(), tuple(job.warnings))
        if device_errors.is_out_of_memory(error):
            error.__traceback__ = None  # its frames hold tensors
            return OutOfMemory("the device ran out of memory")
        return error

    # -- modules ------------------------------------------------------------------------------------------------------

    def _hook(self, loaded: LoadedModel, task: str) -> None:
        hooked = self._hooked.setdefault(loaded.model.id, {})
        for parking in loaded.parking_modules(task):
            if id(parking.module) not in hooked:
                hooked[id(parking.module)] = parking
                self.batcher.hook(
                    parking.module,
                    f"{loaded.model.id}/{parking.name}",
                    weights=loaded.fingerprint,
                    denoiser=not parking.half,
                    check_finite=parking.half == "decoder",
                    recording=_recording(parking),
                )

    def _unhook(self, model_id: str) -> None:
        """Hold no module of a model that is evicted."""
        self._alone.pop(model_id, None)
        for parking in self._hooked.pop(model_id, {}).values():
            self.batcher.unhook(parking.module)

    def _update_refusals(self) -> None:
        found: dict[str, str] = {}
        for model_id, hooked in self._hooked.items():
            for parking in hooked.values():
                reason = self.batcher.refusal(parking.module)
                if reason is not None:
                    found[model_id] = reason
        self.refusals = found | self._alone


def _recording(parking: ParkingModule) -> Recording:
    """What is recorded of a module's calls."""
    if parking.half:
        return Recording.NOTHING
    return Recording.SHAPES if parking.component.startswith("controlnet") else Recording.VALUES
