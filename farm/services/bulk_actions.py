"""One action on many jobs: on those that a request names, one by one, or on all of a tenant that match a filter."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from farm import lifecycle
from farm.domain.job import Job, Selection
from farm.domain.states import JobState
from farm.errors import Conflict, Forbidden, NotFound, QuotaExceeded
from farm.services import jobs
from farm.services.context import ServiceContext
from farm.store.unit_of_work import UnitOfWork

JOBS_PER_TRANSACTION: Final = 100  #: of those that are changed one by one
CANCEL_SECONDS: Final = 20.0  #: how long one request cancels jobs
_RETRY_SECONDS: Final = 0.02  #: before another look at rows that another transaction has locked


class JobAction(StrEnum):
    """What can be done to many jobs."""

    CANCEL = "cancel"
    RETRY = "retry"
    RERUN = "rerun"


@dataclass
class ActionReport:
    """What an action did."""

    done: int = 0
    skipped: Counter[str] = field(default_factory=Counter)  #: jobs left as they are, by the reason
    new_jobs: list[str] = field(default_factory=list)  #: ids


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


def apply(
    context: ServiceContext,
    action: JobAction,
    job_ids: Sequence[str],
    tenant_id: str | None,
    authorize: Callable[[str], object],
) -> ActionReport:
    """Apply an action to each of the jobs, some in one transaction; a job that it does not fit is left as it is.

    Args:
        context: the process's connections.
        action: what to do.
        job_ids: the jobs.
        tenant_id: whose jobs are visible; None: everyone's.
        authorize: raises `Forbidden` if the caller may not change jobs of the tenant.
    """
    report = ActionReport()
    for start in range(0, len(job_ids), JOBS_PER_TRANSACTION):
        part = job_ids[start : start + JOBS_PER_TRANSACTION]
        with context.store.begin() as unit:
            found = unit.jobs.many(part)
            for job_id in part:
                job = found.get(job_id)
                if job is None or tenant_id not in (None, job.tenant_id):
                    report.skipped["not found"] += 1
                    continue
                try:
                    authorize(job.tenant_id)
                    report.new_jobs += _apply(unit, action, job)
                except (Conflict, QuotaExceeded, NotFound, Forbidden) as refused:
                    report.skipped[str(refused)] += 1
                else:
                    report.done += 1
    return report


def _apply(unit: UnitOfWork, action: JobAction, job: Job) -> list[str]:
    """Apply an action to one job; returns the new job's id, if it makes one."""
    match action:
        case JobAction.CANCEL:
            if job.state.terminal:
                raise Conflict(f"already {job.state}")
            lifecycle.cancel(unit, job.tenant_id, job.id)
            return []
        case JobAction.RETRY:
            if job.state not in (JobState.FAILED, JobState.CANCELED):
                raise Conflict(f"{job.state}: only failed and canceled jobs are retried")
            return [lifecycle.retry(unit, job.tenant_id, job.id)[0].id]
        case JobAction.RERUN:
            return [jobs.submit_rerun(unit, job).id]
