"""What the job runner gives the engine for one job, what it gets back, and what the worker sees of the engine."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Final, Protocol

from farm.domain.cost import steps_run
from farm.domain.job_spec import JobSpec
from farm.domain.model import Model
from farm.domain.states import Priority
from farm.domain.worker import ResidentModel
from workers.media.artifacts import Artifact
from workers.speed import Speed

#: Of a preview: with base64 and the job's id it fits into the 8,000 bytes of a PostgreSQL notification.
MAX_PREVIEW_BYTES: Final = 5_600


@dataclass(frozen=True)
class RenderResult:
    """The outputs of one job."""

    artifacts: list[Artifact]  #: in the order of the outputs, with the size and length that they came out with
    made_with: dict[str, object]  #: model revision and weights, dtype, device kind, library versions
    warnings: tuple[str, ...] = ()  #: what is odd about the outputs, one sentence each


@dataclass(frozen=True)
class Preview:
    """A small image of an unfinished output."""

    index: int  #: of the output
    step: int  #: denoising steps done of that output
    image: bytes  #: a JPEG of at most `MAX_PREVIEW_BYTES`

    @property
    def data_url(self) -> str:
        """The image as a data URL."""
        return f"data:image/jpeg;base64,{base64.b64encode(self.image).decode()}"


class CheckpointPart(Protocol):
    """What a job's denoisers returned since its last checkpoint."""

    @property
    def steps(self) -> int:
        """Denoising steps of the job that are kept up to here."""
        ...

    @property
    def size(self) -> int:
        """About how many bytes it has."""
        ...

    @property
    def fresh(self) -> bool:
        """Whether it continues no earlier part."""
        ...

    def to_bytes(self) -> bytes:
        """The part's file. Any thread may call it; it takes time."""
        ...


@dataclass(eq=False)
class RenderRequest:
    """One job for the engine.

    The engine's thread calls the callbacks; they must not block.
    """

    spec: JobSpec
    model: Model
    inputs: Mapping[str, Sequence[Artifact]]  #: decoded, by role
    on_start: Callable[[int], None]  #: the device starts the job; gets `total_steps`
    on_step: Callable[[int], None]  #: gets the denoising steps done over all outputs, 1 to `total_steps`
    stop: threading.Event  #: set by the caller: the job ends at its next denoising step
    priority: Priority = Priority.NORMAL
    owner: Hashable = None  #: the lease of the job, which `Engine.job_left` names
    isolated: bool = False  #: a worker crashed while it rendered this job: no other job may run beside it
    on_preview: Callable[[Preview], None] | None = None  #: None: no previews wanted
    checkpoint_seconds: float = 0  #: on the device between two checkpoints; 0: nothing is kept
    checkpoint_parts: tuple[bytes, ...] = ()  #: that earlier attempts have stored, in order
    on_checkpoint: Callable[[CheckpointPart], object] | None = None  #: gets each part, the last when the job is stopped
    on_resumed: Callable[[int], object] | None = None  #: gets how many steps are taken from the parts
    on_void: Callable[[], object] | None = None  #: the parts cannot be used
    on_step_back: Callable[[], object] | None = None  #: a bulk job is to make room; None: it does not step back
    numerics: str | None = None  #: the engine's class; the engine sets it
    recorded: bool = False  #: whether its work so far can be kept; the renderer sets it
    steps_done: int = 0  #: denoising steps over all outputs, by `report`
    speed: Speed = field(default_factory=Speed)  #: on the device
    future: Future[RenderResult] = field(default_factory=Future)

    def report(self, done: int) -> None:
        """So many denoising steps are done."""
        self.steps_done = done
        self.speed.record(done)
        self.on_step(done)

    @property
    def total_steps(self) -> int:
        """Denoising steps of the whole job, over all its outputs."""
        return steps_run(self.spec) * self.spec.num_outputs


class RenderEngine(Protocol):
    """The engine as the other threads of the worker see it: in this process (`Engine`) or in another one."""

    def submit(self, request: RenderRequest) -> Future[RenderResult]:
        """Queue a request. Its future fails with `RenderError`, or with what the pipeline raised."""
        ...

    def withdraw(self, request: RenderRequest) -> bool:
        """Cancel a request; True if it has ended already, because the device had not started it."""
        ...

    def job_left(self, owner: Hashable) -> None:
        """The job of that owner has left the worker, however it ended."""
        ...

    @property
    def loaded(self) -> tuple[ResidentModel, ...]:
        """The models in the device's memory, least recently used first."""
        ...

    @property
    def loading(self) -> bool:
        """Whether a model, or torch itself, is being loaded."""
        ...

    @property
    def seconds_without_progress(self) -> float:
        """How long it has had work without progress; 0 without work."""
        ...

    def resume_after_nap(self) -> None:
        """The whole machine was stopped for a while, which is no stall."""
        ...

    def kill(self, reason: str) -> bool:
        """End what uses the device, and start it again; False if that cannot be done from here."""
        ...
