"""Images for the pages: outputs through this process, so that browsers keep them and need not reach the storage."""

from __future__ import annotations

import io
from typing import Annotated, Final

from fastapi import APIRouter, Query, Response
from PIL import Image
from starlette.concurrency import run_in_threadpool

from farm.api.dependencies import AppContext, Context
from farm.dashboard.rendering import HOME, CurrentUser, PageRoute
from farm.errors import NotFound
from farm.objects import keys
from farm.objects.storage import content_disposition

router: Final = APIRouter(prefix=f"{HOME}/images", include_in_schema=False, route_class=PageRoute)

SIDES: Final = (160, 320, 640)  #: pixels of the longer side that a small one may have
#: An image never changes. The browser may cache it, proxies may not.
KEPT: Final = "private, max-age=86400, immutable"


@router.get("/{job_id}/{index}")
async def image(
    context: Context, user: CurrentUser, job_id: str, index: int, side: Annotated[int, Query(ge=0, le=640)] = 0
) -> Response:
    """An output, whole or made small."""
    return await run_in_threadpool(_image, context, user.tenant, job_id, index, side)


@router.get("/{job_id}/inputs/{role}/{number}")
async def given(
    context: Context,
    user: CurrentUser,
    job_id: str,
    role: str,
    number: int,
    side: Annotated[int, Query(ge=0, le=640)] = 0,
) -> Response:
    """An input of the job."""
    return await run_in_threadpool(_given, context, user.tenant, job_id, role, number, side)


def _given(context: AppContext, tenant_id: str | None, job_id: str, role: str, number: int, side: int) -> Response:
    with context.store.begin() as unit:
        job = unit.jobs.get(job_id, tenant_id)
    files = () if job is None else job.spec.inputs.get(role, ())
    if not 0 <= number < len(files):
        raise NotFound("image", f"{job_id}/inputs/{role}/{number}")
    found = files[number]
    return _answer(context.storage.get(found.key), found.media_type, side, f"{job_id}_{role}_{number}")


def _image(context: AppContext, tenant_id: str | None, job_id: str, index: int, side: int) -> Response:
    with context.store.begin() as unit:
        job = unit.jobs.get(job_id, tenant_id)
    output = next((one for one in job.outputs if one.index == index), None) if job is not None else None
    if job is None or output is None:
        raise NotFound("image", f"{job_id}/{index}")
    return _answer(context.storage.get(output.key), output.media_type, side, f"{job.id}_{index}")


def _answer(data: bytes, media_type: str, side: int, name: str) -> Response:
    """The file, or the image made small."""
    headers = {
        "Cache-Control": KEPT,
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "X-Content-Type-Options": "nosniff",
    }
    if side and media_type.startswith("image/"):
        small = _small(data, min((one for one in SIDES if one >= side), default=SIDES[-1]))
        return Response(small, media_type="image/webp", headers=headers)
    headers["Content-Disposition"] = content_disposition(f"{name}.{keys.extension(media_type)}")
    return Response(data, media_type=media_type, headers=headers)


def _small(data: bytes, side: int) -> bytes:
    """The image with its longer side of at most ``side`` pixels, as WebP."""
    with Image.open(io.BytesIO(data)) as opened:
        opened.draft("RGB", (side, side))
        shown = opened.convert("RGB") if opened.mode not in ("RGB", "RGBA") else opened
        if max(shown.size) > side:
            shown.thumbnail((side, side), Image.Resampling.LANCZOS)
        out = io.BytesIO()
        shown.save(out, "WEBP", quality=82, method=2)
    return out.getvalue()
