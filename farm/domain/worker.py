"""A worker as the rest of the farm sees it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from farm.domain.numerics import Numerics


class WorkerState(StrEnum):
    """Whether a worker gets jobs."""

    ONLINE = "online"
    DRAINING = "draining"  #: finishes what it holds, gets nothing new
    OFFLINE = "offline"  #: said goodbye, or has been silent for too long


@dataclass(frozen=True)
class Device:
    """The accelerator that a worker owns."""

    kind: str  #: ``cuda``, ``mps`` or ``cpu``
    index: str  #: as FARM_DEVICE names it: ``cuda:0``, ``cpu0``
    name: str  #: the maker's name: ``NVIDIA H100``, or the processor's
    memory_bytes: int
    dtype: str  #: what models with dtype ``auto`` run in


@dataclass(frozen=True)
class WorkerInfo:
    """What a worker says of itself when it joins."""

    name: str  #: ``<host>/<device>``
    boot_id: str  #: fresh for each process: the second of two namesakes wins, the first one stops
    host: str
    device: Device
    slots: int  #: jobs its device renders at once
    prefetch: int  #: jobs that may wait beside them
    pid: int
    versions: dict[str, str] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    numerics: Numerics | None = None  #: None: not known


@dataclass(frozen=True)
class ResidentModel:
    """A model in a worker's memory, as the worker tells."""

    model: str
    bytes: int  #: of its weights
    runs_alone: str | None = None  #: why its jobs do not share forwards, if that was seen


@dataclass(frozen=True)
class Worker:
    """A worker's row, with its load."""

    info: WorkerInfo
    state: WorkerState
    models: tuple[str, ...]  #: ids of the models in its memory
    held_jobs: int  #: jobs dispatched to it or running on it
    started_at: datetime
    heartbeat_at: datetime
    loaded: tuple[ResidentModel, ...] = ()  #: what it says of those models
    drained_reason: str | None = None  #: why it gets no jobs, also after a restart; None: not drained
    stopping: bool = False  #: whether its process was asked to end and has not yet

    @property
    def free_slots(self) -> int:
        """How many more jobs it takes."""
        return max(0, self.info.slots + self.info.prefetch - self.held_jobs)


class WorkerCapacity(NamedTuple):
    """What a worker can take, as the policy weighs it. A tuple: each round makes one for each worker."""

    worker: str
    free_slots: int  #: how many more jobs it takes: its capacity, less what it holds
    models: frozenset[str] = frozenset()  #: in its memory, or of the jobs that it holds
    prefetch: int = 0  #: the last so many of ``free_slots`` wait at the worker instead of running
    memory_bytes: int | None = None  #: of its device; None: unknown, and assumed to be enough
    tags: frozenset[str] = frozenset()
    draining: bool = False
    capacity: int = 0  #: the most jobs that it holds at once: slots + prefetch
    numerics: str | None = None  #: its numerics class
    #: how many interactive jobs it takes beyond its capacity: bulk jobs on its device would step back for them
    preemptible: int = 0
