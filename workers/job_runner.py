"""One job from claim to commit.

    claim ─► fetch the inputs ─► the device ─► encode ─► store under the epoch's keys ─► commit

Each stage is a function, and each may end the job in one of four ways: it fails with a `RenderError`, it is given back
(`GivenBack`), it was stopped (`Right.why`), or its right is lost, in which case nothing is written any more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import structlog
from PIL import Image

from farm import lifecycle, metrics, tracing
from farm.domain.job import HeldJob, Job, JobError, JobResult, Output
from farm.domain.model import Model
from farm.domain.states import JobState
from farm.domain.tasks import InputImage
from farm.errors import (
    DatabaseUnavailable,
    FarmError,
    InputRefused,
    InputUnavailable,
    JobCanceled,
    LeaseLost,
    ModelUnavailable,
    NotFound,
    RenderError,
    StorageUnavailable,
)
from farm.objects import images, keys
from farm.objects.storage import Storage
from farm.settings import Settings
from farm.store.unit_of_work import Store, UnitOfWork
from workers import failpoints
from workers.encoders import encode
from workers.engine import Engine
from workers.group_commit import Ledger
from workers.leases import Right, Rights, Stage, Why
from workers.progress_reporter import Reporter
from workers.render_request import Rendered, RenderWork, total_steps
from workers.upload_spool import Shelf

log = structlog.stdlib.get_logger()
T = TypeVar("T")

BACK_OFF_SECONDS: Final = (0.2, 0.5, 1.0, 2.0, 5.0)  #: between tries while a server is away; the last one repeats


class GivenBack(FarmError):
    """The job goes back to the queue through no fault of its own; the text is the reason."""


class Unsure(LeaseLost):
    """Nobody can say whether the commit arrived, so what was stored must stay."""


@dataclass(frozen=True)
class Bench:
    """What one job needs of the worker it is at."""

    worker: str  #: the worker's name
    settings: Settings
    store: Store
    storage: Storage
    engine: Engine
    ledger: Ledger
    reporter: Reporter
    rights: Rights
    shelf: Shelf
    model: Callable[[str], Model | None]  #: the registry's entry of that id

    def lease_until(self, asked_at: float) -> float:
        """The monotonic time at which work must stop whose lease was asked for at ``asked_at``."""
        lease = self.settings.run_lease_seconds
        return asked_at + lease - min(5.0, lease / 5)


def render(bench: Bench, job_id: str, epoch: int) -> None:
    """Do the job that a message names, if it is ours to do. Raises nothing: what happens is in the job's row."""
    with (
        structlog.contextvars.bound_contextvars(worker=bench.worker, job=job_id, epoch=epoch),
        tracing.job_span("attempt", job_id, worker=bench.worker, epoch=epoch),
    ):
        with tracing.span("claim"):
            right = claim(bench, job_id, epoch)
        if right is None:
            return
        failpoints.at("after_claim", right.job.spec.prompt)
        try:
            carry_out(bench, right)
        except Exception:
            log.exception("the job was dropped", action="job_dropped")
        finally:
            bench.shelf.clear(right.held)
            bench.engine.leave(right.held)
            bench.rights.drop(right)


def carry_out(bench: Bench, right: Right) -> None:
    """From inputs to commit, and from every failure to the state that it means."""
    stored: list[Output] = []
    try:
        with stage("inputs"):
            inputs = fetch(bench, right)
        with stage("denoise"):
            rendered = on_the_device(bench, right, inputs)
        # one by one: if a later one fails, the earlier ones are known
        stored.extend(store(bench, right, encoded(right, rendered)))
        with stage("commit"):
            commit(bench, right, stored, rendered)
    except JobCanceled:
        stopped(bench, right)
    except LeaseLost as error:
        log.info("the right is lost", action="right_lost", reason=str(error))
        if isinstance(error, Unsure):
            return
    except GivenBack as error:
        give_back(bench, right, str(error))
    except RenderError as error:
        fail(bench, right, JobError(error.code, str(error)), retryable=error.retryable)
    except Exception as error:
        log.exception("the job failed", action="job_failed_unforeseen")
        fail(bench, right, JobError(RenderError.code, in_one_sentence(error)), retryable=RenderError.retryable)
    else:
        return
    discard(bench, stored)


# -- the stages ------------------------------------------------------------------------------------------------------


def claim(bench: Bench, job_id: str, epoch: int) -> Right | None:
    """dispatched → running; None if the job is not (or no longer) ours, or nobody can be asked."""
    give_up_at = time.monotonic() + bench.settings.dispatch_lease_seconds
    for pause in pauses():
        asked_at = time.monotonic()
        try:
            job = bench.ledger.claim(HeldJob(job_id, epoch))
        except LeaseLost:
            log.info("not ours to claim", action="claim_refused")
            return None
        except DatabaseUnavailable:
            if time.monotonic() + pause > give_up_at:
                log.warning("cannot claim, the hand-over will be repeated", action="claim_given_up")
                return None
            time.sleep(pause)
        else:
            right = Right(job, bench.lease_until(asked_at))
            bench.rights.add(right)
            if job.claimed_at is not None:
                waited = (job.claimed_at - job.created_at).total_seconds()
                metrics.STAGE_SECONDS.labels("wait").observe(max(0.0, waited))
            log.info("claimed", action="job_claimed", task=job.spec.task, model=job.spec.model, attempt=job.attempts)
            return right
    return None


def fetch(bench: Bench, right: Right) -> dict[str, Image.Image]:
    """The input images, decoded: ``image`` RGB, ``mask_image`` L, ``depth_map`` L or I;16."""
    right.enter(Stage.FETCHING)
    return {name: fetch_one(bench, right, name, image) for name, image in right.job.spec.inputs.items()}


def fetch_one(bench: Bench, right: Right, name: str, image: InputImage) -> Image.Image:
    """One input. Raises `InputUnavailable` if it is gone or broken, `GivenBack` if the storage stays away."""
    load = {"mask_image": images.load_mask, "depth_map": images.load_depth}.get(name, images.load_rgb)
    try:
        data = while_storage_is_away(bench, right, lambda: bench.storage.get(image.key))
        return load(data, bench.settings, field=name)
    except NotFound as error:
        raise InputUnavailable(f"{name} is no longer in the storage") from error
    except InputRefused as error:
        raise InputUnavailable(f"{name} cannot be used: {error}") from error


def on_the_device(bench: Bench, right: Right, inputs: dict[str, Image.Image]) -> Rendered:
    """The images, rendered. Raises `JobCanceled` if it was stopped, `RenderError`, or what the pipeline raises."""
    spec = right.job.spec
    model = bench.model(spec.model)
    if model is None:
        raise ModelUnavailable(f"this worker's registry has no model {spec.model}")

    def take_up() -> None:
        right.enter(Stage.RENDERING)
        bench.reporter.take_up(right, total_steps(spec))

    def step(done: int) -> None:
        failpoints.at("mid_denoise", spec.prompt)
        right.move()
        bench.reporter.step(right, done)

    right.enter(Stage.WAITING)
    work = RenderWork(
        spec,
        model,
        inputs,
        take_up,
        step,
        right.stopped,
        right.job.priority,
        owner=right.held,
        suspect=right.job.crash_count > 0,
        on_preview=(lambda preview: bench.reporter.preview(right, preview)) if spec.preview else None,
    )
    future = bench.engine.submit(work)
    # a job that waits for the device leaves at once; one on the device at its next step
    right.on_stop(lambda: bench.engine.withdraw(work))
    return future.result()


def encoded(right: Right, rendered: Rendered) -> Iterator[tuple[Output, bytes]]:
    """Each image as a file with its recipe, and as the output that it becomes; the image itself is let go."""
    job, spec = right.job, right.job.spec
    content_type = spec.output_format.content_type
    for index in range(len(rendered.images)):
        image = rendered.images.pop(0)
        with stage("encode"):
            body = encode(image, spec, index, rendered.made_with)
        failpoints.at("after_encode", spec.prompt)
        key = keys.output_key(job.tenant_id, job.id, right.epoch, index, keys.extension(content_type))
        yield (
            Output(
                index=index,
                key=key,
                sha256="",  # of what is stored, told by storing
                size=len(body),
                width=image.width,
                height=image.height,
                content_type=content_type,
                seed=spec.seed_of(index),
            ),
            body,
        )


def store(bench: Bench, right: Right, files: Iterator[tuple[Output, bytes]]) -> Iterator[Output]:
    """PUT each file under the epoch's key. Raises `GivenBack` if the storage stays away."""
    right.enter(Stage.STORING)
    for output, body in files:
        try:
            with stage("upload"):
                done = put(bench, right, output, body)
        except StorageUnavailable as error:
            log.warning("the finished images wait on disk", action="images_shelved", error=str(error))
            shelved = [(output, bench.shelf.keep(right.held, output.index, body))]
            shelved += [(one, bench.shelf.keep(right.held, one.index, file)) for one, file in files]
            del body
            yield from store_later(bench, right, shelved)
        else:
            yield done


def store_later(bench: Bench, right: Right, shelved: list[tuple[Output, Callable[[], bytes]]]) -> Iterator[Output]:
    """The same for what waits on the shelf until the storage is back."""
    for output, read in shelved:

        def again(output: Output = output, read: Callable[[], bytes] = read) -> Output:
            return put(bench, right, output, read())

        with stage("upload"):
            done = while_storage_is_away(bench, right, again)
        yield done


def put(bench: Bench, right: Right, output: Output, body: bytes) -> Output:
    """One file into the storage; returns the output with the hash of what is stored. Raises `StorageUnavailable`."""
    written = bench.storage.put(output.key, body, output.content_type)
    assert written.sha256 is not None  # put() computes it
    if output.index + 1 < right.job.spec.num_images_per_prompt:
        failpoints.at("mid_upload", right.job.spec.prompt)
    right.move()
    return replace(output, sha256=written.sha256)


def commit(bench: Bench, right: Right, outputs: list[Output], rendered: Rendered) -> None:
    """running → succeeded, with outputs and event, in one transaction. Raises `LeaseLost`."""
    right.enter(Stage.COMMITTING)
    steps, begun_at = bench.reporter.unwritten(right)  # a job may be quicker than the report that it began

    def succeed() -> None:
        seconds = None if begun_at is None else time.monotonic() - begun_at
        bench.ledger.succeed(JobResult(right.held, tuple(outputs), rendered.made_with, steps, seconds))

    failpoints.at("before_commit", right.job.spec.prompt)
    try:
        insist(right, succeed)
    except LeaseLost as error:
        # A commit may have reached the database although its answer never came back, and then the second try finds the
        # job succeeded: by us. Its outputs must not be thrown away.
        job = read(bench, right)
        if job is None:
            raise Unsure(str(error)) from error
        if job.state is not JobState.SUCCEEDED or job.epoch != right.epoch:
            raise
    failpoints.at("after_commit", right.job.spec.prompt)
    metrics.OUTPUTS.labels(right.job.spec.model).inc(len(outputs))
    finished(right, "succeeded")
    log.info("succeeded", action="job_succeeded", outputs=len(outputs))


# -- the other ends --------------------------------------------------------------------------------------------------


def stopped(bench: Bench, right: Right) -> None:
    """The work was stopped from outside: say so, unless another holds the job now."""
    if right.why is Why.CANCELED:
        ended(bench, right, lambda unit: lifecycle.confirm_cancel(unit, right.job.id, right.epoch))
        finished(right, "canceled")
        log.info("canceled", action="job_canceled")
    elif right.why is Why.DRAINED:
        give_back(bench, right, "worker stopped")
    else:
        log.warning("stopped, its lease was not renewed", action="right_lost")


def give_back(bench: Bench, right: Right, reason: str) -> None:
    """running → queued, without counting the attempt."""
    finished(right, "released")
    log.info("given back", action="job_released", reason=reason)
    ended(bench, right, lambda unit: lifecycle.release(unit, right.job.id, right.epoch, reason))


def fail(bench: Bench, right: Right, error: JobError, *, retryable: bool) -> None:
    """running → failed, or → queued if another attempt may help and is left."""
    finished(right, "failed")
    log.warning("failed", action="job_failed", code=error.code, error=error.message, retryable=retryable)
    ended(bench, right, lambda unit: lifecycle.fail(unit, right.job.id, right.epoch, error, retryable=retryable))


def discard(bench: Bench, outputs: list[Output]) -> None:
    """Delete what was stored for a job that did not succeed here. Best effort: nothing refers to it."""
    for output in outputs:
        try:
            bench.storage.delete(output.key)
        except StorageUnavailable:
            log.info("an orphan is left", action="orphan_left", key=output.key)
            return


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Measure a stage."""
    with metrics.timed(metrics.STAGE_SECONDS.labels(name)), tracing.span(name):
        yield


def finished(right: Right, outcome: str) -> None:
    """Count how an attempt ended here."""
    metrics.JOB_ATTEMPTS.labels(outcome, right.job.spec.model).inc()


# -- waiting for servers ---------------------------------------------------------------------------------------------


def ended(bench: Bench, right: Right, change: Callable[[UnitOfWork], object]) -> None:
    """Write an end; if the right is lost by now, another one's end stands."""

    def end() -> None:
        with bench.store.begin() as unit:
            change(unit)

    try:
        insist(right, end)
    except LeaseLost as error:
        log.info("the right is lost", action="right_lost", reason=str(error))


def insist(right: Right, change: Callable[[], None]) -> None:
    """Make a fenced change, trying again while the database is away and the lease lasts. Raises `LeaseLost`."""
    for pause in pauses():
        if right.seconds_left <= 0 or right.why is Why.LOST:
            break
        try:
            change()
        except DatabaseUnavailable:
            log.warning("waiting for the database", action="database_unavailable")
            time.sleep(min(pause, max(0.0, right.seconds_left)))
        else:
            return
    raise LeaseLost(f"the lease of {right.job.id} ended before the database could be told")


def read(bench: Bench, right: Right) -> Job | None:
    """The job as it stands; None if the database does not answer for the time of a lease."""
    give_up_at = time.monotonic() + bench.settings.run_lease_seconds
    for pause in pauses():
        try:
            with bench.store.begin() as unit:
                return unit.jobs.get(right.job.id)
        except DatabaseUnavailable:
            if time.monotonic() > give_up_at:
                break
            time.sleep(pause)
    return None


def while_storage_is_away(bench: Bench, right: Right, action: Callable[[], T]) -> T:
    """Do something with the storage, trying again while it is away.

    The heartbeat keeps the lease alive meanwhile.

    Raises:
        GivenBack: the storage stayed away for ``storage_retry_seconds``.
        JobCanceled: the job was stopped.
    """
    give_up_at = time.monotonic() + bench.settings.storage_retry_seconds
    for pause in pauses():
        if right.stopped.is_set():
            raise JobCanceled("the job was stopped")
        try:
            return action()
        except StorageUnavailable as error:
            if time.monotonic() + pause > give_up_at:
                raise GivenBack("storage unavailable") from error
            log.warning("waiting for the storage", action="storage_unavailable", error=str(error))
            right.move()
            right.stopped.wait(pause)
    raise AssertionError  # pauses() never ends


def pauses() -> Iterator[float]:
    """Seconds between tries: growing, then even."""
    yield from BACK_OFF_SECONDS
    while True:
        yield BACK_OFF_SECONDS[-1]


def in_one_sentence(error: BaseException) -> str:
    """An unforeseen error for a person: its kind and first line, shortened, fit for the database."""
    text = " ".join(str(error).split()).replace("\x00", "")
    return f"{type(error).__name__}: {text}"[:300] if text else type(error).__name__
