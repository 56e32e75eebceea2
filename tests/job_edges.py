"""Edges of one job, as tests write them: the product's functions take many jobs in one statement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from farm import lifecycle
from farm.domain.job import HeldJob, Job, JobResult, Output
from farm.errors import LeaseLost
from farm.store.unit_of_work import UnitOfWork


def claim(unit: UnitOfWork, job_id: str, epoch: int, worker: str, lease_seconds: float) -> Job:
    """dispatched → running. Raises `LeaseLost`."""
    for job in lifecycle.claim_all(unit, [HeldJob(job_id, epoch)], worker, lease_seconds):
        return job
    raise LeaseLost(f"{job_id} is not to be claimed at epoch {epoch}")


def start(unit: UnitOfWork, job_id: str, epoch: int, steps: int) -> None:
    """The device starts the job. Raises `LeaseLost`."""
    if not lifecycle.start_all(unit, {HeldJob(job_id, epoch): steps}):
        raise LeaseLost(f"{job_id} is not held at epoch {epoch}")


def progress(unit: UnitOfWork, job_id: str, epoch: int, step: int, preview: str | None = None) -> bool:
    """Steps are done; returns whether the job is to be canceled. Raises `LeaseLost`."""
    previews = {} if preview is None else {job_id: preview}
    for cancel_requested in lifecycle.progress_all(unit, {HeldJob(job_id, epoch): step}, previews).values():
        return cancel_requested
    raise LeaseLost(f"{job_id} is not held at epoch {epoch}")


def succeed(unit: UnitOfWork, job_id: str, epoch: int, outputs: Sequence[Output], recipe: dict[str, Any]) -> Job:
    """running → succeeded. Raises `LeaseLost`."""
    if not lifecycle.succeed_all(unit, [JobResult(HeldJob(job_id, epoch), tuple(outputs), recipe)]):
        raise LeaseLost(f"{job_id} is not held at epoch {epoch}")
    job = unit.jobs.get(job_id)
    assert job is not None
    return job
