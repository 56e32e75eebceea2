"""Group commit: claims and successes of this worker's threads, in one transaction for all that wait.

While one transaction runs, other threads queue their writes; the next transaction takes all of them. So a single job
never waits for others, and the busier the worker, the larger its groups.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Final

import structlog

from farm import lifecycle, metrics
from farm.domain.job import HeldJob, Job, JobResult
from farm.errors import DatabaseUnavailable, LeaseLost
from farm.store.unit_of_work import Store

log = structlog.stdlib.get_logger()


@dataclass
class PendingWrite:
    """The claim or the success of one job."""

    held: HeldJob
    success: JobResult | None  #: None: the job is to be claimed
    committed: Future[Job | None] = field(default_factory=Future)  #: gives the claimed job; None for a success
    wake: threading.Event = field(default_factory=threading.Event)  #: set when its thread may continue


class GroupCommit:
    """Writes claims and successes in groups: one of the waiting threads commits for all. Safe to share."""

    def __init__(self, store: Store, worker: str, lease_seconds: float) -> None:
        self._store: Final = store
        self._worker = worker
        self._lease_seconds = lease_seconds
        self._pending: list[PendingWrite] = []
        self._committing = False  #: whether some thread commits now
        self._lock = threading.Lock()

    def claim(self, held: HeldJob) -> Job:
        """dispatched → running. Raises `LeaseLost` or `DatabaseUnavailable`."""
        job = self._write(PendingWrite(held, None))
        assert job is not None  # of a claim
        return job

    def succeed(self, success: JobResult) -> None:
        """running → succeeded. Raises `LeaseLost` or `DatabaseUnavailable`."""
        self._write(PendingWrite(success.held, success))

    def _write(self, write: PendingWrite) -> Job | None:
        with self._lock:
            self._pending.append(write)
            commits, self._committing = not self._committing, True
        if not commits:
            write.wake.wait()
        if not write.committed.done():
            self._commit_pending()
        return write.committed.result()

    def _commit_pending(self) -> None:
        """Commit all pending writes, this thread's own among them; then wake the first thread that came meanwhile."""
        with self._lock:
            group, self._pending = self._pending, []
        try:
            self._commit(group)
        finally:
            for write in group:
                write.committed.cancel()  # has an effect only if this thread was interrupted
                write.wake.set()
            with self._lock:
                if self._pending:
                    self._pending[0].wake.set()
                else:
                    self._committing = False

    def _commit(self, group: Sequence[PendingWrite]) -> None:
        try:
            self._transact(group)
        except DatabaseUnavailable as error:
            for write in group:
                write.committed.set_exception(error)
        except Exception as error:
            if len(group) == 1:
                group[0].committed.set_exception(error)
                return
            # one invalid write must not fail the others
            log.exception("group commit failed, committing one by one", action="group_commit_split", jobs=len(group))
            for write in group:
                self._commit([write])

    def _transact(self, group: Sequence[PendingWrite]) -> None:
        claims = [write.held for write in group if write.success is None]
        successes = [write.success for write in group if write.success is not None]
        claimed: list[Job] = []
        succeeded: list[str] = []
        with self._store.begin() as unit:
            if successes:
                succeeded = lifecycle.succeed_all(unit, successes)
            if claims:
                claimed = lifecycle.claim_all(unit, claims, self._worker, self._lease_seconds)
        metrics.GROUP_COMMIT_JOBS.observe(len(group))
        jobs = {HeldJob(job.id, job.epoch): job for job in claimed}
        for write in group:
            # a message that was delivered twice claims once
            job = jobs.pop(write.held, None) if write.success is None else None
            if job is None and (write.success is None or write.held.job_id not in succeeded):
                error = LeaseLost(f"this worker does not hold {write.held.job_id} at epoch {write.held.epoch}")
                write.committed.set_exception(error)
            else:
                write.committed.set_result(job)
