"""Several jobs on the device at once: their images run as greenlets of one hub and share forwards where they may."""

from __future__ import annotations

import functools
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

import structlog
import torch
from PIL import Image

from farm.domain.cost import steps_run
from farm.domain.model import Model
from farm.domain.states import Priority
from farm.domain.tasks import JobSpec, Task
from farm.domain.worker import Device, ResidentModel
from farm.errors import JobCanceled
from workers import pipelines, previews
from workers.batch_profiles import Lessons
from workers.batching import Hub, Run, Setting, Sharing
from workers.device import NO_UPKEEP, Upkeep
from workers.pipelines import LoadedModel
from workers.render_request import Preview, Rendered, RenderWork
from workers.single_renderer import SerialRenderer

log = structlog.stdlib.get_logger()

#: The components whose calls park: denoisers, what steers them, and the two halves of the VAE (the VAE's own forward
#: is never called by a pipeline).
DENOISERS: Final = ("unet", "transformer", "transformer_2", "controlnet")
VAE_HALVES: Final = ("encoder", "decoder")

PREVIEWS: Final = 10  #: of one image, at most
PREVIEW_SECONDS: Final = 0.4  #: between two of a job

Ended: TypeAlias = tuple[RenderWork, Rendered | BaseException]


@dataclass(eq=False)
class Job:
    """A job on the device."""

    work: RenderWork
    loaded: LoadedModel
    made_with: dict[str, object]
    at_once: int  #: images that run beside each other
    setting: Setting | None
    images: list[Image.Image | None]
    steps: list[int]  #: done, of each image
    runs: dict[Run, int] = field(default_factory=dict)  #: the image that each makes
    begun: int = 0  #: images
    error: BaseException | None = None
    shown_at: float = 0.0  #: when its last preview was made


class SharedRenderer:
    """Renders work on one device, many jobs at a time. Used by the engine's thread alone."""

    def __init__(
        self,
        device: Device,
        torch_threads: int,
        move: Callable[[], None],
        most_rows: int,
        lessons_dir: Path | None = None,
        upkeep: Upkeep = NO_UPKEEP,
    ) -> None:
        """``move`` is called whenever the work gets further; ``most_rows``: of one forward, where no memory says.

        ``lessons_dir``: where what is learnt about sharing is kept; None: with this process.
        """
        self._serial = SerialRenderer(device, torch_threads, move, self._unhook, upkeep)
        self._device = device
        self._move = move
        self._most_rows = most_rows
        about = f"{device.name}|{torch.__version__}|{torch.get_num_threads()}|{most_rows}"
        if upkeep.compile_dir is not None:
            about += "|compiled"
        self._hub = Hub(most_rows, pipelines.is_out_of_memory, Lessons(lessons_dir, about))
        self._jobs: list[Job] = []
        self._short: deque[Job] = deque()  # of memory: they get the device for themselves
        self._done: list[Ended] = []
        self._fetched: set[str] = set()  # ids of models whose files were asked for
        self._reasons: dict[str, str] = {}  # why models run alone, by their ids
        self._hooked: dict[str, dict[int, torch.nn.Module]] = {}  # by the model's id and the module's

    @property
    def models(self) -> tuple[str, ...]:
        """The ids of the models in memory; may be read from any thread."""
        return self._serial.models

    @property
    def loaded(self) -> tuple[ResidentModel, ...]:
        """What is known of the models in memory; may be read from any thread."""
        reasons = self._reasons
        return tuple(ResidentModel(name, size, reasons.get(name)) for name, size in self._serial.sizes)

    def holds(self, model: Model) -> bool:
        """Whether a model is in memory."""
        return self._serial.holds(model)

    @property
    def active(self) -> int:
        """Jobs on the device."""
        return len(self._jobs) + len(self._short)

    @property
    def hub(self) -> Hub:
        """Where the forwards are shared; its counts are for measuring."""
        return self._hub

    def takes(self, model: Model) -> bool:
        """Whether a job of that model may begin now. Loading waits until the device is empty: it may evict models."""
        return not self._short and (not self._jobs or self._serial.holds(model))

    def fetch(self, model: Model) -> None:
        """Read a model's files while the device renders something else; its job starts when the device is empty."""
        if model.id in self._fetched or self._serial.holds(model):
            return
        self._fetched.add(model.id)

        def run() -> None:
            try:
                size = pipelines.fetch(model)
            except Exception as error:  # noqa: BLE001 - loading meets it again, and tells the job
                log.info("not fetched", action="model_unfetched", model=model.id, error=str(error)[:200])
            else:
                log.info("fetched", action="model_fetched", model=model.id, bytes=size)

        threading.Thread(target=run, name=f"fetch {model.id}", daemon=True).start()

    def admit(self, work: RenderWork) -> None:
        """Put a job on the device. Raises `RenderError`, or what loading its model raises."""
        loaded = self._serial.load(work.model)
        self._fetched.discard(work.model.id)  # once it is dropped, its files may leave the page cache
        self._hook(loaded, work.spec.task)
        count = work.spec.num_images_per_prompt
        setting = self._setting(loaded, work.spec)
        if setting is not None:
            setting.apply()  # a LoRA that is not there ends this job before it begins
        made_with = loaded.made_with(self._device, work.spec.loras)
        job = Job(work, loaded, made_with, self._most_rows, setting, [None] * count, [0] * count)
        self._jobs.append(job)
        self._begin(job)
        self._settle()

    def advance(self) -> list[Ended]:
        """One forward, or one job that needs the device for itself. Returns the jobs that ended."""
        for job in list(self._jobs):
            if job.error is None and job.work.stop.is_set():
                self._end_runs(job, JobCanceled("the job was stopped"))
        self._settle()
        if self._hub.advance():
            self._move()
            self._settle()
        elif self._short and not self._jobs:
            self._render_short(self._short[0])
            self._short.popleft()
            self._move()
        done, self._done = self._done, []
        if done:
            self._note_refusals()
        return done

    # -- inside -------------------------------------------------------------------------------------------------------

    def _begin(self, job: Job) -> None:
        """Start as many of the job's images as may run at once."""
        spec = job.work.spec
        while job.error is None and job.begun < spec.num_images_per_prompt and len(job.runs) < job.at_once:
            index = job.begun
            job.begun += 1

            def on_step(step: int, index: int = index) -> None:
                job.steps[index] = step
                job.work.on_step(sum(job.steps))

            def render_image(index: int = index, on_step: Callable[[int], None] = on_step) -> Image.Image:
                look = None if job.work.on_preview is None else functools.partial(self._look, job, index)
                return pipelines.render(job.loaded, spec, index, job.work.inputs, on_step, job.work.stop, look)

            run = self._hub.start(
                render_image,
                Sharing.EXACT if spec.exact else Sharing.THROUGHPUT,
                urgent=job.work.priority is Priority.INTERACTIVE,
                setting=job.setting,
            )
            job.runs[run] = index
            self._move()

    def _setting(self, loaded: LoadedModel, spec: JobSpec) -> Setting | None:
        """The LoRAs of a job; of a model that has any, none of them is a setting, too."""
        if not loaded.model.loras and not spec.loras:
            return None
        key = loaded.model.id, spec.task, spec.loras
        return Setting(key, lambda: loaded.wear(spec.task, spec.loras))

    def _look(self, job: Job, index: int, step: int, latents: torch.Tensor) -> None:
        """Show an image on its way: the job's first unfinished one, now and then."""
        each = steps_run(job.work.spec)
        unfinished = next((place for place, done in enumerate(job.steps) if done < each), None)
        due = step % max(1, each // PREVIEWS) == 0 and time.monotonic() - job.shown_at >= PREVIEW_SECONDS
        if index != unfinished or not due or job.work.on_preview is None:
            return
        mapping = job.loaded.preview_map(job.work.spec.task)
        image = None if mapping is None else previews.paint(latents, mapping, job.work.spec.width, job.work.spec.height)
        if image is not None:
            job.work.on_preview(Preview(index, step, image))
            job.shown_at = time.monotonic()

    def _end_runs(self, job: Job, error: BaseException) -> None:
        """A job ends before its images do: unwind those that are parked."""
        job.error = error
        for run in list(job.runs):
            self._hub.stop(run, JobCanceled("another image of the job ended it"))

    def _settle(self) -> None:
        """Give the images that were finished to their jobs, and what is left to do to the hub."""
        while ended := self._hub.take_ended():
            for run in ended:
                job = next(job for job in self._jobs if run in job.runs)
                index = job.runs.pop(run)
                if run.error is None:
                    job.images[index] = run.result
                elif job.error is None:
                    self._end_runs(job, run.error)
                self._begin(job)
        for job in [job for job in self._jobs if not job.runs]:
            self._jobs.remove(job)
            self._close(job)

    def _close(self, job: Job) -> None:
        error = job.error
        if error is None:
            images = [image for image in job.images if image is not None]
            self._done.append((job.work, Rendered(images, job.made_with)))
        elif pipelines.is_out_of_memory(error):
            error.__traceback__ = None  # its frames hold tensors
            self._short.append(job)
        else:
            self._done.append((job.work, error))

    def _render_short(self, job: Job) -> None:
        # Tiles are a switch of the VAE that all jobs of a model share, and they change pixels: nobody else may run.
        try:
            self._done.append((job.work, self._serial.render_with_less(job.loaded, job.work)))
        except Exception as error:  # noqa: BLE001 - the engine tells whoever waits for it
            self._done.append((job.work, error))

    def _note_refusals(self) -> None:
        found: dict[str, str] = {}
        for name, modules in self._hooked.items():
            for module in modules.values():
                reason = self._hub.refused(module)
                if reason is not None:
                    found[name] = reason
        self._reasons = found

    def _hook(self, loaded: LoadedModel, task: Task) -> None:
        modules = self._hooked.setdefault(loaded.model.id, {})
        for name, module in parking(loaded.pipeline(task)):
            if id(module) not in modules:
                modules[id(module)] = module
                self._hub.hook(
                    module,
                    f"{loaded.model.id}/{name}",
                    weights=loaded.fingerprint,
                    denoiser=not name.startswith("vae."),
                    checked=name == "vae.decoder",
                )

    def _unhook(self, name: str) -> None:
        """A model goes: hold none of its modules."""
        for module in self._hooked.pop(name, {}).values():
            self._hub.unhook(module)


def parking(pipeline: Any) -> list[tuple[str, torch.nn.Module]]:
    """The modules of a pipeline whose calls park, with names for the log."""
    found = [(name, getattr(pipeline, name, None)) for name in DENOISERS]
    vae = getattr(pipeline, "vae", None)
    found += [(f"vae.{half}", getattr(vae, half, None)) for half in VAE_HALVES]
    return [(name, module) for name, module in found if isinstance(module, torch.nn.Module)]
