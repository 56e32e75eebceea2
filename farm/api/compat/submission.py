"""From a foreign request to a job and, where the client holds the line, to its images."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import anyio.to_thread
from pydantic import TypeAdapter, ValidationError
from starlette.concurrency import run_in_threadpool

from farm import lifecycle
from farm.api.compat.adapter import CLIENT_GONE, AdapterCall, AdapterError
from farm.api.jobs import over, resolved, store_job
from farm.domain.job import Job, Output
from farm.domain.states import JobState
from farm.domain.tasks import AnyJobRequest
from farm.errors import BadInput, Conflict, NotFound, Unavailable
from farm.services import inputs, validation

LOOK_SECONDS: Final = 2.0  #: between two looks whether a client that waits is still there

_REQUEST: Final[TypeAdapter[AnyJobRequest]] = TypeAdapter(AnyJobRequest)


def rename_fields(error: BadInput, names: Mapping[str, str]) -> BadInput:
    """The same refusal with the fields as the client calls them."""
    return BadInput(*(replace(one, field=names.get(one.field, one.field)) for one in error.problems))


async def submit(call: AdapterCall, asked: Mapping[str, Any], names: Mapping[str, str]) -> Job:
    """Queue the job that the farm's own fields ask for. ``names``: what the client calls them, where it differs."""
    try:
        try:
            request = _REQUEST.validate_python(dict(asked))
        except ValidationError as error:
            raise BadInput(*validation.of_body(error)) from None
        new = await resolved(call.context, call.tenant_id, request)
    except BadInput as refused:
        raise rename_fields(refused, names) from None
    job, _ = await run_in_threadpool(store_job, call.context, call.tenant_id, new, None)
    return job


async def wait_until_finished(call: AdapterCall, job: Job) -> Job:
    """The job when it is over. A client that hangs up, or waits too long, ends it: nobody could ask for it again.

    Raises `AdapterError`, and `Unavailable` when this process is about to end.
    """
    loop = asyncio.get_running_loop()
    seconds = call.context.settings.compat_wait_seconds
    deadline = loop.time() + seconds
    while True:
        job = await over(call.context, job, min(LOOK_SECONDS, max(0.0, deadline - loop.time())))
        if job.state.terminal:
            return job
        gone = await call.request.is_disconnected()
        if gone or loop.time() >= deadline or call.context.notifier.closing:
            await run_in_threadpool(cancel, call, job.id)
            if gone:
                raise AdapterError(CLIENT_GONE, "client_gone", "the client hung up, so the job was canceled")
            if call.context.notifier.closing:
                raise Unavailable("the API is about to end")
            raise AdapterError(
                504,
                "timeout",
                f"the images were not ready within {seconds:g} seconds, so the job was canceled; "
                "submit it over POST /v1/jobs and ask for it later",
            )


async def render(call: AdapterCall, asked: Mapping[str, Any], names: Mapping[str, str]) -> Job:
    """Queue a job and wait for its images. Raises `AdapterError` if there are none."""
    job = await wait_until_finished(call, await submit(call, asked, names))
    if job.state is JobState.CANCELED:
        raise AdapterError(422, "canceled", f"the job {job.id} was canceled")
    if job.state is JobState.FAILED:
        assert job.error is not None
        raise AdapterError(422, job.error.code, f"the job {job.id} failed: {job.error.message}")
    return job


def get_job(call: AdapterCall, job_id: str, kind: str = "job") -> Job:
    """The tenant's job of that id. Raises `NotFound`."""
    with call.context.store.begin() as unit:
        job = unit.jobs.get(job_id, call.tenant_id)
    if job is None:
        raise NotFound(kind, job_id)
    return job


def cancel(call: AdapterCall, job_id: str) -> Job:
    """Stop a job; one that is over stays as it is. Raises `NotFound`."""
    try:
        with call.context.store.begin() as unit:
            return lifecycle.cancel(unit, call.tenant_id, job_id)
    except Conflict:
        return get_job(call, job_id)


def url_of(call: AdapterCall, output: Output) -> str:
    """Where anybody gets an output for a limited time."""
    return call.context.storage.presign_get(output.key, call.context.settings.presign_seconds)


async def store_image(call: AdapterCall, data: bytes, field: str) -> str:
    """Keep an image as the tenant's; returns how a job names it. Raises `BadInput`."""

    def keep() -> str:
        taken = call.context.intake.from_bytes(call.tenant_id, data, field=field)
        file, _ = inputs.keep(call.context.store, call.tenant_id, taken, None)
        return f"sha256:{file.content.sha256}"

    return await anyio.to_thread.run_sync(keep, limiter=call.context.fetching)
