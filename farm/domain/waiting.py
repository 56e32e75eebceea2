"""Why a queued job waits, and for how long: pure functions of one snapshot of the farm.

Every place that says why a job waits (the API, the command line, the pages, the adapters) asks `waiting_reason`. A new
cause of waiting is one more entry of `_BLOCKERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, NamedTuple

from farm.domain.estimate import Estimator
from farm.domain.states import Priority

GIGABYTE: Final = 1e9


class Pause(NamedTuple):
    """A pause that lasts."""

    since: datetime
    by: str | None = None  #: the name of the API key that set it; None: not known


class ModelNeeds(NamedTuple):
    """What a model needs of a worker."""

    memory_bytes: int | None = None
    tags: frozenset[str] = frozenset()


ANYWHERE: Final = ModelNeeds()


class WaitingWorker(NamedTuple):
    """A worker that is online or draining."""

    name: str
    memory_bytes: int | None = None  #: of its device; None: unknown, and assumed to be enough
    tags: frozenset[str] = frozenset()
    numerics: str | None = None
    draining: bool = False
    free_slots: int = 0


class TenantLoad(NamedTuple):
    """What a tenant has at workers."""

    held: int
    max_running: int


@dataclass(frozen=True)
class FarmSnapshot:
    """What decides at one moment which jobs may start."""

    now: datetime
    workers: tuple[WaitingWorker, ...] = ()
    models: Mapping[str, ModelNeeds] = field(default_factory=dict)  #: one that is missing runs anywhere
    farm_pause: Pause | None = None
    model_pauses: Mapping[str, Pause] = field(default_factory=dict)
    tenant_pauses: Mapping[str, Pause] = field(default_factory=dict)
    loads: Mapping[str, TenantLoad] = field(default_factory=dict)  #: of tenants with a limit


@dataclass(frozen=True)
class WaitingJob:
    """What decides when one queued job starts."""

    tenant_id: str
    model: str
    priority: Priority
    available_at: datetime  #: not dispatched before
    attempts: int = 0
    numerics: str | None = None  #: the numerics class that it is pinned to
    wait_for: str | None = None  #: the numerics class in which it began, whose worker was lost
    waits_until: datetime | None = None  #: so long it waits for ``wait_for``
    batch_pause: Pause | None = None
    pending_inputs: int = 0  #: jobs whose outputs are its inputs and that have not finished


@dataclass(frozen=True)
class QueueLength:
    """Jobs of one queue that may be dispatched before a job."""

    tenant_id: str
    model: str
    priority: Priority
    numerics: str | None
    jobs: int
    cost: float  #: megapixel-steps
    weight: float = 1.0  #: of the tenant
    more: bool = False  #: whether there are more than were counted


@dataclass(frozen=True)
class JobsAhead:
    """An estimate of what is dispatched before a job. Other tenants' jobs count as far as their shares go."""

    higher: int = 0  #: of a higher priority
    equal: int = 0  #: of the same priority
    costs: Mapping[str, float] = field(default_factory=dict)  #: megapixel-steps by model
    more: bool = False  #: whether there are more than were counted

    @property
    def jobs(self) -> int:
        """All of them."""
        return self.higher + self.equal


# -- why ---------------------------------------------------------------------------------------------------------------


def waiting_reason(job: WaitingJob, farm: FarmSnapshot, ahead: JobsAhead | None = None) -> str | None:
    """Why a queued job has not started: one clause without a full stop.

    Args:
        job: the queued job.
        farm: the farm at the same moment.
        ahead: the jobs before it; None: only what blocks it, not its turn.

    Returns:
        None where the next round of the dispatcher may dispatch it, or where only its turn is awaited and ``ahead`` is
        not given.
    """
    for blocker in _BLOCKERS:
        reason = blocker(job, farm)
        if reason is not None:
            return reason
    return None if ahead is None else _turn(job, farm, ahead)


def _inputs(job: WaitingJob, _: FarmSnapshot) -> str | None:
    count = job.pending_inputs
    return f"waits for its inputs: {_jobs(count)} not finished" if count else None


def _paused(job: WaitingJob, farm: FarmSnapshot) -> str | None:
    for what, pause in (
        ("the farm", farm.farm_pause),
        ("its tenant", farm.tenant_pauses.get(job.tenant_id)),
        ("its batch", job.batch_pause),
        (f"the model {job.model}", farm.model_pauses.get(job.model)),
    ):
        if pause is not None:
            return paused_sentence(what, pause)
    return None


def paused_sentence(what: str, pause: Pause) -> str:
    """``the farm is paused by the key 'ops' since 2026-12-01 14:03 UTC``."""
    by = f" by the key '{pause.by}'" if pause.by else ""
    return f"{what} is paused{by} since {_time(pause.since)}"


def _later(job: WaitingJob, farm: FarmSnapshot) -> str | None:
    if job.available_at <= farm.now:
        return None
    if job.attempts:
        return f"its last attempt failed; the next one starts after {_time(job.available_at, seconds=True)}"
    return f"not before {_time(job.available_at)}"


def _no_worker(job: WaitingJob, farm: FarmSnapshot) -> str | None:
    needs = farm.models.get(job.model, ANYWHERE)
    if not farm.workers:
        return _class_missing(job) or "no worker is online"
    left = [one for one in farm.workers if job.numerics in (None, one.numerics)]
    if not left:
        return _class_missing(job)
    tagged = [one for one in left if needs.tags <= one.tags]
    if not tagged:
        return _tags_missing(needs.tags, left)
    fits = [one for one in tagged if _fits(needs, one)]
    if not fits and needs.memory_bytes is not None:
        largest = max(one.memory_bytes or 0 for one in tagged)
        need = _gigabytes(needs.memory_bytes)
        return f"the model {job.model} needs {need}; the largest device has {_gigabytes(largest)}"
    if all(one.draining for one in fits):
        return "every worker that can render it is draining"
    return None


def _class_missing(job: WaitingJob) -> str | None:
    return None if job.numerics is None else f"no worker of numerics class {job.numerics} is online"


def _tags_missing(tags: frozenset[str], workers: list[WaitingWorker]) -> str:
    absent = sorted(tags.difference(*(one.tags for one in workers)))
    if absent:
        return f"no worker has the tag{'s' if len(absent) > 1 else ''} {', '.join(absent)}"
    return f"no worker has all of the tags {', '.join(sorted(tags))}"


def _tenant_limit(job: WaitingJob, farm: FarmSnapshot) -> str | None:
    load = farm.loads.get(job.tenant_id)
    if load is None or load.held < load.max_running:
        return None
    return f"its tenant has {_jobs(load.held)} at workers, and its limit max_running is {load.max_running}"


def _lost_worker(job: WaitingJob, farm: FarmSnapshot) -> str | None:
    if job.wait_for is None or job.waits_until is None or job.waits_until <= farm.now:
        return None
    if any(one.numerics == job.wait_for and one.free_slots and not one.draining for one in farm.workers):
        return None
    until = _time(job.waits_until, seconds=True)
    return f"its worker was lost; until {until} it waits for another one of numerics class {job.wait_for}"


#: What keeps a job from being dispatched, in the order in which it is reported.
_BLOCKERS: Final[tuple[Callable[[WaitingJob, FarmSnapshot], str | None], ...]] = (
    _inputs, _paused, _later, _no_worker, _tenant_limit, _lost_worker,
)  # fmt: skip


def _turn(job: WaitingJob, farm: FarmSnapshot, ahead: JobsAhead) -> str | None:
    about = "more than " if ahead.more else ""
    if ahead.higher and ahead.equal:
        return f"behind {ahead.higher:,} of higher and {about}{ahead.equal:,} jobs of equal priority"
    if ahead.jobs:
        kind = "higher" if ahead.higher else "equal"
        return f"behind {about}{_jobs(ahead.jobs)} of {kind} priority"
    if any(one.free_slots for one in eligible(job.model, job.numerics, farm)):
        return None
    return "it is the next one; every worker that can render it is full"


# -- when --------------------------------------------------------------------------------------------------------------


def eligible(model: str, numerics: str | None, farm: FarmSnapshot) -> frozenset[WaitingWorker]:
    """The workers that may get jobs of a model and a numerics class (None: any)."""
    needs = farm.models.get(model, ANYWHERE)
    return frozenset(
        one
        for one in farm.workers
        if not one.draining and numerics in (None, one.numerics) and needs.tags <= one.tags and _fits(needs, one)
    )


def jobs_ahead(
    job: WaitingJob, own: QueueLength, queues: tuple[QueueLength, ...], weight: float, farm: FarmSnapshot
) -> JobsAhead:
    """What is dispatched before a job, as far as priorities and fair shares tell.

    Args:
        job: the queued job.
        own: the older jobs of its tenant and priority, of all models that compete with it.
        queues: the other queues of its priority or a higher one, each with all its jobs. Those of its own tenant and
            priority are left out: they are ``own``.
        weight: of its tenant.
        farm: the farm at the same moment.
    """
    ours = eligible(job.model, job.numerics, farm)
    counts = {True: 0, False: 0}
    costs: dict[str, float] = {own.model: own.cost} if own.jobs else {}
    more = own.more
    turns = own.jobs + 1
    for queue in queues:
        paused = farm.model_pauses.get(queue.model) or farm.tenant_pauses.get(queue.tenant_id)
        if paused or not queue.jobs or not ours & eligible(queue.model, queue.numerics, farm):
            continue
        higher = queue.priority.rank > job.priority.rank
        # of an equal priority, another tenant gets as many turns as its share allows until this job's turn
        share = queue.jobs if higher else min(queue.jobs, max(1, round(turns * queue.weight / max(weight, 1e-6))))
        counts[higher] += share
        more = more or (queue.more and share == queue.jobs)
        costs[queue.model] = costs.get(queue.model, 0.0) + queue.cost * share / queue.jobs
    return JobsAhead(counts[True], counts[False] + own.jobs, costs, more)


def eta_seconds(
    model: str, cost: float, done: float, ahead: JobsAhead | None, held: Mapping[str, float], estimator: Estimator
) -> float | None:
    """The estimated seconds until a job has finished; None where that is not known.

    Args:
        model: of the job.
        cost: its megapixel-steps.
        done: the part of its steps that is done, from 0 to 1.
        ahead: what is dispatched before it; None for a job at a worker.
        held: what is left of the jobs at workers, in megapixel-steps by model.
        estimator: of this moment.
    """
    alone = estimator.job_seconds(model, cost * (1.0 - done))
    if alone is None:
        return None
    wait = 0.0
    if ahead is not None:
        work = dict(held)
        for name, more in ahead.costs.items():
            work[name] = work.get(name, 0.0) + more
        before = estimator.seconds(work)
        wait = 0.0 if before is None else before.middle
    return round(wait + alone.middle, 1)


def _fits(needs: ModelNeeds, worker: WaitingWorker) -> bool:
    return needs.memory_bytes is None or worker.memory_bytes is None or needs.memory_bytes <= worker.memory_bytes


def _jobs(count: int) -> str:
    return f"{count:,} job{'' if count == 1 else 's'}"


def _gigabytes(count: int) -> str:
    return f"{count / GIGABYTE:.3g} GB"


def _time(moment: datetime, *, seconds: bool = False) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC" if seconds else f"{moment:%Y-%m-%d %H:%M} UTC"
