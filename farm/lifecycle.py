"""The lifecycle of a job: one function per edge of its state machine. No other module changes a job's state.

    submit ─► pending: waits for the outputs of other jobs ──the last of them succeeds──► queued
    submit ─► queued ──dispatch──► dispatched ──claim──► running ──succeed──► succeeded
                ▲                       │                    │─────fail──────► failed
                │◄────────reap──────────┘                    │
                │◄──release, preempt, fail (retryable), reap, worker_lost
              cancel ──► canceled                          cancel … canceled
              expire ──► failed

An input that fails or is canceled fails the jobs that wait for it, and so on to the end of the graph.

Each function works inside a unit of work that the caller opens, so that a state, its outputs and its event are one
transaction. A fenced change that touches no row raises `LeaseLost`: the caller lost its lease and must stop.
Times are the database's: no function reads a clock of this machine.

The file is long on purpose: a review of the state machine reads all its edges in one place.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from farm.domain import ids
from farm.domain.batch import Batch, BatchContents, BatchState, NewBatch, Staged
from farm.domain.checkpoint import Checkpoint
from farm.domain.gallery import GalleryOutput
from farm.domain.job import HeldJob, Job, JobError, JobFilter, JobResult, NewJob, Selection
from farm.domain.job_spec import InputFile, JobSpec
from farm.domain.queue import Assignment, DispatchedJob
from farm.domain.states import EventType, JobState, Priority
from farm.domain.worker import ResidentModel, Worker, WorkerInfo, WorkerState
from farm.errors import BadInput, Conflict, FieldProblem, LeaseLost, NotFound, QuotaExceeded
from farm.objects import keys
from farm.store import bulk_actions
from farm.store.bulk_actions import CanceledJobs
from farm.store.dependencies import SLICE, FailedInput
from farm.store.events import EVENT_CHANNEL, JOB_CHANNEL, PREVIEW_CHANNEL, PROPAGATION_CHANNEL, QUEUE_CHANNEL
from farm.store.jobs import ExpiredLease
from farm.store.retention import Retention
from farm.store.tables import IdempotencyRow
from farm.store.unit_of_work import UnitOfWork

#: A job that was on the device at so many crashes of its workers is not retried.
MAX_CRASHES: Final = 2
#: A job that this many different workers failed is not given to another one.
MAX_FAILING_WORKERS: Final = 3
#: A worker that failed this many jobs which others completed then gets no more.
MAX_REFUTED: Final = 3
#: How often a bulk job steps back for interactive ones; then it runs to its end.
MAX_PREEMPTIONS: Final = 5
#: Run leases that may run out before the device took the job up: a limit for what kills workers even earlier.
MAX_LOST: Final = 8
#: Seconds before another attempt, by attempts made: other jobs go first, and a passing trouble may pass.
RETRY_DELAYS: Final = (1.0, 5.0, 25.0)
#: Between two webhooks about one job's steps, where an endpoint asks for them.
PROGRESS_EVENT_SECONDS: Final = 5.0
#: After a job's end no worker writes under its lost epochs after this time: longer than any upload is retried.
ORPHAN_GRACE_SECONDS: Final = 3600.0
#: Jobs that follow the end of an input in its own transaction; more of them follow in slices, see `propagate_end`.
FOLLOW_AT_ONCE: Final = 1_000
#: Dependents of one job that `retry` submits again.
MAX_RETRIED_DEPENDENTS: Final = 1_000
#: Jobs, or batches, that one transaction forgets.
RETENTION_CHUNK: Final = 500
#: How often the leader sums up what tenants with a limit store.
STORAGE_CHECK_SECONDS: Final = 60.0


@dataclass(frozen=True)
class IdempotencyKey:
    """A client's name for a request, and the hash of the request it named."""

    key: str
    request_hash: bytes


@dataclass(frozen=True)
class HeartbeatReply:
    """What a worker learns from its heartbeat."""

    state: WorkerState
    held: frozenset[str]  #: jobs it still holds; the others are lost and must stop
    canceled: frozenset[str]  #: its jobs that are to be canceled
    stop: bool = False  #: whether an operator wants the process ended


# -- in --------------------------------------------------------------------------------------------------------------


def submit(unit: UnitOfWork, tenant_id: str, new: NewJob, key: IdempotencyKey | None = None) -> tuple[Job, bool]:
    """Accept a job: it is queued when the unit commits. Returns it, and whether this call made it.

    A job with inputs that are outputs of unfinished jobs is pending until they have succeeded.

    With a key, the same request again returns the first one's job. Raises `Conflict` if the key named another request,
    `QuotaExceeded` if the tenant has too many jobs waiting, `BadInput` for an output that will never exist.
    """
    if key is not None:
        held = unit.jobs.reserve_key(tenant_id, key.key, key.request_hash)
        if held is not None:
            return _idempotent_job(unit, key, held), False
    _check_quota(unit, tenant_id, 1)
    parents = _admit_parents(unit, tenant_id, new.spec)
    (job_id,) = unit.jobs.insert(tenant_id, [new], pending_inputs=sum(parents.values()))
    if parents:
        unit.dependencies.add(job_id, parents)
    if key is not None:
        unit.jobs.complete_key(tenant_id, key.key, job_id)
    unit.events.notify(QUEUE_CHANNEL)
    return _existing(unit, job_id), True


def _admit_parents(unit: UnitOfWork, tenant_id: str, spec: JobSpec) -> dict[str, bool]:
    """The jobs whose outputs are a new job's inputs, and whether it must wait for them. Raises `BadInput`."""
    if not spec.depends_on:
        return {}
    states = unit.dependencies.lock_parents(tenant_id, spec.depends_on)
    problems = [
        FieldProblem(role, file.reference, no_output_of(states.get(file.job)))
        for role, files in spec.inputs.items()
        for file in files
        if file.job is not None and states.get(file.job) in (None, JobState.FAILED, JobState.CANCELED)
    ]
    if problems:
        raise BadInput(*problems)
    return {parent: not states[parent].terminal for parent in spec.depends_on}


def no_output_of(state: JobState | None) -> str:
    """Why a job cannot have an output of another one, which is in that state, as an input."""
    if state is None:
        return "there is no such job"
    ended = "was canceled" if state is JobState.CANCELED else "failed"
    return f"that job {ended}, so it has no output; retry it and name the new job"


def find_submitted(unit: UnitOfWork, tenant_id: str, key: IdempotencyKey) -> Job | None:
    """The job that an earlier request with this key made: asked before inputs are fetched that may be gone by now."""
    held = unit.jobs.find_key(tenant_id, key.key)
    return None if held is None else _idempotent_job(unit, key, held)


def _idempotent_job(unit: UnitOfWork, key: IdempotencyKey, held: IdempotencyRow) -> Job:
    if held.request_hash != key.request_hash:
        raise BadInput.of("Idempotency-Key", key.key, "was used for a different request; use a new key")
    if held.job_id is None:
        raise Conflict("the request that holds this Idempotency-Key is not finished")
    return _existing(unit, held.job_id)


def retry(unit: UnitOfWork, tenant_id: str, job_id: str) -> tuple[Job, bool]:
    """Submit again what a failed or canceled job asked for. The old job stays as it ended.

    A job that was retried before is not submitted once more: its last retry is returned, or retried if it failed or
    was canceled too. Inputs that are outputs of jobs which were retried are then those of the retries. Returns the job,
    and whether this call made it.

    Raises `NotFound`, `Conflict` if the job has not finished or succeeded, `BadInput` if an input of it failed and was
    not retried.
    """
    unit.jobs.lock(job_id)  # two requests at the same time make one job
    old = unit.jobs.get(job_id, tenant_id)
    if old is None:
        raise NotFound("job", job_id)
    if old.state not in (JobState.FAILED, JobState.CANCELED):
        raise Conflict(f"the job is {old.state}; only failed and canceled jobs can be retried")
    while (again := unit.jobs.retry_of(old.id)) is not None:
        unit.jobs.lock(again)
        old = _existing(unit, again)
        if old.state not in (JobState.FAILED, JobState.CANCELED):
            return old, False
    return submit(unit, tenant_id, replace(NewJob.retry(old), spec=_with_retried_inputs(unit, old.spec)))


def _with_retried_inputs(unit: UnitOfWork, spec: JobSpec) -> JobSpec:
    """The spec with inputs from the last retries of the jobs that it depends on."""
    retried: dict[str, str] = {}
    for parent in spec.depends_on:
        last = parent
        while (again := unit.jobs.retry_of(last)) is not None:
            last = again
        if last != parent:
            retried[parent] = last
    if not retried:
        return spec

    def renewed(file: InputFile) -> InputFile:
        again = retried.get(file.job or "")
        return file if again is None else file.model_copy(update={"job": again, "sha256": "", "key": "", "size": 0})

    inputs = {role: tuple(map(renewed, files)) for role, files in spec.inputs.items()}
    return spec.model_copy(update={"inputs": inputs})


def retry_with_dependents(unit: UnitOfWork, tenant_id: str, job_id: str) -> tuple[Job, bool, int]:
    """`retry`, and likewise every job that failed for want of its outputs, to the end of the graph.

    A dependent with another input that failed, and is not retried here, is left as it is.

    Returns:
        The job, whether this call made it, and how many dependents were submitted again.

    Raises:
        As `retry`, and `Conflict` for more than `MAX_RETRIED_DEPENDENTS` dependents.
    """
    job, created = retry(unit, tenant_id, job_id)
    made = 0
    left = [one for one, _ in _failed_dependents(unit, job_id)]
    seen = set(left)
    progress = True
    while left and progress:
        progress = False
        deferred = []
        for one in left:
            try:
                _, new = retry(unit, tenant_id, one)
            except BadInput:  # another input of it comes later in the graph, or is not retried at all
                deferred.append(one)
                continue
            progress = True
            made += new
            deferred += [child for child, _ in _failed_dependents(unit, one) if child not in seen]
            seen.update(deferred)
            if len(seen) > MAX_RETRIED_DEPENDENTS:
                raise Conflict(
                    f"more than {MAX_RETRIED_DEPENDENTS:,} jobs depend on it: retry their batch, or retry the job "
                    "alone and then its dependents by their error code, input_failed"
                )
        left = deferred
    return job, created, made


def _failed_dependents(unit: UnitOfWork, job_id: str) -> list[tuple[str, JobState]]:
    found = unit.dependencies.dependents(job_id, MAX_RETRIED_DEPENDENTS + 1)
    return [(one, state) for one, state in found if state in (JobState.FAILED, JobState.CANCELED)]


def submit_batch(
    unit: UnitOfWork,
    tenant_id: str,
    batch_id: str,
    new: NewBatch,
    staged: Staged,
    *,
    key: IdempotencyKey | None = None,
    skipped: int = 0,
    error_key: str | None = None,
    error_bytes: int = 0,
) -> tuple[Batch, bool]:
    """Accept what this unit has staged: all of it is queued when the unit commits, or nothing is.

    Returns the batch, and whether this call made it. Keys and quotas as for `submit`; raises the same, and `BadInput`
    for a batch without a job. One whose lines were all skipped is completed at once.
    """
    if key is not None:
        held = unit.jobs.reserve_key(tenant_id, key.key, key.request_hash)
        if held is not None:
            return _idempotent_batch(unit, key, held), False
    if staged.total or not skipped:
        _check_quota(unit, tenant_id, staged.total)
    if staged.chained:
        refused = unit.staged_chains.admit(tenant_id)
        if refused:
            raise BadInput(
                *(FieldProblem(role, name, no_output_of(state), line) for line, role, name, state in refused)
            )
    unit.batches.insert_batch(tenant_id, batch_id, new, staged, skipped, error_key, error_bytes)
    unit.batches.insert_staged(
        tenant_id, batch_id, whole=not staged.duplicates, one_numerics=new.one_numerics, chained=staged.chained
    )
    if staged.chained:
        ended = unit.staged_chains.hold_parents()  # as late as possible: whoever ends a parent waits from here on
        succeeded = {job_id: jobs for job_id, (state, jobs) in ended.items() if state is JobState.SUCCEEDED}
        failed = {one: found for one, found in ended.items() if one not in succeeded}
        _promote_dependents(unit, succeeded)
        _fail_dependents(unit, {FailedInput(one, _LOST[state]): jobs for one, (state, jobs) in failed.items()})
    if key is not None:
        unit.jobs.complete_key(tenant_id, key.key, None, batch_id)
    unit.events.notify(QUEUE_CHANNEL)
    return _existing_batch(unit, tenant_id, batch_id), True


def find_submitted_batch(unit: UnitOfWork, tenant_id: str, key: IdempotencyKey) -> Batch | None:
    """The batch that an earlier request with this key made."""
    held = unit.jobs.find_key(tenant_id, key.key)
    return None if held is None else _idempotent_batch(unit, key, held)


def retry_batch(unit: UnitOfWork, tenant_id: str, batch_id: str) -> tuple[Batch, bool]:
    """Submit again what failed or was canceled in a batch, as a new batch. The old one stays as it ended.

    A batch that was retried before is not submitted once more: its last retry is returned, or retried if jobs of it
    failed or were canceled too. Jobs that were retried by themselves are left out. Returns the batch, and whether this
    call made it.

    Raises `NotFound`, `Conflict` if the batch has not finished or nothing is left to retry, and `QuotaExceeded`.
    """
    unit.batches.lock(batch_id)  # two requests at the same time make one batch
    old = _own_batch(unit, tenant_id, batch_id)
    if old.finished_at is None:
        raise Conflict(
            "the batch has not finished; retry its failed jobs one by one, or the batch when it has finished"
        )
    unit.batches.allow_long_statements()
    while (later := unit.batches.retry_of(old.id)) is not None:
        unit.batches.lock(later)
        old = _existing_batch(unit, tenant_id, later)
        if old.finished_at is None or old.counts.succeeded == old.counts.total:
            return old, False
    again = unit.batches.count_retryable(old.id)
    if not again.total:
        raise Conflict("no job of the batch is left to retry: those that failed or were canceled were retried already")
    _check_quota(unit, tenant_id, again.total)
    made = ids.new(ids.BATCH)
    new = NewBatch(
        old.name,
        old.metadata,
        retry_of=old.id,
        webhook=old.webhook,
        one_numerics=old.one_numerics,
        numerics=old.numerics,
    )
    unit.batches.insert_batch(tenant_id, made, new, again)
    unit.batches.copy_retryable(old.id, made)
    _attach_retried(unit, tenant_id, made)
    unit.events.notify(QUEUE_CHANNEL)
    return _existing_batch(unit, tenant_id, made), True


def _attach_retried(unit: UnitOfWork, tenant_id: str, batch_id: str | None = None) -> None:
    """Give retried jobs their inputs from the last retries of what they depend on; those without fail at once."""
    lost = unit.retried_chains.attach(tenant_id, batch_id)
    if lost:
        _fail_dependents(unit, {FailedInput(job_id, _LOST[state]): jobs for job_id, (state, jobs) in lost.items()})


def queue_room(unit: UnitOfWork, tenant_id: str) -> int | None:
    """How many jobs the tenant may still queue; None: no limit."""
    tenant = unit.tenants.get(tenant_id)
    if tenant is None or tenant.max_queued is None:
        return None
    return tenant.max_queued - unit.quotas.waiting(tenant_id, tenant.max_queued)


def _check_quota(unit: UnitOfWork, tenant_id: str, jobs: int) -> None:
    tenant = unit.tenants.get(tenant_id)
    if tenant is None:
        raise NotFound("tenant", tenant_id)
    if not jobs:
        raise BadInput.of("body", None, "holds no job")
    if tenant.max_queued is not None and not unit.quotas.admit(tenant_id, jobs, tenant.max_queued):
        if jobs == 1:
            raise QuotaExceeded(f"{tenant.max_queued} jobs of this tenant are waiting, which is its limit")
        raise QuotaExceeded(f"with these {jobs:,} jobs more than {tenant.max_queued:,} would wait, which is the limit")
    check_storage(unit, tenant_id, 1)
    if tenant.device_seconds_per_day is not None:
        used, left = unit.usage.today(tenant_id)
        if used >= tenant.device_seconds_per_day:
            raise QuotaExceeded(
                f"this tenant has used {used:,.1f} device-seconds today, of {tenant.device_seconds_per_day:,.1f}; "
                "the next day begins at midnight UTC",
                retry_after=left,
            )


def check_storage(unit: UnitOfWork, tenant_id: str, size: int) -> None:
    """Raise `QuotaExceeded` if a tenant may not store so many bytes more."""
    room = unit.usage.room(tenant_id)
    if room is not None and room[0] + size > room[1]:
        raise QuotaExceeded(
            f"this tenant stores {room[0]:,} bytes of the {room[1]:,} that it may: delete batches that you no longer "
            "need",
            retry_after=STORAGE_CHECK_SECONDS,
        )


def _idempotent_batch(unit: UnitOfWork, key: IdempotencyKey, held: IdempotencyRow) -> Batch:
    if held.request_hash != key.request_hash or held.batch_id is None:
        raise BadInput.of("Idempotency-Key", key.key, "was used for a different request; use a new key")
    batch = unit.batches.get(held.batch_id, held.tenant_id)
    if batch is None:
        raise BadInput.of("Idempotency-Key", key.key, "made a batch that was deleted since; use a new key")
    return batch


# -- to a worker -----------------------------------------------------------------------------------------------------


def dispatch(unit: UnitOfWork, chosen: Sequence[Assignment], lease_seconds: float) -> list[DispatchedJob]:
    """queued → dispatched, with a new epoch. Send the messages after the commit; a lost one is offered again."""
    if not chosen:
        return []
    sent = unit.queues.dispatch(chosen, lease_seconds)
    unit.events.notify_each(JOB_CHANNEL, [one.job_id for one in sent])
    return sent


def requeue_unsent(unit: UnitOfWork, unsent: Collection[DispatchedJob], reason: str) -> list[str]:
    """dispatched → queued for assignments whose message could not be sent; those claimed nevertheless stay as they are.

    Returns the requeued jobs.
    """
    back = [one for one in unsent if unit.jobs.requeue(one.job_id, one.epoch, refund=False, unclaimed=True)]
    for one in back:
        job = _existing(unit, one.job_id)
        unit.events.record(job.tenant_id, one.job_id, one.epoch, EventType.REQUEUED, {"reason": reason})
        unit.events.notify(JOB_CHANNEL, one.job_id)
    return [one.job_id for one in back]


def claim_all(unit: UnitOfWork, asked: Sequence[HeldJob], worker: str, lease_seconds: float) -> list[Job]:
    """dispatched → running for those that are the worker's to claim: it holds run leases now, and the attempts count.

    Returns them; the right to the others is lost.
    """
    jobs = unit.running_jobs.claim(asked, worker, lease_seconds)
    unit.events.record_many(
        [
            (job.tenant_id, job.id, job.epoch, EventType.STARTED, {"worker": worker, "attempt": job.attempts})
            for job in jobs
        ]
    )
    for job in jobs:
        unit.events.notify(JOB_CHANNEL, job.id)
    return jobs


def start_all(unit: UnitOfWork, begun: Mapping[HeldJob, int]) -> set[str]:
    """Note that the device begins with jobs of so many denoising steps: a worker's death counts against them from here.

    Returns those still held; the right to the others is lost.
    """
    held = unit.running_jobs.start(begun)
    for job_id in held:
        unit.events.notify(JOB_CHANNEL, job_id)
    return held


def progress_all(unit: UnitOfWork, reached: Mapping[HeldJob, int], previews: Mapping[str, str]) -> dict[str, bool]:
    """Record the steps done; returns the jobs still held, and whether each is to be canceled.

    ``previews``: by job, small data URLs for current watchers; they are sent and not stored.
    """
    held = unit.running_jobs.progress(reached)
    if held:
        unit.events.record_progress(held, PROGRESS_EVENT_SECONDS)
    for job_id in held:
        if job_id in previews:
            unit.events.notify(PREVIEW_CHANNEL, f"{job_id} {previews[job_id]}")
        unit.events.notify(JOB_CHANNEL, job_id)
    return held


def save_checkpoint(unit: UnitOfWork, held: HeldJob, checkpoint: Checkpoint) -> None:
    """The job's work up to here is stored: another attempt goes on from it. Raises `LeaseLost`."""
    if not unit.checkpoints.save(held, checkpoint):
        raise LeaseLost(f"{held.job_id} is no longer ours at epoch {held.epoch}")


def void_checkpoint(unit: UnitOfWork, held: HeldJob) -> None:
    """What earlier attempts stored cannot be used: no attempt looks at it again. Raises `LeaseLost`."""
    voided = unit.checkpoints.void(held)
    if voided is None:
        raise LeaseLost(f"{held.job_id} is no longer ours at epoch {held.epoch}")
    tenant_id, epochs = voided
    prefix = keys.checkpoint_prefix(tenant_id, held.job_id)
    unit.pending_deletions.add([f"{prefix}{epoch}/" for epoch in epochs])


def note_resumed(unit: UnitOfWork, held: HeldJob, steps: int) -> None:
    """The attempt took so many steps from the checkpoint. Raises `LeaseLost`."""
    if not unit.checkpoints.note_resumed(held, steps):
        raise LeaseLost(f"{held.job_id} is no longer ours at epoch {held.epoch}")
    unit.events.notify(JOB_CHANNEL, held.job_id)


def remove_checkpoints(unit: UnitOfWork, limit: int = 1_000) -> int:
    """Queue the checkpoints of jobs that have ended for deletion; returns how many."""
    ended = unit.checkpoints.take_ended(limit)
    unit.pending_deletions.add([keys.checkpoint_prefix(tenant_id, job_id) for tenant_id, job_id in ended])
    return len(ended)


# -- a worker's life -------------------------------------------------------------------------------------------------


def join(unit: UnitOfWork, info: WorkerInfo) -> list[str]:
    """A worker process begins. The jobs of an earlier process of that name are released; returns them."""
    before = unit.workers.join(info)
    lost = unit.jobs.held_by(info.name) if before is not None else []
    for one in lost:
        _requeue_expired(unit, one)
    unit.events.notify(QUEUE_CHANNEL)
    return [one.job_id for one in lost]


def heartbeat(
    unit: UnitOfWork,
    worker: str,
    boot_id: str,
    held: Collection[HeldJob],
    models: tuple[str, ...],
    lease_seconds: float,
    loaded: tuple[ResidentModel, ...] = (),
    prefetch: int | None = None,
) -> HeartbeatReply:
    """Record a heartbeat: renews the run leases of ``held``. Raises `LeaseLost` if another process has the name."""
    heard = unit.workers.record_heartbeat(worker, boot_id, models, loaded, prefetch)
    if heard is None:
        raise LeaseLost(f"another process is worker {worker} now")
    state, stop = heard
    renewed = unit.running_jobs.renew(worker, held, lease_seconds)
    canceled = frozenset(job for job, wanted in renewed.items() if wanted)
    return HeartbeatReply(state, frozenset(renewed), canceled, stop)


def leave(unit: UnitOfWork, worker: str, boot_id: str) -> list[str]:
    """A worker process ends: what it still holds goes back to the queue without counting; returns those jobs."""
    if not unit.workers.set_state(worker, WorkerState.OFFLINE, boot_id):
        return []  # a newer process has the name, and what it holds is its own
    left = unit.jobs.held_by(worker)
    for one in left:
        _requeue(unit, one.tenant_id, HeldJob(one.job_id, one.epoch), "worker stopped", refund=True)
    return [one.job_id for one in left]


def drain_worker(unit: UnitOfWork, name: str, reason: str) -> Worker:
    """Let a worker finish what it holds and give it nothing new, also after a restart. Raises `NotFound`."""
    if not unit.workers.drain(name, reason):
        raise NotFound("worker", name)
    unit.events.notify(QUEUE_CHANNEL)
    return _existing_worker(unit, name)


def stop_worker(unit: UnitOfWork, name: str, reason: str) -> Worker:
    """Drain a worker, and have its process end as by a signal: a fresh one of that name stays drained until resumed.

    Raises `NotFound`, or `Conflict` if the worker has no live process.
    """
    worker = drain_worker(unit, name, reason)
    if worker.state is WorkerState.OFFLINE:
        raise Conflict(f"worker {name} is offline: there is no process to stop")
    unit.workers.request_stop(name)
    return _existing_worker(unit, name)


def resume_worker(unit: UnitOfWork, name: str) -> Worker:
    """Give a drained worker jobs again, and forget what it was drained for. Raises `NotFound`."""
    if not unit.workers.resume(name):
        raise NotFound("worker", name)
    unit.job_failures.clear_refuted(name)
    unit.events.notify(QUEUE_CHANNEL)
    return _existing_worker(unit, name)


def _existing_worker(unit: UnitOfWork, name: str) -> Worker:
    worker = unit.workers.get(name)
    assert worker is not None  # written in this transaction
    return worker


# -- out -------------------------------------------------------------------------------------------------------------


def succeed_all(unit: UnitOfWork, done: Sequence[JobResult]) -> list[str]:
    """running → succeeded with their outputs and their events, in one transaction, for those still held.

    Returns them; the right to the others is lost.
    """
    won = unit.running_jobs.succeed(done)
    if not won:
        return []
    unit.usage.count([one.job_id for one in won])
    again = {one.job_id: one.worker for one in won if one.attempts > 1}
    refuted = unit.job_failures.refute(again) if again else {}
    for worker, times in sorted(refuted.items()):
        if times >= MAX_REFUTED:
            unit.workers.drain(worker, f"it failed {times} jobs that other workers completed")
    _promote_dependents(unit, {one.job_id: one.dependents for one in won if one.dependents})
    _record_finished_all(
        unit,
        [
            (one.tenant_id, one.job_id, one.epoch, EventType.SUCCEEDED, {"worker": one.worker, "outputs": one.outputs})
            for one in won
        ],
    )
    return [one.job_id for one in won]


def fail(unit: UnitOfWork, job_id: str, epoch: int, error: JobError, *, retryable: bool) -> JobState:
    """running → failed, or → queued while another attempt may help and is left. Returns the new state.

    → canceled if that was asked for just now. No attempt is left once `MAX_FAILING_WORKERS` different workers have
    failed it. Raises `LeaseLost`.
    """
    job = unit.jobs.get(job_id)
    if job is None or job.epoch != epoch or job.state is not JobState.RUNNING:
        raise LeaseLost(f"{job_id} is no longer ours at epoch {epoch}")
    failed_by = unit.job_failures.record(job_id, job.worker) if retryable and job.worker is not None else 0
    again = retryable and not job.cancel_requested and job.attempts < job.max_attempts
    if again and failed_by < MAX_FAILING_WORKERS:
        # what the attempt has done may be why it failed, so the next one begins anew
        void_checkpoint(unit, HeldJob(job_id, epoch))
        delay = RETRY_DELAYS[min(job.attempts, len(RETRY_DELAYS)) - 1]
        return _requeue(unit, job.tenant_id, HeldJob(job_id, epoch), error.code, error=error, delay_seconds=delay)
    if not unit.jobs.fail(job_id, epoch, error):
        raise LeaseLost(f"{job_id} is no longer ours at epoch {epoch}")
    _record_finished(
        unit, job.tenant_id, job_id, epoch, EventType.FAILED, {"code": error.code, "message": error.message}
    )
    return JobState.FAILED


def fail_with_device(unit: UnitOfWork, job_id: str, epoch: int, error: JobError) -> JobState:
    """running → queued, or → failed: the device failed while it rendered the job. Returns the new state.

    Nobody knows whether the job made it fail, so the attempt does not count, but the crash does: the job is isolated
    from then on, and fails at the `MAX_CRASHES`-th one. Raises `LeaseLost`.
    """
    job = unit.jobs.get(job_id)
    if job is None or job.epoch != epoch or job.state is not JobState.RUNNING:
        raise LeaseLost(f"{job_id} is no longer ours at epoch {epoch}")
    failed_by = 0 if job.worker is None else unit.job_failures.record(job_id, job.worker)
    if job.cancel_requested or (job.crash_count + 1 < MAX_CRASHES and failed_by < MAX_FAILING_WORKERS):
        held = HeldJob(job_id, epoch)
        return _requeue(unit, job.tenant_id, held, error.code, refund=True, died=True, error=error)
    if not unit.jobs.fail(job_id, epoch, error):
        raise LeaseLost(f"{job_id} is no longer ours at epoch {epoch}")
    _record_finished(
        unit, job.tenant_id, job_id, epoch, EventType.FAILED, {"code": error.code, "message": error.message}
    )
    return JobState.FAILED


def release(unit: UnitOfWork, job_id: str, epoch: int, reason: str) -> None:
    """running → queued through no fault of the job: the attempt does not count. → canceled if that was asked for.

    Raises `LeaseLost`.
    """
    job = unit.jobs.get(job_id)
    if job is None:
        raise LeaseLost(f"{job_id} is gone")
    _requeue(unit, job.tenant_id, HeldJob(job_id, epoch), reason, refund=True)


def preempt(unit: UnitOfWork, job_id: str, epoch: int) -> JobState:
    """running → queued: it steps back for an interactive job. The attempt does not count. Returns the new state.

    → canceled if that was asked for. Its tenant is refunded what it was charged: the next dispatch charges it again,
    and goes on from the checkpoint. Raises `LeaseLost`.
    """
    job = unit.jobs.get(job_id)
    if job is None:
        raise LeaseLost(f"{job_id} is gone")
    state = _requeue(unit, job.tenant_id, HeldJob(job_id, epoch), "preempted", refund=True, preempted=True)
    if state is JobState.QUEUED:
        unit.tenants.refund_cost(job.tenant_id, job.cost)
    return state


def cancel(unit: UnitOfWork, tenant_id: str, job_id: str) -> Job:
    """Stop a job: at once while it waits, at the next denoising step while it runs. A finished job stays as it is.

    Raises `NotFound`, or `Conflict` if the job succeeded or failed.
    """
    if not ids.is_id(ids.JOB, job_id):
        raise NotFound("job", job_id)
    for _ in range(2):  # one that is released between the two statements waits now
        epoch = unit.jobs.cancel_waiting(tenant_id, job_id)
        if epoch is not None:
            _record_finished(unit, tenant_id, job_id, epoch, EventType.CANCELED, {})
            break
        if unit.jobs.request_cancel(tenant_id, job_id):
            unit.events.notify(JOB_CHANNEL, job_id)
            break
    job = unit.jobs.get(job_id, tenant_id)
    if job is None:
        raise NotFound("job", job_id)
    if job.state in (JobState.SUCCEEDED, JobState.FAILED):
        raise Conflict(f"the job has already ended: it {job.state}")
    return job


def cancel_batch(unit: UnitOfWork, tenant_id: str, batch_id: str) -> Batch:
    """Stop a batch: none of its jobs is dispatched from this unit's commit on.

    Call `propagate_batch` in units of their own until it returns True: waiting jobs are canceled, running ones are
    asked to stop at their next denoising step. Canceling again changes nothing.

    Raises `NotFound`, or `Conflict` if the batch ran to its end.
    """
    batch = _own_batch(unit, tenant_id, batch_id, lock=True)
    if batch.state is BatchState.COMPLETED:
        raise Conflict("the batch has already finished")
    if batch.cancel_requested_at is not None:
        return batch
    unit.batches.cancel(batch_id)
    return _changed_batch(unit, tenant_id, batch_id)


def cancel_selected(unit: UnitOfWork, tenant_id: str, selection: Selection) -> tuple[int, int, bool]:
    """Stop many jobs, as `cancel` stops one; finished ones stay as they are.

    Returns how many were canceled, how many were asked to stop at their next step, and whether some are left that this
    unit could not reach: call again, in another unit.
    """
    ended, asked, left = _cancel_many(unit, tenant_id, selection)
    # every unit locks the rows of batches last, and in the same order
    _count_canceled(unit, ended)
    return sum(one.jobs for one in ended), asked, left


def _count_canceled(unit: UnitOfWork, ended: Sequence[CanceledJobs]) -> None:
    for batch_id, one in sorted((one.batch_id, one) for one in ended if one.batch_id is not None):
        unit.batches.count_finished(batch_id, {JobState.CANCELED.value: one.jobs}, one.pending)


def _cancel_many(unit: UnitOfWork, tenant_id: str, selection: Selection) -> tuple[list[CanceledJobs], int, bool]:
    """How many of each batch were canceled, how many were asked to stop, and whether some are left."""
    unit.batches.allow_long_statements()
    ended = unit.bulk_actions.cancel_waiting(tenant_id, selection)
    asked = unit.bulk_actions.request_cancel(tenant_id, selection)
    unit.events.notify_each(JOB_CHANNEL, asked)
    if ended:
        # requests that wait for one of the jobs poll, so a million of them need no notification
        unit.events.notify(EVENT_CHANNEL)
        unit.events.notify(QUEUE_CHANNEL)
    if any(one.with_dependents for one in ended):
        unit.events.notify(PROPAGATION_CHANNEL)
    # where there were as many as one statement takes, looking for more would read them all once again
    full = sum(one.jobs for one in ended) == bulk_actions.CANCEL_CHUNK
    left = full or unit.bulk_actions.any_left(tenant_id, selection)
    return ended, len(asked), left


def retry_selected(unit: UnitOfWork, tenant_id: str, selection: Selection) -> int:
    """Submit again what failed or was canceled among many jobs, unless that was done before; returns how many.

    All of it is queued when the unit commits, or nothing is. Raises `QuotaExceeded`.
    """
    unit.batches.allow_long_statements()
    again = unit.bulk_actions.count_retryable(tenant_id, selection)
    if not again.total:
        return 0
    _check_quota(unit, tenant_id, again.total)
    made = unit.bulk_actions.copy_retryable(tenant_id, selection)
    _attach_retried(unit, tenant_id)
    unit.events.notify(QUEUE_CHANNEL)
    return made


# -- batches as a whole ----------------------------------------------------------------------------------------------


def pause_batch(unit: UnitOfWork, tenant_id: str, batch_id: str, by: str | None = None) -> Batch:
    """Hand none of a batch's jobs over from this unit's commit on; what a worker holds goes on to its end.

    Pausing again changes nothing. ``by`` is the name of the key that asks for it. Call `propagate_batch` in units of
    their own until it returns True: the batch's jobs leave their queues. Raises `NotFound`, or `Conflict` if the batch
    has finished or is being canceled.
    """
    batch = _own_batch(unit, tenant_id, batch_id, lock=True)
    if batch.state not in (BatchState.IN_PROGRESS, BatchState.PAUSED):
        raise Conflict(f"the batch is {batch.state.value.replace('_', ' ')}; only one in progress can be paused")
    if batch.paused_at is None:
        unit.batches.pause(batch_id, by)
    return _changed_batch(unit, tenant_id, batch_id)


def resume_batch(unit: UnitOfWork, tenant_id: str, batch_id: str) -> Batch:
    """Let a paused batch go on; its jobs take their old places. One that is not paused stays as it is.

    Call `propagate_batch` as for `pause_batch`. Raises `NotFound`.
    """
    if _own_batch(unit, tenant_id, batch_id, lock=True).paused_at is not None:
        unit.batches.resume(batch_id)
    return _changed_batch(unit, tenant_id, batch_id)


def change_batch(
    unit: UnitOfWork,
    tenant_id: str,
    batch_id: str,
    *,
    name: str | None = None,
    metadata: dict[str, str] | None = None,
    priority: Priority | None = None,
) -> Batch:
    """Change what is given. With a priority, call `propagate_batch` as for `pause_batch`.

    Raises `NotFound`, or `Conflict` for the priority of a finished batch.
    """
    batch = _own_batch(unit, tenant_id, batch_id, lock=True)
    if name is not None:
        unit.batches.set_name(batch_id, name)
    if metadata is not None:
        unit.batches.set_metadata(batch_id, metadata)
    if priority is not None:
        if batch.finished_at is not None:
            raise Conflict("the batch has already finished: no job is left whose priority could change")
        unit.batches.set_priority(batch_id, priority)
    return _changed_batch(unit, tenant_id, batch_id)


def _changed_batch(unit: UnitOfWork, tenant_id: str, batch_id: str) -> Batch:
    unit.events.notify(JOB_CHANNEL, batch_id)
    return _existing_batch(unit, tenant_id, batch_id)


def propagate_batch(unit: UnitOfWork, batch_id: str) -> bool:
    """Let a batch's jobs follow its pause, its priority and its end; returns whether all do.

    If not, call it again in another unit: they are many, or another transaction held their rows.
    """
    unit.batches.allow_long_statements()
    tenant_id = unit.batches.canceling_tenant(batch_id)
    if tenant_id is not None:
        return _cancel_batch_jobs(unit, tenant_id, batch_id)
    if unit.batches.propagate(batch_id):
        unit.events.notify(QUEUE_CHANNEL)
        return False  # what is left is looked at by a unit that holds no lock of a job
    unit.batches.lock(batch_id)
    # a cancel may have come since the first look: its jobs have not followed yet
    return unit.batches.canceling_tenant(batch_id) is None and unit.batches.check_propagated(batch_id)


def _cancel_batch_jobs(unit: UnitOfWork, tenant_id: str, batch_id: str) -> bool:
    whole = Selection(wanted=JobFilter(batch_id=batch_id))
    ended, _, left = _cancel_many(unit, tenant_id, whole)
    # every unit locks the rows of batches last
    _count_canceled(unit, ended)
    if left:
        return False
    unit.batches.mark_propagated(batch_id)
    return True


def batch_contents(unit: UnitOfWork, tenant_id: str, batch_id: str) -> BatchContents:
    """What `delete_batch` would remove. Raises the same."""
    _finished_batch(unit, tenant_id, batch_id)
    unit.batches.allow_long_statements()
    return unit.batches.contents(batch_id)


def delete_batch(unit: UnitOfWork, tenant_id: str, batch_id: str) -> None:
    """Soft-delete a finished batch: it is hidden from this unit's commit on.

    Call `purge_batch` in units of their own until it has done all. Raises `NotFound`, or `Conflict` if the batch is not
    over.
    """
    _finished_batch(unit, tenant_id, batch_id)
    if unit.batches.is_needed(batch_id):
        raise Conflict("unfinished jobs have outputs of this batch as inputs: wait for them, or cancel them")
    unit.batches.soft_delete(batch_id)


def purge_batch(unit: UnitOfWork, batch_id: str) -> bool:
    """Delete some jobs of a soft-deleted batch, keeping their objects' names for removal; returns whether it is gone.

    Rows go before objects: whatever breaks in between, no row names an object that is not there.
    """
    unit.batches.allow_long_statements()
    gone = unit.batches.delete_jobs(batch_id)
    object_keys: list[str] = []
    for one in gone:
        # where an attempt was lost, its worker may have written objects that it never came to record
        object_keys += [keys.job_prefix(one.tenant_id, one.job_id)] if one.may_have_orphans else one.keys
    if not gone:
        report = unit.batches.delete_row(batch_id)
        object_keys += [] if report is None else [report]
    unit.pending_deletions.add(object_keys)
    return not gone


def _finished_batch(unit: UnitOfWork, tenant_id: str, batch_id: str) -> Batch:
    batch = _own_batch(unit, tenant_id, batch_id)
    if batch.finished_at is None:
        raise Conflict("the batch has not finished: cancel it first")
    return batch


def delete_job(unit: UnitOfWork, tenant_id: str, job_id: str) -> Job:
    """Delete a job that has ended, with its outputs, its events and their deliveries; returns it as it was.

    Raises `NotFound`, or `Conflict` while it has not ended and where it is part of a batch.
    """
    unit.jobs.lock(job_id)
    job = unit.jobs.get(job_id, tenant_id)
    if job is None:
        raise NotFound("job", job_id)
    if not job.state.terminal:
        raise Conflict(f"the job is {job.state.value}: cancel it first")
    if job.batch_id is not None:
        raise Conflict(f"the job is part of {job.batch_id}: delete the batch, or only the job's outputs")
    unit.jobs.delete(job_id)
    unit.pending_deletions.add([keys.job_prefix(tenant_id, job_id)])
    return job


def delete_outputs(unit: UnitOfWork, outputs: Collection[GalleryOutput]) -> None:
    """Delete outputs that are there, and have their objects removed. Their jobs stay as they are."""
    unit.gallery.delete([one.place for one in outputs])
    unit.pending_deletions.add([one.output.key for one in outputs])


def delete_expired(unit: UnitOfWork, limit: int = RETENTION_CHUNK) -> int:
    """Delete what is older than its tenant keeps it, and have the objects removed; returns how many jobs and batches.

    Fewer than ``limit``: nothing is left for now. A batch's jobs go piece by piece, by `purge_batch`.
    """
    retention = Retention(unit.session)
    batches = retention.expired_batches(limit)
    for _, batch_id in batches:
        unit.batches.soft_delete(batch_id)
    jobs = retention.delete_expired_jobs(limit)
    unit.pending_deletions.add([keys.job_prefix(tenant_id, job_id) for tenant_id, job_id in jobs])
    files = unit.request_files.delete_expired(limit)
    unit.pending_deletions.add([keys.lines_key(tenant_id, file_id) for tenant_id, file_id in files])
    return max(len(batches) + len(jobs), len(files), unit.audit.delete_expired(limit))


def collect_orphans(unit: UnitOfWork, grace_seconds: float = ORPHAN_GRACE_SECONDS) -> int:
    """Queue the objects of lost attempts for deletion; returns the number of key prefixes.

    Only after ``grace_seconds``: until then a worker that lost its right may still be writing.
    """
    object_keys: list[str] = []
    for one in Retention(unit.session).orphans(grace_seconds, RETENTION_CHUNK):
        if one.epochs is None:
            object_keys.append(keys.job_prefix(one.tenant_id, one.job_id))
        else:
            object_keys += [keys.epoch_prefix(one.tenant_id, one.job_id, epoch) for epoch in one.epochs]
    unit.pending_deletions.add(object_keys)
    return len(object_keys)


# -- lost leases and deadlines ----------------------------------------------------------------------------------------


def reap(unit: UnitOfWork, limit: int = 1_000) -> list[str]:
    """Requeue the jobs whose lease ran out; returns them."""
    expired = unit.jobs.expired_leases(limit)
    for one in expired:
        _requeue_expired(unit, one)
    return [one.job_id for one in expired]


def requeue_orphaned(unit: UnitOfWork, limit: int = 1_000) -> list[str]:
    """Requeue what a worker that is gone will not do, before its lease runs out; returns those jobs.

    Of a silent worker, what its device has not begun; of one whose process is another one by now, all that the earlier
    process held. A worker that was silent and lives finds its epoch ended.
    """
    orphaned = unit.jobs.orphaned(limit)
    for one in orphaned:
        _requeue_expired(unit, one, unclaimed="worker lost")
    return [one.job_id for one in orphaned]


def expire(unit: UnitOfWork, limit: int = 1_000) -> list[str]:
    """pending or queued → failed for jobs whose deadline has passed; returns them."""
    expired = []
    for state, awaited in ((JobState.QUEUED, "a worker"), (JobState.PENDING, "its inputs")):
        overdue = unit.jobs.overdue(state, limit)
        if overdue:
            error = JobError("deadline_exceeded", f"its deadline passed while it waited for {awaited}")
            unit.jobs.fail_waiting(overdue, error)
            data = {"code": error.code, "message": error.message}
            ended = [(one.tenant_id, one.job_id, one.epoch, EventType.FAILED, data) for one in overdue]
            _record_finished_all(unit, ended)
            expired += [one.job_id for one in overdue]
    return expired


def _requeue_expired(unit: UnitOfWork, one: ExpiredLease, *, unclaimed: str = "dispatch lease expired") -> None:
    """A job whose holder is gone: queued again, or at its end. ``unclaimed``: the reason for one not yet claimed."""
    held = HeldJob(one.job_id, one.epoch)
    if one.state is JobState.DISPATCHED:
        # the message or its worker got lost before the claim: no attempt was made
        _requeue(unit, one.tenant_id, held, unclaimed)
        return
    if one.cancel_requested:
        confirm_cancel(unit, one.job_id, one.epoch)
        return
    crash_count, lost_count = one.crash_count + int(one.started), one.lost_count + 1
    exhausted = one.started and one.attempts >= one.max_attempts
    if crash_count >= MAX_CRASHES or lost_count >= MAX_LOST or exhausted:
        error = JobError("worker_lost", f"Its worker was lost {lost_count} times while it ran this job; not retried.")
        if not unit.jobs.fail(one.job_id, one.epoch, error):
            raise LeaseLost(f"{one.job_id} changed while it was requeued")
        _record_finished(
            unit, one.tenant_id, one.job_id, one.epoch, EventType.FAILED, {"code": error.code, "message": error.message}
        )
        return
    # a job that only waited at the worker is not to blame for its death
    _requeue(unit, one.tenant_id, held, "worker lost", refund=not one.started, lost=True, died=one.started)


def _requeue(
    unit: UnitOfWork,
    tenant_id: str,
    held: HeldJob,
    reason: str,
    *,
    refund: bool = False,
    delay_seconds: float = 0,
    error: JobError | None = None,
    lost: bool = False,
    died: bool = False,
    preempted: bool = False,
) -> JobState:
    """Back into its queue, or to canceled if that was requested. Returns the new state."""
    back = unit.jobs.requeue(
        held.job_id,
        held.epoch,
        refund=refund,
        delay_seconds=delay_seconds,
        error=error,
        lost=lost,
        died=died,
        preempted=preempted,
    )
    if not back:
        confirm_cancel(unit, held.job_id, held.epoch)
        return JobState.CANCELED
    kept = unit.checkpoints.get(held.job_id)
    data = {"reason": reason} | ({} if kept is None else {"steps_kept": kept.steps})
    unit.events.record(tenant_id, held.job_id, held.epoch, EventType.REQUEUED, data)
    unit.events.notify(QUEUE_CHANNEL)
    unit.events.notify(JOB_CHANNEL, held.job_id)
    return JobState.QUEUED


def confirm_cancel(unit: UnitOfWork, job_id: str, epoch: int) -> None:
    """running → canceled: the worker stopped because it was asked to. Raises `LeaseLost`."""
    if not unit.jobs.cancel_running(job_id, epoch):
        raise LeaseLost(f"{job_id} is no longer ours at epoch {epoch}")
    job = _existing(unit, job_id)
    _record_finished(unit, job.tenant_id, job_id, epoch, EventType.CANCELED, {"worker": job.worker})


def _record_finished(
    unit: UnitOfWork, tenant_id: str, job_id: str, epoch: int, kind: EventType, data: dict[str, Any]
) -> None:
    _record_finished_all(unit, [(tenant_id, job_id, epoch, kind, data)])


def _record_finished_all(unit: UnitOfWork, ended: Sequence[tuple[str, str, int, EventType, dict[str, Any]]]) -> None:
    unit.events.record_many(ended)
    unit.events.notify(QUEUE_CHANNEL)  # their workers have room again
    for _, job_id, *_ in ended:
        unit.batches.note_finished(job_id)
        unit.events.notify(JOB_CHANNEL, job_id)
    lost = {job_id: _ENDED[kind] for _, job_id, _, kind, _ in ended if kind in _ENDED}
    counts = unit.dependencies.with_dependents(lost)
    if counts:
        _fail_dependents(unit, {FailedInput(job_id, lost[job_id]): jobs for job_id, jobs in counts.items()})


# -- what waits for a job's outputs -----------------------------------------------------------------------------------

#: How the end of an input is put in words, where it has no output.
_ENDED: Final = {EventType.FAILED: "failed", EventType.CANCELED: "was canceled"}
_LOST: Final = {JobState.FAILED: "failed", JobState.CANCELED: "was canceled", None: "was deleted"}


def _promote_dependents(unit: UnitOfWork, succeeded: Mapping[str, int]) -> None:
    """pending → queued for the jobs that wait only for these; ``succeeded``: how many depend on each."""
    many = [job_id for job_id, jobs in succeeded.items() if jobs > FOLLOW_AT_ONCE]
    few = succeeded.keys() - many
    if many:
        unit.dependencies.mark(many)
        unit.events.notify(PROPAGATION_CHANNEL)
    if few:
        for one in unit.dependencies.promote(few):
            if one.batch_id is not None:
                unit.batches.note_promoted(one.batch_id)
            unit.events.notify(JOB_CHANNEL, one.job_id)


def _fail_dependents(unit: UnitOfWork, ended: Mapping[FailedInput, int]) -> None:
    """pending → failed for the jobs that wait for these, and for those that wait for them, all levels at once.

    ``ended``: how many jobs depend on each. What exceeds `FOLLOW_AT_ONCE` is left to `propagate_end`.
    """
    room = FOLLOW_AT_ONCE
    while ended:
        now: dict[str, FailedInput] = {}
        later = []
        for one, jobs in ended.items():
            if jobs <= room:
                room -= jobs
                now[one.job_id] = one
            else:
                later.append(one)
        if later:
            unit.dependencies.mark(failed=later)
            unit.events.notify(PROPAGATION_CHANNEL)
        followed = unit.dependencies.fail(list(now.values())) if now else []
        for job in followed:
            unit.batches.note_finished(job.job_id)
            unit.events.notify(JOB_CHANNEL, job.job_id)
        if followed:
            unit.events.notify(EVENT_CHANNEL)
        ended = {
            FailedInput(job.job_id, "failed", now[job.parent_id].cause): job.dependents
            for job in followed
            if job.dependents
        }


def propagate_end(unit: UnitOfWork, limit: int = SLICE) -> bool:
    """Let at most ``limit`` of the jobs follow whose input ended with more dependents than its transaction took.

    Returns whether there were any; if so, call it again in another unit.
    """
    unit.batches.allow_long_statements()
    followed = unit.dependencies.follow(limit)
    if followed is None:
        return False
    for batch_id in sorted(one for one in followed.by_batch if one is not None):
        jobs = followed.by_batch[batch_id]
        if followed.failed:
            unit.batches.count_finished(batch_id, {JobState.FAILED.value: jobs}, pending=jobs)
        else:
            unit.batches.note_promoted(batch_id, jobs)
    unit.events.notify(QUEUE_CHANNEL)
    return True


def _existing(unit: UnitOfWork, job_id: str) -> Job:
    job = unit.jobs.get(job_id)
    assert job is not None  # written in this transaction
    return job


def _own_batch(unit: UnitOfWork, tenant_id: str, batch_id: str, *, lock: bool = False) -> Batch:
    if lock and ids.is_id(ids.BATCH, batch_id):
        unit.batches.lock(batch_id)
    batch = unit.batches.get(batch_id, tenant_id)
    if batch is None:
        raise NotFound("batch", batch_id)
    return batch


def _existing_batch(unit: UnitOfWork, tenant_id: str, batch_id: str) -> Batch:
    batch = unit.batches.get(batch_id, tenant_id)
    assert batch is not None  # written in this transaction
    return batch
