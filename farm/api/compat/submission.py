"""From the request of a foreign API to a job and, where the client waits, to its images."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

from starlette.concurrency import run_in_threadpool

from farm.api.compat.adapter import CLIENT_GONE, AdapterCall, AdapterError
from farm.api.waiting import wait
from farm.domain.job import Job, Output
from farm.domain.states import EventType, JobState
from farm.errors import BadInput, Conflict, NotFound, Unavailable
from farm.services import inputs, jobs, validation

RETURN_SECONDS: Final = 20.0  #: in which a client that hung up may come back before its queued job is canceled
CONNECTION_CHECK_SECONDS: Final = 2.0  #: between two checks whether a client that waits is still connected


def rename_fields(error: BadInput, names: Mapping[str, str]) -> BadInput:
    """The same error with the fields as the client calls them."""
    return BadInput(*(replace(one, field=names.get(one.field, one.field)) for one in error.problems))


async def submit(
    call: AdapterCall,
    body: Mapping[str, Any],
    names: Mapping[str, str],
    webhook_events: tuple[EventType, ...] | None = None,
) -> Job:
    """Submit the job that the farm's own fields ask for.

    Args:
        call: the client's request.
        body: a job's request.
        names: what the client calls its fields, where that differs.
        webhook_events: what the job's webhook gets; None: how the job ended.
    """
    context = call.context
    try:
        request = validation.job_request(dict(body))
        job, _ = await context.run_submit(
            call.tenant_id,
            request,
            partial(jobs.submit, context, call.tenant_id, request, webhook_events=webhook_events),
        )
    except BadInput as error:
        raise rename_fields(error, names) from None
    return job


async def render(call: AdapterCall, body: Mapping[str, Any], names: Mapping[str, str]) -> Job:
    """Submit a job and wait for its images. A client that sends its request again waits for the same job.

    The job goes on when the wait ends before it: clients wait for a limited time and then ask again by themselves.

    Raises `AdapterError` if there are no images, and `Unavailable` when this process is about to end.
    """
    request = _fingerprint(call, body)
    job = await run_in_threadpool(_unanswered, call, request)
    if job is None:
        job = await submit(call, body, names)
    await run_in_threadpool(_note, call, request, job.id)
    job = await _wait_until_finished(call, request, job)
    await run_in_threadpool(_answered, call, request, job.id)
    if job.state is JobState.CANCELED:
        raise AdapterError(422, "canceled", f"job {job.id} was canceled")
    if job.state is JobState.FAILED:
        assert job.error is not None
        raise AdapterError(422, job.error.code, f"job {job.id} failed: {job.error.message}")
    return job


def _fingerprint(call: AdapterCall, body: Mapping[str, Any]) -> str:
    """What an equal request has too."""
    text = json.dumps([call.request.url.path, dict(body)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _unanswered(call: AdapterCall, request: str) -> Job | None:
    """The job that an equal request waited for without getting an answer."""
    retried = call.request.headers.get("x-stainless-retry-count", "0") != "0"
    with call.context.store.begin() as unit:
        job_id = unit.unanswered.take(call.tenant_id, request, waiting=retried)
        job = None if job_id is None else unit.jobs.get(job_id, call.tenant_id)
    # what failed may succeed this time
    return None if job is None or job.state in (JobState.FAILED, JobState.CANCELED) else job


def _note(call: AdapterCall, request: str, job_id: str) -> None:
    with call.context.store.begin() as unit:
        unit.unanswered.add(call.tenant_id, request, job_id)


def _answered(call: AdapterCall, request: str, job_id: str) -> bool:
    with call.context.store.begin() as unit:
        return unit.unanswered.remove(call.tenant_id, request, job_id)


def _abandon(call: AdapterCall, request: str, job_id: str) -> None:
    with call.context.store.begin() as unit:
        unit.unanswered.abandon(call.tenant_id, request, job_id)


async def _wait_until_finished(call: AdapterCall, request: str, job: Job) -> Job:
    loop = asyncio.get_running_loop()
    seconds = call.context.settings.compat_wait_seconds
    deadline = loop.time() + seconds
    while True:
        job = await wait(call.context, job, min(CONNECTION_CHECK_SECONDS, max(0.0, deadline - loop.time())))
        if job.state.terminal:
            return job
        gone = await call.request.is_disconnected()
        if not gone and loop.time() < deadline and not call.context.notifier.closing:
            continue
        await run_in_threadpool(_abandon, call, request, job.id)
        if call.context.notifier.closing:
            raise Unavailable("the API is shutting down")
        if gone:
            await _cancel_unless_wanted(call, request, job)
            raise AdapterError(CLIENT_GONE, "client_gone", "the client disconnected")
        raise AdapterError(
            504,
            "timeout",
            f"the images were not ready within {seconds:g} seconds; job {job.id} goes on: send the same request again "
            f"to wait for it, or ask for GET /v1/jobs/{job.id}",
        )


async def _cancel_unless_wanted(call: AdapterCall, request: str, job: Job) -> None:
    """Cancel the job of a client that hung up, if it still waits in the queue when no equal request came for a while.

    A job that runs goes on: most of it is paid for, and a client that hung up because it waited too long asks again.
    """
    job = await wait(call.context, job, RETURN_SECONDS)
    waits = job.state in (JobState.PENDING, JobState.QUEUED, JobState.DISPATCHED)
    if waits and await run_in_threadpool(_answered, call, request, job.id):
        await run_in_threadpool(cancel, call, job.id)


def get_job(call: AdapterCall, job_id: str, kind: str = "job") -> Job:
    """The tenant's job of that id; ``kind`` is what the foreign API calls a job. Raises `NotFound`."""
    try:
        return jobs.get(call.context, call.tenant_id, job_id)
    except NotFound:
        raise NotFound(kind, job_id) from None


def cancel(call: AdapterCall, job_id: str) -> Job:
    """Stop a job; a finished one stays as it is. Raises `NotFound`."""
    try:
        return jobs.cancel(call.context, call.tenant_id, job_id)
    except Conflict:
        return get_job(call, job_id)


def url_of(call: AdapterCall, output: Output) -> str:
    """A URL of an output that needs no key, for a limited time."""
    return call.context.storage.presign_get(output.key, call.context.settings.presign_seconds)


async def store_image(call: AdapterCall, data: bytes, field: str) -> str:
    """Store an image as the tenant's file; returns a reference to it. Raises `BadInput`."""

    def store() -> str:
        file, _ = inputs.store(call.context, call.tenant_id, data, field=field)
        return f"sha256:{file.content.sha256}"

    return await call.context.storing.run(call.tenant_id, store)
