"""One HTTP/1.1 connection to a receiver: one request at a time, answers read up to a limit.

It uses asyncio's transports and h11's parser without an HTTP client: a client's pools and streams cost several times as
much as the request itself, and the deliverer pools by endpoint anyway. The plain acknowledgement that
nearly every receiver sends is read without the parser too.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import Final, cast

import h11

MAX_ANSWER: Final = 64 * 2**10  #: bytes of an answer's head, and of its body, that are read at most
_STATUS: Final = re.compile(rb"HTTP/1\.1 2[0-9][0-9](?: [\t -~]*)?")
_FIELD: Final = re.compile(rb"[-!#$%&'*+.^_`|~0-9A-Za-z]+:[\t -~]*")


class ConnectionBroken(ConnectionError):
    """The connection ended before an answer arrived."""


class NotHTTP(ConnectionError):
    """The answer was not HTTP/1.1."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: its status, and the first part of its body."""

    status: int
    retry_after: str | None  #: the header
    body: bytes


class HttpConnection(asyncio.Protocol):
    """One connection. After an answer that ended properly, another request may follow."""

    def __init__(self) -> None:
        self.opened_at = self.idle_since = 0.0  #: the loop's time
        self._answered: asyncio.Future[Reply] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._body_seconds = 0.0
        self._parser: h11.Connection | None = None  #: of an answer that is not plain
        self._status: int | None = None
        self._retry_after: str | None = None
        self._body = bytearray()

    @property
    def usable(self) -> bool:
        """Whether it is open and waits for a request."""
        return self._answered is None and not self._transport.is_closing()

    async def send(self, request: bytes, seconds: float, body_seconds: float) -> Reply:
        """Send a POST, and wait at most ``seconds`` for a status and ``body_seconds`` of that for the body behind it.

        A body that is longer or slower than that is cut off, and the status stands.

        Raises:
            TimeoutError: no status came in time.
            ConnectionBroken: the connection ended without one.
            NotHTTP: what came cannot be read.
        """
        loop = asyncio.get_running_loop()
        self._answered = loop.create_future()
        self._body_seconds = body_seconds
        self._timer = loop.call_later(seconds, self._late)
        try:
            if self._transport.is_closing():
                self._answered.set_exception(ConnectionBroken("the other side closed the connection"))
            else:
                self._transport.write(request)
            return await self._answered
        except BaseException:
            self.close()
            raise
        finally:
            self._timer.cancel()
            self._answered = None
            self.idle_since = loop.time()

    def close(self) -> None:
        """End the connection at once, whatever is under way."""
        self._transport.abort()

    # -- what asyncio calls -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: the connection is open (and over TLS, verified)."""
        self._transport = cast("asyncio.Transport", transport)
        self.opened_at = asyncio.get_running_loop().time()

    def data_received(self, data: bytes) -> None:
        """asyncio: a part of an answer arrived."""
        if self._answered is None or self._answered.done():
            self.close()  # not requested
            return
        if self._parser is None:
            plain = _plain(data)
            if plain is not None:
                self._answered.set_result(plain)
                return
            self._parser = _parser()
        self._parser.receive_data(data)
        self._read(self._parser)

    def eof_received(self) -> bool:
        """asyncio: the peer closed its side."""
        if self._answered is not None and not self._answered.done() and self._parser is not None:
            self._parser.receive_data(b"")
            self._read(self._parser)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the connection is closed."""
        if self._answered is not None and not self._answered.done():
            if self._status is not None:
                self._finish()
            else:
                self._answered.set_exception(exc or ConnectionBroken("the other side closed the connection"))

    # -- an answer that is not plain ----------------------------------------------------------------------------------

    def _read(self, parser: h11.Connection) -> None:
        assert self._answered is not None
        try:
            while True:
                event = parser.next_event()
                if event is h11.NEED_DATA:
                    return
                if isinstance(event, h11.Response):
                    self._begin(event)
                elif isinstance(event, h11.Data):
                    self._body += event.data[: MAX_ANSWER - len(self._body)]
                    if len(self._body) >= MAX_ANSWER:
                        self._finish()
                        return
                elif not isinstance(event, h11.InformationalResponse):  # the answer's end, or the connection's
                    self._finish()
                    return
        except h11.RemoteProtocolError as error:
            if self._status is not None:
                self._finish()
            else:
                self._answered.set_exception(NotHTTP(str(error)))

    def _begin(self, answer: h11.Response) -> None:
        self._status = answer.status_code
        for name, value in answer.headers:
            if name == b"retry-after":
                self._retry_after = value.decode("latin-1")
        assert self._timer is not None
        until = min(self._timer.when(), asyncio.get_running_loop().time() + self._body_seconds)
        self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(until, self._late)

    def _late(self) -> None:
        assert self._answered is not None
        if self._answered.done():
            return
        if self._status is not None:
            self._finish()
        else:
            self._answered.set_exception(TimeoutError())

    def _finish(self) -> None:
        """Return the answer; the connection stays open if the answer ended properly and nothing followed it."""
        assert self._answered is not None
        assert self._status is not None
        parser = self._parser
        whole = parser is not None and parser.our_state is h11.DONE and parser.their_state is h11.DONE
        if parser is None or not whole or parser.trailing_data[0]:
            self.close()
        self._answered.set_result(Reply(self._status, self._retry_after, bytes(self._body)))
        self._parser, self._status, self._retry_after, self._body = None, None, None, bytearray()


def _parser() -> h11.Connection:
    """A parser that waits for the answer to a POST."""
    parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_ANSWER)
    parser.send(h11.Request(method=b"POST", target=b"/", headers=[(b"Host", b"it"), (b"Content-Length", b"0")]))
    parser.send(h11.EndOfMessage())
    return parser


def _plain(data: bytes) -> Reply | None:
    """A 2xx that came in one piece, of a stated length, after which the connection stays open; None: it is not that."""
    head, gap, body = data.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    if not gap or _STATUS.fullmatch(first) is None:
        return None
    length: int | None = None
    for line in lines:
        if _FIELD.fullmatch(line) is None:
            return None
        name, _, value = line.partition(b":")
        value = value.strip(b" \t").lower()
        match name.lower():
            case b"content-length" if length is None and value.isdigit() and len(value) < 6:
                length = int(value)
            case b"content-length" | b"transfer-encoding" | b"upgrade" | b"trailer":
                return None
            case b"connection" if value != b"keep-alive":
                return None
    status = int(first[9:12])
    if status == 204 and not length:
        length = 0
    elif status == 204:  # it has no body, whatever its headers say
        return None
    if length is None or length != len(body) or length > MAX_ANSWER:
        return None
    return Reply(status, None, body)
