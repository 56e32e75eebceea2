"""From the request of a foreign API to a job and, where the client waits, to its images."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

import anyio.to_thread
from starlette.concurrency import run_in_threadpool

from farm.api.compat.adapter import CLIENT_GONE, AdapterCall, AdapterError
from farm.api.waiting import wait
from farm.domain.job import Job, Output
from farm.domain.states import EventType, JobState
from farm.errors import BadInput, Conflict, NotFound, Unavailable
from farm.services import inputs, jobs, validation

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
        job, _ = await anyio.to_thread.run_sync(
            partial(jobs.submit, context, call.tenant_id, request, webhook_events=webhook_events),
            limiter=context.submit_limiter(request),
        )
    except BadInput as error:
        raise rename_fields(error, names) from None
    return job


async def wait_until_finished(call: AdapterCall, job: Job) -> Job:
    """The job when it is finished. If the client disconnects or waits too long, the job is canceled.

    Raises `AdapterError`, and `Unavailable` when this process is about to end.
    """
    loop = asyncio.get_running_loop()
    seconds = call.context.settings.compat_wait_seconds
    deadline = loop.time() + seconds
    while True:
        job = await wait(call.context, job, min(CONNECTION_CHECK_SECONDS, max(0.0, deadline - loop.time())))
        if job.state.terminal:
            return job
        gone = await call.request.is_disconnected()
        if gone or loop.time() >= deadline or call.context.notifier.closing:
            await run_in_threadpool(cancel, call, job.id)
            if gone:
                raise AdapterError(CLIENT_GONE, "client_gone", "the client disconnected, so the job was canceled")
            if call.context.notifier.closing:
                raise Unavailable("the API is shutting down")
            raise AdapterError(
                504,
                "timeout",
                f"the images were not ready within {seconds:g} seconds, so the job was canceled; "
                "submit it with POST /v1/jobs, which does not wait",
            )


async def render(call: AdapterCall, body: Mapping[str, Any], names: Mapping[str, str]) -> Job:
    """Submit a job and wait for its images. Raises `AdapterError` if there are none."""
    job = await wait_until_finished(call, await submit(call, body, names))
    if job.state is JobState.CANCELED:
        raise AdapterError(422, "canceled", f"job {job.id} was canceled")
    if job.state is JobState.FAILED:
        assert job.error is not None
        raise AdapterError(422, job.error.code, f"job {job.id} failed: {job.error.message}")
    return job


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

    return await anyio.to_thread.run_sync(store, limiter=call.context.fetching)
