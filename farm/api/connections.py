"""Connections that take their time: a limit for each way in which a client can keep one without using it.

uvicorn ends a connection that is idle after an answer. This ends the others: one on which no whole request head comes,
one whose rest of a refused body never ends, one that does not read its answer, and one that sends its body as thousands
of tiny chunks, each of which costs more to parse than it brings.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
from typing import Any, ClassVar, Final, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS: Final = 10.0  #: for a request's head, and for the rest of a body that nobody reads
WRITE_SECONDS: Final = 60.0  #: without the client reading anything of its answer
MAX_WITHOUT_REQUEST: Final = 512  #: connections without a request; the oldest is closed for one more
READ_BYTES: Final = 2**16  #: read from a connection before the others have their turn
#: Of a chunked body: bytes on the wire, from which on at least a quarter must be the body's own.
MIN_EFFICIENCY_BYTES: Final = 2**16

_TIMEOUT: Final = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class HttpProtocol(H11Protocol):
    """uvicorn's protocol with limits on what a connection may do without a request."""

    #: Connections of this process that have no request, the oldest first.
    without_request: ClassVar[dict[HttpProtocol, None]] = {}

    _head_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None
    _wire_bytes = 0  #: of the request's body
    _body_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        if hasattr(transport, "max_size"):  # asyncio's own reads 256 KiB at once
            cast("Any", transport).max_size = READ_BYTES
        self._expect_request()
        if len(self.without_request) > MAX_WITHOUT_REQUEST:
            oldest = next(iter(self.without_request))
            oldest._request_came()  # noqa: SLF001 - it is one of ours
            oldest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        self._request_came()
        self._stop_write_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        cycle = self.cycle
        before = 0 if cycle is None else len(cycle.body)
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._expect_request()
            return
        self._request_came()
        if self.cycle is not cycle:
            self._wire_bytes = self._body_bytes = 0
            return
        self._wire_bytes += len(data)
        self._body_bytes += len(self.cycle.body) - before
        if self._wire_bytes > MIN_EFFICIENCY_BYTES and self._body_bytes * 4 < self._wire_bytes:
            if self.conn.our_state is h11.SEND_RESPONSE:
                self.send_400_response("The chunks of the body are too small.")
            else:
                self.transport.abort()

    def pause_writing(self) -> None:
        """The client reads more slowly than the answer is written."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has read."""
        super().resume_writing()
        self._stop_write_timer()

    def _expect_request(self) -> None:
        if self._head_timer is None and not self.transport.is_closing():
            self.without_request[self] = None
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _request_came(self) -> None:
        self.without_request.pop(self, None)
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        self._head_timer = None
        self.without_request.pop(self, None)
        if self.conn.our_state is h11.IDLE and self.conn.trailing_data[0]:
            self.transport.write(_TIMEOUT)
        self.transport.close()

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None


def raise_file_limit() -> None:
    """Let this process open as many files as it is allowed to, because each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and soft < hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
