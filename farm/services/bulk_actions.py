"""One action on many jobs of a tenant: those that a request names, or all that match a filter."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

from farm import lifecycle
from farm.domain.job import Selection
from farm.services.context import ServiceContext

CANCEL_SECONDS: Final = 20.0  #: how long one request cancels jobs
_RETRY_SECONDS: Final = 0.02  #: before another look at rows that another transaction has locked


@dataclass(frozen=True)
class Canceled:
    """What came of canceling many jobs."""

    canceled: int  #: jobs that waited; they are finished
    stopping: int  #: jobs that ran; they stop at their next denoising step
    complete: bool  #: whether no job is left


def count_cancelable(context: ServiceContext, tenant_id: str, selection: Selection) -> int:
    """How many of the selected jobs are not finished."""
    with context.store.begin() as unit:
        unit.batches.allow_long_statements()
        return unit.bulk_actions.count_cancelable(tenant_id, selection)


def cancel(context: ServiceContext, tenant_id: str, selection: Selection) -> Canceled:
    """Cancel the selected jobs, in as many transactions as it takes, for at most `CANCEL_SECONDS`.

    Finished jobs stay as they are.
    """
    canceled = stopping = 0
    left = True
    until = time.monotonic() + CANCEL_SECONDS
    while left and time.monotonic() < until:
        with context.store.begin() as unit:
            ended, asked, left = lifecycle.cancel_selected(unit, tenant_id, selection)
        canceled += ended
        stopping += asked
        if left and not ended:
            time.sleep(_RETRY_SECONDS)
    return Canceled(canceled, stopping, complete=not left)


def count_retryable(context: ServiceContext, tenant_id: str, selection: Selection) -> int:
    """How many of the selected jobs failed or were canceled and were not retried since."""
    with context.store.begin() as unit:
        unit.batches.allow_long_statements()
        return unit.bulk_actions.count_retryable(tenant_id, selection).total


def retry(context: ServiceContext, tenant_id: str, selection: Selection) -> int:
    """Submit those jobs again as new jobs, all or none; returns how many. Raises `QuotaExceeded`."""
    with context.store.begin() as unit:
        return lifecycle.retry_selected(unit, tenant_id, selection)
