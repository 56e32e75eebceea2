"""Requeueing of jobs whose lease ran out: run by the leading dispatcher beside its rounds."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Final

import structlog

from farm import lifecycle, metrics
from farm.clock import NapDetector
from farm.settings import Settings
from farm.store.unit_of_work import Store

log = structlog.stdlib.get_logger()

REAP_SECONDS: Final = 1.0
HOUSEKEEPING_SECONDS: Final = 600.0
FORGET_SECONDS: Final = 7 * 24 * 3600  #: after which a worker that is offline is no longer listed
KEY_AGE_SECONDS: Final = 48 * 3600.0  #: how long an Idempotency-Key is remembered
#: heartbeats that a worker may miss before it gets nothing new, and what it has not begun is requeued
MISSED_BEATS: Final = 2


@dataclass
class Reaper:
    """Gives expired jobs back and marks silent workers; call it as often as you like.

    After an outage of the database, or when this process was itself away (frozen, or its machine slept), it first lets
    the workers renew their leases, which they could not do meanwhile: that is no sign that they are gone.
    """

    store: Store
    settings: Settings
    _next_reap: float = field(default=0.0, init=False)
    _next_measure: float = field(default=0.0, init=False)
    _next_housekeeping: float = field(default=0.0, init=False)
    _naps: NapDetector = field(init=False)

    def __post_init__(self) -> None:
        self._naps = NapDetector(self._grace_seconds)

    @property
    def _grace_seconds(self) -> float:
        """In this time after an outage every living worker has renewed its leases."""
        return 2 * self.settings.heartbeat_seconds

    def look_at_clock(self) -> None:
        """Hold if this process was away; call it at each turn of the dispatcher's loop, also of a standby's."""
        nap = self._naps.turn()
        if nap:
            log.warning("was away; workers renew their leases first", action="dispatcher_nap", seconds=round(nap, 1))
            self.hold()

    def hold(self) -> None:
        """The database or this process was away: take nothing back before the workers had time to renew."""
        self._next_reap = time.monotonic() + self._grace_seconds

    def due_in(self) -> float:
        """Seconds until its next run is due."""
        return max(0.0, self._next_reap - time.monotonic())

    def run(self) -> None:
        """Reap if it is time. Raises `DatabaseUnavailable`."""
        now = time.monotonic()
        if now < self._next_reap:
            return
        self._next_reap = now + REAP_SECONDS
        with self.store.begin() as unit:
            if unit.database_uptime() < self._grace_seconds:
                return
            silent = unit.workers.mark_silent_offline(self.settings.heartbeat_seconds * MISSED_BEATS)
            orphaned = lifecycle.requeue_orphaned(unit)
            reaped = lifecycle.reap(unit)
            expired = lifecycle.expire(unit)
        metrics.LEASES_EXPIRED.inc(len(reaped) + len(orphaned))
        for worker in silent:
            log.warning("worker is silent", action="worker_silent", worker=worker)
        for job_id in orphaned:
            log.warning("requeued: its worker is gone", action="job_orphaned", job=job_id)
        for job_id in reaped:
            log.warning("lease ran out", action="lease_expired", job=job_id)
        for job_id in expired:
            log.info("deadline passed", action="deadline_exceeded", job=job_id)
        if now >= self._next_measure:
            self._next_measure = now + lifecycle.STORAGE_CHECK_SECONDS
            with self.store.begin() as unit:
                unit.usage.measure_storage()
            with self.store.begin() as unit:
                removed = lifecycle.delete_expired(unit)
                orphans = lifecycle.collect_orphans(unit)
            if removed >= lifecycle.RETENTION_CHUNK:
                self._next_measure = now + REAP_SECONDS  # go on soon, and let the rounds through
            if removed or orphans:
                log.info("old data removed", action="retention", removed=removed, orphans=orphans)
        if now >= self._next_housekeeping:
            self._next_housekeeping = now + HOUSEKEEPING_SECONDS
            with self.store.begin() as unit:
                unit.jobs.delete_keys(KEY_AGE_SECONDS)
                gone = unit.workers.forget_gone(FORGET_SECONDS)
            for worker in gone:
                log.info("a worker that is gone is forgotten", action="worker_forgotten", worker=worker)
