"""A request's body of any length: received by the event loop, read by a thread."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from http import HTTPStatus
from typing import Final

import anyio.from_thread
from fastapi import Request
from starlette.exceptions import HTTPException

from farm.api.middleware import BodyTooLarge

STALL_SECONDS: Final = 30.0  #: a client that sends nothing for longer is refused
BODY_SECONDS: Final = 3600.0  #: and one that takes longer for the whole body: its thread is needed by others
DRAIN_SECONDS: Final = 5.0
DRAIN_BYTES: Final = 256 * 2**20


class BodyTimeout(HTTPException):
    """A body that stopped arriving, or arrives too slowly."""

    def __init__(self) -> None:
        super().__init__(
            HTTPStatus.REQUEST_TIMEOUT,
            f"the body arrived too slowly: at most {STALL_SECONDS:.0f} s without a byte and {BODY_SECONDS:.0f} s in "
            "all are allowed",
        )


class RequestBody:
    """The body of one request."""

    def __init__(self, request: Request) -> None:
        self._stream = request.stream()
        self._ended = False
        self._until = time.monotonic() + BODY_SECONDS

    async def next(self) -> bytes | None:
        """The next chunk; None at the end. Raises `BodyTimeout` and `ClientDisconnect`."""
        if self._ended:
            return None
        try:
            async with asyncio.timeout(min(STALL_SECONDS, self._until - time.monotonic())):
                return await anext(self._stream)
        except StopAsyncIteration:
            self._ended = True
            return None
        except TimeoutError:
            self._ended = True
            raise BodyTimeout from None
        except BaseException:
            self._ended = True
            raise

    def chunks(self) -> Iterator[bytes]:
        """All chunks; call it in a worker thread of anyio."""
        while (chunk := anyio.from_thread.run(self.next)) is not None:
            yield chunk

    async def read(self, limit: int) -> bytes:
        """The whole body, at most ``limit`` bytes. Raises `BodyTooLarge`."""
        parts, size = [], 0
        while (chunk := await self.next()) is not None:
            parts.append(chunk)
            size += len(chunk)
            if size > limit:
                await self.drain()
                raise BodyTooLarge(limit)
        return b"".join(parts)

    async def drain(self) -> None:
        """Receive the rest, within limits: a client that still sends would not read the answer."""
        received = 0
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                while received < DRAIN_BYTES and (chunk := await self.next()) is not None:
                    received += len(chunk)
        except (TimeoutError, BodyTimeout):
            pass
