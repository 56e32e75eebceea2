"""Batches: submit many jobs at once, follow them, stop them, and get all that came of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any, Final

import anyio.to_thread
from fastapi import APIRouter, Header, Path, Query, Request, Response
from pydantic import TypeAdapter, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse

from farm.api import downloads, sse
from farm.api.auth import Reader, Submitter
from farm.api.batch_schemas import (
    BatchPage,
    BatchQuery,
    BatchSchema,
    BatchUpdate,
    DeletionSchema,
    DryRunSchema,
    JobListBody,
    SweepBody,
)
from farm.api.bulk_submission import submit_bulk
from farm.api.dependencies import Context
from farm.api.jobs import Cursor, Key
from farm.api.problems import ALWAYS, responses
from farm.api.route import AuthenticatedRoute, media_type, parse_json
from farm.api.schemas import JobPage, JobSchema
from farm.api.spool import spooled
from farm.domain import ids, parameters
from farm.domain.batch import Estimate, NewBatch, sweep, sweep_size
from farm.domain.numerics import ONE
from farm.domain.states import JobState
from farm.errors import BadInput
from farm.services import batch_archive, bulk, bulk_parsers, contact_sheet, validation, waiting
from farm.services import batches as services
from farm.services.batch_archive import ArchiveFormat, JobRange
from farm.services.bulk import BatchOptions, BulkSource
from farm.services.bulk_parsers import BulkLine
from farm.services.contact_sheet import SheetFormat
from farm.store.batches import LAST_SEQ

router: Final = APIRouter(prefix="/v1/batches", tags=["batches"], route_class=AuthenticatedRoute)


JSON: Final = "application/json"
TAKEN: Final = (*bulk_parsers.JSONL, bulk_parsers.CSV, JSON)
MAX_JSON: Final = 16 * 2**20  #: bytes of a JSON body, which is read whole
MAX_JSON_STRUCTURE: Final = 2**20  #: of them, brackets, quotes, commas and colons

BatchId = Annotated[str, Path(description="The batch's id.", json_schema_extra={"pattern": ids.pattern(ids.BATCH)})]
Place = Annotated[
    str | None,
    Query(description="The `next` of the page before.", max_length=9, pattern="^[0-9]{1,9}$"),
]
_LOCATION: Final = {"Location": {"description": "Where the batch is.", "schema": {"type": "string"}}}
_LINES: Final[dict[str, Any]] = {"schema": {"type": "string"}}
_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "description": (
            "JSON lines (one job per line) or CSV (the header names parameters) of any length, "
            "or a JSON object with a list of jobs or a sweep."
        ),
        "content": {
            JSON: {
                "schema": {
                    "anyOf": [
                        {"$ref": "#/components/schemas/JobListBody"},
                        {"$ref": "#/components/schemas/SweepBody"},
                    ]
                },
                "examples": {
                    "sweep": {
                        "summary": "Two prompts at two guidance scales, two seeds each: eight jobs",
                        "value": {
                            "defaults": {"task": "text-to-image", "num_inference_steps": 20},
                            "sweep": [
                                {"prompt": ["a red ball", "a blue cube"], "custom_id": ["ball", "cube"]},
                                {"guidance_scale": [5, 7]},
                            ],
                            "repeats": 2,
                        },
                    }
                },
            },
            **dict.fromkeys((*bulk_parsers.JSONL, bulk_parsers.CSV), _LINES),
        },
    }
}
#: Bodies that are validated here and described by hand.
BODIES: Final = (JobListBody, SweepBody)
_LIST: Final = TypeAdapter(JobListBody)
_SWEEP: Final = TypeAdapter(SweepBody)


@router.post(
    "",
    status_code=201,
    summary="Submit a batch",
    openapi_extra=_BODY,
    response_model=BatchSchema | DryRunSchema,
    responses={
        200: {
            "description": "The batch that an earlier request with this Idempotency-Key made, or what a dry run found.",
            "model": BatchSchema | DryRunSchema,
        },
        201: {"description": "The new batch.", "model": BatchSchema, "headers": _LOCATION},
        **responses(*ALWAYS, 408, 409, 413, 415, 429, 507),
    },
)
async def submit_batch(
    context: Context,
    key: Submitter,
    request: Request,
    response: Response,
    query: Annotated[BatchQuery, Query()],
    idempotency_key: Key = None,
) -> BatchSchema | DryRunSchema | Response:
    """Queue many jobs, all of them or none; with `on_error=skip`, those that can be taken.

    Every bad line is reported with its field and value: the first 1,000 in the response, all of them in a file. A
    connection that breaks before the end of the body leaves nothing.
    """
    given = media_type(request)
    if given not in TAKEN:
        raise HTTPException(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"send the jobs as one of {', '.join(TAKEN)}",
            headers={"Accept-Post": ", ".join(TAKEN)},
        )
    batch = NewBatch(query.name, webhook=query.webhook, one_numerics=query.numerics == ONE)
    options = BatchOptions(batch, query.defaults(), query.on_error, query.dry_run)
    try:
        if given == JSON:
            raw = await request.body()
            options, source = await run_in_threadpool(_of_json, raw, options)
            made, new = await submit_bulk(context, key.tenant_id, options, source, idempotency_key)
        else:
            async with spooled(request) as file:
                source = await run_in_threadpool(bulk.of_file, options, given, file)
                made, new = await submit_bulk(context, key.tenant_id, options, source, idempotency_key)
    except ClientDisconnect:
        return Response(status_code=HTTPStatus.BAD_REQUEST)  # nobody reads it
    response.status_code = 201 if new else 200
    if isinstance(made, Estimate):
        return DryRunSchema.of(made)
    response.headers["Location"] = f"/v1/batches/{made.id}"
    return BatchSchema.of(made)


def _of_json(raw: bytes, options: BatchOptions) -> tuple[BatchOptions, BulkSource]:
    digest = bulk.new_hash(options, JSON)
    digest.update(raw)
    options, lines = _read_json(parse_json(raw), options)
    names_urls = b"://" in raw or b":\\/" in raw or any("://" in str(one) for one in options.defaults.values())
    return options, BulkSource(lines, digest.digest, names_urls)


def _read_json(parsed: Any, options: BatchOptions) -> tuple[BatchOptions, Callable[[], Iterable[BulkLine]]]:
    """What a JSON body asks for, and its jobs. Raises `BadInput`."""
    if not isinstance(parsed, dict) or ("jobs" in parsed) == ("sweep" in parsed):
        raise BadInput.of("body", parsed, "must be a JSON object with either `jobs` or `sweep`")
    try:
        request = _LIST.validate_python(parsed) if "jobs" in parsed else _SWEEP.validate_python(parsed)
    except ValidationError as error:
        raise BadInput(*validation.of_body(error)) from None
    webhook = request.webhook or options.new.webhook
    own = {"webhook": webhook} if request.webhook_jobs and webhook is not None else {}
    one_numerics = request.numerics == ONE if request.numerics is not None else options.new.one_numerics
    if request.numerics is not None and not one_numerics:
        own["numerics"] = request.numerics
    options = BatchOptions(
        NewBatch(request.name or options.new.name, request.metadata, webhook=webhook, one_numerics=one_numerics),
        parameters.merge(options.defaults, parameters.merge(own, request.defaults)),
        request.on_error or options.on_error,
        options.dry_run if request.dry_run is None else request.dry_run,
    )
    if isinstance(request, SweepBody):
        sweep_size(request.sweep, request.repeats)
        defaults = parameters.without(options.defaults, (name for group in request.sweep for name in group))
        written = partial(sweep, request.sweep, request.repeats, defaults, request.seeds)
        return options, lambda: enumerate(written(), start=1)
    return options, partial(enumerate, request.jobs, 1)


@router.get("", summary="List batches", responses=responses(*ALWAYS))
def list_batches(
    context: Context, key: Reader, limit: Annotated[int, Query(ge=1, le=200)] = 50, cursor: Cursor = None
) -> BatchPage:
    """The tenant's batches, newest first."""
    with context.store.look() as unit:
        found, following = unit.batches.page(key.tenant_id, cursor, limit)
    return BatchPage(data=[BatchSchema.of(batch) for batch in found], next=following)


@router.get("/{batch_id}", summary="Look at a batch", responses=responses(*ALWAYS, 404))
def get_batch(context: Context, key: Reader, batch_id: BatchId) -> BatchSchema:
    """The batch's progress: its jobs by state, the measured speed, and the estimated time left."""
    return BatchSchema.of(services.get(context, key.tenant_id, batch_id))


@router.get("/{batch_id}/jobs", summary="List a batch's jobs", responses=responses(*ALWAYS, 404))
def list_batch_jobs(
    context: Context,
    key: Reader,
    batch_id: BatchId,
    state: Annotated[
        list[JobState], Query(description="Repeat the parameter for several states.", max_length=len(JobState))
    ] = [],  # noqa: B006
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Place = None,
) -> JobPage:
    """The batch's jobs, in the order in which they were written."""
    services.get(context, key.tenant_id, batch_id)
    with context.store.begin() as unit:
        found = unit.jobs.of_batch(batch_id, state, int(cursor or 0), limit + 1)
        found = waiting.explain_blocks_in(unit, context.registry, found)
    following = str(found[limit - 1].batch_seq) if len(found) > limit else None
    return JobPage(data=[JobSchema.of(job, context.storage, context.settings) for job in found[:limit]], next=following)


# -- all that came of it ---------------------------------------------------------------------------------------------

_RESULT: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["seq", "id", "custom_id", "state", "outputs", "error"],
    "properties": {
        "seq": {"type": "integer", "description": "The job's position in the batch, from 1."},
        "id": {"type": "string"},
        "custom_id": {"type": ["string", "null"]},
        "state": {"type": "string", "enum": ["succeeded", "failed", "canceled"]},
        "outputs": {"type": "array", "items": {"$ref": "#/components/schemas/OutputSchema"}},
        "error": {"anyOf": [{"$ref": "#/components/schemas/ErrorSchema"}, {"type": "null"}]},
    },
}
_ERROR: Final[dict[str, Any]] = {
    "type": "object",
    "description": "A refused line (`line`, `errors`), or a failed job (`seq`, `id`, `custom_id`, `error`).",
}


def _json_lines(description: str, schema: Mapping[str, Any]) -> dict[int | str, dict[str, Any]]:
    return {
        200: {"description": description, "content": {bulk_parsers.JSONL[0]: {"itemSchema": schema}}},
        **responses(*ALWAYS, 404),
    }


@router.get(
    "/{batch_id}/results",
    summary="Get a batch's results",
    response_class=StreamingResponse,
    responses=_json_lines("One line for each finished job, in the order of the batch.", _RESULT),
)
def get_batch_results(context: Context, key: Reader, batch_id: BatchId) -> StreamingResponse:
    """Every finished job as JSON lines, with fresh URLs of its images."""
    return downloads.results(context, services.get(context, key.tenant_id, batch_id))


@router.get(
    "/{batch_id}/errors",
    summary="Get a batch's errors",
    response_class=StreamingResponse,
    responses=_json_lines("One line for each refused line and each failed job.", _ERROR),
)
def get_batch_errors(context: Context, key: Reader, batch_id: BatchId) -> StreamingResponse:
    """Errors as JSON lines: the refused lines, then the jobs that failed so far."""
    return downloads.errors(context, services.get(context, key.tenant_id, batch_id))


# -- archives --------------------------------------------------------------------------------------------------------

_BINARY: Final = {"schema": {"type": "string", "format": "binary"}}
_ARCHIVES: Final[dict[str, Any]] = {"application/zip": _BINARY, "application/x-tar": _BINARY}
_RANGES: Final[dict[str, Any]] = {
    name: {"description": text, "schema": {"type": "string"}}
    for name, text in (
        ("Accept-Ranges", "`bytes` for the tar of a finished batch, else `none`."),
        ("ETag", "For the tar of a finished batch: its bytes never change."),
    )
}
_ARCHIVE_ANSWERS: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "All images so far, named `<place>-<custom_id or job id>-<index>.<format>`.",
        "content": _ARCHIVES,
        "headers": _RANGES,
    },
    206: {"description": "The requested range.", "content": _ARCHIVES, "headers": _RANGES},
    **responses(*ALWAYS, 404, 416),
}
Kind = Annotated[
    ArchiveFormat,
    Query(alias="format", description="`tar` suits very many images, and a download of it can be resumed."),
]
FirstPlace = Annotated[int, Query(ge=1, le=LAST_SEQ, description="The position of the part's first job.")]
LastPlace = Annotated[
    int, Query(ge=1, le=LAST_SEQ, description="The position of the part's last job; to the end if absent.")
]
ByteRange = Annotated[str | None, Header(alias="Range", description="One range of bytes, of a tar.", max_length=100)]
IfRange = Annotated[str | None, Header(alias="If-Range", description="The `ETag` of the first part.", max_length=200)]


@router.get(
    "/{batch_id}/archive",
    summary="Download a batch",
    response_class=StreamingResponse,
    responses=_ARCHIVE_ANSWERS,
)
def get_batch_archive(
    context: Context,
    key: Reader,
    batch_id: BatchId,
    form: Kind = ArchiveFormat.ZIP,
    first: FirstPlace = 1,
    last: LastPlace = LAST_SEQ,
    byte_range: ByteRange = None,
    if_range: IfRange = None,
) -> Response:
    """All images as one download, written while they are read from the object storage.

    `first` and `last` ask for a part: the images of the jobs with places from the one to the other, as an archive of
    its own. The tar of a finished batch also supports resumed downloads, by `Range`.
    """
    batch = services.get(context, key.tenant_id, batch_id)
    return downloads.archived(context, batch, form, _job_range(first, last), byte_range, if_range)


@router.head(
    "/{batch_id}/archive",
    summary="Look at a batch's download",
    response_class=Response,
    responses={
        200: {"description": "The headers of a download: `Content-Length` is known for a tar.", "headers": _RANGES},
        **responses(*ALWAYS, 404),
    },
)
def head_batch_archive(
    context: Context,
    key: Reader,
    batch_id: BatchId,
    form: Kind = ArchiveFormat.ZIP,
    first: FirstPlace = 1,
    last: LastPlace = LAST_SEQ,
) -> Response:
    """The size of a download, and whether it supports ranges."""
    batch = services.get(context, key.tenant_id, batch_id)
    found = downloads.archived(context, batch, form, _job_range(first, last))
    # its content is not read
    return Response(headers={name: value for name, value in found.headers.items() if name != "content-type"})


def _job_range(first: int, last: int) -> JobRange:
    if first > last:
        raise BadInput.of("last", last, f"must not be less than first, which is {first}")
    return JobRange(first, last)


@router.get(
    "/{batch_id}/contact-sheet",
    summary="See a batch on one page",
    response_class=Response,
    responses={
        200: {
            "description": f"The first {contact_sheet.MAX_IMAGES} images in a grid, what differs at its edges.",
            "content": {"image/png": _BINARY, "image/jpeg": _BINARY},
        },
        **responses(*ALWAYS, 404),
    },
)
async def get_contact_sheet(
    context: Context,
    key: Reader,
    batch_id: BatchId,
    columns: Annotated[
        str | None, Query(max_length=64, description="The parameter whose values are the columns; chosen if absent.")
    ] = None,
    rows: Annotated[
        str | None, Query(max_length=64, description="The parameter whose values are the rows; all others if absent.")
    ] = None,
    tile: Annotated[int, Query(ge=32, le=512, description="Pixels of an image's longest side, at most.")] = 192,
    form: Annotated[SheetFormat, Query(alias="format")] = SheetFormat.JPEG,
) -> Response:
    """The images of a sweep side by side."""
    batch = await run_in_threadpool(services.get, context, key.tenant_id, batch_id)
    sheet = await anyio.to_thread.run_sync(
        batch_archive.draw_contact_sheet, context, batch, columns, rows, tile, form, limiter=context.drawing
    )
    return Response(sheet, media_type=f"image/{form.value}")


# -- steering --------------------------------------------------------------------------------------------------------


@router.post("/{batch_id}/cancel", summary="Cancel a batch", responses=responses(*ALWAYS, 404, 409))
def cancel_batch(context: Context, key: Submitter, batch_id: BatchId) -> BatchSchema:
    """Stop every job of the batch: at once what waits, at the next denoising step what runs.

    No job of it starts from now on. A very large batch takes some more seconds; its state
    is `canceling` until then. Canceling again changes nothing. Finished jobs stay as they are.
    """
    return BatchSchema.of(services.cancel(context, key.tenant_id, batch_id))


@router.post(
    "/{batch_id}/retry",
    status_code=201,
    summary="Retry a batch",
    responses={
        200: {"description": "The batch that an earlier retry made.", "model": BatchSchema, "headers": _LOCATION},
        201: {"description": "The new batch.", "headers": _LOCATION},
        **responses(*ALWAYS, 404, 409, 429),
    },
)
def retry_batch(context: Context, key: Submitter, batch_id: BatchId, response: Response) -> BatchSchema:
    """Submit the failed and canceled jobs of a finished batch again, as a new batch. The old one stays as it is.

    Retrying it again makes no second batch while the new one runs or after all of it succeeded: it is returned.
    """
    batch, created = services.retry(context, key.tenant_id, batch_id)
    response.status_code = 201 if created else 200
    response.headers["Location"] = f"/v1/batches/{batch.id}"
    return BatchSchema.of(batch)


@router.post("/{batch_id}/pause", summary="Pause a batch", responses=responses(*ALWAYS, 404, 409))
def pause_batch(context: Context, key: Submitter, batch_id: BatchId) -> BatchSchema:
    """Dispatch none of its jobs; jobs that workers already have run to their end. Pausing again changes nothing."""
    return BatchSchema.of(services.pause(context, key.tenant_id, batch_id, key.name))


@router.post("/{batch_id}/resume", summary="Resume a batch", responses=responses(*ALWAYS, 404))
def resume_batch(context: Context, key: Submitter, batch_id: BatchId) -> BatchSchema:
    """Resume a paused batch, from its old position in the queue. A batch that is not paused stays as it is."""
    return BatchSchema.of(services.resume(context, key.tenant_id, batch_id))


@router.patch("/{batch_id}", summary="Change a batch", responses=responses(*ALWAYS, 404, 409, 413, 415))
def change_batch(context: Context, key: Submitter, batch_id: BatchId, change: BatchUpdate) -> BatchSchema:
    """Change its name, its metadata, or the priority of all its unfinished jobs."""
    changed = services.change(
        context, key.tenant_id, batch_id, name=change.name, metadata=change.metadata, priority=change.priority
    )
    return BatchSchema.of(changed)


@router.delete("/{batch_id}", summary="Delete a batch", responses=responses(*ALWAYS, 404, 409))
def delete_batch(
    context: Context,
    key: Submitter,
    batch_id: BatchId,
    dry_run: Annotated[bool, Query(description="Only report what would be deleted.")] = False,
) -> DeletionSchema:
    """Delete a finished batch with its jobs, their history and their images. It is hidden from then on.

    Rows are deleted first and images after them, in the background; an interrupted deletion is resumed.
    """
    remove = services.contents if dry_run else services.delete
    return DeletionSchema.of(batch_id, remove(context, key.tenant_id, batch_id), dry_run=dry_run)


@router.get(
    "/{batch_id}/events",
    summary="Follow a batch",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": (
                "Server-sent events until the batch ends: `batch` (the whole batch, at once and as it changes), "
                "`batch.progress` (at 10, 25, 50, 75 and 90 percent) and `batch.completed`, these two with ids."
            ),
            "content": {"text/event-stream": {"itemSchema": sse.BATCH_EVENT_SCHEMA}},
        },
        **responses(*ALWAYS, 404),
    },
)
async def follow_batch(
    context: Context,
    key: Reader,
    batch_id: BatchId,
    last_event_id: Annotated[
        str | None, Header(alias="Last-Event-ID", description="Replay only the events after this id.", max_length=100)
    ] = None,
) -> StreamingResponse:
    """Follow a batch's progress live. For a finished batch the stream sends its history and ends."""
    batch = await run_in_threadpool(services.get, context, key.tenant_id, batch_id)
    return sse.batch_response(context, batch, sse.position(last_event_id), key)
