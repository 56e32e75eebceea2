"""Repeating an action while a server does not answer: one backoff for all, and a limit for each kind of action."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

import structlog

from farm.errors import (
    BrokerUnavailable,
    DatabaseUnavailable,
    DecodersBusy,
    JobCanceled,
    LeaseLost,
    StorageUnavailable,
)
from workers.leases import Lease, StopReason

log = structlog.stdlib.get_logger()
T = TypeVar("T")

BACKOFF_SECONDS: Final = (0.2, 0.5, 1.0, 2.0, 5.0)  #: between tries; the last one repeats


def backoff() -> Iterator[float]:
    """Seconds between tries: growing, then constant. Never ends."""
    yield from BACKOFF_SECONDS
    while True:
        yield BACKOFF_SECONDS[-1]


def retry_until_available(action: Callable[[], T]) -> T:
    """Repeat an action until the broker and the database answer."""
    for pause in backoff():
        try:
            return action()
        except (BrokerUnavailable, DatabaseUnavailable) as error:
            log.warning("waiting for a server", action="server_unavailable", error=str(error))
            time.sleep(pause)
    raise AssertionError  # backoff() never ends


def retry_for(seconds: float, action: Callable[[], T]) -> T:
    """Repeat an action until the database answers. Raises `DatabaseUnavailable` after ``seconds``."""
    give_up_at = time.monotonic() + seconds
    for pause in backoff():
        try:
            return action()
        except DatabaseUnavailable:
            if time.monotonic() + pause > give_up_at:
                raise
            time.sleep(pause)
    raise AssertionError  # backoff() never ends


def retry_until_lease_ends(lease: Lease, change: Callable[[], None]) -> None:
    """Repeat a fenced change until the database answers. Raises `LeaseLost` when the lease has ended."""
    for pause in backoff():
        if lease.seconds_left <= 0 or lease.stop_reason is StopReason.LOST:
            break
        try:
            change()
        except DatabaseUnavailable:
            log.warning("waiting for the database", action="database_unavailable")
            time.sleep(min(pause, max(0.0, lease.seconds_left)))
        else:
            return
    raise LeaseLost(f"the lease of {lease.job.id} ended before the database answered")


def retry_storage(lease: Lease, seconds: float, action: Callable[[], T]) -> T:
    """Repeat an action until the object storage answers, or the process may decode. The lease is renewed meanwhile.

    Raises:
        StorageUnavailable: The storage did not answer for ``seconds``.
        DecodersBusy: The process decoded other files for ``seconds``.
        JobCanceled: The job was stopped.
    """
    give_up_at = time.monotonic() + seconds
    for pause in backoff():
        if lease.stopped.is_set():
            raise JobCanceled("the job was stopped")
        try:
            return action()
        except (StorageUnavailable, DecodersBusy) as error:
            if time.monotonic() + pause > give_up_at:
                raise
            log.warning("waiting for a file", action="storage_unavailable", error=str(error))
            lease.record_progress()
            lease.stopped.wait(pause)
    raise AssertionError  # backoff() never ends
