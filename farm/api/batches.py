"""Batches: submit many jobs at once, follow them, stop them, and get all that came of them."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from http import HTTPStatus
from typing import Annotated, Any, Final

import anyio.from_thread
import anyio.to_thread
from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import TypeAdapter, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse

from farm import lifecycle
from farm.api import archive, bulk, lines, problems
from farm.api.archive import Member
from farm.api.auth import Reader, Submitter
from farm.api.batch_shapes import BatchPage, BatchQuery, BatchShape, DryRunShape, JobListBody, SweepBody
from farm.api.bulk import Order
from farm.api.edge import TooLarge
from farm.api.jobs import Cursor, Key
from farm.api.lines import Line
from farm.api.problems import ALWAYS, responses
from farm.api.route import Guarded, media_type, parse_json
from farm.api.services import Farm, Services
from farm.api.shapes import JobPage, JobShape
from farm.domain import ids
from farm.domain.batch import Batch, Estimate, NewBatch, sweep, sweep_size
from farm.domain.job import Job, Output
from farm.domain.states import JobState
from farm.errors import BadInput, FarmError, NotFound
from farm.objects import keys

router: Final = APIRouter(prefix="/v1/batches", tags=["batches"], route_class=Guarded)

JSON: Final = "application/json"
TAKEN: Final = (*lines.JSONL, lines.CSV, JSON)
MAX_JSON: Final = 16 * 2**20  #: bytes of a JSON body, which is read whole
STALL_SECONDS: Final = 30.0  #: a sender that is silent for longer is given up
BODY_SECONDS: Final = 3600.0  #: and so is one that takes longer for all of it: others wait for its place
DRAIN_SECONDS: Final = 5.0
DRAIN_BYTES: Final = 256 * 2**20
PAGE: Final = 500  #: jobs read at once while results are streamed
AT_ONCE: Final = 4  #: pictures fetched at once for an archive
CANCEL_SECONDS: Final = 20.0  #: how long one request goes on stopping jobs

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
            **dict.fromkeys((*lines.JSONL, lines.CSV), _LINES),
        },
    }
}
#: Bodies that are validated here and described by hand.
BODIES: Final = (JobListBody, SweepBody)
_LIST: Final = TypeAdapter(JobListBody)
_SWEEP: Final = TypeAdapter(SweepBody)


class Form(StrEnum):
    """The kinds of archive."""

    ZIP = "zip"
    TAR = "tar"


class Stalled(HTTPException):
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
        """The next chunk; None at the end. Raises `Stalled` and `ClientDisconnect`."""
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
            raise Stalled from None
        except BaseException:
            self._over = True
            raise

    def chunks(self) -> Iterator[bytes]:
        """All chunks, for a worker thread."""
        while (chunk := anyio.from_thread.run(self.next)) is not None:
            yield chunk

    async def whole(self, limit: int) -> bytes:
        """All of it, at most ``limit`` bytes. Raises `TooLarge`."""
        parts, size = [], 0
        while (chunk := await self.next()) is not None:
            parts.append(chunk)
            size += len(chunk)
            if size > limit:
                await self.drain()
                raise TooLarge(limit)
        return b"".join(parts)

    async def drain(self) -> None:
        """Let the rest pass, within limits: a client that still sends would not see the answer."""
        passed = 0
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                while passed < DRAIN_BYTES and (chunk := await self.next()) is not None:
                    passed += len(chunk)
        except (TimeoutError, Stalled):
            pass


@router.post(
    "",
    status_code=201,
    summary="Submit a batch",
    openapi_extra=_BODY,
    response_model=BatchShape | DryRunShape,
    responses={
        200: {
            "description": "The batch that an earlier request with this Idempotency-Key made, or what a dry run found.",
            "model": BatchShape | DryRunShape,
        },
        201: {"description": "The new batch.", "model": BatchShape, "headers": _LOCATION},
        **responses(*ALWAYS, 408, 409, 413, 415, 429),
    },
)
async def submit_batch(
    farm: Farm,
    key: Submitter,
    request: Request,
    response: Response,
    query: Annotated[BatchQuery, Query()],
    idempotency_key: Key = None,
) -> BatchShape | DryRunShape | Response:
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
    order = Order(NewBatch(query.name), query.defaults(), query.on_error, query.dry_run)
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
            found = lines.table(chunks) if given == lines.CSV else lines.jsonl(chunks)
        # what is here already takes no sender's time, so it need not wait for a place among the streams
        place = None if given == JSON else farm.bulk
        made, new = await anyio.to_thread.run_sync(
            bulk.submit, farm, key.tenant_id, order, found, idempotency_key, digest.digest, limiter=place
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
        return DryRunShape.of(made)
    response.headers["Location"] = f"/v1/batches/{made.id}"
    return BatchShape.of(made)


def _read_json(parsed: Any, order: Order) -> tuple[Order, Iterable[Line]]:
    """What a JSON body asks for, and its jobs. Raises `BadInput`."""
    if not isinstance(parsed, dict) or ("jobs" in parsed) == ("sweep" in parsed):
        raise BadInput.of("body", parsed, "must be a JSON object with either `jobs` or `sweep`")
    try:
        asked = _LIST.validate_python(parsed) if "jobs" in parsed else _SWEEP.validate_python(parsed)
    except ValidationError as error:
        raise BadInput(*problems.of_body(error)) from None
    order = Order(
        NewBatch(asked.name or order.new.name, asked.metadata),
        lines.merged(order.defaults, asked.defaults),
        asked.on_error or order.on_error,
        order.dry_run if asked.dry_run is None else asked.dry_run,
    )
    if isinstance(asked, SweepBody):
        sweep_size(asked.sweep, asked.repeats)
        return order, enumerate(sweep(asked.sweep, asked.repeats, order.defaults, asked.seeds), start=1)
    return order, enumerate(asked.jobs, start=1)


def _own(farm: Services, tenant_id: str, batch_id: str) -> Batch:
    with farm.store.begin() as unit:
        batch = unit.batches.get(batch_id, tenant_id)
    if batch is None:
        raise NotFound("batch", batch_id)
    return batch


@router.get("", summary="List batches", responses=responses(*ALWAYS))
def list_batches(
    farm: Farm, key: Reader, limit: Annotated[int, Query(ge=1, le=200)] = 50, cursor: Cursor = None
) -> BatchPage:
    """The tenant's batches, newest first."""
    with farm.store.begin() as unit:
        found, following = unit.batches.page(key.tenant_id, cursor, limit)
    return BatchPage(data=[BatchShape.of(batch) for batch in found], next=following)


@router.get("/{batch_id}", summary="Look at a batch", responses=responses(*ALWAYS, 404))
def get_batch(farm: Farm, key: Reader, batch_id: BatchId) -> BatchShape:
    """How far the batch is: its jobs by state, the measured speed, and when it will be over."""
    return BatchShape.of(_own(farm, key.tenant_id, batch_id))


@router.get("/{batch_id}/jobs", summary="List a batch's jobs", responses=responses(*ALWAYS, 404))
def list_batch_jobs(
    farm: Farm,
    key: Reader,
    batch_id: BatchId,
    state: Annotated[list[JobState], Query(description="Repeat it for several states.", max_length=6)] = [],  # noqa: B006
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Place = None,
) -> JobPage:
    """The batch's jobs, in the order in which they were written."""
    _own(farm, key.tenant_id, batch_id)
    with farm.store.begin() as unit:
        found = unit.jobs.of_batch(batch_id, state, int(cursor or 0), limit + 1)
    following = str(found[limit - 1].batch_seq) if len(found) > limit else None
    return JobPage(data=[JobShape.of(job, farm.storage, farm.settings) for job in found[:limit]], next=following)


# -- all that came of it ---------------------------------------------------------------------------------------------

_RESULT: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["seq", "id", "custom_id", "state", "outputs", "error"],
    "properties": {
        "seq": {"type": "integer", "description": "The job's place in the batch, from 1."},
        "id": {"type": "string"},
        "custom_id": {"type": ["string", "null"]},
        "state": {"type": "string", "enum": ["succeeded", "failed", "canceled"]},
        "outputs": {"type": "array", "items": {"$ref": "#/components/schemas/OutputShape"}},
        "error": {"anyOf": [{"$ref": "#/components/schemas/ErrorShape"}, {"type": "null"}]},
    },
}
_ERROR: Final[dict[str, Any]] = {
    "type": "object",
    "description": "A refused line (`line`, `errors`), or a failed job (`seq`, `id`, `custom_id`, `error`).",
}


def _json_lines(description: str, schema: Mapping[str, Any]) -> dict[int | str, dict[str, Any]]:
    return {
        200: {"description": description, "content": {lines.JSONL[0]: {"itemSchema": schema}}},
        **responses(*ALWAYS, 404),
    }


@router.get(
    "/{batch_id}/results",
    summary="Get a batch's results",
    response_class=StreamingResponse,
    responses=_json_lines("One line for each job that is over, in the order of the batch.", _RESULT),
)
def get_batch_results(farm: Farm, key: Reader, batch_id: BatchId) -> StreamingResponse:
    """Every job that is over, as JSON lines, with fresh URLs of its pictures."""
    _own(farm, key.tenant_id, batch_id)
    ended = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELED)

    def written() -> Iterator[str]:
        for page in _pages(farm, batch_id, ended):
            yield "".join(_result(farm, job) for job in page)

    return StreamingResponse(written(), media_type=lines.JSONL[0], headers=_named(f"{batch_id}-results.jsonl"))


@router.get(
    "/{batch_id}/errors",
    summary="Get a batch's errors",
    response_class=StreamingResponse,
    responses=_json_lines("One line for each refused line and each failed job.", _ERROR),
)
def get_batch_errors(farm: Farm, key: Reader, batch_id: BatchId) -> StreamingResponse:
    """What went wrong, as JSON lines: the lines that were refused first, then the jobs that failed so far."""
    batch = _own(farm, key.tenant_id, batch_id)
    refused = None if batch.error_key is None else farm.storage.open(batch.error_key)

    def written() -> Iterator[str | bytes]:
        if refused is not None:
            with refused:
                yield from refused
        for page in _pages(farm, batch_id, (JobState.FAILED,)):
            yield "".join(
                _line(
                    {
                        "seq": job.batch_seq,
                        "id": job.id,
                        "custom_id": job.custom_id,
                        "error": None if job.error is None else {"code": job.error.code, "message": job.error.message},
                    }
                )
                for job in page
            )

    return StreamingResponse(written(), media_type=lines.JSONL[0], headers=_named(f"{batch_id}-errors.jsonl"))


@router.get(
    "/{batch_id}/archive",
    summary="Download a batch",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "All pictures so far, named `<place>-<custom_id or job id>-<index>.<format>`.",
            "content": {
                "application/zip": {"schema": {"type": "string", "format": "binary"}},
                "application/x-tar": {"schema": {"type": "string", "format": "binary"}},
            },
        },
        **responses(*ALWAYS, 404),
    },
)
def get_batch_archive(
    farm: Farm,
    key: Reader,
    batch_id: BatchId,
    form: Annotated[Form, Query(alias="format", description="`tar` for batches of very many pictures.")] = Form.ZIP,
) -> StreamingResponse:
    """All pictures as one download, written while they are read from the object storage."""
    _own(farm, key.tenant_id, batch_id)
    write: Callable[[Iterable[Member]], Iterator[bytes]] = archive.zipped if form is Form.ZIP else archive.tarred
    kind = "application/zip" if form is Form.ZIP else "application/x-tar"
    headers = {"Content-Disposition": f'attachment; filename="{batch_id}.{form.value}"', "X-Accel-Buffering": "no"}
    return StreamingResponse(write(_members(farm, batch_id)), media_type=kind, headers=headers)


def _members(farm: Services, batch_id: str) -> Iterator[Member]:
    def member(one: tuple[Job, Output]) -> Member:
        job, output = one
        modified = job.finished_at or job.created_at
        return Member(file_name(job, output), farm.storage.get(output.key), modified)

    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="archive") as pool:
        for page in _pages(farm, batch_id, (JobState.SUCCEEDED,)):
            pictures = [(job, output) for job in page for output in job.outputs]
            for start in range(0, len(pictures), AT_ONCE):
                yield from pool.map(member, pictures[start : start + AT_ONCE])


def file_name(job: Job, output: Output) -> str:
    """An output's name in an archive: the place keeps it one of a kind, whatever the client's own name is."""
    own = re.sub(r"[^\w.-]+", "_", job.custom_id or job.id).lstrip(".")[:100]
    return f"{job.batch_seq:06d}-{own}-{output.index}.{keys.extension(output.content_type)}"


def _pages(farm: Services, batch_id: str, states: Sequence[JobState]) -> Iterator[list[Job]]:
    """A batch's jobs in those states, some at a time, each time in a transaction of its own."""
    after = 0
    while True:
        with farm.store.begin() as unit:
            page = unit.jobs.of_batch(batch_id, states, after, PAGE)
        if page:
            yield page
        if len(page) < PAGE:
            return
        after = page[-1].batch_seq or 0


def _result(farm: Services, job: Job) -> str:
    shape = JobShape.of(job, farm.storage, farm.settings)
    return _line(
        {
            "seq": job.batch_seq,
            "id": job.id,
            "custom_id": job.custom_id,
            "state": job.state.value,
            "outputs": [output.model_dump(mode="json") for output in shape.outputs],
            "error": None if shape.error is None else shape.error.model_dump(),
        }
    )


def _line(value: Mapping[str, object]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n"


def _named(filename: str) -> dict[str, str]:
    return {"Content-Disposition": f'inline; filename="{filename}"', "X-Accel-Buffering": "no"}


# -- steering --------------------------------------------------------------------------------------------------------


@router.post("/{batch_id}/cancel", summary="Cancel a batch", responses=responses(*ALWAYS, 404, 409))
def cancel_batch(farm: Farm, key: Submitter, batch_id: BatchId) -> BatchShape:
    """Stop every job of the batch: at once what waits, at the next denoising step what runs.

    Canceling again changes nothing. Jobs that are over stay as they ended.
    """
    until = time.monotonic() + CANCEL_SECONDS
    while True:
        with farm.store.begin() as unit:
            batch, left = lifecycle.cancel_batch(unit, key.tenant_id, batch_id)
        if not left or time.monotonic() > until:
            return BatchShape.of(batch)
        time.sleep(0.02)  # whoever holds the rows that are left is about to commit


@router.post(
    "/{batch_id}/retry",
    status_code=201,
    summary="Retry a batch",
    responses={201: {"description": "The new batch.", "headers": _LOCATION}, **responses(*ALWAYS, 404, 409, 429)},
)
def retry_batch(farm: Farm, key: Submitter, batch_id: BatchId, response: Response) -> BatchShape:
    """Submit again what failed or was canceled in a batch that is over, as a new batch. The old one stays as it is."""
    with farm.store.begin() as unit:
        batch = lifecycle.retry_batch(unit, key.tenant_id, batch_id)
    response.headers["Location"] = f"/v1/batches/{batch.id}"
    return BatchShape.of(batch)
