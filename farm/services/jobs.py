"""Jobs: from a request to a submitted job, and from a job to another one that repeats it.

request ──build──► NewJob (resolved spec, inputs stored) ──submit──► queued
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache

from farm import lifecycle, tracing
from farm.domain import parameters
from farm.domain.job import Job, NewJob
from farm.domain.job_spec import InputFile
from farm.domain.model import Model
from farm.domain.requests import AnyJobRequest
from farm.domain.resolve import check_times, choose_model, random_seed, resolve
from farm.domain.states import EventType
from farm.egress import guard
from farm.errors import BadInput, FieldProblem, NotFound
from farm.lifecycle import IdempotencyKey
from farm.services import inputs, validation, webhooks
from farm.services.context import ServiceContext
from farm.settings import Settings
from farm.store.unit_of_work import UnitOfWork

#: Finds the image that a field of a request refers to. Raises `BadInput`.
InputLookup = Callable[[str, str], InputFile]


def get(context: ServiceContext, tenant_id: str | None, job_id: str) -> Job:
    """A job of the tenant; None: of any tenant. Raises `NotFound`."""
    with context.store.look() as unit:
        job = unit.jobs.get(job_id, tenant_id)
    if job is None:
        raise NotFound("job", job_id)
    return job


# -- submitting --------------------------------------------------------------------------------------------------------


def build(
    context: ServiceContext,
    request: AnyJobRequest,
    find_input: InputLookup,
    check_webhook: Callable[[str], None] | None = None,
    check_numerics: Callable[[str], None] | None = None,
    aliases: Callable[[], Mapping[str, str]] = dict,
) -> NewJob:
    """The job that a request asks for: everything checked, the defaults filled in, the input images stored.

    An image is fetched only for a request that is otherwise valid.

    Args:
        context: the process's connections.
        request: a valid request.
        find_input: finds an input image.
        check_webhook: raises `BadInput` for a URL that no webhook may be sent to; `webhook_allowed` if absent.
        check_numerics: raises `BadInput` for a numerics class that no worker ever had; `numerics_known` if absent.
        aliases: the tenant's other names of models; called for a model that the farm does not have.

    Raises:
        BadInput: with every problem found.
    """
    if request.model is not None:
        context.models.know((request.model,))
    if request.model is not None and context.registry.get(request.model) is None:
        request = request.model_copy(update={"model": aliases().get(request.model, request.model)})
    problems: list[FieldProblem] = check_times(request, datetime.now(UTC))
    model: Model | None = None
    try:
        model = choose_model(request, context.registry)
    except BadInput as error:
        problems += error.problems
    if request.webhook is not None:
        try:
            (check_webhook or webhook_allowed(context.settings))(request.webhook)
        except BadInput as error:
            problems += error.problems
    if request.numerics is not None:
        try:
            (check_numerics or numerics_known(context))(request.numerics)
        except BadInput as error:
            problems += error.problems
    files: dict[str, tuple[InputFile, ...]] = {}
    for role, references in request.references().items():
        for reference in references:
            if problems and not inputs.is_stored(reference):
                continue
            try:
                files[role] = (*files.get(role, ()), find_input(role, reference))
            except BadInput as error:
                problems += error.problems
    if model is None or problems:
        raise BadInput(*problems)
    return NewJob(
        spec=resolve(request, model, files),
        priority=request.priority,
        custom_id=request.custom_id,
        metadata=tuple(request.metadata.items()),
        webhook=request.webhook,
        max_attempts=context.settings.max_attempts,
        not_before=request.not_before,
        deadline=request.deadline,
        pin=request.numerics,
    )


def numerics_known(context: ServiceContext) -> Callable[[str], None]:
    """The check of a ``numerics`` class: a job for one that no worker ever had would wait for ever."""

    def check(name: str) -> None:
        with context.store.look() as unit:
            known = [one.numerics.name for one in unit.numerics.all()]
        if name not in known:
            message = f"no worker of this farm ever had this numerics class; known: {', '.join(known) or 'none'}"
            raise BadInput.of("numerics", name, message)

    return check


def model_aliases(context: ServiceContext, tenant_id: str) -> Callable[[], Mapping[str, str]]:
    """What reads a tenant's other names of models, once."""

    @cache
    def read() -> Mapping[str, str]:
        with context.store.look() as unit:
            return unit.tenants.model_aliases(tenant_id)

    return read


def webhook_allowed(settings: Settings) -> Callable[[str], None]:
    """The check of a job's or a batch's ``webhook`` URL."""

    def check(url: str) -> None:
        guard.parse(url, settings, field="webhook")

    return check


def submit(
    context: ServiceContext,
    tenant_id: str,
    request: AnyJobRequest,
    key: IdempotencyKey | None = None,
    *,
    traceparent: str | None = None,
    webhook_events: tuple[EventType, ...] | None = None,
) -> tuple[Job, bool]:
    """Submit the job that a request asks for. Returns it, and whether this call made it.

    Args:
        context: the process's connections.
        tenant_id: whose job it is.
        request: a valid request.
        key: the client's name for the request; the same one again returns the first one's job.
        traceparent: the client's trace (W3C Trace Context), which the job's trace is linked to.
        webhook_events: what the job's webhook gets; None: how the job ended.

    Raises:
        BadInput, Conflict, QuotaExceeded: the job is not accepted.
    """
    began = time.time()
    if key is not None:
        with context.store.begin() as unit:
            earlier = lifecycle.find_submitted(unit, tenant_id, key)
        if earlier is not None:  # before its inputs are fetched: they may be gone by now
            return earlier, False
    aliases = model_aliases(context, tenant_id)
    built = build(context, request, inputs.finder(context, tenant_id), aliases=aliases)
    new = replace(built, webhook_events=webhook_events)
    with context.store.begin() as unit:
        webhooks.reserve_urls(context, unit, tenant_id, [] if new.webhook is None else [new.webhook])
        job, created = lifecycle.submit(unit, tenant_id, new, key)
    if created:
        tracing.record_submission(job.id, traceparent, began, tenant=tenant_id, model=job.spec.model)
    return job, created


def idempotency_key(text: str | None, request: AnyJobRequest) -> IdempotencyKey | None:
    """A client's ``Idempotency-Key`` with the hash of what the request means: the order of its fields is ignored."""
    if text is None:
        return None
    # left out where they are not used: they were added after the first keys were stored
    later = {name for name in ("not_before", "deadline") if getattr(request, name) is None}
    body = json.dumps(request.model_dump(mode="json", exclude=later), sort_keys=True, separators=(",", ":"))
    return IdempotencyKey(text, hashlib.sha256(body.encode()).digest())


# -- the same again ----------------------------------------------------------------------------------------------------


def retry(context: ServiceContext, tenant_id: str, job_id: str, *, with_dependents: bool = False) -> tuple[Job, bool]:
    """Submit a failed or canceled job again as a new job, once. Returns it, and whether this call made it.

    ``with_dependents``: also the jobs that failed for want of its outputs. Raises `NotFound`, `BadInput`, `Conflict`
    and `QuotaExceeded`.
    """
    with context.store.begin() as unit:
        if not with_dependents:
            return lifecycle.retry(unit, tenant_id, job_id)
        job, created, _ = lifecycle.retry_with_dependents(unit, tenant_id, job_id)
    return get(context, tenant_id, job.id), created


def rerun(context: ServiceContext, tenant_id: str, job_id: str) -> Job:
    """Submit a job of any state again with a new seed. Raises `NotFound` and `QuotaExceeded`."""
    with context.store.begin() as unit:
        old = unit.jobs.get(job_id, tenant_id)
        if old is None:
            raise NotFound("job", job_id)
        return submit_rerun(unit, old)


def submit_rerun(unit: UnitOfWork, old: Job) -> Job:
    """`rerun` within a unit of work. Raises `QuotaExceeded`."""
    spec = old.spec.model_copy(update={"seed": random_seed()})
    job, _ = lifecycle.submit(unit, old.tenant_id, NewJob.variant(old, spec))
    return job


def resubmit(context: ServiceContext, tenant_id: str, job_id: str, changes: Mapping[str, object]) -> Job:
    """Submit a job again with some parameters changed and the same input images.

    A parameter that is changed to None is left out, so that it gets its default.

    Raises:
        NotFound, QuotaExceeded: as `retry`.
        BadInput: with every problem found.
    """
    old = get(context, tenant_id, job_id)
    body = parameters.without(old.spec.request() | {"priority": old.priority.value}, changes)
    request = validation.job_request(body | {name: value for name, value in changes.items() if value is not None})
    known = {one.reference: one for given in old.spec.inputs.values() for one in given}
    aliases = model_aliases(context, tenant_id)
    new = build(context, request, lambda _, reference: known[reference], aliases=aliases)
    with context.store.begin() as unit:
        job, _ = lifecycle.submit(unit, tenant_id, NewJob.variant(old, new.spec, new.priority))
    return job


def cancel(context: ServiceContext, tenant_id: str, job_id: str) -> Job:
    """Stop a job; one that is already canceled stays as it is. Raises `NotFound` and `Conflict`."""
    with context.store.begin() as unit:
        return lifecycle.cancel(unit, tenant_id, job_id)
