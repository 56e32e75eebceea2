"""The leases that this process holds: claimed jobs, how long each may be worked on, and whether it must stop.

Another thread stops a lease (cancel, lost lease, shutdown) with :meth:`Lease.stop`; the thread that works on the job
sees the event at its next denoising step or its next wait. Deadlines are on the monotonic clock, so a change of the
system clock does not lengthen a lease.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from enum import StrEnum

from farm.domain.job import HeldJob, Job
from workers.speed import Speed


class Stage(StrEnum):
    """The stage that a job has reached in this worker."""

    FETCHING = "fetching"
    WAITING = "waiting"  #: for the device
    RENDERING = "rendering"
    STORING = "storing"
    COMMITTING = "committing"


class StopReason(StrEnum):
    """Why the work on a job must stop."""

    CANCELED = "canceled"  #: a client or an operator canceled the job
    LOST = "lost"  #: another epoch may hold the job by now: nothing may be written
    DRAINED = "drained"  #: the worker shuts down
    PREEMPTED = "preempted"  #: it steps back for an interactive job


class Lease:
    """The lease of one job at one epoch. Safe to share between threads."""

    def __init__(self, job: Job, deadline: float) -> None:
        """``deadline``: the monotonic time at which the work must have stopped."""
        self.job = job
        self.held = HeldJob(job.id, job.epoch)
        self.stopped = threading.Event()
        self.stop_reason: StopReason | None = None
        self.stage = Stage.FETCHING
        self.progress_at = time.monotonic()  #: when the work last made progress
        self._speed = Speed()
        self.beside_seconds = 0.0  #: that the job took so far beside the device: its message, claim and inputs
        self._deadline = deadline
        self._lock = threading.Lock()
        self._stop_callbacks: list[Callable[[], object]] = []

    @property
    def epoch(self) -> int:
        """The fencing number under which everything is written."""
        return self.held.epoch

    def enter(self, stage: Stage) -> None:
        """Record that the work reached a stage."""
        self.stage = stage
        self.record_progress()

    def record_progress(self) -> None:
        """Record that the work made progress, so that the heartbeat renews the lease."""
        self.progress_at = time.monotonic()

    def start(self, steps: int) -> None:
        """Record that the device starts the job, which has so many denoising steps."""
        self.enter(Stage.RENDERING)
        self._speed.start(steps)

    def record_step(self, done: int) -> None:
        """Record how many denoising steps are done."""
        self.record_progress()
        self._speed.record(done)

    def seconds_to_finish(self) -> float | None:
        """How long the device will take for the steps that are left, at its present speed; None: not known yet."""
        return self._speed.seconds_left if self.stage is Stage.RENDERING else None

    def resume_after_nap(self, grace_seconds: float) -> None:
        """Let the work go on for ``grace_seconds``, in which a heartbeat asks whether the lease is still this worker's.

        The time in which the whole process was stopped says nothing about the work.
        """
        now = time.monotonic()
        self.progress_at = now
        self._deadline = max(self._deadline, now + grace_seconds)

    def renew(self, deadline: float) -> None:
        """Extend the lease."""
        self._deadline = max(self._deadline, deadline)

    @property
    def seconds_left(self) -> float:
        """How long the work may continue without a renewal."""
        return self._deadline - time.monotonic()

    def stop(self, reason: StopReason) -> None:
        """Ask the work to stop. The first reason stands, except that `StopReason.LOST` replaces any other."""
        with self._lock:
            if self.stop_reason is None or reason is StopReason.LOST:
                self.stop_reason = reason
            self.stopped.set()
            callbacks = tuple(self._stop_callbacks)
        for callback in callbacks:
            callback()

    def on_stop(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` when the work is stopped; at once if it is already."""
        with self._lock:
            self._stop_callbacks.append(callback)
            already_stopped = self.stopped.is_set()
        if already_stopped:
            callback()


class Leases:
    """All leases of this process. Safe to share between threads."""

    def __init__(self) -> None:
        self._held: dict[HeldJob, Lease] = {}
        self._changed = threading.Condition()

    def add(self, lease: Lease) -> None:
        """Add the lease of a job that was claimed."""
        with self._changed:
            self._held[lease.held] = lease

    def remove(self, lease: Lease) -> None:
        """Remove the lease of a job on which this process no longer works, however the work ended."""
        with self._changed:
            self._held.pop(lease.held, None)
            self._changed.notify_all()

    def all(self) -> list[Lease]:
        """Every lease held now."""
        with self._changed:
            return list(self._held.values())

    def __contains__(self, lease: Lease) -> bool:
        """Whether this process still works on the job."""
        with self._changed:
            return lease.held in self._held

    def apply_heartbeat(
        self, sent: Collection[Lease], renewed: Collection[str], canceled: Collection[str], deadline: float
    ) -> None:
        """Apply the response to a heartbeat.

        Args:
            sent: The leases that the heartbeat asked to renew.
            renewed: Ids of the jobs whose lease was renewed; the others of ``sent`` are lost.
            canceled: Ids of the jobs to be canceled.
            deadline: The new deadline of the renewed leases, monotonic.
        """
        for lease in sent:
            if lease.job.id not in renewed:
                if lease in self:  # otherwise the job ended while the heartbeat was on its way
                    lease.stop(StopReason.LOST)
                continue
            lease.renew(deadline)
            if lease.job.id in canceled:
                lease.stop(StopReason.CANCELED)

    def stop_expired(self) -> list[Lease]:
        """Stop the leases whose deadline has passed; returns those that were stopped now."""
        expired = [
            lease for lease in self.all() if lease.seconds_left <= 0 and lease.stop_reason is not StopReason.LOST
        ]
        for lease in expired:
            lease.stop(StopReason.LOST)
        return expired

    def wait_empty(self, seconds: float) -> bool:
        """Wait until no lease is held; False if one still is after ``seconds``."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._held, timeout=max(0.0, seconds))


def lease_deadline(requested_at: float, lease_seconds: float) -> float:
    """The monotonic time at which work must stop under a lease of ``lease_seconds`` requested at ``requested_at``.

    It is some seconds before the database's deadline, so that the work has stopped when another worker may start it.
    """
    return requested_at + lease_seconds - min(5.0, lease_seconds / 5)
