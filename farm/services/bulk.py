"""Bulk requests: each line is checked as a single job is, and the good ones are staged and submitted together.

Memory use does not depend on the length of the body: rows go to the database as they are read, and problems beyond the
first thousand go to a file on disk and from there to the object storage.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from pydantic import Field, TypeAdapter, ValidationError, create_model

from farm import lifecycle
from farm.domain import ids, parameters
from farm.domain.batch import PER_ENTRY, Batch, BatchEntry, EntryOverrides, Estimate, NewBatch, OnError, Staged
from farm.domain.job import NewJob
from farm.domain.job_spec import InputFile
from farm.domain.requests import JobRequest
from farm.domain.resolve import random_seed
from farm.errors import BadInput, BatchRefused, FieldProblem, QuotaExceeded
from farm.fields import FrozenValue
from farm.lifecycle import IdempotencyKey
from farm.objects import keys
from farm.services import bulk_parsers, inputs, jobs, validation
from farm.services.bulk_parsers import BulkLine, RefusedLine
from farm.services.context import ServiceContext
from farm.store.unit_of_work import UnitOfWork
from farm.tasks.params import Described

T = TypeVar("T")

MAX_SHOWN: Final = 1_000  #: problems in an answer; a file has all of them
MAX_REMEMBERED: Final = 10_000  #: images and webhooks whose look-up is remembered while a body is read

MAX_FETCHED: Final = 1_000  #: images that one bulk request may name by URL
MAX_FETCH_SECONDS: Final = 600.0  #: that it may spend on fetching them

MAX_TEMPLATES: Final = 1_000  #: jobs that lines share, remembered while a body is read
#: The parameters that lines mostly differ in. No other parameter depends on their values,
#: but for whether they are empty.
PER_LINE_FIELDS: Final = PER_ENTRY | {"seed", "custom_id", "metadata"}
#: Those of them that the pipeline gets.
_PER_LINE_COMMON: Final = tuple(sorted(PER_ENTRY))

_FIELDS: Final[dict[str, Any]] = {
    name: (field.rebuild_annotation(), Field("") if field.is_required() else field)
    for name, field in {**JobRequest.model_fields, **Described.model_fields}.items()
    if name in PER_LINE_FIELDS
}
_PER_LINE_FIELDS: Final[TypeAdapter[Any]] = TypeAdapter(
    create_model("Own", __config__=FrozenValue.model_config, **_FIELDS)
)


@dataclass(frozen=True)
class BatchOptions:
    """What a bulk request asks for besides its jobs."""

    new: NewBatch
    defaults: Mapping[str, Any]  #: parameters that the jobs leave out
    on_error: OnError
    dry_run: bool


class ErrorReport:
    """The problems of the lines of one body, in a file that leaving the ``with`` block removes."""

    def __init__(self) -> None:
        self.first: list[FieldProblem] = []  #: at most `MAX_SHOWN`
        self.count = 0  #: problems so far
        self.lines = 0  #: lines with problems
        self._file = tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8")  # noqa: SIM115

    def add(self, line: int, problems: Iterable[FieldProblem], custom_id: object = None) -> None:
        """Add one line and its problems."""
        self.lines += 1
        errors = []
        for one in problems:
            shown = replace(one, line=line, value=validation.shown(one.value))
            if self.count < MAX_SHOWN:
                self.first.append(shown)
            self.count += 1
            errors.append({"field": validation.encodable(one.field), "value": shown.value, "message": one.message})
        report = {"line": line, "errors": errors}
        if isinstance(custom_id, str):
            report["custom_id"] = custom_id[:200]
        body = json.dumps(report, ensure_ascii=False)
        self._file.write(validation.encodable(body) + "\n")

    def store(self, context: ServiceContext, tenant_id: str, batch_id: str) -> str:
        """Write the report to the object storage; returns its key."""
        self._file.flush()
        key = keys.batch_errors_key(tenant_id, batch_id)
        context.storage.put_file(key, Path(self._file.name), "application/jsonl")
        return key

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


class LineValidator:
    """Makes jobs of the lines of one bulk request. Not thread-safe.

    Args:
        context: the process's connections.
        tenant_id: whose jobs they are.
        defaults: parameters that lines leave out.
        one_numerics: whether all of them are rendered in one numerics class, so that none may name its own.
    """

    def __init__(
        self, context: ServiceContext, tenant_id: str, defaults: Mapping[str, Any], *, one_numerics: bool = False
    ) -> None:
        self._context = context
        self._defaults = defaults
        self._per_line_defaults = {name: value for name, value in defaults.items() if name in PER_LINE_FIELDS}
        # a column of a million cells names few images and fewer webhooks
        self._find_input = _remembered(self._find)
        self._check_webhook = _remembered(jobs.webhook_allowed(context.settings))
        self._check_numerics = _remembered(_no_numerics if one_numerics else jobs.numerics_known(context))
        self._find_now = inputs.finder(context, tenant_id)
        self._fetched = 0
        self._fetch_seconds = 0.0
        self._templates: dict[tuple[Any, ...], NewJob] = {}

    def job(self, line: Mapping[str, Any]) -> tuple[NewJob, EntryOverrides | None]:
        """The job that a line asks for, and the parameters that replace the job's own, if it shares that job.

        Lines that differ in `PER_LINE_FIELDS` alone share one job, which is built once.

        Raises:
            BadInput: with every problem found.
        """
        own, rest = self._per_line_defaults.copy(), []
        try:
            for name, value in line.items():
                if name in PER_LINE_FIELDS:
                    own[name] = value
                else:
                    # the type, because 1 == 1.0 == True
                    rest.append((name, type(value), json.dumps(value) if isinstance(value, dict | list) else value))
        except RecursionError:
            return self._build(line), None
        # whether a pipeline takes them, and uses one that is not empty, is checked once
        shown = tuple((name in own, bool(own.get(name))) for name in _PER_LINE_COMMON)
        kind = (*rest, shown)
        template = self._templates.get(kind)
        if template is None:
            job = self._build(line)
            if len(self._templates) >= MAX_TEMPLATES:
                self._templates.clear()
            self._templates[kind] = job
            return job, None
        try:
            checked = _PER_LINE_FIELDS.validate_python(own)
        except ValidationError:
            return self._build(line), None  # raises with every problem of the line
        seed = random_seed() if checked.seed is None else checked.seed
        common = {name: getattr(checked, name) for name in _PER_LINE_COMMON if name in own}
        return template, EntryOverrides(common, seed, checked.custom_id, checked.metadata)

    def _build(self, line: Mapping[str, Any]) -> NewJob:
        request = validation.job_request(parameters.merge(self._defaults, line))
        return jobs.build(self._context, request, self._find_input, self._check_webhook, self._check_numerics)

    def _find(self, field: str, reference: str) -> InputFile:
        if inputs.is_stored(reference):
            return self._find_now(field, reference)
        if not inputs.is_url(reference):
            message = "must be file_…, sha256:… or a URL in a bulk request; upload an image with POST /v1/files"
            raise BadInput.of(field, reference, message)
        if self._fetched >= MAX_FETCHED or self._fetch_seconds > MAX_FETCH_SECONDS:
            message = (
                f"is one URL too many: a bulk request fetches at most {MAX_FETCHED:,} URLs in "
                f"{MAX_FETCH_SECONDS:.0f} s; upload the other images with POST /v1/files"
            )
            raise BadInput.of(field, reference, message)
        self._fetched += 1
        begun = time.monotonic()
        try:
            return self._find_now(field, reference)
        finally:
            self._fetch_seconds += time.monotonic() - begun


def _no_numerics(name: str) -> None:
    raise BadInput.of("numerics", name, "the batch has numerics: one, so its jobs cannot name a class; leave it out")


def _remembered(look_up: Callable[..., T]) -> Callable[..., T]:
    """The same function, which remembers what it returned and the `BadInput` that it raised."""

    @lru_cache(MAX_REMEMBERED)
    def once(*args: str) -> tuple[T | None, BadInput | None]:
        try:
            return look_up(*args), None
        except BadInput as error:
            return None, error

    def remembered(*args: str) -> Any:
        found, error = once(*args)
        if error is not None:
            raise error
        return found

    return remembered


# -- submitting --------------------------------------------------------------------------------------------------------


def submit_stream(
    context: ServiceContext,
    tenant_id: str,
    options: BatchOptions,
    media_type: str,
    chunks: Iterable[bytes],
    key: str | None = None,
) -> tuple[Batch | Estimate, bool]:
    """`submit` for a body of JSON lines or CSV, which is read while it arrives."""
    digest = new_hash(options, media_type)
    lines = bulk_parsers.parse(media_type, _hashed(chunks, digest))
    return submit(context, tenant_id, options, lines, key, digest.digest)


def _hashed(chunks: Iterable[bytes], digest: Any) -> Iterator[bytes]:
    for chunk in chunks:
        digest.update(chunk)
        yield chunk


def new_hash(options: BatchOptions, media_type: str) -> Any:
    """The hash of a bulk request before its body, to which the body's bytes are added as they are read."""
    about = {
        "kind": "batch",
        "type": media_type,
        "defaults": dict(options.defaults),
        "name": options.new.name,
        "on_error": options.on_error.value,
        "webhook": options.new.webhook,
        "one_numerics": options.new.one_numerics,
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True, separators=(",", ":")).encode())


def submit(
    context: ServiceContext,
    tenant_id: str,
    options: BatchOptions,
    lines: Iterable[BulkLine],
    key: str | None,
    digest: Callable[[], bytes],
) -> tuple[Batch | Estimate, bool]:
    """Check, stage and submit all lines in one transaction.

    Args:
        context: the process's connections.
        tenant_id: whose batch it is.
        options: what the request asks for besides its jobs.
        lines: the jobs' requests; read once, in order.
        key: the request's ``Idempotency-Key``.
        digest: the hash of the whole request; called when all lines are read.

    Returns:
        The batch, or the estimate of a dry run; and whether this call made the batch.

    Raises:
        BatchRefused: lines that cannot be accepted.
        BadInput, Conflict, QuotaExceeded: as `lifecycle.submit_batch`.
    """
    if key is not None and not options.dry_run:
        earlier = _earlier(context, tenant_id, key, lines, digest)
        if earlier is not None:
            return earlier, False
    if options.new.webhook is not None:
        jobs.webhook_allowed(context.settings)(options.new.webhook)
    batch_id = ids.new(ids.BATCH)
    validator = LineValidator(context, tenant_id, options.defaults, one_numerics=options.new.one_numerics)
    limit = None if options.dry_run else _queue_limit(context, tenant_id)
    with ErrorReport() as report, context.store.begin() as unit:
        try:
            staged = unit.batches.stage(_entries(validator, lines, report, limit))
        except BadInput as error:  # the body breaks off: what comes after cannot be parsed
            for one in error.problems:
                report.add(one.line or 1, [one])
            raise _refused(context, tenant_id, batch_id, report) from None
        staged = _drop_duplicates(unit, staged, report)
        if options.dry_run:
            speed = unit.batches.throughput()
            seconds = staged.cost / speed if speed else None
            return Estimate(staged.total, staged.cost, seconds, report.lines, tuple(report.first)), False
        if report.lines and (options.on_error is OnError.STOP or not staged.total):
            raise _refused(context, tenant_id, batch_id, report)
        error_key = report.store(context, tenant_id, batch_id) if report.lines else None
        return lifecycle.submit_batch(
            unit,
            tenant_id,
            batch_id,
            options.new,
            staged,
            key=None if key is None else IdempotencyKey(key, digest()),
            skipped=report.lines,
            error_key=error_key,
        )


def _earlier(
    context: ServiceContext, tenant_id: str, key: str, lines: Iterable[BulkLine], digest: Callable[[], bytes]
) -> Batch | None:
    """The batch that an earlier request with this key made; the body is read to its end for its hash."""
    with context.store.begin() as unit:
        if unit.jobs.find_key(tenant_id, key) is None:
            return None
    with contextlib.suppress(BadInput):
        for _ in lines:
            pass
    with context.store.begin() as unit:
        return lifecycle.find_submitted_batch(unit, tenant_id, IdempotencyKey(key, digest()))


def _entries(
    validator: LineValidator, lines: Iterable[BulkLine], report: ErrorReport, limit: int | None
) -> Iterator[BatchEntry]:
    accepted = 0
    for number, line in lines:
        if isinstance(line, FieldProblem):
            report.add(number, [line])
            continue
        if isinstance(line, RefusedLine):
            report.add(number, line.problems, line.custom_id)
            continue
        try:
            job, own = validator.job(line)
        except BadInput as error:
            report.add(number, error.problems, line.get("custom_id"))
            continue
        if limit is not None and accepted >= limit:
            raise QuotaExceeded(f"this batch has more jobs than the {max(0, limit):,} that may still wait")
        accepted += 1
        yield BatchEntry(number, job, own)


def _drop_duplicates(unit: UnitOfWork, staged: Staged, report: ErrorReport) -> Staged:
    """Report each ``custom_id`` that an earlier line has, and drop the later line."""
    duplicates = False
    for line, custom_id, first in unit.batches.duplicates():
        duplicates = True
        report.add(line, [FieldProblem("custom_id", custom_id, f"is the custom_id of line {first} too")])
    return unit.batches.drop_duplicates() if duplicates else staged


def _queue_limit(context: ServiceContext, tenant_id: str) -> int | None:
    """How many jobs the tenant may still queue; None: no limit."""
    with context.store.begin() as unit:
        tenant = unit.tenants.get(tenant_id)
        if tenant is None or tenant.max_queued is None:
            return None
        return tenant.max_queued - unit.quotas.waiting(tenant_id, tenant.max_queued)


def _refused(context: ServiceContext, tenant_id: str, batch_id: str, report: ErrorReport) -> BatchRefused:
    url = None
    if report.count > MAX_SHOWN:
        key = report.store(context, tenant_id, batch_id)
        url = context.storage.presign_get(key, context.settings.presign_seconds, "errors.jsonl")
    return BatchRefused(report.first, report.count, url)
