"""Stores the work of running jobs in the object storage, from a thread of its own.

Nothing waits for it: the engine goes on with the next step. A storage that does not answer makes the queue longer, up
to `MAX_QUEUED_BYTES`; then no more is kept of the job, and what is stored of it stays valid.

A part is written under the epoch's key first, and then named in the database under the fence. So a reader never finds a
name without an object, and a worker that lost its lease changes nothing.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from farm import lifecycle, metrics
from farm.domain.checkpoint import Checkpoint
from farm.errors import DatabaseUnavailable, LeaseLost, NotFound, StorageUnavailable
from farm.objects import keys
from farm.objects.storage import Storage
from farm.store.unit_of_work import Store
from workers.leases import Lease
from workers.render_request import CheckpointPart
from workers.retry import retry_storage

log = structlog.stdlib.get_logger()

MAX_QUEUED_BYTES: Final = 256 * 2**20  #: of all jobs of a worker, in memory
RETRY_SECONDS: Final = 1.0  #: between two tries while a server does not answer
READ_SECONDS: Final = 10.0  #: how long a job waits for a storage that has its checkpoint, before it begins anew
MEDIA_TYPE: Final = "application/octet-stream"


@dataclass(eq=False)
class KeptWork:
    """The checkpoints of one lease. Its fields are the writer's, under its lock."""

    lease: Lease
    checkpoint: Checkpoint = field(default_factory=Checkpoint)  #: what is stored
    queue: deque[tuple[Callable[[], None], int]] = field(default_factory=deque)  #: writes and their bytes, in order
    closed: bool = False

    @property
    def queued_bytes(self) -> int:
        """What waits in memory."""
        return sum(size for _, size in self.queue)

    def close(self) -> None:
        """Write nothing more."""
        self.closed = True
        self.queue.clear()


class CheckpointWriter(threading.Thread):
    """Writes the parts of all jobs of a worker, one after the other. Safe to share between threads."""

    def __init__(self, store: Store, storage: Storage, every_seconds: float) -> None:
        """``every_seconds``: on the device between two parts of a job; 0: nothing is kept."""
        super().__init__(name="checkpoints", daemon=True)
        self._store = store
        self._storage = storage
        self._every_seconds = every_seconds
        self._jobs: deque[KeptWork] = deque()  # those with something to write, the next one first
        self._changed = threading.Condition()
        self._closing = False

    # -- a job's thread -----------------------------------------------------------------------------------------------

    def open(self, lease: Lease) -> KeptWork:
        """Begin to keep a job's work; reads nothing."""
        return KeptWork(lease)

    def load(self, kept: KeptWork) -> tuple[bytes, ...]:
        """What earlier attempts of the job stored, in order; nothing if it cannot be read.

        Raises `JobCanceled`.
        """
        lease = kept.lease
        if not self._every_seconds or lease.epoch <= 1:
            return ()
        try:
            with self._store.look() as unit:
                checkpoint = unit.checkpoints.get(lease.job.id)
            if checkpoint is None:
                return ()
            bodies = tuple(self._read(lease, epoch, part) for epoch, part in checkpoint.objects())
        except (DatabaseUnavailable, StorageUnavailable, NotFound) as error:
            log.warning("cannot read a checkpoint, beginning anew", action="checkpoint_unread", error=str(error))
            return ()
        kept.checkpoint = checkpoint
        return bodies

    def _read(self, lease: Lease, epoch: int, part: int) -> bytes:
        key = keys.checkpoint_key(lease.job.tenant_id, lease.job.id, epoch, part)
        return retry_storage(lease, READ_SECONDS, lambda: self._storage.get(key))

    def fields(self, kept: KeptWork, parts: tuple[bytes, ...]) -> dict[str, Any]:
        """The fields of the job's `RenderRequest` that are about checkpoints; its callbacks do not block."""
        if not self._every_seconds:
            return {}
        return {
            "checkpoint_seconds": self._every_seconds,
            "checkpoint_parts": parts,
            "on_checkpoint": lambda part: self._save(kept, part),
            "on_resumed": lambda steps: self._resumed(kept, steps),
            "on_void": lambda: self._voided(kept),
        }

    def flush(self, kept: KeptWork, seconds: float) -> bool:
        """Wait until the job's work is stored, at most so long; returns whether it is."""
        give_up_at = time.monotonic() + seconds
        with self._changed:
            while kept.queue and not kept.closed and (left := give_up_at - time.monotonic()) > 0:
                kept.lease.record_progress()
                self._changed.wait(min(left, RETRY_SECONDS))
            return not kept.queue

    def finish(self, kept: KeptWork) -> None:
        """Keep no more of the job. If it has reached its end, what is stored of it is deleted."""
        with self._changed:
            kept.close()
        if kept.checkpoint.parts:
            try:
                with self._store.begin() as unit:
                    lifecycle.remove_checkpoints(unit)
            except DatabaseUnavailable:
                log.info("a checkpoint is left to the sweeper", action="checkpoint_left", job=kept.lease.job.id)

    def close(self) -> None:
        """End the thread after the current write."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    # -- what the engine calls -----------------------------------------------------------------------------------------

    def _save(self, kept: KeptWork, part: CheckpointPart) -> None:
        self._add(kept, lambda: self._write(kept, part), part.size)

    def _resumed(self, kept: KeptWork, steps: int) -> None:
        metrics.STEPS_RESUMED.labels(kept.lease.job.spec.model).inc(steps)
        self._add(kept, lambda: self._note_resumed(kept, steps), 0)

    def _voided(self, kept: KeptWork) -> None:
        metrics.CHECKPOINTS_VOID.inc()
        self._add(kept, lambda: self._void(kept), 0)

    def _add(self, kept: KeptWork, write: Callable[[], None], size: int) -> None:
        with self._changed:
            if kept.closed:
                return
            if sum(job.queued_bytes for job in self._jobs) + size > MAX_QUEUED_BYTES:
                log.warning("no more of a job is kept", action="checkpoints_full", job=kept.lease.job.id)
                kept.close()
                return
            kept.queue.append((write, size))
            if kept not in self._jobs:
                self._jobs.append(kept)
            self._changed.notify_all()

    # -- its own thread -----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Write until closed."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._closing)
                if self._closing:
                    return
                kept = self._jobs[0]
                if not kept.queue:
                    self._jobs.popleft()
                    continue
                entry = kept.queue[0]
            try:
                entry[0]()
            except (StorageUnavailable, DatabaseUnavailable) as error:
                log.warning("cannot store a checkpoint", action="checkpoint_unwritten", error=str(error))
                with self._changed:
                    self._jobs.rotate(-1)
                    self._changed.wait_for(lambda: self._closing, RETRY_SECONDS)
                continue
            except LeaseLost:
                kept.close()
            except Exception:
                log.exception("cannot store a checkpoint", action="checkpoint_unwritten")
                kept.close()  # a gap cannot be continued
            with self._changed:
                if kept.queue and kept.queue[0] is entry:
                    kept.queue.popleft()
                self._jobs.remove(kept)
                if kept.queue:
                    self._jobs.append(kept)
                self._changed.notify_all()

    def _write(self, kept: KeptWork, part: CheckpointPart) -> None:
        lease = kept.lease
        body = part.to_bytes()
        checkpoint = kept.checkpoint.extended(lease.epoch, part.steps, len(body), fresh=part.fresh)
        key = keys.checkpoint_key(lease.job.tenant_id, lease.job.id, lease.epoch, checkpoint.parts[-1][1] - 1)
        self._storage.put(key, body, MEDIA_TYPE)
        try:
            with self._store.begin() as unit:
                lifecycle.save_checkpoint(unit, lease.held, checkpoint)
        except LeaseLost:
            self._storage.delete(key)
            raise
        kept.checkpoint = checkpoint
        metrics.CHECKPOINTS.inc()
        metrics.CHECKPOINT_BYTES.inc(len(body))
        log.debug(
            "stored a checkpoint", action="checkpoint_stored", job=lease.job.id, steps=part.steps, bytes=len(body)
        )

    def _void(self, kept: KeptWork) -> None:
        with self._store.begin() as unit:
            lifecycle.void_checkpoint(unit, kept.lease.held)
        kept.checkpoint = Checkpoint()

    def _note_resumed(self, kept: KeptWork, steps: int) -> None:
        with self._store.begin() as unit:
            lifecycle.note_resumed(unit, kept.lease.held, steps)
