"""A body of any length, received into a temporary file before anything else is done with it.

While a client sends, however slowly, its request holds a connection and a file: no thread and no database transaction.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import IO, Final

from fastapi import Request
from starlette.concurrency import run_in_threadpool

WRITE_BYTES: Final = 2**20  #: written at once


@asynccontextmanager
async def spooled(request: Request) -> AsyncIterator[IO[bytes]]:
    """The request's body as a file at its beginning, which is removed afterwards.

    Raises `ClientDisconnect`, what `farm.api.body_limits` raises, and OSError for a full disk.
    """
    file = await run_in_threadpool(tempfile.TemporaryFile)
    try:
        parts: list[bytes] = []
        size = 0
        async for chunk in request.stream():
            parts.append(chunk)
            size += len(chunk)
            if size >= WRITE_BYTES:
                await run_in_threadpool(file.write, b"".join(parts))
                parts, size = [], 0
        await run_in_threadpool(file.write, b"".join(parts))
        await run_in_threadpool(file.seek, 0)
        yield file
    finally:
        file.close()
