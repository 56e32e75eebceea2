"""Group commit: claims and successes of this worker's threads, in one transaction for all that wait.

While one transaction runs, other threads queue their writes; the next transaction takes all of them. So a single job
never waits for others, and the busier the worker, the larger its groups.

A transaction takes several round trips to the database. Where those are long, the next one does not wait for the end of
the one before: it begins `STAGGER_SECONDS` after it. Near the database a transaction ends sooner than that.
"""

from __future__ import annotations

import threading
import time
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


STAGGER_SECONDS: Final = 0.03  #: between the beginnings of two transactions that run at once
MAX_TRANSACTIONS: Final = 8  #: that run at once, each on a connection of its own


@dataclass
class PendingWrite:
    """The claim or the success of one job."""

    held: HeldJob
    success: JobResult | None  #: None: the job is to be claimed
    committed: Future[Job | None] = field(default_factory=Future)  #: gives the claimed job; None for a success
    wake: threading.Event = field(default_factory=threading.Event)  #: set when its thread may continue


class GroupCommit:
    """Writes claims and successes in groups: one of the waiting threads commits for all. Safe to share."""

    def __init__(
        self, store: Store, worker: str, lease_seconds: float, stagger_seconds: float = STAGGER_SECONDS
    ) -> None:
        self._store: Final = store
        self._stagger_seconds = stagger_seconds
        self._worker = worker
        self._lease_seconds = lease_seconds
        self._pending: list[PendingWrite] = []
        self._running = 0  #: transactions that run now
        self._began_at = 0.0  #: when the last of them began, monotonic
        self._leader = False  #: whether a waiting thread will begin the next one
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
            leads, self._leader = not self._leader, True
        if leads:
            self._wait_for_turn(write)
        else:
            write.wake.wait()
        if not write.committed.done():
            self._commit_pending(write)
        return write.committed.result()

    def _wait_for_turn(self, write: PendingWrite) -> None:
        """Wait until another transaction may begin; woken when one ends."""
        while True:
            with self._lock:
                left = self._began_at + self._stagger_seconds - time.monotonic()
                if not self._running or (left <= 0 and self._running < MAX_TRANSACTIONS):
                    return
                full = self._running >= MAX_TRANSACTIONS
                write.wake.clear()
            write.wake.wait(None if full else left)

    def _commit_pending(self, own: PendingWrite) -> None:
        """Commit the pending writes, this thread's own among them; then let the first that came meanwhile lead."""
        with self._lock:
            group, self._pending = self._pending, []
            if self._running:
                # Round trips are long: claims do not wait for the statements of successes, nor these for theirs.
                self._pending = [write for write in group if (write.success is None) != (own.success is None)]
                group = [write for write in group if (write.success is None) == (own.success is None)]
            self._running += 1
            self._began_at = time.monotonic()
            self._leader = bool(self._pending)
            if self._leader:
                self._pending[0].wake.set()
        try:
            self._commit(group)
        finally:
            for write in group:
                write.committed.cancel()  # has an effect only if this thread was interrupted
                write.wake.set()
            with self._lock:
                self._running -= 1
                if self._pending:
                    self._pending[0].wake.set()

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
