"""The engine: the one thread that owns the device. Requests go in, images come out.

The jobs in its slots share forwards (`workers.batched_renderer`); an interactive job needs no free slot. A job whose
images do not fit the device's memory is rendered again alone, with less memory (`workers.single_renderer`). A job that
was on a device when its worker crashed is isolated: no other job runs beside it, and none starts until it has left the
process, so that a second crash is its own fault and not a co-batched job's.

When the device fails (a CUDA error other than a lack of memory), every later call in the process fails as well. The
engine then uses the device no more and fails all its jobs with `DeviceFailed`, and its process ends. If the engine
itself fails, its process ends at once. A worker keeps the engine in a process of its own, and starts it again
(`workers.engine_process`).
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import structlog

from farm.domain.model import Model
from farm.domain.numerics import Numerics
from farm.domain.states import Priority
from farm.domain.worker import Device, ResidentModel
from farm.errors import DeviceFailed, JobCanceled, OutOfMemory, RenderError
from workers import device as devices
from workers import preemption
from workers.device import DeviceChoice
from workers.render_request import RenderRequest, RenderResult

if TYPE_CHECKING:
    from workers.batched_renderer import BatchedRenderer
    from workers.model_cache import ModelCache
    from workers.single_renderer import SingleRenderer

log = structlog.stdlib.get_logger()

EXIT_ENGINE_FAILED: Final = 70  #: EX_SOFTWARE of sysexits.h


@dataclass(frozen=True)
class EngineOptions:
    """How an engine uses its device."""

    device: DeviceChoice
    torch_threads: int = 0  #: of torch's CPU kernels; 0: torch's own choice
    slots: int = 1  #: jobs on the device at once
    max_rows: int = 16  #: of one forward, on a device whose memory torch does not measure
    profiles_dir: Path | None = None  #: see `workers.batch_profiles`; None: profiles are not kept
    cpu_cache_bytes: int = 0  #: page-locked main memory for models evicted from a CUDA device
    compile_dir: Path | None = None  #: where compiled kernels are kept; None: nothing is compiled
    compile_problem: str | None = None  #: why nothing can be, although it is asked for


class Renderers(NamedTuple):
    """What an engine's thread uses on its device."""

    models: ModelCache
    batched: BatchedRenderer
    single: SingleRenderer
    is_device_failure: Callable[[BaseException], bool]  #: as `workers.device_errors` tells them apart


def prepare_numerics(device: Device, options: EngineOptions) -> Numerics:
    """Make the engine's thread deterministic, and compute its numerics class. Imports torch."""
    from workers import numerics  # noqa: PLC0415 - only after pinning

    numerics.make_deterministic(options.torch_threads)
    return numerics.describe(device, compiled=options.compile_dir is not None and options.compile_problem is None)


def make_renderers(device: Device, options: EngineOptions, on_progress: Callable[[], None]) -> Renderers:
    """Import torch and prepare the device.

    Args:
        device: The device as torch described it.
        options: Of the engine.
        on_progress: Called whenever rendering makes progress.
    """
    # seconds of imports, and only after pinning
    import torch  # noqa: PLC0415

    from workers import device_errors, pipelines  # noqa: PLC0415
    from workers.batch_profiles import BatchProfiles  # noqa: PLC0415
    from workers.batched_renderer import BatchedRenderer  # noqa: PLC0415
    from workers.model_cache import ModelCache  # noqa: PLC0415
    from workers.single_renderer import SingleRenderer  # noqa: PLC0415

    pipelines.silence_libraries()
    environment = f"{device.name}|{torch.__version__}|{torch.get_num_threads()}|{options.max_rows}"
    if options.compile_dir is not None:
        environment += "|compiled"
    models = ModelCache(
        device,
        cpu_bytes=options.cpu_cache_bytes,
        compiled=options.compile_dir is not None,
        compile_problem=options.compile_problem,
    )
    profiles = BatchProfiles(options.profiles_dir, environment)
    return Renderers(
        models,
        BatchedRenderer(models, options.max_rows, profiles, on_progress),
        SingleRenderer(models, on_progress),
        device_errors.is_device_failure,
    )


class Engine(threading.Thread):
    """Owns the device from start to end. The public methods may be called from any thread."""

    def __init__(self, options: EngineOptions, on_device_failure: Callable[[], object] | None = None) -> None:
        """``on_device_failure`` is called once, by the engine's thread, after its last use of the device."""
        super().__init__(name="engine", daemon=True)
        self._options = options
        self._on_device_failure = on_device_failure
        self._failure: str | None = None  # what the device's failure was
        self._waiting: deque[RenderRequest] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._busy = False
        self._in_process: set[RenderRequest] = set()  # whose jobs have not left the process
        self._out_of_memory: deque[RenderRequest] = deque()  # they wait for an empty device
        self._on_device: list[RenderRequest] = []  # and not finished: the device has them
        self._renderers: Renderers | None = None
        self.loading: bool = True  #: whether a model, or torch itself, is being loaded
        self.progress_at = time.monotonic()  #: when it last made progress: a step, a phase of loading, another job
        self.device: Future[Device] = Future()  #: known once torch has described it
        self.numerics: Future[Numerics] = Future()  #: known after that

    # -- from other threads -------------------------------------------------------------------------------------------

    def submit(self, request: RenderRequest) -> Future[RenderResult]:
        """Queue a request. Its future fails with `RenderError`, or with what the pipeline raised."""
        with self._wake:
            if self._failure is not None:
                request.future.set_exception(DeviceFailed(self._failure, started=False))
                return request.future
            if not self._waiting and not self._busy:
                self._record_progress()  # an idle engine has not stalled
            self._waiting.append(request)
            self._wake.notify()
        return request.future

    def withdraw(self, request: RenderRequest) -> bool:
        """Cancel a request that the device has not started; False if it has (then it ends at its next step)."""
        with self._wake:
            try:
                self._waiting.remove(request)
            except ValueError:
                return False
        request.future.set_exception(JobCanceled("the job was stopped before the device started it"))
        return True

    def job_left(self, owner: Hashable) -> None:
        """The job of that owner has left the process, however it ended."""
        with self._wake:
            self._in_process = {request for request in self._in_process if request.owner != owner}
            self._wake.notify()

    @property
    def waiting(self) -> int:
        """Jobs that wait for the device."""
        return len(self._waiting)

    @property
    def loaded(self) -> tuple[ResidentModel, ...]:
        """The models in the device's memory, least recently used first."""
        if self._renderers is None:
            return ()
        reasons = self._renderers.batched.refusals
        return tuple(ResidentModel(name, size, reasons.get(name)) for name, size in self._renderers.models.sizes)

    @property
    def seconds_without_progress(self) -> float:
        """How long it has had work without progress; 0 without work."""
        with self._wake:
            if not self._busy and not self.loading and (not self._waiting or self._waits_for_isolation()):
                return 0.0
            return time.monotonic() - self.progress_at

    def resume_after_nap(self) -> None:
        """The whole process was stopped for a while, which is no stall."""
        with self._wake:
            self._record_progress()

    def kill(self, reason: str) -> bool:
        """A thread cannot be ended from outside: False."""
        del reason
        return False

    def close(self) -> None:
        """End the thread when the device is empty."""
        with self._wake:
            self._closing = True
            self._wake.notify()

    # -- its own thread -----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Describe the device, then render until closed."""
        try:
            if self._options.compile_dir is not None:  # torch reads it when it compiles, and keeps kernels there
                os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(self._options.compile_dir.absolute())
            try:
                device = devices.describe(self._options.device)
            except BaseException as error:  # noqa: BLE001 - the thread that waits for the device gets it
                self.device.set_exception(error)
                return
            self.device.set_result(device)
            self._require_compiler(device)
            try:
                self.numerics.set_result(prepare_numerics(device, self._options))
            except BaseException as error:  # noqa: BLE001 - as above
                self.numerics.set_exception(error)
                return
            self._record_progress()
            self._renderers = make_renderers(device, self._options, self._record_progress)
            self._record_progress()
            self.loading = False
            try:
                self._render_until_closed(self._renderers)
            except Exception as error:
                if not self._renderers.is_device_failure(error):
                    raise
                self._fail_jobs(error)
        except BaseException:
            log.critical("the engine failed", action="engine_failed", exc_info=True)
            os._exit(EXIT_ENGINE_FAILED)

    def _require_compiler(self, device: Device) -> None:
        """Find out, before the numerics class names a compiler, whether there is one that works."""
        folder = self._options.compile_dir
        if folder is None:
            return
        from workers import compilation  # noqa: PLC0415 - only after pinning

        found = compilation.problem(device, folder.absolute())
        if found is not None:
            log.warning("FARM_COMPILE has no effect: models run uncompiled", action="compile_failed", reason=found)
            self._options = replace(self._options, compile_problem=found)

    def _render_until_closed(self, renderers: Renderers) -> None:
        while self._wait_for_work(renderers):
            while (request := self._take_next(renderers)) is not None:
                self._start_job(request, renderers)
            self._make_room(renderers)
            for request, outcome in renderers.batched.advance():
                if isinstance(outcome, BaseException) and renderers.is_device_failure(outcome):
                    raise outcome
                if isinstance(outcome, OutOfMemory):
                    self._out_of_memory.append(request)
                else:
                    self._finish_job(request, outcome)
            if self._out_of_memory and not renderers.batched.active:
                self._render_alone(self._out_of_memory.popleft(), renderers)

    def _wait_for_work(self, renderers: Renderers) -> bool:
        """Wait for something to do; False once closed with nothing left on the device."""
        with self._wake:
            if not self._active(renderers):
                self._busy = False
                self._wake.wait_for(lambda: self._next(renderers) is not None or self._closing)
                if self._closing:
                    return False
                self._busy = True
                self._record_progress()
            return True

    def _active(self, renderers: Renderers) -> int:
        """Jobs on the device."""
        return renderers.batched.active + len(self._out_of_memory)

    def _take_next(self, renderers: Renderers) -> RenderRequest | None:
        with self._wake:
            request = None if self._closing else self._next(renderers)
            if request is not None:
                self._waiting.remove(request)
            return request

    def _next(self, renderers: Renderers) -> RenderRequest | None:
        """The waiting job that may start now: interactive jobs first, then first come, first served."""
        first = self._first_waiting()
        if first is None or self._waits_for_isolation():
            return None
        if not self._can_start(first.model, renderers):
            renderers.models.prefetch(first.model)
            return None
        full = self._active(renderers) >= self._options.slots and first.priority is not Priority.INTERACTIVE
        return None if full else first

    def _first_waiting(self) -> RenderRequest | None:
        return max(self._waiting, key=lambda request: request.priority is Priority.INTERACTIVE, default=None)

    def _can_start(self, model: Model, renderers: Renderers) -> bool:
        """Whether a job of that model may start. Loading waits until the device is empty: it may evict models."""
        return not self._out_of_memory and (not renderers.batched.active or model in renderers.models)

    def _waits_for_isolation(self) -> bool:
        """Whether no job may start until those that did have left the process, because one of them is isolated."""
        first = self._first_waiting()
        return bool(self._in_process) and (
            any(request.isolated for request in self._in_process) or (first is not None and first.isolated)
        )

    def _make_room(self, renderers: Renderers) -> None:
        """Let bulk jobs step back for interactive ones that cannot start beside them, or that took a slot too many."""
        with self._wake:
            first = self._first_waiting()
            interactive = first is not None and first.priority is Priority.INTERACTIVE
            held_up = interactive and not self._waits_for_isolation() and self._next(renderers) is None
        held_up = held_up or any(one.priority is Priority.INTERACTIVE for one in renderers.batched.held_up)
        for request in preemption.choose(self._on_device, self._options.slots, held_up=held_up):
            assert request.on_step_back is not None  # of those that are chosen
            request.on_step_back()
            request.stop.set()

    def _start_job(self, request: RenderRequest, renderers: Renderers) -> None:
        if request.stop.is_set():
            request.future.set_exception(JobCanceled("the job was stopped before the device started it"))
            return
        with self._wake:
            self._in_process.add(request)
        self._on_device.append(request)
        request.speed.start(request.total_steps)
        request.numerics = self.numerics.result().name
        request.on_start(request.total_steps)
        self.loading = request.model not in renderers.models
        self._record_progress()
        try:
            renderers.batched.admit(request)
        except Exception as error:  # the job's thread gets it
            if renderers.is_device_failure(error):
                raise
            self._finish_job(request, error)
        finally:
            self._record_progress()
            self.loading = False

    def _render_alone(self, request: RenderRequest, renderers: Renderers) -> None:
        try:
            result = renderers.single.render(request)
        except Exception as error:  # the job's thread gets it
            if renderers.is_device_failure(error):
                raise
            self._finish_job(request, error)
        else:
            self._finish_job(request, result)
        self._record_progress()

    def _finish_job(self, request: RenderRequest, outcome: RenderResult | BaseException) -> None:
        self._on_device.remove(request)
        if isinstance(outcome, RenderResult):
            made_with = outcome.made_with | {"numerics": self.numerics.result().name}
            request.future.set_result(replace(outcome, made_with=made_with))
            return
        if not isinstance(outcome, RenderError):
            log.error("rendering failed", action="render_failed", model=request.model.id, exc_info=outcome)
        _drop_tracebacks(outcome)
        request.future.set_exception(outcome)

    def _fail_jobs(self, error: BaseException) -> None:
        """The device failed: fail every job, and render nothing more."""
        failure = f"the device failed: {' '.join(str(error).split()) or type(error).__name__}"[:300]
        log.critical("the device failed", action="device_failed", exc_info=error)
        _drop_tracebacks(error)
        with self._wake:
            self._failure, self._busy, self.loading = failure, False, False
            waiting = list(self._waiting)
            self._waiting.clear()
            unfinished = [request for request in self._in_process if not request.future.done()]
        for request in waiting:
            request.future.set_exception(DeviceFailed(failure, started=False))
        for request in unfinished:
            request.future.set_exception(DeviceFailed(failure, started=True))
        if self._on_device_failure is not None:
            self._on_device_failure()

    def _record_progress(self) -> None:
        self.progress_at = time.monotonic()


def _drop_tracebacks(error: BaseException) -> None:
    """Drop the frames of a failed run: their tensors would live as long as the error does."""
    cause: BaseException | None = error
    while cause is not None:
        cause.__traceback__ = None
        cause = cause.__cause__ or cause.__context__
