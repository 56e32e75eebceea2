"""Batches: submit many jobs at once, follow them, stop them, and get all that came of them."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from enum import StrEnum
from http import HTTPStatus
from typing import Annotated, Any, Final, TypeVar

import anyio.from_thread
import anyio.to_thread
from fastapi import APIRouter, Header, Path, Query, Request, Response
from pydantic import TypeAdapter, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse

from farm import lifecycle
from farm.api import sse
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
from farm.api.dependencies import AppContext, Context
from farm.api.jobs import Cursor, Key
from farm.api.middleware import BodyTooLarge
from farm.api.problems import ALWAYS, responses
from farm.api.route import AuthenticatedRoute, media_type, parse_json
from farm.api.schemas import ErrorSchema, JobPage, JobSchema, output_schema
from farm.domain import ids
from farm.domain.batch import Batch, Estimate, NewBatch, sweep, sweep_size
from farm.domain.states import TERMINAL, JobState
from farm.errors import BadInput, FarmError, NotFound
from farm.objects import keys
from farm.services import archive, bulk, bulk_parsers, contact_sheet, validation
from farm.services.archive import Member
from farm.services.bulk import BatchOptions
from farm.services.bulk_parsers import BulkLine
from farm.services.contact_sheet import SheetCell, SheetFormat
from farm.store.batches import LAST_SEQ, ArchiveEntry, FinishedJob

router: Final = APIRouter(prefix="/v1/batches", tags=["batches"], route_class=AuthenticatedRoute)

T = TypeVar("T")
R = TypeVar("R")

JSON: Final = "application/json"
TAKEN: Final = (*bulk_parsers.JSONL, bulk_parsers.CSV, JSON)
MAX_JSON: Final = 16 * 2**20  #: bytes of a JSON body, which is read whole
STALL_SECONDS: Final = 30.0  #: a sender that is silent for longer is given up
BODY_SECONDS: Final = 3600.0  #: and so is one that takes longer for all of it: others wait for its place
DRAIN_SECONDS: Final = 5.0
DRAIN_BYTES: Final = 256 * 2**20
PAGE: Final = 500  #: jobs read at once while results are streamed
AT_ONCE: Final = 4  #: images fetched at once for an archive
NAME_BYTES: Final = 72  #: of a job's own name in an archive: with all around it, what a tar's header holds
FOLLOW_SECONDS: Final = 5.0  #: how long one request sees to it that jobs follow; the sweeper goes on

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


class ArchiveFormat(StrEnum):
    """The kinds of archive."""

    ZIP = "zip"
    TAR = "tar"


class BodyTimeout(HTTPException):
    """A body that stopped coming, or comes too slowly."""

    def __init__(self) -> None:
        super().__init__(
            HTTPStatus.REQUEST_TIMEOUT,
            f"the body came too slowly: at most {STALL_SECONDS:.0f} s without a byte and {BODY_SECONDS:.0f} s in all",
        )


class _Body:
    """A request's body: received by the event loop, read by a thread."""

    def __init__(self, request: Request) -> None:
        self._stream = request.stream()
        self._over = False
        self._until = time.monotonic() + BODY_SECONDS

    async def next(self) -> bytes | None:
        """The next chunk; None at the end. Raises `BodyTimeout` and `ClientDisconnect`."""
        if self._over:
            return None
        try:
            async with asyncio.timeout(min(STALL_SECONDS, self._until - time.monotonic())):
                return await anext(self._stream)
        except StopAsyncIteration:
            self._over = True
            return None
        except TimeoutError:
            self._over = True
            raise BodyTimeout from None
        except BaseException:
            self._over = True
            raise

    def chunks(self) -> Iterator[bytes]:
        """All chunks, for a worker thread."""
        while (chunk := anyio.from_thread.run(self.next)) is not None:
            yield chunk

    async def whole(self, limit: int) -> bytes:
        """All of it, at most ``limit`` bytes. Raises `BodyTooLarge`."""
        parts, size = [], 0
        while (chunk := await self.next()) is not None:
            parts.append(chunk)
            size += len(chunk)
            if size > limit:
                await self.drain()
                raise BodyTooLarge(limit)
        return b"".join(parts)

    async def drain(self) -> None:
        """Let the rest pass, within limits: a client that still sends would not see the answer."""
        passed = 0
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                while passed < DRAIN_BYTES and (chunk := await self.next()) is not None:
                    passed += len(chunk)
        except (TimeoutError, BodyTimeout):
            pass


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
        **responses(*ALWAYS, 408, 409, 413, 415, 429),
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

    Every bad line is reported with its field and value: the first 1,000 in the answer, all of them in a file. A
    connection that breaks before the end of the body leaves nothing.
    """
    given = media_type(request)
    if given not in TAKEN:
        raise HTTPException(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"send the jobs as one of {', '.join(TAKEN)}",
            headers={"Accept-Post": ", ".join(TAKEN)},
        )
    body = _Body(request)
    order = BatchOptions(NewBatch(query.name, webhook=query.webhook), query.defaults(), query.on_error, query.dry_run)
    try:
        if given == JSON:
            raw = await body.whole(MAX_JSON)
            parsed = parse_json(raw)
            order, found = _read_json(parsed, order)
            digest = bulk.new_hash(order, given)
            digest.update(raw)
        else:
            digest = bulk.new_hash(order, given)
            chunks = bulk.hashed(body.chunks(), digest)
            found = bulk_parsers.table(chunks) if given == bulk_parsers.CSV else bulk_parsers.jsonl(chunks)
        # what is here already takes no sender's time, so it need not wait for a place among the streams
        place = None if given == JSON else context.bulk
        made, new = await anyio.to_thread.run_sync(
            bulk.submit, context, key.tenant_id, order, found, idempotency_key, digest.digest, limiter=place
        )
    except ClientDisconnect:
        return Response(status_code=HTTPStatus.BAD_REQUEST)  # nobody reads it
    except FarmError:
        try:
            await body.drain()
        except ClientDisconnect:
            return Response(status_code=HTTPStatus.BAD_REQUEST)
        raise
    response.status_code = 201 if new else 200
    if isinstance(made, Estimate):
        return DryRunSchema.of(made)
    response.headers["Location"] = f"/v1/batches/{made.id}"
    return BatchSchema.of(made)


def _read_json(parsed: Any, order: BatchOptions) -> tuple[BatchOptions, Iterable[BulkLine]]:
    """What a JSON body asks for, and its jobs. Raises `BadInput`."""
    if not isinstance(parsed, dict) or ("jobs" in parsed) == ("sweep" in parsed):
        raise BadInput.of("body", parsed, "must be a JSON object with either `jobs` or `sweep`")
    try:
        asked = _LIST.validate_python(parsed) if "jobs" in parsed else _SWEEP.validate_python(parsed)
    except ValidationError as error:
        raise BadInput(*validation.of_body(error)) from None
    webhook = asked.webhook or order.new.webhook
    own = {"webhook": webhook} if asked.webhook_jobs and webhook is not None else {}
    order = BatchOptions(
        NewBatch(asked.name or order.new.name, asked.metadata, webhook=webhook),
        bulk_parsers.merged(order.defaults, own | asked.defaults),
        asked.on_error or order.on_error,
        order.dry_run if asked.dry_run is None else asked.dry_run,
    )
    if isinstance(asked, SweepBody):
        sweep_size(asked.sweep, asked.repeats)
        return order, enumerate(sweep(asked.sweep, asked.repeats, order.defaults, asked.seeds), start=1)
    return order, enumerate(asked.jobs, start=1)


def _own(context: AppContext, tenant_id: str, batch_id: str) -> Batch:
    with context.store.look() as unit:
        batch = unit.batches.get(batch_id, tenant_id)
    if batch is None:
        raise NotFound("batch", batch_id)
    return batch


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
    """How far the batch is: its jobs by state, the measured speed, and when it will be over."""
    return BatchSchema.of(_own(context, key.tenant_id, batch_id))


@router.get("/{batch_id}/jobs", summary="List a batch's jobs", responses=responses(*ALWAYS, 404))
def list_batch_jobs(
    context: Context,
    key: Reader,
    batch_id: BatchId,
    state: Annotated[list[JobState], Query(description="Repeat it for several states.", max_length=6)] = [],  # noqa: B006
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Place = None,
) -> JobPage:
    """The batch's jobs, in the order in which they were written."""
    _own(context, key.tenant_id, batch_id)
    with context.store.begin() as unit:
        found = unit.jobs.of_batch(batch_id, state, int(cursor or 0), limit + 1)
    following = str(found[limit - 1].batch_seq) if len(found) > limit else None
    return JobPage(data=[JobSchema.of(job, context.storage, context.settings) for job in found[:limit]], next=following)


# -- all that came of it ---------------------------------------------------------------------------------------------

_RESULT: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["seq", "id", "custom_id", "state", "outputs", "error"],
    "properties": {
        "seq": {"type": "integer", "description": "The job's place in the batch, from 1."},
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
    responses=_json_lines("One line for each job that is over, in the order of the batch.", _RESULT),
)
def get_batch_results(context: Context, key: Reader, batch_id: BatchId) -> StreamingResponse:
    """Every job that is over, as JSON lines, with fresh URLs of its images."""
    _own(context, key.tenant_id, batch_id)

    def written() -> Iterator[str]:
        for page in _ended(context, batch_id, TERMINAL):
            yield "".join(_result(context, job) for job in page)

    return StreamingResponse(written(), media_type=bulk_parsers.JSONL[0], headers=_named(f"{batch_id}-results.jsonl"))


@router.get(
    "/{batch_id}/errors",
    summary="Get a batch's errors",
    response_class=StreamingResponse,
    responses=_json_lines("One line for each refused line and each failed job.", _ERROR),
)
def get_batch_errors(context: Context, key: Reader, batch_id: BatchId) -> StreamingResponse:
    """What went wrong, as JSON lines: the lines that were refused first, then the jobs that failed so far."""
    batch = _own(context, key.tenant_id, batch_id)
    refused = None if batch.error_key is None else context.storage.open(batch.error_key)

    def written() -> Iterator[str | bytes]:
        if refused is not None:
            with refused:
                yield from refused
        for page in _ended(context, batch_id, (JobState.FAILED,)):
            yield "".join(
                _line({"seq": job.seq, "id": job.id, "custom_id": job.custom_id, "error": _error(job)}) for job in page
            )

    return StreamingResponse(written(), media_type=bulk_parsers.JSONL[0], headers=_named(f"{batch_id}-errors.jsonl"))


def _ended(context: AppContext, batch_id: str, states: Collection[JobState]) -> Iterator[list[FinishedJob]]:
    """A batch's jobs in those terminal states, some at a time, each time in a transaction of its own."""
    after = 0
    while True:
        with context.store.begin() as unit:
            page = unit.batches.results(batch_id, states, after, PAGE)
        if page:
            yield page
        if len(page) < PAGE:
            return
        after = page[-1].seq


def _result(context: AppContext, job: FinishedJob) -> str:
    shown = [output_schema(job.id, output, context.storage, context.settings).model_dump() for output in job.outputs]
    return _line(
        {
            "seq": job.seq,
            "id": job.id,
            "custom_id": job.custom_id,
            "state": job.state.value,
            "outputs": shown,
            "error": _error(job),
        }
    )


def _error(job: FinishedJob) -> dict[str, Any] | None:
    return None if job.error is None else ErrorSchema(code=job.error.code, message=job.error.message).model_dump()


def _line(value: Mapping[str, object]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n"


def _named(filename: str) -> dict[str, str]:
    return {"Content-Disposition": f'inline; filename="{filename}"', "X-Accel-Buffering": "no"}


# -- archives --------------------------------------------------------------------------------------------------------

_BINARY: Final = {"schema": {"type": "string", "format": "binary"}}
_ARCHIVES: Final[dict[str, Any]] = {"application/zip": _BINARY, "application/x-tar": _BINARY}
_RANGES: Final[dict[str, Any]] = {
    name: {"description": text, "schema": {"type": "string"}}
    for name, text in (
        ("Accept-Ranges", "`bytes` for the tar of a batch that is over, else `none`."),
        ("ETag", "Of the tar of a batch that is over: its bytes never change."),
    )
}
_ARCHIVE_ANSWERS: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "All images so far, named `<place>-<custom_id or job id>-<index>.<format>`.",
        "content": _ARCHIVES,
        "headers": _RANGES,
    },
    206: {"description": "The part that `Range` asked for.", "content": _ARCHIVES, "headers": _RANGES},
    **responses(*ALWAYS, 404, 416),
}
Kind = Annotated[ArchiveFormat, Query(alias="format", description="`tar`: for very many images, and to go on later.")]
FirstPlace = Annotated[int, Query(ge=1, le=LAST_SEQ, description="Of the jobs of a part: the first one's place.")]
LastPlace = Annotated[int, Query(ge=1, le=LAST_SEQ, description="The last one's place; to the end if absent.")]
Asked = Annotated[str | None, Header(alias="Range", description="One range of bytes, of a tar.", max_length=100)]
Unchanged = Annotated[str | None, Header(alias="If-Range", description="The `ETag` of the first part.", max_length=200)]


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
    asked: Asked = None,
    unchanged: Unchanged = None,
) -> Response:
    """All images as one download, written while they are read from the object storage.

    `first` and `last` ask for a part: the images of the jobs with places from the one to the other, as an archive of
    its own. The tar of a batch that is over also goes on where a download broke, by `Range`.
    """
    return _archive(context, _own(context, key.tenant_id, batch_id), form, (first, last), asked, unchanged)


@router.head(
    "/{batch_id}/archive",
    summary="Look at a batch's download",
    response_class=Response,
    responses={
        200: {"description": "What a download would be: `Content-Length` is known for a tar.", "headers": _RANGES},
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
    """The size of a download, and whether it can be had in parts."""
    found = _archive(context, _own(context, key.tenant_id, batch_id), form, (first, last), None, None)
    # the stream was not begun, and is not
    return Response(headers={name: value for name, value in found.headers.items() if name != "content-type"})


def _archive(
    context: AppContext,
    batch: Batch,
    form: ArchiveFormat,
    jobs: tuple[int, int],
    asked: str | None,
    unchanged: str | None,
) -> Response:
    if jobs[0] > jobs[1]:
        raise BadInput.of("last", jobs[1], "must not be less than first")
    some = "" if jobs == (1, LAST_SEQ) else f".{jobs[0]}-{min(jobs[1], batch.counts.total)}"
    name = f"{batch.id}{some}.{form.value}"
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "X-Accel-Buffering": "no"}
    start = jobs[0], -1
    if form is ArchiveFormat.ZIP:
        headers["Accept-Ranges"] = "none"  # a file's checksum stands before its content, and is not known before it
        members = _members(context, batch.id, start, jobs[1])
        return StreamingResponse(archive.write_zip(members), media_type="application/zip", headers=headers)
    media = "application/x-tar"
    if batch.finished_at is None:  # what is there grows, in the middle too
        headers["Accept-Ranges"] = "none"
        members = _members(context, batch.id, start, jobs[1])
        return StreamingResponse(archive.write_tar(members), media_type=media, headers=headers)
    with context.store.begin() as unit:
        unit.batches.allow_long_statements()
        size = unit.batches.archive_bytes(batch.id, archive.BLOCK, jobs)
    total = size + len(archive.TAR_END)
    headers |= {"Accept-Ranges": "bytes", "ETag": f'"{name}"'}
    part = None
    if unchanged is None or unchanged == headers["ETag"]:
        try:
            part = archive.wanted(asked, total)
        except ValueError as error:
            outside = {"Content-Range": f"bytes */{total}"}
            raise HTTPException(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, str(error), headers=outside) from None
    first, end = part or (0, total)
    headers["Content-Length"] = str(end - first)
    if part is not None:
        headers["Content-Range"] = f"bytes {first}-{end - 1}/{total}"
    status = HTTPStatus.OK if part is None else HTTPStatus.PARTIAL_CONTENT
    return StreamingResponse(
        _tar_part(context, batch.id, jobs, first, end - first, size),
        status_code=int(status),
        media_type=media,
        headers=headers,
    )


def _tar_part(
    context: AppContext, batch_id: str, jobs: tuple[int, int], first: int, length: int, size: int
) -> Iterator[bytes]:
    """Bytes of a tar whose members take ``size`` bytes: what is before them is not read."""
    after, start = (jobs[0], -1), 0
    if first:
        with context.store.begin() as unit:
            unit.batches.allow_long_statements()
            place = unit.batches.archive_position(batch_id, archive.BLOCK, first, jobs)
        if place is None:
            yield from archive.cut([archive.TAR_END], first - size, length)
            return
        after, start = (place.seq, place.index - 1), place.start
    yield from archive.cut(archive.write_tar(_members(context, batch_id, after, jobs[1])), first - start, length)


def _members(context: AppContext, batch_id: str, after: tuple[int, int], last: int) -> Iterator[Member]:
    """A batch's images behind that place, the next ones fetched while one is sent."""

    def member(one: ArchiveEntry) -> Member:
        return Member(file_name(one), context.storage.get(one.key), one.ended_at)

    return _ahead(member, _archive_entries(context, batch_id, after, last))


def _archive_entries(context: AppContext, batch_id: str, after: tuple[int, int], last: int) -> Iterator[ArchiveEntry]:
    while True:
        with context.store.begin() as unit:
            page = unit.batches.archive_entries(batch_id, after, PAGE, last)
        yield from page
        if len(page) < PAGE:
            return
        after = page[-1].seq, page[-1].index


def _ahead(act: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """What becomes of each item, in their order, with `AT_ONCE` of them in hand."""
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="fetch") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(act, item))
                if len(waiting) > AT_ONCE:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def file_name(one: ArchiveEntry) -> str:
    """An output's name in an archive: the place keeps it one of a kind, whatever the client's own name is."""
    own = re.sub(r"[^\w.-]+", "_", one.name).lstrip(".").encode()[:NAME_BYTES].decode(errors="ignore")
    return f"{one.seq:06d}-{own}-{one.index}.{keys.extension(one.media_type)}"


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
    drawn = await anyio.to_thread.run_sync(
        _sheet, context, key.tenant_id, batch_id, columns, rows, tile, form, limiter=context.drawing
    )
    return Response(drawn, media_type=f"image/{form.value}")


def _sheet(
    context: AppContext,
    tenant_id: str,
    batch_id: str,
    across: str | None,
    down: str | None,
    tile: int,
    form: SheetFormat,
) -> bytes:
    batch = _own(context, tenant_id, batch_id)
    with context.store.begin() as unit:
        jobs = unit.jobs.of_batch(batch_id, (JobState.SUCCEEDED,), 0, contact_sheet.MAX_IMAGES)
    planned = contact_sheet.lay_out(jobs, across, down)
    counted = f"{len(planned.cells):,} images of {batch.counts.succeeded:,} jobs"

    def fetched(cells: Iterable[SheetCell]) -> Iterator[tuple[SheetCell, bytes]]:
        return _ahead(lambda cell: (cell, context.storage.get(cell.output.key)), cells)

    return contact_sheet.draw(planned, f"{batch.name or batch.id}   {counted}", fetched, tile, form)


# -- steering --------------------------------------------------------------------------------------------------------


@router.post("/{batch_id}/cancel", summary="Cancel a batch", responses=responses(*ALWAYS, 404, 409))
def cancel_batch(context: Context, key: Submitter, batch_id: BatchId) -> BatchSchema:
    """Stop every job of the batch: at once what waits, at the next denoising step what runs.

    Nothing of it begins any more, from now on. The rows of a very large one follow in some seconds more: it is
    `canceling` until they have. Canceling again changes nothing. Jobs that are over stay as they ended.
    """
    with context.store.begin() as unit:
        lifecycle.cancel_batch(unit, key.tenant_id, batch_id)
    return _rearranged(context, key.tenant_id, batch_id)


@router.post(
    "/{batch_id}/retry",
    status_code=201,
    summary="Retry a batch",
    responses={201: {"description": "The new batch.", "headers": _LOCATION}, **responses(*ALWAYS, 404, 409, 429)},
)
def retry_batch(context: Context, key: Submitter, batch_id: BatchId, response: Response) -> BatchSchema:
    """Submit again what failed or was canceled in a batch that is over, as a new batch. The old one stays as it is."""
    with context.store.begin() as unit:
        batch = lifecycle.retry_batch(unit, key.tenant_id, batch_id)
    response.headers["Location"] = f"/v1/batches/{batch.id}"
    return BatchSchema.of(batch)


@router.post("/{batch_id}/pause", summary="Pause a batch", responses=responses(*ALWAYS, 404, 409))
def pause_batch(context: Context, key: Submitter, batch_id: BatchId) -> BatchSchema:
    """Hand none of its jobs over any more; what a worker holds goes on to its end. Pausing again changes nothing."""
    with context.store.begin() as unit:
        lifecycle.pause_batch(unit, key.tenant_id, batch_id)
    return _rearranged(context, key.tenant_id, batch_id)


@router.post("/{batch_id}/resume", summary="Resume a batch", responses=responses(*ALWAYS, 404))
def resume_batch(context: Context, key: Submitter, batch_id: BatchId) -> BatchSchema:
    """Let a paused batch go on, from the place in the queue that it had. One that is not paused stays as it is."""
    with context.store.begin() as unit:
        lifecycle.resume_batch(unit, key.tenant_id, batch_id)
    return _rearranged(context, key.tenant_id, batch_id)


@router.patch("/{batch_id}", summary="Change a batch", responses=responses(*ALWAYS, 404, 409, 413, 415))
def change_batch(context: Context, key: Submitter, batch_id: BatchId, change: BatchUpdate) -> BatchSchema:
    """Give it another name, other metadata, or all its jobs that are not over another priority."""
    with context.store.begin() as unit:
        batch = lifecycle.change_batch(
            unit,
            key.tenant_id,
            batch_id,
            name=change.name,
            metadata=change.metadata,
            priority=change.priority,
        )
    return BatchSchema.of(batch) if change.priority is None else _rearranged(context, key.tenant_id, batch_id)


def _rearranged(context: AppContext, tenant_id: str, batch_id: str) -> BatchSchema:
    """The batch when its jobs follow; if that takes long, as it is, and the sweeper goes on."""
    until = time.monotonic() + FOLLOW_SECONDS
    while True:
        with context.store.begin() as unit:
            if lifecycle.propagate_batch(unit, batch_id):
                break
        if time.monotonic() > until:
            context.cleanup.wake()
            break
        time.sleep(0.01)
    return BatchSchema.of(_own(context, tenant_id, batch_id))


@router.delete("/{batch_id}", summary="Delete a batch", responses=responses(*ALWAYS, 404, 409))
def delete_batch(
    context: Context,
    key: Submitter,
    batch_id: BatchId,
    dry_run: Annotated[bool, Query(description="Only say what would be deleted.")] = False,
) -> DeletionSchema:
    """Delete a batch that is over, with its jobs, their history and their images. Nobody sees it from then on.

    Rows go first and images after them, in the background: what breaks in between goes on by itself.
    """
    with context.store.begin() as unit:
        found = lifecycle.batch_contents(unit, key.tenant_id, batch_id)
        if not dry_run:
            lifecycle.delete_batch(unit, key.tenant_id, batch_id)
    if not dry_run:
        context.cleanup.wake()
    return DeletionSchema.of(batch_id, found, dry_run=dry_run)


@router.get(
    "/{batch_id}/events",
    summary="Follow a batch",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": (
                "Server-sent events until the batch is over: `batch` (the whole batch, at once and as it changes), "
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
        str | None, Header(alias="Last-Event-ID", description="Replay only what came after this id.", max_length=100)
    ] = None,
) -> StreamingResponse:
    """See a batch's progress as it happens. A batch that is over sends its history and ends."""
    batch = await run_in_threadpool(_own, context, key.tenant_id, batch_id)
    return sse.batch_response(context, batch, sse.position(last_event_id))
