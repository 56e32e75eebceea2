"""Claims and successes of this worker's threads, carried to the database in one transaction for all that wait.

While one transaction is under way, others come in; the next one takes all of them. So a lone job never waits for
company, and the busier the worker the larger its groups.
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
class Entry:
    """One job's line in the ledger."""

    held: HeldJob
    done: JobResult | None  #: None: it is to be claimed
    outcome: Future[Job | None] = field(default_factory=Future)  #: the job claimed; None: it succeeded
    turn: threading.Event = field(default_factory=threading.Event)  #: set when its thread may go on


class Ledger:
    """Any number of threads write into it, one of them carries. Safe to share between threads."""

    def __init__(self, store: Store, worker: str, lease_seconds: float) -> None:
        self._store: Final = store
        self._worker = worker
        self._lease_seconds = lease_seconds
        self._waiting: list[Entry] = []
        self._carried = False  #: whether a thread carries at this moment
        self._lock = threading.Lock()

    def claim(self, held: HeldJob) -> Job:
        """dispatched → running. Raises `LeaseLost`, `DatabaseUnavailable`."""
        job = self._write(Entry(held, None))
        assert job is not None  # of a claim
        return job

    def succeed(self, done: JobResult) -> None:
        """running → succeeded. Raises `LeaseLost`, `DatabaseUnavailable`."""
        self._write(Entry(done.held, done))

    def _write(self, entry: Entry) -> Job | None:
        with self._lock:
            self._waiting.append(entry)
            carries, self._carried = not self._carried, True
        if not carries:
            entry.turn.wait()
        if not entry.outcome.done():
            self._carry()
        return entry.outcome.result()

    def _carry(self) -> None:
        """Carry all that wait, this thread's own entry among them; then the first of those that came meanwhile does."""
        with self._lock:
            group, self._waiting = self._waiting, []
        try:
            self._commit(group)
        finally:
            for entry in group:
                entry.outcome.cancel()  # nothing, unless this thread was ended in the middle
                entry.turn.set()
            with self._lock:
                if self._waiting:
                    self._waiting[0].turn.set()
                else:
                    self._carried = False

    def _commit(self, group: Sequence[Entry]) -> None:
        try:
            self._transact(group)
        except DatabaseUnavailable as error:
            for entry in group:
                entry.outcome.set_exception(error)
        except Exception as error:
            if len(group) == 1:
                group[0].outcome.set_exception(error)
                return
            # what one of them brought must not cost the others their work
            log.exception("a group is written one by one", action="group_split", jobs=len(group))
            for entry in group:
                self._commit([entry])

    def _transact(self, group: Sequence[Entry]) -> None:
        claims = [entry.held for entry in group if entry.done is None]
        done = [entry.done for entry in group if entry.done is not None]
        claimed: list[Job] = []
        won: list[str] = []
        with self._store.begin() as unit:
            if done:
                won = lifecycle.succeed_all(unit, done)
            if claims:
                claimed = lifecycle.claim_all(unit, claims, self._worker, self._lease_seconds)
        metrics.GROUP_COMMIT_JOBS.observe(len(group))
        jobs = {HeldJob(job.id, job.epoch): job for job in claimed}
        for entry in group:
            job = jobs.pop(entry.held, None) if entry.done is None else None  # a message that came twice claims once
            if job is None and (entry.done is None or entry.held.job_id not in won):
                error = LeaseLost(f"{entry.held.job_id} is not ours at epoch {entry.held.epoch}")
                entry.outcome.set_exception(error)
            else:
                entry.outcome.set_result(job)
