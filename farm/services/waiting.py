"""Why jobs wait, their places and the time left: what `farm.domain.waiting` says of the jobs that are looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from farm.domain.job import Job
from farm.domain.model import Registry
from farm.domain.states import JobState
from farm.domain.waiting import FarmSnapshot, ModelNeeds, eta_seconds, jobs_ahead, waiting_reason
from farm.services.context import ServiceContext
from farm.store.unit_of_work import UnitOfWork


def needs(registry: Registry) -> Mapping[str, ModelNeeds]:
    """What each model of the registry needs of a worker."""
    return {
        model.id: ModelNeeds(model.memory_bytes, frozenset(model.tags))
        for model in (*registry.retired, *registry.models)
    }


def snapshot(unit: UnitOfWork, registry: Registry) -> FarmSnapshot:
    """What decides now which jobs may start."""
    return unit.waiting.snapshot(needs(registry))


def explain(context: ServiceContext, job: Job) -> Job:
    """The job with the reason why it waits, its place in the queue and the estimated time left, where it has them."""
    if job.state.terminal or job.state is JobState.PENDING:  # what that waits for is known
        return job
    with context.store.look() as unit:
        farm = snapshot(unit, context.registry)
        estimator = context.estimates.get(unit)
        facts = None
        if job.state is JobState.QUEUED:
            facts = unit.waiting.jobs([job.id]).get(job.id)
            if facts is None:  # it has been dispatched since
                return job
        if facts is None:
            progress = job.progress
            done = progress.step / progress.steps if progress is not None and progress.steps else 0.0
            return replace(job, eta_seconds=eta_seconds(job.spec.model, job.cost, done, None, {}, estimator))
        blocked = waiting_reason(facts.job, farm)
        if blocked is not None:
            return replace(job, waiting_reason=blocked)
        own, others, weight = unit.waiting.ahead(job.id, facts)
        ahead = jobs_ahead(facts.job, own, others, weight, farm)
        held = unit.waiting.held()
    return replace(
        job,
        waiting_reason=waiting_reason(facts.job, farm, ahead),
        position=ahead.jobs + 1,
        eta_seconds=eta_seconds(job.spec.model, job.cost, 0.0, ahead, held, estimator),
    )


def explain_blocks(context: ServiceContext, jobs: Sequence[Job]) -> list[Job]:
    """The jobs, each queued one with what blocks it. A job that only awaits its turn has no reason here."""
    with context.store.look() as unit:
        return explain_blocks_in(unit, context.registry, jobs)


def explain_blocks_in(unit: UnitOfWork, registry: Registry, jobs: Sequence[Job]) -> list[Job]:
    """`explain_blocks` within a unit of work."""
    queued = [job.id for job in jobs if job.state is JobState.QUEUED]
    if not queued:
        return list(jobs)
    farm = snapshot(unit, registry)
    facts = unit.waiting.jobs(queued)
    return [
        replace(job, waiting_reason=waiting_reason(facts[job.id].job, farm)) if job.id in facts else job for job in jobs
    ]
