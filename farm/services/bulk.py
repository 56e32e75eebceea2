"""From the lines of a bulk request to staged jobs: each checked as a single job is, the bad ones reported in full.

Memory stays the same however long the body is: rows go on to the database as they come, and reports beyond the first
thousand go to a file on disk and from there into the object storage.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from pydantic import TypeAdapter, ValidationError, create_model

from farm import lifecycle
from farm.domain import ids
from farm.domain.batch import Batch, BatchEntry, EntryOverrides, Estimate, NewBatch, OnError, Staged
from farm.domain.job import NewJob
from farm.domain.resolve import RANDOM_SEED_LIMIT, check_times, choose_model, resolve
from farm.domain.tasks import AnyJobRequest, InputFile, JobRequest
from farm.egress import guard
from farm.errors import BadInput, BatchRefused, FieldProblem, QuotaExceeded
from farm.lifecycle import IdempotencyKey
from farm.objects import keys
from farm.services import bulk_parsers, inputs, validation
from farm.services.bulk_parsers import BulkLine, RefusedLine
from farm.services.context import ServiceContext
from farm.store.unit_of_work import UnitOfWork

SHOWN: Final = 1_000  #: problems that an answer has in itself
KNOWN_INPUTS: Final = 10_000  #: images and webhooks that are remembered while a body is read

MAX_FETCHED: Final = 1_000  #: images that one bulk request may name by URL
FETCHING_SECONDS: Final = 600.0  #: that it may spend on fetching them

MAX_TEMPLATES: Final = 1_000  #: kinds of line that are remembered while a body is read
#: What lines differ in, and nothing else follows from.
PER_LINE_FIELDS: Final = frozenset({"prompt", "negative_prompt", "seed", "custom_id", "metadata"})

_REQUEST: Final[TypeAdapter[AnyJobRequest]] = TypeAdapter(AnyJobRequest)
_FIELDS: Final[dict[str, Any]] = {
    name: (field.rebuild_annotation(), field)
    for name, field in JobRequest.model_fields.items()
    if name in PER_LINE_FIELDS
}
_PER_LINE_FIELDS: Final[TypeAdapter[Any]] = TypeAdapter(
    create_model("Own", __config__=JobRequest.model_config, **_FIELDS)
)


@dataclass(frozen=True)
class BatchOptions:
    """What a bulk request asks for beside its jobs."""

    new: NewBatch
    defaults: Mapping[str, Any]
    on_error: OnError
    dry_run: bool


class ErrorReport:
    """What is wrong with the lines of one body. Leave the ``with`` block to remove its file."""

    def __init__(self) -> None:
        self.first: list[FieldProblem] = []
        self.count = 0  #: problems
        self.lines = 0
        self._file = tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8")  # noqa: SIM115

    def add(self, line: int, found: Iterable[FieldProblem], custom_id: object = None) -> None:
        """One line and all that is wrong with it."""
        self.lines += 1
        errors = []
        for one in found:
            placed = replace(one, line=line, value=validation.shown(one.value))
            if self.count < SHOWN:
                self.first.append(placed)
            self.count += 1
            errors.append({"field": validation.encodable(one.field), "value": placed.value, "message": one.message})
        told = {"line": line, "errors": errors}
        if isinstance(custom_id, str):
            told["custom_id"] = custom_id[:200]
        body = json.dumps(told, ensure_ascii=False)
        self._file.write(validation.encodable(body) + "\n")

    def store(self, context: ServiceContext, tenant_id: str, batch_id: str) -> str:
        """Put the whole report into the object storage; returns its key."""
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
    """Checks requests as they come, for one tenant, with defaults for what they leave open."""

    def __init__(self, context: ServiceContext, tenant_id: str, defaults: Mapping[str, Any]) -> None:
        self._context = context
        self._tenant_id = tenant_id
        self._defaults = defaults
        self._own_defaults = {name: value for name, value in defaults.items() if name in PER_LINE_FIELDS}
        # A column of a million cells names few images and fewer webhooks: each is looked up once.
        self._image = lru_cache(KNOWN_INPUTS)(self._look_up)
        self._webhook = lru_cache(KNOWN_INPUTS)(self._check_webhook)
        self._fetched = 0
        self._fetching_seconds = 0.0
        self._templates: dict[tuple[Any, ...], NewJob] = {}

    def job(self, body: Mapping[str, Any]) -> tuple[NewJob, EntryOverrides | None]:
        """The job that a request asks for, and what it has instead of it. Raises `BadInput` with every problem found.

        Lines of one body mostly differ in what is `PER_LINE_FIELDS` to each: what the rest comes to is worked out once.
        """
        own, rest = self._own_defaults.copy(), []
        for name, value in body.items():
            if name in PER_LINE_FIELDS:
                own[name] = value
            else:
                rest.append((name, type(value), value))  # with its type: 1 == 1.0 == True, but a field minds
        kind = tuple(rest)
        try:
            template = self._templates.get(kind)
        except TypeError:  # a list or an object among them
            return self._whole(body), None
        if template is None:
            job = self._whole(body)
            if len(self._templates) >= MAX_TEMPLATES:
                self._templates.clear()
            self._templates[kind] = job
            return job, None
        try:
            checked = _PER_LINE_FIELDS.validate_python(own)
        except ValidationError:
            return self._whole(body), None  # tells of everything that is wrong
        seed = secrets.randbelow(RANDOM_SEED_LIMIT) if checked.seed is None else checked.seed
        return template, EntryOverrides(
            checked.prompt, checked.negative_prompt, seed, checked.custom_id, checked.metadata
        )

    def _whole(self, body: Mapping[str, Any]) -> NewJob:
        try:
            request = _REQUEST.validate_python(bulk_parsers.merged(self._defaults, body))
        except ValidationError as error:
            raise BadInput(*validation.of_body(error)) from None
        found: list[FieldProblem] = []
        model = None
        try:
            model = choose_model(request, self._context.registry)
        except BadInput as refused:
            found += refused.problems
        found += check_times(request, datetime.now(UTC))
        if request.webhook is not None:
            found += self._webhook(request.webhook)
        images: dict[str, InputFile] = {}
        for field, reference in inputs.references(request).items():
            image = self._image(field, reference)
            if isinstance(image, InputFile):
                images[field] = image
            else:
                found += image
        if model is None or found:
            raise BadInput(*found)
        return NewJob(
            spec=resolve(request, model, images),
            priority=request.priority,
            custom_id=request.custom_id,
            metadata=tuple(request.metadata.items()),
            webhook=request.webhook,
            max_attempts=self._context.settings.max_attempts,
            not_before=request.not_before,
            deadline=request.deadline,
        )

    def _look_up(self, field: str, reference: str) -> InputFile | tuple[FieldProblem, ...]:
        if not inputs.is_stored(reference):
            if not reference[:8].lower().startswith(("https://", "http://")):
                message = "must be file_…, sha256:… or a URL in a bulk request: upload an image with POST /v1/files"
                return (FieldProblem(field, reference, message),)
            if self._fetched >= MAX_FETCHED or self._fetching_seconds > FETCHING_SECONDS:
                message = (
                    f"is one URL too many: a bulk request fetches {MAX_FETCHED:,} of them in {FETCHING_SECONDS:.0f} s; "
                    "upload the others with POST /v1/files"
                )
                return (FieldProblem(field, reference, message),)
            self._fetched += 1
            begun = time.monotonic()
            try:
                return self._gathered(field, reference)
            finally:
                self._fetching_seconds += time.monotonic() - begun
        return self._gathered(field, reference)

    def _gathered(self, field: str, reference: str) -> InputFile | tuple[FieldProblem, ...]:
        try:
            return inputs.gather({field: reference}, self._tenant_id, self._context.store, self._context.intake)[field]
        except BadInput as refused:
            return refused.problems

    def _check_webhook(self, url: str) -> tuple[FieldProblem, ...]:
        try:
            guard.parse(url, self._context.settings, field="webhook")
        except BadInput as refused:
            return refused.problems
        return ()


def hashed(chunks: Iterable[bytes], into: Any) -> Iterator[bytes]:
    """The same chunks, each also given to a hash."""
    for chunk in chunks:
        into.update(chunk)
        yield chunk


def new_hash(order: BatchOptions, media_type: str) -> Any:
    """The hash of a request, up to its body. The body counts byte by byte: it may be too large for more."""
    about = {
        "kind": "batch",
        "type": media_type,
        "defaults": dict(order.defaults),
        "name": order.new.name,
        "on_error": order.on_error.value,
        "webhook": order.new.webhook,
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True, separators=(",", ":")).encode())


def submit(
    context: ServiceContext,
    tenant_id: str,
    order: BatchOptions,
    found: Iterable[BulkLine],
    name: str | None,
    digest: Callable[[], bytes],
) -> tuple[Batch | Estimate, bool]:
    """Check, stage and submit all lines in one transaction; blocks, and reads ``found`` as it goes.

    ``name`` is the request's ``Idempotency-Key``; ``digest`` gives its hash when all lines are read. Returns the batch
    (or, of a dry run, the estimate), and whether this call made it. Raises `BatchRefused`, and what
    `lifecycle.submit_batch` does.
    """
    if name is not None and not order.dry_run:
        known = _before(context, tenant_id, name, found, digest)
        if known is not None:
            return known, False
    if order.new.webhook is not None:
        guard.parse(order.new.webhook, context.settings, field="webhook")
    batch_id = ids.new(ids.BATCH)
    checker = LineValidator(context, tenant_id, order.defaults)
    limit = None if order.dry_run else _limit(context, tenant_id)
    with ErrorReport() as reports, contextlib.ExitStack() as stack:
        unit = stack.enter_context(context.store.begin())
        whole = True
        try:
            staged = unit.batches.stage(_entries(checker, found, reports, limit))
        except BadInput as broken:  # the body stops being what it claims to be: no line after that can be told
            for one in broken.problems:
                reports.add(one.line or 1, [one])
            whole = False
        if not whole:
            raise _refused(context, tenant_id, batch_id, reports)
        staged = _without_twice(unit, staged, reports)
        if order.dry_run:
            speed = unit.batches.throughput()
            seconds = staged.cost / speed if speed else None
            estimate = Estimate(staged.total, staged.cost, seconds, reports.lines, tuple(reports.first))
            return estimate, False
        if reports.lines and (order.on_error is OnError.STOP or not staged.total):
            raise _refused(context, tenant_id, batch_id, reports)
        error_key = reports.store(context, tenant_id, batch_id) if reports.lines else None
        batch, made = lifecycle.submit_batch(
            unit,
            tenant_id,
            batch_id,
            order.new,
            staged,
            key=None if name is None else IdempotencyKey(name, digest()),
            skipped=reports.lines,
            error_key=error_key,
        )
        return batch, made


def _before(
    context: ServiceContext, tenant_id: str, name: str, found: Iterable[BulkLine], digest: Callable[[], bytes]
) -> Batch | None:
    """The batch that an earlier request with this key made, once the body is read and known to be the same."""
    with context.store.begin() as unit:
        if unit.jobs.find_key(tenant_id, name) is None:
            return None
    with contextlib.suppress(BadInput):
        for _ in found:
            pass
    with context.store.begin() as unit:
        return lifecycle.find_submitted_batch(unit, tenant_id, IdempotencyKey(name, digest()))


def _entries(
    checker: LineValidator, found: Iterable[BulkLine], reports: ErrorReport, limit: int | None
) -> Iterator[BatchEntry]:
    taken = 0
    for number, body in found:
        if isinstance(body, FieldProblem):
            reports.add(number, [body])
            continue
        if isinstance(body, RefusedLine):
            reports.add(number, body.problems, body.custom_id)
            continue
        try:
            job, own = checker.job(body)
        except BadInput as refused:
            reports.add(number, refused.problems, body.get("custom_id"))
            continue
        if limit is not None and taken >= limit:
            raise QuotaExceeded("with these jobs more would wait than the tenant's limit allows")
        taken += 1
        yield BatchEntry(number, job, own)


def _without_twice(unit: UnitOfWork, staged: Staged, reports: ErrorReport) -> Staged:
    """Report every ``custom_id`` that came before, and drop its later entries."""
    twice = False
    for line, custom_id, first in unit.batches.duplicates():
        twice = True
        reports.add(line, [FieldProblem("custom_id", custom_id, f"is the custom_id of line {first}, too")])
    return unit.batches.drop_duplicates() if twice else staged


def _limit(context: ServiceContext, tenant_id: str) -> int | None:
    """How many jobs the tenant may still queue; None: any number."""
    with context.store.begin() as unit:
        tenant = unit.tenants.get(tenant_id)
        if tenant is None or tenant.max_queued is None:
            return None
        return tenant.max_queued - unit.quotas.waiting(tenant_id, tenant.max_queued)


def _refused(context: ServiceContext, tenant_id: str, batch_id: str, reports: ErrorReport) -> BatchRefused:
    url = None
    if reports.count > SHOWN:
        key = reports.store(context, tenant_id, batch_id)
        url = context.storage.presign_get(key, context.settings.presign_seconds, "errors.jsonl")
    return BatchRefused(reports.first, reports.count, url)
