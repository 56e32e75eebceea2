"""What a worker and its engine's process tell each other."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import Metric

from farm.domain.numerics import Numerics
from farm.domain.worker import Device, ResidentModel
from workers.engine import EngineOptions
from workers.render_request import RenderResult

# -- from the worker ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Start:
    """The first message."""

    options: EngineOptions


@dataclass(frozen=True)
class Submit:
    """A job."""

    request: int  #: its number in this engine's life
    fields: Mapping[str, Any]  #: of the `RenderRequest` what is data
    callbacks: frozenset[str]  #: its fields that the worker wants to be called
    stopped: bool  #: it was stopped before it was sent


@dataclass(frozen=True)
class Stop:
    """End a job: at once if it waits, at its next step if the device has started it."""

    request: int


@dataclass(frozen=True)
class JobLeft:
    """The job of that owner has left the worker."""

    owner: Hashable


@dataclass(frozen=True)
class ResumeAfterNap:
    """The whole machine was stopped for a while, which is no stall."""


@dataclass(frozen=True)
class AskMetrics:
    """The worker is asked for its metrics."""


@dataclass(frozen=True)
class Close:
    """End when the device is empty."""


# -- from the engine ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Described:
    """The device, or why there is none."""

    device: Device | BaseException | ForeignError


@dataclass(frozen=True)
class Computed:
    """The numerics class, or why the device does not compute."""

    numerics: Numerics | BaseException | ForeignError


@dataclass(frozen=True)
class Called:
    """A callback of a job was called. They return nothing."""

    request: int
    name: str  #: the field of `RenderRequest`
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class StoredPart:
    """A part of a checkpoint as its file: a `CheckpointPart`."""

    steps: int
    fresh: bool
    file: Any  #: its bytes, or a buffer of them in shared memory

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return memoryview(self.file).nbytes

    def to_bytes(self) -> bytes:
        """The file."""
        return bytes(self.file)


@dataclass(frozen=True)
class Finished:
    """How a job ended on the device."""

    request: int
    outcome: RenderResult | BaseException | ForeignError


@dataclass(frozen=True)
class Status:
    """The engine's state, sent a few times a second."""

    waiting: int
    loaded: tuple[ResidentModel, ...]
    loading: bool
    seconds_without_progress: float


@dataclass(frozen=True)
class Metrics:
    """What the engine's process counts."""

    metrics: tuple[Metric, ...]


@dataclass(frozen=True)
class DeviceLost:
    """The device failed; the process ends after this message."""


@dataclass(frozen=True)
class ForeignError:
    """An error of a class that only the engine's libraries have."""

    name: str  #: of the class
    message: str

    def error(self) -> Exception:
        """An error whose class has the same name."""
        made: Exception = type(self.name, (Exception,), {})(self.message)
        return made

    def __str__(self) -> str:
        return f"{self.name}: {self.message}"
