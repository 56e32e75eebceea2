"""Runs one job, from claim to commit.

    claim ─► fetch inputs ─► render ─► encode and upload ─► commit
                │               │              │               │
                └───────────────┴──────┬───────┴───────────────┘
                                       └─► an error: record how the attempt ended, delete what it stored

A stage ends the attempt by raising. `record_end` says what each error means for the job's row; when the lease is lost,
nothing is written.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import structlog

from farm import lifecycle, metrics, tracing
from farm.domain.job import HeldJob, Job, JobError, JobResult, Output
from farm.domain.media import SUSPICIONS
from farm.domain.model import Model
from farm.domain.resolve import fit_to_input
from farm.domain.states import JobState
from farm.errors import (
    DatabaseUnavailable,
    DeviceFailed,
    JobCanceled,
    LeaseLost,
    ModelUnavailable,
    RenderError,
    StorageUnavailable,
)
from farm.objects.storage import Storage
from farm.settings import Settings
from farm.store.unit_of_work import Store, UnitOfWork
from workers import failpoints, image_steps
from workers.checkpoints.writer import CheckpointWriter, KeptWork
from workers.group_commit import GroupCommit
from workers.job_inputs import fetch_inputs
from workers.job_outputs import OutputUploader
from workers.leases import Lease, Leases, Stage, StopReason, lease_deadline
from workers.media.artifacts import Artifact
from workers.model_files import FetchRequest, ModelFiles
from workers.prefetch import PrefetchControl
from workers.progress_reporter import ProgressReporter
from workers.render_request import RenderEngine, RenderRequest, RenderResult
from workers.retry import retry_for, retry_until_lease_ends
from workers.stages import measure
from workers.upload_spool import UploadSpool

log = structlog.stdlib.get_logger()

KEEP_SECONDS: Final = 8.0  #: for the last part of a stopped job; less than the process waits for its jobs


class CommitUnknown(LeaseLost):
    """The database does not say whether the commit succeeded, so the stored outputs must stay."""


@dataclass(frozen=True)
class JobRunner:
    """Runs the jobs of one worker, each in a thread of its own. Safe to share between threads."""

    worker: str  #: the worker's name
    settings: Settings
    store: Store
    storage: Storage
    engine: RenderEngine
    group_commit: GroupCommit
    reporter: ProgressReporter
    leases: Leases
    spool: UploadSpool
    checkpoints: CheckpointWriter
    find_model: Callable[[str], Model | None]  #: the registry's entry of that id
    model_files: ModelFiles
    prefetch: PrefetchControl

    def run(self, job_id: str, epoch: int) -> None:
        """Run the job of a message if this worker may claim it. Raises nothing: the job's row has the outcome."""
        with (
            structlog.contextvars.bound_contextvars(worker=self.worker, job=job_id, epoch=epoch),
            tracing.job_span("attempt", job_id, worker=self.worker, epoch=epoch),
        ):
            with tracing.span("claim"):
                lease = self.claim(HeldJob(job_id, epoch))
            if lease is not None:
                try:
                    self.run_claimed(lease)
                except Exception:
                    log.exception("the outcome of the job is not recorded", action="job_dropped")
                finally:
                    self.spool.clear(lease.held)
                    self.engine.job_left(lease.held)
                    self.reporter.forget(lease)
                    self.leases.remove(lease)

    def claim(self, held: HeldJob) -> Lease | None:
        """dispatched → running; None if this worker may not claim the job, or the database does not answer."""

        def claim() -> Lease:
            requested_at = time.monotonic()
            job = self.group_commit.claim(held)
            lease = Lease(job, lease_deadline(requested_at, self.settings.run_lease_seconds))
            if job.claimed_at is not None and job.dispatched_at is not None:
                on_its_way = (job.claimed_at - job.dispatched_at).total_seconds()
                lease.beside_seconds = max(0.0, on_its_way) + time.monotonic() - requested_at
            return lease

        try:
            lease = retry_for(self.settings.dispatch_lease_seconds, claim)
        except LeaseLost:
            log.info("the claim was refused", action="claim_refused")
            return None
        except DatabaseUnavailable:
            log.warning("cannot claim the job; it will be dispatched again", action="claim_given_up")
            return None
        model = self.find_model(lease.job.spec.model)
        if model is not None:
            lease.job = replace(lease.job, spec=fit_to_input(lease.job.spec, model))
        self.leases.add(lease)
        job = lease.job
        if job.claimed_at is not None:
            waited = (job.claimed_at - job.created_at).total_seconds()
            metrics.STAGE_SECONDS.labels("wait").observe(max(0.0, waited))
        log.info("claimed", action="job_claimed", task=job.spec.task, model=job.spec.model, attempt=job.attempts)
        failpoints.at("after_claim", job.spec.prompt)
        return lease

    def run_claimed(self, lease: Lease) -> None:
        """Run the stages after the claim; when one of them raises, record how the attempt ended."""
        stored: list[Output] = []
        kept = self.checkpoints.open(lease)
        try:
            began = time.monotonic()
            with measure("inputs"):
                inputs = fetch_inputs(lease, self.storage, self.settings)
                parts = self.checkpoints.load(kept)
            lease.beside_seconds += time.monotonic() - began
            with measure("denoise"):
                result = self.render(lease, inputs, self.checkpoints.fields(kept, parts))
            del parts
            rendered = time.monotonic()
            uploader = OutputUploader(self.storage, self.spool, self.settings.storage_retry_seconds)
            for output in uploader.upload(lease, result):
                stored.append(output)  # noqa: PERF402 - one by one: those before one that fails must be deleted
            with measure("commit"):
                started_at = self.commit(lease, stored, result)
            if started_at is not None and lease.job.spec.task_spec.needs_model:
                beside = lease.beside_seconds + time.monotonic() - rendered
                self.prefetch.record(beside=beside, on_device=rendered - started_at)
        except Exception as error:  # noqa: BLE001 - the kinds are distinguished there
            if lease.stop_reason in (StopReason.DRAINED, StopReason.PREEMPTED):
                self.keep_work(kept)
            self.record_end(lease, error)
            if not isinstance(error, CommitUnknown):
                self.delete_outputs(stored)
        finally:
            self.checkpoints.finish(kept)

    def keep_work(self, kept: KeptWork) -> None:
        """Wait a little until the work of a job that another attempt goes on with is stored."""
        if not self.checkpoints.flush(kept, min(KEEP_SECONDS, max(0.0, kept.lease.seconds_left - 1))):
            log.warning("steps of the job are not kept", action="checkpoint_incomplete")

    def render(
        self, lease: Lease, inputs: dict[str, tuple[Artifact, ...]], checkpoints: dict[str, Any]
    ) -> RenderResult:
        """Render the outputs on the device. Raises `RenderError`, or what the pipeline raises."""
        name = lease.job.spec.model
        model = self.find_model(name)
        if model is None:
            raise ModelUnavailable(f"neither the farm nor the models file of this worker has a model {name}")
        with self.model_files.held(model, FetchRequest(lease.stopped, lease.record_progress)) as local:
            return self.render_with(local, lease, inputs, checkpoints)

    def render_with(
        self, model: Model, lease: Lease, inputs: dict[str, tuple[Artifact, ...]], checkpoints: dict[str, Any]
    ) -> RenderResult:
        """The same with a model whose files are on this host."""
        spec = lease.job.spec

        def on_start(steps: int) -> None:
            lease.start(steps)
            self.reporter.started(lease, steps)

        def on_step(done: int) -> None:
            failpoints.at("mid_denoise", spec.prompt)
            lease.record_step(done)
            self.reporter.step(lease, done)

        if not spec.task_spec.needs_model:  # beside the device, however busy that is
            on_start(1)
            return image_steps.run(spec, inputs)
        lease.enter(Stage.WAITING)
        may_step_back = bool(checkpoints) and lease.job.preemptions < lifecycle.MAX_PREEMPTIONS
        request = RenderRequest(
            spec,
            model,
            inputs,
            on_start,
            on_step,
            lease.stopped,
            lease.job.priority,
            owner=lease.held,
            isolated=lease.job.crash_count > 0,
            on_preview=(lambda preview: self.reporter.preview(lease, preview)) if spec.preview else None,
            on_step_back=functools.partial(lease.stop, StopReason.PREEMPTED) if may_step_back else None,
            **checkpoints,
        )
        future = self.engine.submit(request)
        # a job that waits for the device ends at once; one on the device at its next step
        lease.on_stop(lambda: self.engine.withdraw(request))
        return future.result()

    def commit(self, lease: Lease, outputs: list[Output], result: RenderResult) -> float | None:
        """running → succeeded, with outputs and event, in one transaction.

        Returns the monotonic time at which the device started the job.

        Raises:
            LeaseLost: Another epoch holds the job.
            CommitUnknown: The database stopped answering during the commit.
        """
        lease.enter(Stage.COMMITTING)
        steps, started_at = self.reporter.take_start(lease)

        looks = (f"output {one.index} {SUSPICIONS[one.suspicion]}" for one in outputs if one.suspicion)
        warnings = (*result.warnings, *looks)

        def succeed() -> None:
            seconds = None if started_at is None else time.monotonic() - started_at
            self.group_commit.succeed(JobResult(lease.held, tuple(outputs), result.made_with, steps, seconds, warnings))

        failpoints.at("before_commit", lease.job.spec.prompt)
        try:
            retry_until_lease_ends(lease, succeed)
        except LeaseLost:
            # A commit may reach the database although its response is lost. The next try then finds that the job has
            # succeeded already, at this very epoch, and its outputs must not be deleted.
            if not self.has_succeeded(lease):
                raise
        failpoints.at("after_commit", lease.job.spec.prompt)
        metrics.OUTPUTS.labels(lease.job.spec.model).inc(len(outputs))
        count_attempt(lease, "succeeded")
        log.info("succeeded", action="job_succeeded", outputs=len(outputs))
        return started_at

    def has_succeeded(self, lease: Lease) -> bool:
        """Whether the job's row says that it succeeded at this epoch. Raises `CommitUnknown`."""

        def read() -> Job | None:
            with self.store.begin() as unit:
                return unit.jobs.get(lease.job.id)

        try:
            job = retry_for(self.settings.run_lease_seconds, read)
        except DatabaseUnavailable as error:
            raise CommitUnknown(f"the database does not say whether {lease.job.id} was committed") from error
        return job is not None and job.state is JobState.SUCCEEDED and job.epoch == lease.epoch

    def record_end(self, lease: Lease, error: Exception) -> None:
        """Write how an attempt ended that did not succeed, unless the lease is lost."""
        change = end_of(lease, error)
        if change is None:
            return

        def write() -> None:
            with self.store.begin() as unit:
                change(unit)

        try:
            retry_until_lease_ends(lease, write)
        except LeaseLost as lost:
            log.info("the lease is lost", action="lease_lost", reason=str(lost))

    def delete_outputs(self, outputs: list[Output]) -> None:
        """Delete the stored outputs of an attempt that did not succeed. Best effort: no row refers to them."""
        for output in outputs:
            try:
                self.storage.delete(output.key)
            except StorageUnavailable:
                log.info("an output without a job is left in the storage", action="orphan_left", key=output.key)
                return


def end_of(lease: Lease, error: Exception) -> Callable[[UnitOfWork], object] | None:
    """The change of the job's row that an error means; None if the lease is lost and nothing may be written."""
    job_id, epoch = lease.job.id, lease.epoch

    def release(reason: str) -> Callable[[UnitOfWork], object]:
        count_attempt(lease, "released")
        log.info("released", action="job_released", reason=reason)
        return lambda unit: lifecycle.release(unit, job_id, epoch, reason)

    def fail(code: str, message: str, *, retryable: bool) -> Callable[[UnitOfWork], object]:
        count_attempt(lease, "failed")
        log.warning("failed", action="job_failed", code=code, error=message, retryable=retryable)
        return lambda unit: lifecycle.fail(unit, job_id, epoch, JobError(code, message), retryable=retryable)

    match error:
        case JobCanceled() if lease.stop_reason is StopReason.CANCELED:
            count_attempt(lease, "canceled")
            log.info("canceled", action="job_canceled")
            return lambda unit: lifecycle.confirm_cancel(unit, job_id, epoch)
        case JobCanceled() if lease.stop_reason is StopReason.DRAINED:
            return release("worker stopped")
        case JobCanceled() if lease.stop_reason is StopReason.PREEMPTED:
            count_attempt(lease, "preempted")
            metrics.PREEMPTIONS.labels(lease.job.spec.model).inc()
            log.info("stepped back", action="job_stepped_back")
            return lambda unit: lifecycle.preempt(unit, job_id, epoch)
        case JobCanceled():
            log.warning("stopped: the lease was not renewed", action="lease_lost")
            return None
        case LeaseLost():
            log.info("the lease is lost", action="lease_lost", reason=str(error))
            return None
        case StorageUnavailable():
            return release("storage unavailable")
        case DeviceFailed():
            if not error.started:
                return release("device failed")
            count_attempt(lease, "failed")
            log.warning("its device failed", action="job_device_failed", error=str(error))
            return lambda unit: lifecycle.fail_with_device(unit, job_id, epoch, JobError(error.code, str(error)))
        case RenderError():
            return fail(error.code, str(error), retryable=error.retryable)
        case _:
            log.error("the job failed unexpectedly", action="job_failed_unexpectedly", exc_info=error)
            return fail(RenderError.code, summary_of(error), retryable=RenderError.retryable)


def count_attempt(lease: Lease, outcome: str) -> None:
    """Count an attempt by its outcome."""
    metrics.JOB_ATTEMPTS.labels(outcome, lease.job.spec.model).inc()


def summary_of(error: BaseException) -> str:
    """An unexpected error in one line that the database takes: its type and message, at most 300 characters."""
    text = " ".join(str(error).split()).replace("\x00", "")
    return f"{type(error).__name__}: {text}"[:300] if text else type(error).__name__
