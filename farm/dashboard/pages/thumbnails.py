"""Outputs and inputs for the pages, through this process: browsers keep them and need not reach the storage."""

from __future__ import annotations

import re
from typing import Annotated, Final

from fastapi import APIRouter, Header, Query, Response
from starlette.concurrency import run_in_threadpool

from farm.api.dependencies import AppContext, Context
from farm.dashboard.rendering import HOME, CurrentUser, PageRoute
from farm.domain.job import Output
from farm.domain.job_spec import InputFile
from farm.errors import NotFound
from farm.objects import keys, thumbnails
from farm.objects.storage import content_disposition

router: Final = APIRouter(prefix=f"{HOME}/images", include_in_schema=False, route_class=PageRoute)

SIDES: Final = (160, 320, 640)  #: pixels of the longer side that a small one may have
#: An output never changes. The browser may cache it, proxies may not.
KEPT: Final = "private, max-age=86400, immutable"
MAX_RANGE: Final = 4 * 2**20  #: bytes of one answer to a player, which asks for more by itself

Side = Annotated[int, Query(ge=0, le=640)]
Range = Annotated[str | None, Header(max_length=100)]


@router.get("/{job_id}/{index}")
async def output(
    context: Context,
    user: CurrentUser,
    job_id: str,
    index: int,
    side: Side = 0,
    range: Range = None,  # noqa: A002
) -> Response:
    """An output: whole, a part of it, or its thumbnail."""
    return await run_in_threadpool(_output, context, user.image_tenant(), job_id, index, side, range)


@router.get("/{job_id}/inputs/{role}/{number}")
async def given(
    context: Context,
    user: CurrentUser,
    job_id: str,
    role: str,
    number: int,
    side: Side = 0,
    range: Range = None,  # noqa: A002
) -> Response:
    """An input of the job, likewise."""
    return await run_in_threadpool(_given, context, user.image_tenant(), job_id, role, number, side, range)


def _given(
    context: AppContext, tenant_id: str | None, job_id: str, role: str, number: int, side: int, wanted: str | None
) -> Response:
    with context.store.begin() as unit:
        job = unit.jobs.get(job_id, tenant_id)
    files = () if job is None else job.spec.inputs.get(role, ())
    if not 0 <= number < len(files) or not files[number].known:
        raise NotFound("input", f"{job_id}/inputs/{role}/{number}")
    return answer(context, files[number], side, f"{job_id}_{role}_{number}", wanted)


def _output(
    context: AppContext, tenant_id: str | None, job_id: str, index: int, side: int, wanted: str | None
) -> Response:
    with context.store.begin() as unit:
        job = unit.jobs.get(job_id, tenant_id)
    found = next((one for one in job.outputs if one.index == index), None) if job is not None else None
    if job is None or found is None:
        raise NotFound("output", f"{job_id}/{index}")
    return answer(context, found, side, f"{job.id}_{index}", wanted)


def answer(context: AppContext, file: Output | InputFile, side: int, name: str, wanted: str | None) -> Response:
    """The file: whole, a part of it, or its thumbnail."""
    headers = {
        "Cache-Control": KEPT,
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "X-Content-Type-Options": "nosniff",
    }
    if side:
        longer = min((one for one in SIDES if one >= side), default=SIDES[-1])
        small = thumbnails.thumbnail(context.storage.get(file.key), longer, context.settings)
        return Response(small, media_type="image/webp", headers=headers)
    headers["Content-Disposition"] = content_disposition(f"{name}.{keys.extension(file.media_type)}")
    headers["Accept-Ranges"] = "bytes"
    asked = _byte_range(wanted, file.size)
    if asked is None:
        return Response(context.storage.get(file.key), media_type=file.media_type, headers=headers)
    start, length = asked
    if length < 1:
        headers["Content-Range"] = f"bytes */{file.size}"
        return Response(status_code=416, headers=headers)
    headers["Content-Range"] = f"bytes {start}-{start + length - 1}/{file.size}"
    part = context.storage.get_range(file.key, start, length)
    return Response(part, status_code=206, media_type=file.media_type, headers=headers)


def _byte_range(wanted: str | None, size: int) -> tuple[int, int] | None:
    """Start and length of the answer to a ``Range`` header (RFC 9110, section 14); None: the whole file.

    Several ranges and other units are not served, which the standard allows. A length of 0: there is no such part.
    """
    found = re.fullmatch(r"bytes=([0-9]{0,18})-([0-9]{0,18})", wanted or "")
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:  # the last bytes
        length = min(int(found[2]), size)
        return size - length, min(length, MAX_RANGE)
    start = int(found[1])
    if found[2] and int(found[2]) < start:
        return None
    end = min(int(found[2]) + 1 if found[2] else size, size)
    return start, max(0, min(end - start, MAX_RANGE))
