"""Jobs: submit, look, list, wait, cancel, retry."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Final

import structlog
from fastapi import APIRouter, Body, Header, Path, Query, Response
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.convertors import Convertor, register_url_convertor
from starlette.responses import StreamingResponse

from farm.api import sse
from farm.api.auth import Reader, Submitter
from farm.api.dependencies import Context
from farm.api.problems import ALWAYS, responses
from farm.api.route import AuthenticatedRoute
from farm.api.schemas import JobPage, JobSchema
from farm.api.waiting import parse_prefer_wait, wait
from farm.domain import ids
from farm.domain.job import JobFilter
from farm.domain.requests import AnyJobRequest
from farm.services import jobs as services
from farm.services import waiting


class _OneJob(Convertor[str]):
    """A segment that is not the name of an operation on many, so that the paths never answer for each other."""

    regex = "(?!(?:cancel|retry)$)[^/]+"

    def convert(self, value: str) -> str:
        """As it came."""
        return value

    def to_string(self, value: str) -> str:
        """As it goes."""
        return value


register_url_convertor("job", _OneJob())

router: Final = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=AuthenticatedRoute)

# The pattern is for the reader of the document: an id that could not exist is as absent as one that does not.
JobId = Annotated[str, Path(description="The job's id.", json_schema_extra={"pattern": ids.pattern(ids.JOB)})]

Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[!-~]([ -~]*[!-~])?$",
        description="Your name for this request. Sent again with the same body, it returns the job that it made.",
    ),
]
Prefer = Annotated[
    str | None,
    Header(description="`wait` or `wait=SECONDS`: respond when the job has ended, or after that long.", max_length=500),
]
# Again the pattern is for the reader: what does not decode is refused where cursors are made.
Cursor = Annotated[
    str | None,
    Query(
        description="The `next` of the page before.",
        max_length=100,
        json_schema_extra={"pattern": "^[A-Za-z0-9_-]{21}[AQgw]$"},
    ),
]

_LOCATION: Final = {"Location": {"description": "Where the job is.", "schema": {"type": "string"}}}
_APPLIED: Final = {"Preference-Applied": {"description": "`wait`, if it was requested.", "schema": {"type": "string"}}}
_EXAMPLES: Final[dict[str, Any]] = {
    "text-to-image": {
        "summary": "An image from text",
        "value": {
            "task": "text-to-image",
            "prompt": "a red ball on a blue background",
            "num_inference_steps": 20,
            "seed": 7,
        },
    },
}


@router.post(
    "",
    status_code=201,
    summary="Submit a job",
    responses={
        200: {
            "description": "The job that an earlier request with this Idempotency-Key made.",
            "model": JobSchema,
            "headers": _LOCATION | _APPLIED,
        },
        201: {"description": "The new job.", "headers": _LOCATION | _APPLIED},
        **responses(*ALWAYS, 409, 413, 415, 429),
    },
)
async def submit_job(
    context: Context,
    key: Submitter,
    request: Annotated[AnyJobRequest, Body(openapi_examples=_EXAMPLES)],
    response: Response,
    idempotency_key: Key = None,
    prefer: Prefer = None,
    traceparent: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> JobSchema:
    """Accept one job. An accepted job reaches exactly one final state: succeeded, failed or canceled."""
    name = services.idempotency_key(idempotency_key, request)
    submit = partial(services.submit, context, key.tenant_id, request, name, traceparent=traceparent)
    job, created = await context.run_submit(key.tenant_id, request, submit)
    structlog.contextvars.bind_contextvars(job=job.id)
    seconds = parse_prefer_wait(prefer, context.settings.max_wait_seconds)
    if seconds is not None:
        job = await wait(context, job, seconds)
        response.headers["Preference-Applied"] = "wait"
    response.status_code = 201 if created else 200
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    (job,) = await run_in_threadpool(waiting.explain_blocks, context, [job])
    return JobSchema.of(job, context.storage, context.settings)


class JobQuery(JobFilter):
    """Which jobs, and which page of them."""

    limit: int = Field(50, ge=1, le=200)
    cursor: Cursor = None


@router.get("", summary="List jobs", responses=responses(*ALWAYS))
def list_jobs(context: Context, key: Reader, query: Annotated[JobQuery, Query()]) -> JobPage:
    """The tenant's jobs, newest first."""
    with context.store.begin() as unit:
        jobs, following = unit.jobs.page(key.tenant_id, query, query.cursor, query.limit)
        jobs = waiting.explain_blocks_in(unit, context.registry, jobs)
    return JobPage(data=[JobSchema.of(job, context.storage, context.settings) for job in jobs], next=following)


@router.get("/{job_id:job}", summary="Look at a job", responses=responses(*ALWAYS, 404))
def get_job(context: Context, key: Reader, job_id: JobId) -> JobSchema:
    """The job as it is now, with fresh URLs of its outputs."""
    job = waiting.explain(context, services.get(context, key.tenant_id, job_id))
    return JobSchema.of(job, context.storage, context.settings)


@router.post("/{job_id}/cancel", summary="Cancel a job", responses=responses(*ALWAYS, 404, 409))
def cancel_job(context: Context, key: Submitter, job_id: JobId) -> JobSchema:
    """Stop a job: at once while it waits, at the next denoising step while it runs. Canceling again changes nothing."""
    return JobSchema.of(services.cancel(context, key.tenant_id, job_id), context.storage, context.settings)


@router.post(
    "/{job_id}/retry",
    status_code=201,
    summary="Retry a job",
    responses={
        200: {"description": "The job that an earlier retry made.", "model": JobSchema, "headers": _LOCATION},
        201: {"description": "The new job.", "headers": _LOCATION},
        **responses(*ALWAYS, 404, 409, 429),
    },
)
def retry_job(
    context: Context,
    key: Submitter,
    job_id: JobId,
    response: Response,
    with_dependents: Annotated[
        bool, Query(description="Whether to retry also the jobs that failed for want of its outputs.")
    ] = False,
) -> JobSchema:
    """Submit the parameters of a failed or canceled job again, as a new job. The old job stays as it is.

    Retrying it again makes no second job while the new one runs or after it succeeded: it is returned.
    """
    job, created = services.retry(context, key.tenant_id, job_id, with_dependents=with_dependents)
    response.status_code = 201 if created else 200
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return JobSchema.of(job, context.storage, context.settings)


@router.get(
    "/{job_id}/events",
    summary="Follow a job",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": (
                "Server-sent events until the job ends: `job` (the whole job, at once and at each change of state), "
                "`progress` (`{step, steps}`), and the job's history under the names of its events "
                "(`job.started`, `job.requeued`, `job.succeeded`, `job.failed`, `job.canceled`), with ids."
            ),
            "content": {"text/event-stream": {"itemSchema": sse.EVENT_SCHEMA}},
        },
        **responses(*ALWAYS, 404),
    },
)
async def follow_job(
    context: Context,
    key: Reader,
    job_id: JobId,
    last_event_id: Annotated[
        str | None, Header(alias="Last-Event-ID", description="Replay only the history after this id.", max_length=100)
    ] = None,
) -> StreamingResponse:
    """Follow a job's progress live. For a finished job the stream sends its history and ends."""
    job = await run_in_threadpool(services.get, context, key.tenant_id, job_id)
    return sse.response(context, job, sse.position(last_event_id), key)
