"""Bulk requests: each line is checked as a single job is, and the good ones are staged and submitted together.

Memory use does not depend on the length of the body: it is read from a file, rows go to the database as they are read,
and problems beyond the first thousand go to a file on disk and from there to the object storage. Images that lines name
by URL are fetched before the transaction begins, so nothing outside the farm can hold it open.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self, TypeVar

from pydantic import Field, TypeAdapter, ValidationError, create_model

from farm import lifecycle
from farm.domain import ids, parameters
from farm.domain.batch import PER_ENTRY, Batch, BatchEntry, EntryOverrides, Estimate, NewBatch, OnError, Staged
from farm.domain.job import NewJob
from farm.domain.job_spec import InputFile
from farm.domain.parameters import ParameterKind
from farm.domain.requests import LINE, JobRequest, line_of
from farm.domain.resolve import random_seed
from farm.errors import BadInput, BatchRefused, FieldProblem, QuotaExceeded
from farm.fields import FrozenValue
from farm.lifecycle import IdempotencyKey
from farm.objects import keys
from farm.services import bulk_parsers, inputs, jobs, validation, webhooks
from farm.services.bulk_parsers import BulkLine, RefusedLine
from farm.services.context import ServiceContext
from farm.store.staged_chains import ChainProblem
from farm.store.unit_of_work import UnitOfWork
from farm.tasks.params import Described

T = TypeVar("T")

MAX_SHOWN: Final = 1_000  #: problems in an answer; a file has the others
MAX_LINE_PROBLEMS: Final = 20  #: of one line, that are reported
MAX_REPORT_BYTES: Final = 16 * 2**20  #: of the file; what does not fit is counted
MAX_BAD_LINES: Final = 100_000  #: the rest is not read, if nothing will be submitted anyway
READ_BYTES: Final = 2**18
MAX_REMEMBERED: Final = 10_000  #: images and webhooks whose look-up is remembered while a body is read

MAX_FETCHED: Final = 1_000  #: images that one bulk request may name by URL
MAX_FETCH_SECONDS: Final = 600.0  #: that it may spend on fetching them

MAX_FIELD: Final = 200  #: characters of a name that an error report repeats
MAX_MESSAGE: Final = 500

MAX_TEMPLATES: Final = 1_000  #: jobs that lines share, remembered while a body is read
#: Every parameter that names an input file.
INPUT_NAMES: Final = tuple(name for name, one in parameters.PARAMETERS.items() if one.kind is ParameterKind.INPUT)
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
    keep_empty: bool = False  #: whether a batch is made of lines of which none can be accepted, for their error report


@dataclass(frozen=True)
class BulkSource:
    """The jobs of a bulk request, and how to tell two requests apart."""

    lines: Callable[[], Iterable[BulkLine]]  #: from the first one; may be called several times
    digest: Callable[[], bytes]  #: of the whole request
    names_urls: bool  #: whether a line may name an image by URL


@dataclass(frozen=True)
class StoredReport:
    """An error report in the object storage."""

    key: str
    size: int  #: bytes


class ErrorReport:
    """The problems of the lines of one body, in a file that leaving the ``with`` block removes."""

    def __init__(self) -> None:
        self.first: list[FieldProblem] = []  #: at most `MAX_SHOWN`
        self.count = 0  #: problems so far
        self.lines = 0  #: lines with problems
        self._unlisted = 0  #: lines that the file has no room for
        self._size = 0  #: bytes of the file
        self._file = tempfile.NamedTemporaryFile("wb", suffix=".jsonl")  # noqa: SIM115

    def add(self, line: int, problems: Sequence[FieldProblem], custom_id: object = None) -> None:
        """Add one line and its problems."""
        self.lines += 1
        errors = []
        for one in problems[:MAX_LINE_PROBLEMS]:
            shown = FieldProblem(
                validation.shortened(one.field, MAX_FIELD),
                validation.shown(one.value),
                validation.shortened(one.message, MAX_MESSAGE),
                line,
            )
            if self.count < MAX_SHOWN:
                self.first.append(shown)
            self.count += 1
            errors.append({"field": shown.field, "value": shown.value, "message": shown.message})
        self.count += max(0, len(problems) - MAX_LINE_PROBLEMS)
        report: dict[str, Any] = {"line": line, "errors": errors}
        if isinstance(custom_id, str):
            report["custom_id"] = custom_id[:MAX_FIELD]
        self._write(report)

    def _write(self, report: Mapping[str, Any]) -> None:
        if self._unlisted:
            self._unlisted += 1
            return
        body = validation.encodable(json.dumps(report, ensure_ascii=False) + "\n").encode()
        if self._size + len(body) > MAX_REPORT_BYTES:
            self._unlisted = 1
            return
        self._size += len(body)
        self._file.write(body)

    def store(self, context: ServiceContext, tenant_id: str, batch_id: str) -> StoredReport:
        """Write the report to the object storage."""
        if self._unlisted:
            message = f"{self._unlisted:,} more lines have errors; a report has at most {MAX_REPORT_BYTES:,} bytes"
            last = {"line": None, "errors": [{"field": "body", "value": None, "message": message}]}
            self._size += self._file.write(json.dumps(last).encode() + b"\n")
        self._file.flush()
        key = keys.batch_errors_key(tenant_id, batch_id)
        context.storage.put_file(key, Path(self._file.name), "application/jsonl")
        return StoredReport(key, self._size)

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
        self._aliases = jobs.model_aliases(context, tenant_id)
        self._find_now = inputs.finder(context, tenant_id)
        self._find_url = _remembered(self._fetch, size=None)  # `MAX_FETCHED` bounds it
        self.chained = False  #: whether inputs are outputs of other jobs
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
        return jobs.build(
            self._context, request, self._find_input, self._check_webhook, self._check_numerics, self._aliases
        )

    def names_url(self, line: Mapping[str, Any]) -> bool:
        """Whether a line, or a default that it leaves as it is, names an image by URL."""
        return any(_has_scheme(line.get(name, self._defaults.get(name))) for name in INPUT_NAMES)

    def _find(self, field: str, reference: str) -> InputFile:
        if reference.startswith(LINE):
            self.chained = True
            name, output = line_of(reference)
            return InputFile(sha256="", key="", media_type="", size=0, job=f"{LINE}{name}", output=output)
        if inputs.is_stored(reference):
            self.chained |= reference.startswith("job_")
            return self._find_now(field, reference)
        if not inputs.is_url(reference):
            message = (
                "must be file_…, sha256:…, job_…, from:… or a URL in a bulk request; upload images with POST /v1/files"
            )
            raise BadInput.of(field, reference, message)
        found: InputFile = self._find_url(field, reference)
        return found

    def _fetch(self, field: str, reference: str) -> InputFile:
        if self._fetched >= MAX_FETCHED or self._fetch_seconds > MAX_FETCH_SECONDS:
            message = (
                f"is one URL too many: a bulk request fetches at most {MAX_FETCHED:,} URLs in "
                f"{MAX_FETCH_SECONDS:.0f} s; upload the other images with POST /v1/files"
            )
            raise _NotFetched.of(field, reference, message)
        self._fetched += 1
        begun = time.monotonic()
        try:
            return self._find_now(field, reference)
        finally:
            self._fetch_seconds += time.monotonic() - begun


def _no_numerics(name: str) -> None:
    raise BadInput.of("numerics", name, "the batch has numerics: one, so its jobs cannot name a class; leave it out")


def _has_scheme(value: object) -> bool:
    """Whether a reference to an input, or one of several, may be a URL."""
    if isinstance(value, (list, tuple)):
        return any(map(_has_scheme, value))
    return isinstance(value, str) and "://" in value


class _NotFetched(BadInput):
    """A URL beyond the limits, which need not be remembered."""


def _remembered(look_up: Callable[..., T], size: int | None = MAX_REMEMBERED) -> Callable[..., T]:
    """The same function, which remembers what it returned and the `BadInput` that it raised, so often at most."""

    @lru_cache(size)
    def once(*args: str) -> tuple[T | None, BadInput | None]:
        try:
            return look_up(*args), None
        except _NotFetched:
            raise
        except BadInput as error:
            return None, error

    def remembered(*args: str) -> Any:
        found, error = once(*args)
        if error is not None:
            raise error
        return found

    return remembered


# -- submitting --------------------------------------------------------------------------------------------------------


def of_file(options: BatchOptions, media_type: str, file: IO[bytes]) -> BulkSource:
    """The jobs in a file of JSON lines or CSV."""

    def lines() -> Iterator[BulkLine]:
        file.seek(0)
        return bulk_parsers.parse(media_type, chunks_of(file))

    def digest() -> bytes:
        file.seek(0)
        found = new_hash(options, media_type)
        for chunk in chunks_of(file):
            found.update(chunk)
        done: bytes = found.digest()
        return done

    return BulkSource(lines, digest, _has_url(options, file))


def chunks_of(file: IO[bytes]) -> Iterator[bytes]:
    """The rest of a file, piece by piece."""
    while chunk := file.read(READ_BYTES):
        yield chunk


def _has_url(options: BatchOptions, file: IO[bytes]) -> bool:
    if any(map(_has_scheme, options.defaults.values())):
        return True
    file.seek(0)
    before = b""
    for chunk in chunks_of(file):
        # UTF-16 has a zero byte between the letters, and JSON may escape the slashes
        if any(mark in before + chunk for mark in (b"://", b":\\/", b":\0/")):
            return True
        before = chunk[-3:]
    return False


def new_hash(options: BatchOptions, media_type: str) -> Any:
    """The hash of a bulk request before its body, to which the body's bytes are added."""
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


def find_earlier(context: ServiceContext, tenant_id: str, source: BulkSource, key: str) -> Batch | None:
    """The batch that an earlier request with this ``Idempotency-Key`` made. Raises `BadInput` for another request."""
    with context.store.begin() as unit:
        if unit.jobs.find_key(tenant_id, key) is None:
            return None
    digest = source.digest()
    with context.store.begin() as unit:
        return lifecycle.find_submitted_batch(unit, tenant_id, IdempotencyKey(key, digest))


def fetch_inputs(context: ServiceContext, tenant_id: str, options: BatchOptions, source: BulkSource) -> LineValidator:
    """Fetch the images that lines name by URL. Returns what `submit` validates the lines with.

    It takes as long as other people's servers do, and holds no transaction.
    """
    validator = LineValidator(context, tenant_id, options.defaults, one_numerics=options.new.one_numerics)
    if source.names_urls:
        with contextlib.suppress(BadInput):  # the body breaks off: `submit` reports it
            for _, line in source.lines():
                if isinstance(line, dict) and validator.names_url(line):
                    with contextlib.suppress(BadInput):
                        validator.job(line)
    return validator


def submit(
    context: ServiceContext,
    tenant_id: str,
    options: BatchOptions,
    source: BulkSource,
    validator: LineValidator,
    key: str | None = None,
) -> tuple[Batch | Estimate, bool]:
    """Check, stage and submit all lines in one transaction.

    Args:
        context: the process's connections.
        tenant_id: whose batch it is.
        options: what the request asks for besides its jobs.
        source: the jobs' requests.
        validator: what `fetch_inputs` returned.
        key: the request's ``Idempotency-Key``.

    Returns:
        The batch, or the estimate of a dry run; and whether this call made the batch.

    Raises:
        BatchRefused: lines that cannot be accepted.
        BadInput, Conflict, QuotaExceeded: as `lifecycle.submit_batch`.
    """
    if options.new.webhook is not None:
        jobs.webhook_allowed(context.settings)(options.new.webhook)
    batch_id = ids.new(ids.BATCH)
    with context.store.begin() as unit:
        limit = None if options.dry_run else lifecycle.queue_room(unit, tenant_id)
    digest = source.digest()
    idempotency = None if key is None else IdempotencyKey(key, digest)
    new = replace(options.new, request_hash=digest)
    with ErrorReport() as report:
        try:
            with context.store.begin() as unit:
                staged = unit.batches.stage(_entries(validator, source.lines(), report, options, limit))
                staged = _drop_duplicates(unit, staged, report)
                if validator.chained:
                    staged = _check_chains(unit, staged, report)
                if options.dry_run:
                    same_as = unit.batches.equal_to(tenant_id, digest)
                    return replace(_estimate(unit, staged, report), same_as=same_as), False
                if report.lines and _all_refused(options, staged.total):
                    raise _Refused  # noqa: TRY301 - rolls the transaction back before the report is stored
                urls = set(unit.batches.webhook_urls(MAX_REMEMBERED))
                urls |= set() if options.new.webhook is None else {options.new.webhook}
                webhooks.reserve_urls(context, unit, tenant_id, urls)
                stored = report.store(context, tenant_id, batch_id) if report.lines else None
                same_as = unit.batches.equal_to(tenant_id, digest)
                batch, made = lifecycle.submit_batch(
                    unit,
                    tenant_id,
                    batch_id,
                    new,
                    staged,
                    key=idempotency,
                    skipped=report.lines,
                    error_key=None if stored is None else stored.key,
                    error_bytes=0 if stored is None else stored.size,
                )
                return replace(batch, same_as=same_as if made else None), made
        except _Refused:
            raise _refused(context, tenant_id, batch_id, report) from None


def _all_refused(options: BatchOptions, accepted: int) -> bool:
    """Whether bad lines refuse the whole batch, in which so many others are good."""
    return options.on_error is OnError.STOP or (not accepted and not options.keep_empty)


class _Refused(Exception):
    """The lines are refused: the report says why."""


def _estimate(unit: UnitOfWork, staged: Staged, report: ErrorReport) -> Estimate:
    seconds = unit.activity.estimator().seconds(unit.batches.staged_costs())
    return Estimate(staged.total, staged.cost, seconds, report.lines, tuple(report.first))


def _entries(
    validator: LineValidator,
    lines: Iterable[BulkLine],
    report: ErrorReport,
    options: BatchOptions,
    limit: int | None,
) -> Iterator[BatchEntry]:
    """The jobs of the good lines; the others go to the report. Raises `_Refused` and `QuotaExceeded`."""
    accepted = 0
    try:
        for number, line in lines:
            if isinstance(line, FieldProblem):
                report.add(number, [line])
            elif isinstance(line, RefusedLine):
                report.add(number, line.problems, line.custom_id)
            else:
                try:
                    job, own = validator.job(line)
                except BadInput as error:
                    report.add(number, error.problems, line.get("custom_id"))
                else:
                    if limit is not None and accepted >= limit:
                        raise QuotaExceeded(f"this batch has more jobs than the {max(0, limit):,} that may still wait")
                    accepted += 1
                    yield BatchEntry(number, job, own)
                    continue
            if report.lines >= MAX_BAD_LINES and _all_refused(options, accepted):
                message = f"{MAX_BAD_LINES:,} lines have errors; the lines after this one were not read"
                report.add(number, [FieldProblem("body", None, message)])
                raise _Refused
    except BadInput as error:  # the body breaks off: what comes after cannot be told apart
        for one in error.problems:
            report.add(one.line or 1, [one])
        raise _Refused from None


def _drop_duplicates(unit: UnitOfWork, staged: Staged, report: ErrorReport) -> Staged:
    """Report each ``custom_id`` that an earlier line has, and drop the later line."""
    duplicates = False
    for line, custom_id, first in unit.batches.duplicates():
        duplicates = True
        report.add(line, [FieldProblem("custom_id", custom_id, f"is the custom_id of line {first} too")])
    return unit.batches.drop_duplicates() if duplicates else staged


def _check_chains(unit: UnitOfWork, staged: Staged, report: ErrorReport) -> Staged:
    """Report inputs that name no output of another line, and drop their lines and all that depend on them."""
    chains = unit.staged_chains
    chains.collect()
    found: dict[int, list[ChainProblem]] = {}
    for problem in chains.problems():
        found.setdefault(problem.seq, []).append(problem)
    if found:
        for problem in chains.refuse(found):
            found.setdefault(problem.seq, []).append(problem)
        for _, problems in sorted(found.items()):
            report.add(problems[0].line, [FieldProblem(one.field, one.value, one.message) for one in problems])
        staged = replace(unit.batches.staged(), duplicates=staged.duplicates + len(found))
    return replace(staged, chained=True)


def _refused(context: ServiceContext, tenant_id: str, batch_id: str, report: ErrorReport) -> BatchRefused:
    """The error that names the first problems, and a file with the others, which is kept as long as its URL works."""
    url = None
    if report.count > MAX_SHOWN:
        seconds = context.settings.presign_seconds
        stored = report.store(context, tenant_id, batch_id)
        with context.store.begin() as unit:
            unit.pending_deletions.add_later(tenant_id, stored.key, stored.size, seconds)
        url = context.storage.presign_get(stored.key, seconds, "errors.jsonl")
    return BatchRefused(report.first, report.count, url)
