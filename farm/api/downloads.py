"""What came of a batch, as responses: results and errors as JSON lines, outputs as an archive."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse

from farm.api.schemas import ErrorSchema, output_schema
from farm.domain.batch import Batch
from farm.domain.states import TERMINAL, JobState
from farm.services import archive, batch_archive, batches
from farm.services.batch_archive import ArchiveFormat, JobRange
from farm.services.bulk_parsers import JSONL
from farm.services.context import ServiceContext
from farm.store.batches import FinishedJob


def results(context: ServiceContext, batch: Batch) -> StreamingResponse:
    """One line for each finished job, with fresh URLs of its outputs."""

    def lines() -> Iterator[str]:
        for page in batches.ended_jobs(context, batch.id, TERMINAL):
            yield "".join(_result(context, job) for job in page)

    return _json_lines(lines(), f"{batch.id}-results.jsonl")


def errors(context: ServiceContext, batch: Batch) -> StreamingResponse:
    """One line for each refused line, then one for each failed job."""
    refused = None if batch.error_key is None else context.storage.open(batch.error_key)

    def lines() -> Iterator[str | bytes]:
        if refused is not None:
            with refused:
                yield from refused
        for page in batches.ended_jobs(context, batch.id, (JobState.FAILED,)):
            yield "".join(
                _line({"seq": job.seq, "id": job.id, "custom_id": job.custom_id, "error": _error(job)}) for job in page
            )

    return _json_lines(lines(), f"{batch.id}-errors.jsonl")


def _json_lines(lines: Iterator[str] | Iterator[str | bytes], filename: str) -> StreamingResponse:
    headers = {"Content-Disposition": f'inline; filename="{filename}"', "X-Accel-Buffering": "no"}
    return StreamingResponse(lines, media_type=JSONL[0], headers=headers)


def _result(context: ServiceContext, job: FinishedJob) -> str:
    outputs = [output_schema(job.id, output, context.storage, context.settings).model_dump() for output in job.outputs]
    return _line(
        {
            "seq": job.seq,
            "id": job.id,
            "custom_id": job.custom_id,
            "state": job.state.value,
            "outputs": outputs,
            "error": _error(job),
        }
    )


def _error(job: FinishedJob) -> dict[str, Any] | None:
    return None if job.error is None else ErrorSchema(code=job.error.code, message=job.error.message).model_dump()


def _line(value: Mapping[str, object]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n"


def archived(
    context: ServiceContext,
    batch: Batch,
    form: ArchiveFormat,
    jobs: JobRange | None = None,
    byte_range: str | None = None,
    if_range: str | None = None,
) -> StreamingResponse:
    """The outputs of a batch as one file.

    The tar of a finished batch never changes, so its size is known and a part of it can be asked for.

    Args:
        context: the process's connections.
        batch: whose outputs are sent.
        form: the format.
        jobs: the jobs whose outputs are sent; None: all.
        byte_range: the request's ``Range``.
        if_range: the request's ``If-Range``.

    Raises:
        HTTPException: 416 for a range that is outside.
    """
    jobs = jobs or JobRange()
    part = "" if jobs.whole else f".{jobs.first}-{min(jobs.last, batch.counts.total)}"
    name = f"{batch.id}{part}.{form.value}"
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "X-Accel-Buffering": "no"}
    # a zip has each file's checksum before its content; and what a running batch has grows, in the middle too
    if form is ArchiveFormat.ZIP or batch.finished_at is None:
        headers["Accept-Ranges"] = "none"
        media_type = "application/zip" if form is ArchiveFormat.ZIP else "application/x-tar"
        content = batch_archive.stream(context, batch.id, form, jobs)
        return StreamingResponse(content, media_type=media_type, headers=headers)
    size = batch_archive.tar_bytes(context, batch.id, jobs)
    total = size + len(archive.TAR_END)
    headers |= {"Accept-Ranges": "bytes", "ETag": f'"{name}"'}
    wanted = None
    if if_range is None or if_range == headers["ETag"]:
        try:
            wanted = archive.parse_range(byte_range, total)
        except ValueError as error:
            outside = {"Content-Range": f"bytes */{total}"}
            raise HTTPException(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, str(error), headers=outside) from None
    start, end = wanted or (0, total)
    headers["Content-Length"] = str(end - start)
    if wanted is not None:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{total}"
    return StreamingResponse(
        batch_archive.stream_tar_part(context, batch.id, jobs, start, end - start, size),
        status_code=int(HTTPStatus.OK if wanted is None else HTTPStatus.PARTIAL_CONTENT),
        media_type="application/x-tar",
        headers=headers,
    )
