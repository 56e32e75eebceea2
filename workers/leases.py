"""The rights that this process holds: claimed jobs, how long each may be worked on, and whether it must stop.

A right is stopped from outside its thread (a cancel, a lost lease, the worker's end) by :meth:`Right.stop`; the work
sees the event at its next denoising step or its next wait. Deadlines are on the monotonic clock, so a clock that is set
does not lengthen a lease.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from enum import StrEnum

from farm.domain.job import HeldJob, Job


class Stage(StrEnum):
    """How far a job is at this worker."""

    FETCHING = "fetching"
    WAITING = "waiting"  #: for the device
    RENDERING = "rendering"
    STORING = "storing"
    COMMITTING = "committing"


class Why(StrEnum):
    """Why a right ended before its job did."""

    CANCELED = "canceled"  #: somebody wants the job stopped
    LOST = "lost"  #: another epoch may hold the job by now: nothing may be written
    DRAINED = "drained"  #: the worker ends


class Right:
    """The right to one job at one epoch."""

    def __init__(self, job: Job, until: float) -> None:
        """``until``: the monotonic time at which the work must have stopped."""
        self.job = job
        self.held = HeldJob(job.id, job.epoch)
        self.stopped = threading.Event()
        self.why: Why | None = None
        self.stage = Stage.FETCHING
        self.moved_at = time.monotonic()  #: when the work last got further
        self._until = until
        self._lock = threading.Lock()
        self._hooks: list[Callable[[], object]] = []

    @property
    def epoch(self) -> int:
        """The fencing number under which everything is written."""
        return self.held.epoch

    def enter(self, stage: Stage) -> None:
        """The work reaches a stage."""
        self.stage = stage
        self.move()

    def move(self) -> None:
        """The work got further: its lease is worth renewing."""
        self.moved_at = time.monotonic()

    def renew(self, until: float) -> None:
        """The lease lasts longer now."""
        self._until = max(self._until, until)

    @property
    def seconds_left(self) -> float:
        """How long the work may go on without news from the database."""
        return self._until - time.monotonic()

    def stop(self, why: Why) -> None:
        """End the work soon. The first reason stands, but a lost right outweighs the others."""
        with self._lock:
            if self.why is None or why is Why.LOST:
                self.why = why
            self.stopped.set()
            hooks = tuple(self._hooks)
        for hook in hooks:
            hook()

    def on_stop(self, hook: Callable[[], object]) -> None:
        """Call something when the work is stopped; at once if it is already."""
        with self._lock:
            self._hooks.append(hook)
            late = self.stopped.is_set()
        if late:
            hook()


class Rights:
    """All rights of this process. Safe to share between threads."""

    def __init__(self) -> None:
        self._held: dict[HeldJob, Right] = {}
        self._changed = threading.Condition()

    def add(self, right: Right) -> None:
        """A job was claimed."""
        with self._changed:
            self._held[right.held] = right

    def drop(self, right: Right) -> None:
        """The job left this process, whatever became of it."""
        with self._changed:
            self._held.pop(right.held, None)
            self._changed.notify_all()

    def all(self) -> list[Right]:
        """What is held now."""
        with self._changed:
            return list(self._held.values())

    def holds(self, right: Right) -> bool:
        """Whether the job is still in this process's hands."""
        with self._changed:
            return right.held in self._held

    def keep(self, asked: Collection[Right], mine: Collection[str], canceled: Collection[str], until: float) -> None:
        """What a heartbeat said of the rights it asked for: renewed, canceled, or lost."""
        for right in asked:
            if right.job.id not in mine:
                if self.holds(right):  # or else it ended while the heartbeat was on its way
                    right.stop(Why.LOST)
                continue
            right.renew(until)
            if right.job.id in canceled:
                right.stop(Why.CANCELED)

    def fence(self) -> list[Right]:
        """Stop what has no time left; returns those stopped now."""
        late = [right for right in self.all() if right.seconds_left <= 0 and right.why is not Why.LOST]
        for right in late:
            right.stop(Why.LOST)
        return late

    def wait_empty(self, seconds: float) -> bool:
        """Wait until nothing is held; False if something still is after ``seconds``."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._held, timeout=max(0.0, seconds))
