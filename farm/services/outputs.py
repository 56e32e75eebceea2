"""Whether the outputs that Postgres records are in the storage, and bringing back those that are not.

A repair renders the job again from its recipe, as a job of a tenant of its own, whose limits, usage and webhooks are
not those of the job's owner. What it renders is stored under the old key if, and only if, it has the recorded SHA-256:
nobody can tell the repaired object from the lost one, and no row about the old job changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

import structlog

from farm import lifecycle
from farm.domain.job import Job, NewJob, Output
from farm.domain.states import JobState, Priority
from farm.errors import BadInput, Conflict, NotFound, StorageUnavailable
from farm.services.context import ServiceContext
from farm.store.outputs import RecordedOutput
from farm.store.unit_of_work import UnitOfWork

log = structlog.get_logger(__name__)

TENANT: Final = "farm-repair"  #: whose jobs the renderings are
TENANT_DAYS: Final = 1  #: how long they are kept
THREADS: Final = 16  #: requests to the storage at once
PAGE_JOBS: Final = 500
DEEP_PAGE_JOBS: Final = 50  #: of a check that reads each object
REPAIR_JOBS: Final = 200  #: of one request


class Damage(StrEnum):
    """What is wrong with an output's object."""

    MISSING = "missing"
    SIZE = "size"  #: it has another size than was recorded
    SHA256 = "sha256"  #: it has other bytes


@dataclass(frozen=True)
class DamagedOutput:
    """An output whose object is not what the row says."""

    recorded: RecordedOutput
    damage: Damage


@dataclass(frozen=True)
class CheckedPage:
    """What a check found in one page of jobs."""

    outputs: int  #: that were checked
    damaged: tuple[DamagedOutput, ...]
    last_job: str | None  #: where the next page goes on; None: there is none


class RepairState(StrEnum):
    """How far the repair of one job is."""

    RENDERING = "rendering"  #: ask again later
    REPAIRED = "repaired"  #: every output is there, byte for byte
    IMPOSSIBLE = "impossible"


@dataclass(frozen=True)
class Repair:
    """The repair of one job."""

    job_id: str
    state: RepairState
    reason: str | None = None  #: why it is impossible


# -- checking ----------------------------------------------------------------------------------------------------------


def check(
    context: ServiceContext,
    *,
    after: str | None = None,
    since: datetime | None = None,
    batch_id: str | None = None,
    deep: bool = False,
) -> CheckedPage:
    """Compare one page of recorded outputs with the storage.

    Args:
        context: the process's connections.
        after: ``last_job`` of the page before.
        since: only jobs that ended then or later.
        batch_id: only this batch's.
        deep: read each object and compare its SHA-256; otherwise its presence and its size.

    Raises:
        StorageUnavailable: the storage does not answer, which says nothing about its objects.
    """
    limit = DEEP_PAGE_JOBS if deep else PAGE_JOBS
    with context.store.look() as unit:
        recorded, last_job = unit.outputs.page(after, limit, since=since, batch_id=batch_id)
    damaged = _damaged(context, recorded, deep=deep)
    if damaged:  # a batch may have been deleted, or a job forgotten, while its objects were looked at
        with context.store.look() as unit:
            there = {one.output.key for one in unit.outputs.of_jobs({one.recorded.job_id for one in damaged})}
        damaged = [one for one in damaged if one.recorded.output.key in there]
    return CheckedPage(len(recorded), tuple(damaged), last_job)


def _damaged(context: ServiceContext, recorded: Sequence[RecordedOutput], *, deep: bool) -> list[DamagedOutput]:
    def look(one: RecordedOutput) -> Damage | None:
        return _damage(context, one.output, deep=deep)

    with ThreadPoolExecutor(THREADS, thread_name_prefix="check outputs") as pool:
        found = list(pool.map(look, recorded))
    return [DamagedOutput(one, damage) for one, damage in zip(recorded, found, strict=True) if damage is not None]


def _damage(context: ServiceContext, output: Output, *, deep: bool) -> Damage | None:
    """What is wrong with one object. Raises `StorageUnavailable`."""
    try:
        if context.storage.head(output.key).bytes != output.size:
            return Damage.SIZE
        if deep and context.storage.sha256(output.key) != output.sha256:
            return Damage.SHA256
    except NotFound:
        return Damage.MISSING
    return None


# -- repairing ---------------------------------------------------------------------------------------------------------


def repair(context: ServiceContext, run: str, job_ids: Sequence[str]) -> list[Repair]:
    """Begin to repair jobs' outputs, or go on: ask again with the same ``run`` until none is `RepairState.RENDERING`.

    A job is rendered once in a run, however often it is asked for, and whichever process is asked.

    Args:
        context: the process's connections.
        run: a name for this repair, chosen by the caller: at most 40 letters, digits and dashes.
        job_ids: at most `REPAIR_JOBS`.

    Raises:
        BadInput: too many jobs.
        StorageUnavailable: the storage does not answer.
    """
    if len(job_ids) > REPAIR_JOBS:
        raise BadInput.of("job_ids", len(job_ids), f"at most {REPAIR_JOBS} jobs in one request")
    context.storage.ensure_bucket()
    with context.store.begin() as unit:
        tenant_id = _tenant(unit)
        wanted = unit.jobs.many(set(job_ids))
    # the storage may be asked long, and one slow object must not keep the others waiting
    with ThreadPoolExecutor(THREADS, thread_name_prefix="repair outputs") as pool:
        return list(pool.map(lambda job_id: _repair(context, tenant_id, run, job_id, wanted.get(job_id)), job_ids))


def _repair(context: ServiceContext, tenant_id: str, run: str, job_id: str, job: Job | None) -> Repair:
    if job is None or job.state is not JobState.SUCCEEDED:
        return Repair(job_id, RepairState.IMPOSSIBLE, "there is no job of this id that succeeded")
    damaged = [output for output in job.outputs if _damage(context, output, deep=True) is not None]
    if not damaged:
        return Repair(job_id, RepairState.REPAIRED)
    reason = _reason_against(context, job)
    if reason is not None:
        return Repair(job_id, RepairState.IMPOSSIBLE, reason)
    rendering = _rendering(context, tenant_id, f"{run}/{job_id}", job)
    if rendering.state in (JobState.FAILED, JobState.CANCELED):
        why = rendering.error.message if rendering.error else "it was canceled"
        return Repair(job_id, RepairState.IMPOSSIBLE, f"rendering it again failed: {why}")
    if rendering.state is not JobState.SUCCEEDED:
        return Repair(job_id, RepairState.RENDERING)
    rendered = {output.index: output for output in rendering.outputs}
    for output in damaged:
        again = rendered.get(output.index)
        if again is None or again.sha256 != output.sha256:
            return Repair(job_id, RepairState.IMPOSSIBLE, _difference(job, rendering))
        body = context.storage.get(again.key)
        if hashlib.sha256(body).hexdigest() != output.sha256:
            raise StorageUnavailable(f"the object storage returned other bytes for {again.key} than it was given")
        context.storage.put(output.key, body, output.media_type)
    log.info("repaired", action="outputs_repaired", job=job_id, outputs=len(damaged), rendering=rendering.id)
    return Repair(job_id, RepairState.REPAIRED)


def _reason_against(context: ServiceContext, job: Job) -> str | None:
    """Why a job cannot be rendered again, as far as that is known before."""
    if context.registry.get(job.spec.model) is None:
        return f"the farm has no model {job.spec.model} any more"
    numerics = _numerics(job)
    if numerics is not None:
        with context.store.look() as unit:
            online = {known.numerics.name for known in unit.numerics.all() if known.workers}
        if numerics not in online:
            return f"no worker of its numerics class {numerics} is online, and other workers may give other bytes"
    for role, files in job.spec.inputs.items():
        for file in files:
            if not context.storage.exists(file.key):
                return f"its input {role} is not in the storage: {file.key}"
    return None


def _rendering(context: ServiceContext, tenant_id: str, name: str, job: Job) -> Job:
    """The job that renders ``job`` again in this run."""
    key = lifecycle.IdempotencyKey(name, hashlib.sha256(job.id.encode()).digest())
    new = NewJob(
        job.spec,
        Priority.BULK,
        metadata=(("repairs", job.id),),
        max_attempts=context.settings.max_attempts,
        pin=_numerics(job),
    )
    with context.store.begin() as unit:
        return lifecycle.submit(unit, tenant_id, new, key)[0]


def _numerics(job: Job) -> str | None:
    """The numerics class of the worker that rendered the job: others may give other bytes."""
    name = (job.recipe or {}).get("numerics")
    return name if isinstance(name, str) else None


def _difference(job: Job, rendering: Job) -> str:
    """Why the rendering has other bytes, as far as the recipes tell."""
    old, new = job.recipe or {}, rendering.recipe or {}
    changed = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    made = "; ".join(f"{name}: {old.get(name)} then, {new.get(name)} now" for name in changed)
    return "rendering it again gave other bytes, so nothing was stored. " + (made or "Both recipes are the same")


def _tenant(unit: UnitOfWork) -> str:
    """The tenant whose jobs the renderings are."""
    known = unit.tenants.by_name(TENANT)
    if known is not None:
        return known.id
    try:
        return unit.tenants.create(TENANT, retention_days=TENANT_DAYS).id
    except Conflict:  # another process made it at this moment
        made = unit.tenants.by_name(TENANT)
        assert made is not None
        return made.id
