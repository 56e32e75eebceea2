"""OpenAI's files and batches: a file of requests goes in, and a file of answers comes out, one line each.

An uploaded file is an object in the storage with a row of its own; a batch names it in its metadata. The files that
come out are written while they are read, from the batch's jobs, so their images' URLs are always fresh.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Final

from pydantic import TypeAdapter, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.responses import JSONResponse, Response, StreamingResponse

from farm import lifecycle
from farm.api.bulk_submission import submit_bulk
from farm.api.compat.adapter import AdapterCall, AdapterError, reads, submits
from farm.api.compat.openai_images import NAMES, ResponseFormat, images_of, read_request
from farm.api.compat.submission import rename_fields
from farm.api.dependencies import AppContext
from farm.domain import ids
from farm.domain.batch import Batch, BatchState, Estimate, NewBatch, OnError
from farm.domain.job import Job
from farm.domain.states import JobState, Priority
from farm.errors import BadInput, BatchRefused, FieldProblem, NotFound
from farm.fields import Metadata
from farm.objects import keys
from farm.services import batches, bulk, bulk_parsers, validation
from farm.services.bulk import BatchOptions
from farm.services.bulk_parsers import BulkLine, RefusedLine
from farm.store import cursor as cursors
from farm.store.request_files import RequestFile

MAX_FILE_BYTES: Final = 512 * 2**20  #: of one upload, as OpenAI has it
ENDPOINT: Final = "/v1/images/generations"
WINDOW: Final = "24h"
PAGE: Final = 200  #: jobs read at once while a file is written

#: In a batch's metadata, beside the client's own: the file that it was made from.
INPUT: Final = "openai.input_file_id"
#: In a job's metadata: how its image is answered, where it is not by URL.
FORM: Final = "openai.response_format"
_OUTPUT, _ERRORS = "output_", "errors_"

_METADATA: Final[TypeAdapter[dict[str, str]]] = TypeAdapter(Metadata)
_STATUS: Final = {
    BatchState.CANCELING: "cancelling",
    BatchState.COMPLETED: "completed",
    BatchState.CANCELED: "cancelled",
}


# -- files -----------------------------------------------------------------------------------------------------------


def _shown(file: RequestFile) -> dict[str, Any]:
    """A file as OpenAI shows it."""
    return _file(file.id, file.size, file.filename, "batch", int(file.created_at.timestamp()))


def _file(file_id: str, size: int, filename: str, purpose: str, created_at: int) -> dict[str, Any]:
    return {
        "id": file_id,
        "object": "file",
        "bytes": size,
        "created_at": created_at,
        "filename": filename,
        "purpose": purpose,
        "status": "processed",
        "expires_at": None,
        "status_details": None,
    }


async def create_file(call: AdapterCall) -> Response:
    """``POST /files``: an upload with the purpose ``batch``."""
    async with call.request.form(max_files=1, max_fields=10) as form:
        given = dict(form)
        part = given.pop("file", None)
        purpose = given.pop("purpose", None)
        if not isinstance(part, UploadFile):
            raise BadInput.of("file", None, "is required: the file of requests, as a file of the form")
        if purpose != "batch":
            raise BadInput.of("purpose", purpose, "must be batch: the farm keeps files of requests for batches")
        if given:
            raise BadInput.of(next(iter(given)), None, "is not a field of this request: it takes file and purpose")
        upload = await run_in_threadpool(_store, call, part.file, part.filename or "requests.jsonl")
    return JSONResponse(_shown(upload))


def _store(call: AdapterCall, content: IO[bytes], filename: str) -> RequestFile:
    file_id = ids.new(ids.FILE)
    name = filename.replace("\\", "/").rpartition("/")[2][:200] or "requests.jsonl"
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as copy:
        shutil.copyfileobj(content, copy, 2**20)
        copy.flush()
        size = copy.tell()
        if not size:
            raise BadInput.of("file", name, "is empty")
        with call.context.store.look() as unit:
            lifecycle.check_storage(unit, call.tenant_id, size)
        call.context.storage.put_file(keys.lines_key(call.tenant_id, file_id), Path(copy.name), bulk_parsers.JSONL[0])
    with call.context.store.begin() as unit:
        unit.usage.add_stored(call.tenant_id, size)
        return unit.request_files.add(call.tenant_id, file_id, validation.encodable(name), size)


def _upload(call: AdapterCall, file_id: str) -> RequestFile:
    """The tenant's upload of that id. Raises `NotFound`."""
    with call.context.store.look() as unit:
        found = unit.request_files.get(call.tenant_id, file_id)
    if found is None:
        raise NotFound("file", file_id)
    return found


def list_files(call: AdapterCall) -> Response:
    """``GET /files``: uploads, or with ``purpose=batch_output`` what batches gave; newest first."""
    limit, after = _place(call)
    purpose = call.request.query_params.get("purpose")
    if purpose == "batch_output":
        found, more = _page(call, limit, after)
        return _listed([shape for batch in found for shape in _results_of(batch)], more=more)
    if purpose not in (None, "batch"):
        return _listed([], more=False)
    if after is not None and not ids.is_id(ids.FILE, after):
        raise BadInput.of("after", after, "must be the id of the last one on the page before")
    newest_first = call.request.query_params.get("order") != "asc"
    with call.context.store.look() as unit:
        uploads = unit.request_files.page(call.tenant_id, after, limit + 1, newest_first=newest_first)
    return _listed([_shown(upload) for upload in uploads[:limit]], more=len(uploads) > limit)


def _place(call: AdapterCall) -> tuple[int, str | None]:
    text = call.request.query_params.get("limit", "20")
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= 10_000):
        raise BadInput.of("limit", text, "must be a number from 1 to 10000")
    return min(int(text), 100), call.request.query_params.get("after")


def _listed(data: Sequence[Mapping[str, Any]], *, more: bool) -> Response:
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return JSONResponse({"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": more})


def get_file(call: AdapterCall) -> Response:
    """``GET /files/{file}``."""
    file_id = call.path("file")
    batch = _batch_of(call, file_id)
    if batch is None:
        return JSONResponse(_shown(_upload(call, file_id)))
    return JSONResponse(next(shape for shape in _results_of(batch) if shape["id"] == file_id))


def get_content(call: AdapterCall) -> Response:
    """``GET /files/{file}/content``: as it was uploaded, or written from the batch's jobs."""
    file_id = call.path("file")
    batch = _batch_of(call, file_id)
    if batch is None:
        _upload(call, file_id)
        opened = call.context.storage.open(keys.lines_key(call.tenant_id, file_id))

        def content() -> Iterator[bytes]:
            with opened:
                yield from opened

        return StreamingResponse(content(), media_type=bulk_parsers.JSONL[0])
    written = _answers(call.context, batch) if file_id.startswith(_OUTPUT) else _failures(call.context, batch)
    return StreamingResponse(written, media_type=bulk_parsers.JSONL[0])


def delete_file(call: AdapterCall) -> Response:
    """``DELETE /files/{file}``: only uploads; what batches gave goes with the batch."""
    file_id = call.path("file")
    if _batch_of(call, file_id) is not None:
        raise AdapterError(
            400, "not_deletable", "this file is written from a batch's jobs and stays as long as they do"
        )
    _upload(call, file_id)
    with call.context.store.begin() as unit:
        unit.request_files.remove(call.tenant_id, file_id)
        unit.pending_deletions.add([keys.lines_key(call.tenant_id, file_id)])
    call.context.cleanup.wake()
    return JSONResponse({"id": file_id, "object": "file", "deleted": True})


# -- what came of a batch ----------------------------------------------------------------------------------------------


def _results_of(batch: Batch) -> list[dict[str, Any]]:
    """The files that a batch gave. Their size is not known before they are written, so it is given as 0."""
    if batch.finished_at is None:
        return []
    made_at = int(batch.finished_at.timestamp())
    good = batch.counts.succeeded > 0
    bad = batch.skipped > 0 or batch.counts.failed > 0 or batch.counts.canceled > 0
    kinds = [(_OUTPUT, good), (_ERRORS, bad)]
    return [
        _file(f"{kind}{batch.id}", 0, f"{batch.id}_{kind[:-1]}.jsonl", "batch_output", made_at)
        for kind, there in kinds
        if there
    ]


def _batch_of(call: AdapterCall, file_id: str) -> Batch | None:
    """The batch that gave a file; None for an upload. Raises `NotFound`."""
    for kind in (_OUTPUT, _ERRORS):
        if file_id.startswith(kind):
            batch = _own(call, file_id.removeprefix(kind), file_id)
            if all(shape["id"] != file_id for shape in _results_of(batch)):
                raise NotFound("file", file_id)
            return batch
    return None


def _jobs(context: AppContext, batch_id: str, states: Sequence[JobState]) -> Iterator[Job]:
    after = 0
    while True:
        with context.store.begin() as unit:
            page = unit.jobs.of_batch(batch_id, states, after, PAGE)
        yield from page
        if len(page) < PAGE:
            return
        after = page[-1].batch_seq or 0


def _line(name: str, custom_id: object, response: object, error: object) -> str:
    value = {"id": f"batch_req_{name}", "custom_id": custom_id, "response": response, "error": error}
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n"


def _response(status: int, name: str, body: object) -> dict[str, Any]:
    return {"status_code": status, "request_id": name, "body": body}


def _refusal(message: str, code: str, field: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": field, "code": code}}


def _answers(context: AppContext, batch: Batch) -> Iterator[str]:
    for job in _jobs(context, batch.id, (JobState.SUCCEEDED,)):
        form = ResponseFormat.B64 if job.metadata.get(FORM) == ResponseFormat.B64 else ResponseFormat.URL
        yield _line(job.id, job.custom_id, _response(200, job.id, images_of(context, job, form)), None)


def _failures(context: AppContext, batch: Batch) -> Iterator[str]:
    if batch.error_key is not None:
        with context.storage.open(batch.error_key) as report:
            for raw in bulk_parsers.split(report):
                refused = json.loads(raw)
                first = refused["errors"][0]
                custom_id = refused.get("custom_id") or (first["value"] if first["field"] == "custom_id" else None)
                body = _refusal(f"{first['field']}: {first['message']}", "invalid_value", first["field"])
                name = f"{batch.id}_{refused['line']}"
                yield _line(name, custom_id, _response(400, name, body), None)
    for job in _jobs(context, batch.id, (JobState.FAILED, JobState.CANCELED)):
        if job.state is JobState.CANCELED:
            gone = {"code": "batch_cancelled", "message": "the request was canceled before it had its images"}
            yield _line(job.id, job.custom_id, None, gone)
        else:
            assert job.error is not None
            body = _refusal(job.error.message, job.error.code, None)
            yield _line(job.id, job.custom_id, _response(422, job.id, body), None)


# -- batches -----------------------------------------------------------------------------------------------------------


async def create_batch(call: AdapterCall) -> Response:
    """``POST /batches``: every line of the file becomes a job; those that cannot be taken go to the error file."""
    given = await call.json()
    file_id, endpoint = given.pop("input_file_id", None), given.pop("endpoint", None)
    window, metadata = given.pop("completion_window", None), given.pop("metadata", None) or {}
    if given:
        name, value = next(iter(given.items()))
        raise BadInput.of(name, value, "is not a field of this request")
    if not isinstance(file_id, str):
        raise BadInput.of("input_file_id", file_id, "is required: the id of a file with the purpose batch")
    if endpoint != ENDPOINT:
        raise BadInput.of("endpoint", endpoint, f"must be {ENDPOINT}")
    if window != WINDOW:
        raise BadInput.of("completion_window", window, f"must be {WINDOW}")
    try:
        metadata = _METADATA.validate_python(metadata, strict=True)
    except ValidationError as error:
        raise BadInput(*(_of_metadata(one) for one in validation.of_body(error))) from None
    upload = await run_in_threadpool(_upload, call, file_id)
    new = NewBatch(name=upload.filename, metadata=metadata | {INPUT: file_id})
    order = BatchOptions(new=new, defaults={}, on_error=OnError.SKIP, dry_run=False, keep_empty=True)

    try:
        # a copy, because the object storage could be slow while the transaction is open
        with await run_in_threadpool(_copy, call.context, keys.lines_key(call.tenant_id, file_id)) as file:
            source = bulk.of_file(order, bulk_parsers.JSONL[0], file)
            requests = replace(source, lines=lambda: _requests(source.lines()))
            made, _ = await submit_bulk(call.context, call.tenant_id, order, requests)
    except BatchRefused as refused:
        raise BadInput(*refused.problems) from None
    assert not isinstance(made, Estimate)  # only dry runs are estimated
    return JSONResponse(_shape(made))


def _copy(context: AppContext, key: str) -> IO[bytes]:
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    with context.storage.open(key) as opened:
        for chunk in opened:
            file.write(chunk)
    return file


def _of_metadata(one: FieldProblem) -> FieldProblem:
    field = "metadata" if one.field == "body" else f"metadata.{one.field}"
    return FieldProblem(field, one.value, one.message)


def _requests(lines: Iterable[BulkLine]) -> Iterator[BulkLine]:
    """The farm's own requests for the lines of a file; a line that is no request goes to the batch's error file."""
    for number, line in lines:
        if not isinstance(line, dict):
            yield number, line
            continue
        custom_id = line.get("custom_id")
        body = line.get("body")
        problems = [
            FieldProblem(field, line.get(field), f"must be {expected}")
            for field, expected in (("method", "POST"), ("url", ENDPOINT))
            if line.get(field) != expected
        ]
        if not isinstance(custom_id, str) or not custom_id:
            problems.append(FieldProblem("custom_id", custom_id, "is required: your name for the request"))
        if not isinstance(body, dict):
            problems.append(FieldProblem("body", body, "must be a JSON object"))
        if problems or not isinstance(custom_id, str) or not isinstance(body, dict):
            yield number, RefusedLine(custom_id if isinstance(custom_id, str) else "", tuple(problems))
            continue
        try:
            images = read_request(body, "text-to-image", Priority.BULK)
        except BadInput as refused:
            yield number, RefusedLine(custom_id, rename_fields(refused, NAMES).problems)
            continue
        asked = images.asked | {"custom_id": custom_id}
        if images.form is ResponseFormat.B64:
            get_job = asked.get("metadata", {})
            asked["metadata"] = {**get_job, FORM: ResponseFormat.B64.value} if isinstance(get_job, dict) else get_job
        yield number, asked


def _own(call: AdapterCall, batch_id: str, shown: str | None = None) -> Batch:
    try:
        return batches.get(call.context, call.tenant_id, batch_id)
    except NotFound:
        raise NotFound("batch" if shown is None else "file", shown or batch_id) from None


def _page(call: AdapterCall, limit: int, after: str | None) -> tuple[list[Batch], bool]:
    cursor = None
    if after is not None:
        batch_id = after.removeprefix(_OUTPUT).removeprefix(_ERRORS)
        if not ids.is_id(ids.BATCH, batch_id):
            raise BadInput.of("after", after, "must be the id of the last one on the page before")
        cursor = cursors.encode(ids.to_uuid(ids.BATCH, batch_id).bytes)
    with call.context.store.begin() as unit:
        found, following = unit.batches.page(call.tenant_id, cursor, limit)
    return found, following is not None


def list_batches(call: AdapterCall) -> Response:
    """``GET /batches``: newest first, also those that were not made here."""
    found, more = _page(call, *_place(call))
    return _listed([_shape(batch) for batch in found], more=more)


def get_batch(call: AdapterCall) -> Response:
    """``GET /batches/{batch}``."""
    return JSONResponse(_shape(_own(call, call.path("batch"))))


def cancel_batch(call: AdapterCall) -> Response:
    """``POST /batches/{batch}/cancel``."""
    return JSONResponse(_shape(batches.cancel(call.context, call.tenant_id, call.path("batch"))))


def _shape(batch: Batch) -> dict[str, Any]:
    counts = batch.counts
    results = {shape["id"] for shape in _results_of(batch)}
    output, errors = f"{_OUTPUT}{batch.id}", f"{_ERRORS}{batch.id}"
    canceled = batch.state is BatchState.CANCELED
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": ENDPOINT,
        "errors": None,
        "input_file_id": batch.metadata.get(INPUT, ""),
        "completion_window": WINDOW,
        "status": _STATUS.get(batch.state, "in_progress"),
        "output_file_id": output if output in results else None,
        "error_file_id": errors if errors in results else None,
        "created_at": _seconds(batch.created_at),
        "in_progress_at": _seconds(batch.created_at),
        "expires_at": None,
        "finalizing_at": None if canceled else _seconds(batch.finished_at),
        "completed_at": None if canceled else _seconds(batch.finished_at),
        "failed_at": None,
        "expired_at": None,
        "cancelling_at": _seconds(batch.cancel_requested_at),
        "cancelled_at": _seconds(batch.finished_at) if canceled else None,
        "request_counts": {
            "total": counts.total + batch.skipped,
            "completed": counts.succeeded,
            "failed": counts.failed + counts.canceled + batch.skipped,
        },
        "metadata": {name: value for name, value in batch.metadata.items() if name != INPUT} or None,
    }


def _seconds(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp())


OPERATIONS: Final = (
    submits("/files", create_file),
    reads("/files", list_files, "limit", "after", "order", "purpose"),
    reads("/files/{file}", get_file),
    submits("/files/{file}", delete_file, "DELETE"),
    reads("/files/{file}/content", get_content),
    submits("/batches", create_batch),
    reads("/batches", list_batches, "limit", "after"),
    reads("/batches/{batch}", get_batch),
    submits("/batches/{batch}/cancel", cancel_batch),
)
