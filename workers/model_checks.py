"""The check of an added model on a worker, before any job may name it.

    fetch its files ─► read what they say ─► load and render each task ─► render two at once and compare ─► ready

One worker checks a model at a time, under a lease. Each stage is written into the model's row, with what was found. A
task that cannot be rendered is left out; a model without any task is `failed`, with the reason in one sentence.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import structlog
from pydantic import ValidationError

from farm import model_registry
from farm.domain.model import Model, ModelEntry, ModelFacts, ModelState
from farm.domain.worker import Device, ResidentModel
from farm.errors import BadInput, DatabaseUnavailable, DeviceFailed, JobCanceled, RenderError, Unavailable
from farm.model_folder import LocalFolder, inspect
from farm.objects.storage import Storage
from farm.services import model_copies
from farm.services.live_registry import ORIGIN
from farm.store.models import StoredModel
from farm.store.unit_of_work import Store
from workers.model_files import FetchRequest, ModelFiles
from workers.model_sources import describing_folder
from workers.render_request import RenderEngine, RenderRequest, RenderResult
from workers.sample_jobs import NotTried, SampleJob, same_outputs, sample_job

log = structlog.stdlib.get_logger()

LEASE_SECONDS: Final = 60.0  #: a worker that is silent for longer checks no more
RENEW_SECONDS: Final = 5.0
MAX_ATTEMPTS: Final = 3  #: that ended their process, or failed for a reason that may be the worker's
STATUS_SECONDS: Final = 2.0  #: for the engine to tell that it has loaded a model


class CheckFailed(Exception):
    """The model cannot be rendered with; the text is the reason, one sentence."""


class CheckLost(Exception):
    """Another worker checks the model now, or it was removed."""


@dataclass
class _Check:
    """One check under way."""

    row: StoredModel
    report: dict[str, Any]  #: what the model's row shows
    request: FetchRequest
    renewed_at: float = field(default_factory=time.monotonic)


class ModelChecker(threading.Thread):
    """Looks for models to check while the worker runs."""

    def __init__(
        self,
        worker: str,
        device: Device,
        tags: frozenset[str],
        store: Store,
        engine: RenderEngine,
        storage: Storage,
        files: ModelFiles,
        interval: float,
    ) -> None:
        """``interval``: seconds between two looks."""
        super().__init__(name="model checks", daemon=True)
        self._worker = worker
        self._device = device
        self._tags = tags
        self._store = store
        self._engine = engine
        self._storage = storage
        self._files = files
        self._interval = interval
        self._closing = threading.Event()
        self._submitted = 0

    def close(self) -> None:
        """Begin no other check, and let another worker do the current one."""
        self._closing.set()

    def run(self) -> None:
        """Look for models until closed."""
        while not self._closing.wait(self._interval):
            try:
                row = self._take()
                if row is not None:
                    self._check(row)
            except DatabaseUnavailable as error:
                log.info("cannot look for models to check", action="model_check_missed", error=str(error))
            except Exception:
                log.exception("the check of a model broke", action="model_check_broke")

    # -- the row -------------------------------------------------------------------------------------------------------

    def _take(self) -> StoredModel | None:
        """A model that waits and that this worker may have, claimed."""
        with self._store.look() as unit:
            waiting = unit.models.unchecked(self._worker)
        for row in waiting:
            if not self._suits(row.entry):
                continue
            attempts = int(row.report.get("attempts", 0)) + 1
            report = {"stage": "fetching", "worker": self._worker, "attempts": attempts}
            with self._store.begin() as unit:
                if not unit.models.begin_check(row.id, self._worker, report, LEASE_SECONDS):
                    continue
                if attempts > MAX_ATTEMPTS:
                    reason = row.report.get("message") or "each ended its worker's process, as a lack of memory does"
                    message = f"it could not be checked in {MAX_ATTEMPTS} attempts: {reason}"
                    failed = {"stage": "failed", "worker": row.report.get("worker"), "message": message}
                    facts = ModelFacts.model_validate(row.facts)
                    unit.models.end_check(row.id, self._worker, ModelState.FAILED, facts, failed)
                    continue
                return unit.models.get(row.id)
        return None

    def _suits(self, entry: Mapping[str, Any]) -> bool:
        """Whether jobs of an entry may come to this worker."""
        needed = entry.get("memory_bytes")
        return self._tags.issuperset(entry.get("tags", ())) and (needed or 0) <= self._device.memory_bytes

    def _show(self, check: _Check, **changes: object) -> None:
        """Write how far a check is. Raises `CheckLost`."""
        check.report.update(changes)
        check.renewed_at = time.monotonic()
        with self._store.begin() as unit:
            if not unit.models.renew_check(check.row.id, self._worker, check.report, LEASE_SECONDS):
                check.request.stopped.set()
                raise CheckLost

    def _keep(self, check: _Check) -> None:
        """Renew the lease now and then. Raises `CheckLost`, or `JobCanceled` when the worker is to end."""
        if self._closing.is_set():
            check.request.stopped.set()
            raise JobCanceled("the worker ends")
        if time.monotonic() - check.renewed_at > RENEW_SECONDS:
            self._show(check)

    # -- the check -----------------------------------------------------------------------------------------------------

    def _check(self, row: StoredModel) -> None:
        """Check a model and write what was found."""
        began = time.monotonic()
        stopped = threading.Event()
        check = _Check(row, dict(row.report), FetchRequest(stopped))
        check.request = FetchRequest(stopped, lambda: self._keep(check))
        log.info("checking a model", action="model_check_begun", model=row.id)
        facts = ModelFacts.model_validate(row.facts)
        state = ModelState.READY
        try:
            facts = self._examine(check)
            check.report.update(stage="ready")
        except CheckFailed as error:
            state = ModelState.FAILED
            check.report.update(stage="failed", message=str(error))
        except CheckLost:
            return
        except (Unavailable, RenderError) as error:  # another attempt, or another worker, may get further
            counts = not isinstance(error, Unavailable | JobCanceled)
            attempts = int(row.report.get("attempts", 1)) - (not counts)
            log.info("a check is put off", action="model_check_released", model=row.id, reason=str(error))
            with contextlib.suppress(DatabaseUnavailable), self._store.begin() as unit:
                report = {"stage": "waiting", "message": str(error), "attempts": attempts}
                unit.models.release_check(row.id, self._worker, report)
            return
        except Exception as error:
            log.exception("the check of a model broke", action="model_check_broke", model=row.id)
            state = ModelState.FAILED
            check.report.update(stage="failed", message=_sentence(error))
        check.report.pop("attempts", None)
        check.report["seconds"] = round(time.monotonic() - began, 1)
        with self._store.begin() as unit:
            written = unit.models.end_check(row.id, self._worker, state, facts, check.report)
        log.info(
            "checked a model",
            action="model_checked",
            model=row.id,
            state=state,
            message=check.report.get("message"),
            written=written,
        )

    def _examine(self, check: _Check) -> ModelFacts:
        """What the model's files say, after all its tasks were tried. Raises `CheckFailed`."""
        try:
            entry = ModelEntry.model_validate(check.row.entry)
        except ValidationError as error:
            raise CheckFailed(f"the entry cannot be used: {error.errors()[0]['msg']}") from error
        known = ModelFacts.model_validate(check.row.facts)
        try:
            if entry.source.startswith(model_copies.SCHEME) and known.files is None:
                known = known.model_copy(update={"files": self._copy(check, entry.source)})
                self._show(check, stage="fetching")
            with self._files.held(Model.of(entry, known), check.request) as local:
                self._show(check, stage="reading")
                facts = self._read(entry, local, known)
                model, problems = model_registry.combine(entry, facts, ORIGIN)
                if model is None or problems:
                    raise CheckFailed("; ".join(f"{one.key}: {one.message}; {one.remedy}" for one in problems))
                tasks = self._try(check, model.model_copy(update={"source": local.source, "config": local.config}))
        except RenderError as error:
            if error.retryable or isinstance(error, JobCanceled):
                raise
            raise CheckFailed(str(error)) from error
        return facts.model_copy(update={"tasks": tasks})

    def _read(self, entry: ModelEntry, local: Model, known: ModelFacts) -> ModelFacts:
        """What the files on this host say. Raises `CheckFailed`, or `ModelUnavailable`."""
        if entry.source.startswith(model_registry.BUILTIN):
            return known
        whole = Path(local.source).is_dir()  # the engine fetches a repository's weights when it loads it
        found = inspect(LocalFolder(describing_folder(local)), entry.pipeline, weights=whole)
        if found.problems:
            raise CheckFailed("; ".join(f"{message}; {remedy}" for message, remedy in found.problems))
        return found.facts.model_copy(update={"config": known.config, "files": known.files})

    def _copy(self, check: _Check, source: str) -> str:
        """The farm's own copy of a model elsewhere in the object storage. Raises `CheckFailed`."""
        self._show(check, stage="copying")

        def progress(done: int, total: int) -> None:
            check.report["message"] = f"{done:,} of {total:,} bytes"
            check.request.on_progress()

        try:
            return model_copies.copy(self._storage, source, progress)
        except BadInput as error:
            raise CheckFailed(str(error)) from error
        finally:
            check.report.pop("message", None)

    def _try(self, check: _Check, model: Model) -> tuple[str, ...]:
        """The tasks that the model renders. Raises `CheckFailed` if there is none."""
        results: list[dict[str, Any]] = []
        check.report["tasks"] = results
        tried: SampleJob | None = None
        alone: RenderResult | None = None
        for task in model.tasks:
            self._show(check, stage="rendering", message=f"{task} ({len(results) + 1} of {len(model.tasks)})")
            began = time.monotonic()
            try:
                job = sample_job(model, task)
                outcome = self._render(check, model, job)
            except NotTried as error:
                results.append({"task": task, "state": "not tried", "message": str(error)})
                continue
            except (Unavailable, JobCanceled, DeviceFailed, CheckLost):
                raise
            except Exception as error:  # noqa: BLE001 - whatever a model makes its pipeline raise
                results.append({"task": task, "state": "failed", "message": _sentence(error)})
                continue
            results.append({"task": task, "state": "rendered", "seconds": round(time.monotonic() - began, 2)})
            if tried is None:
                tried, alone = job, outcome
                check.report |= {
                    "dtype": outcome.made_with.get("dtype"),
                    "memory_bytes": None if (loaded := self._loaded(model)) is None else loaded.bytes,
                }
        if tried is not None and alone is not None:
            self._show(check, stage="comparing", message=f"{tried.spec.task}, two jobs at once")
            self._compare(check, model, tried, alone)
        check.report.pop("message", None)
        usable = tuple(one["task"] for one in results if one["state"] != "failed")
        if not usable:
            raise CheckFailed("; ".join(dict.fromkeys(one["message"] for one in results)))
        return usable

    def _compare(self, check: _Check, model: Model, job: SampleJob, alone: RenderResult) -> None:
        """Render the same job beside another one. Raises `CheckFailed` if its outputs differ from those alone."""
        other = job.with_seed(job.spec.seed + 1)
        requests = [self._submit(check, model, one) for one in (job, other)]
        together, _ = (self._wait(check, request) for request in requests)
        if not same_outputs(alone.artifacts, together.artifacts):
            raise CheckFailed("it renders other bytes beside another job than alone, although exact ones are asked for")
        self._closing.wait(STATUS_SECONDS / 2)  # for what the engine has just learnt
        check.report["runs_alone"] = None if (loaded := self._loaded(model)) is None else loaded.runs_alone

    # -- the engine ----------------------------------------------------------------------------------------------------

    def _render(self, check: _Check, model: Model, job: SampleJob) -> RenderResult:
        return self._wait(check, self._submit(check, model, job))

    def _submit(self, check: _Check, model: Model, job: SampleJob) -> RenderRequest:
        self._submitted += 1
        request = RenderRequest(
            job.spec,
            model,
            job.inputs,
            lambda _: None,
            lambda _: None,
            check.request.stopped,
            owner=f"check {self._submitted}",
        )
        self._engine.submit(request)
        request.future.add_done_callback(lambda _: self._engine.job_left(request.owner))
        return request

    def _wait(self, check: _Check, request: RenderRequest) -> RenderResult:
        while True:
            try:
                return request.future.result(timeout=1)
            except TimeoutError:
                if request.future.done():
                    raise
            try:
                self._keep(check)
            except (CheckLost, JobCanceled, DatabaseUnavailable):
                check.request.stopped.set()
                self._engine.withdraw(request)
                raise

    def _loaded(self, model: Model) -> ResidentModel | None:
        """The model in the device's memory; the engine tells now and then what it has."""
        give_up_at = time.monotonic() + STATUS_SECONDS
        while True:
            found = next((one for one in self._engine.loaded if one.model == model.id), None)
            if found is not None or time.monotonic() > give_up_at:
                return found
            self._closing.wait(0.1)


def _sentence(error: Exception) -> str:
    """An error in one sentence."""
    if isinstance(error, RenderError | BadInput):
        return str(error)
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
