"""Send one POST to one endpoint, in bounded time and memory whatever the receiver does."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import httpx2

from farm import __version__
from farm.egress import guard
from farm.egress.connection import HttpConnection, NotHTTP, Reply
from farm.egress.guard import TargetRefused
from farm.settings import Settings
from farm.webhooks.retry_policy import retry_after

MAX_LOGGED_BODY: Final = 2_048  #: bytes of an answer that are kept for the log
IDLE_CONNECTION_SECONDS: Final = 4.0  #: an idle connection is kept for so long: less than servers commonly do
MAX_CONNECTION_SECONDS: Final = 60.0  #: a connection is used for so long; then the host is resolved again
_HONOURS_RETRY_AFTER: Final = frozenset({429, 503})


class FailureReason(StrEnum):
    """Why an attempt failed, as recorded in the delivery log."""

    STATUS = "status"  #: an answer, and not a 2xx
    REDIRECT = "redirect"  #: a 3xx, which is never followed
    GONE = "gone"  #: 410: the endpoint asks not to be called again
    REFUSED = "refused"  #: the guard does not connect there
    CONNECT = "connect"  #: no address or no connection
    CERTIFICATE = "certificate"  #: the endpoint's certificate is not trusted, has expired or is for another host
    TLS = "tls"  #: the endpoint does not speak TLS, or no version of it that is allowed
    TIMEOUT = "timeout"  #: no status in time
    NETWORK = "network"  #: the connection broke
    PROTOCOL = "protocol"  #: the answer was not HTTP
    INTERRUPTED = "interrupted"  #: this deliverer was stopped meanwhile
    INTERNAL = "internal"  #: an internal error; the process's log has the trace


@dataclass(frozen=True, slots=True)
class AttemptResult:
    """The result of one attempt."""

    status: int | None
    error: FailureReason | None  #: None: delivered
    seconds: float
    text: str = ""  #: the beginning of the body, without NULs
    retry_after: float | None = None  #: seconds


@dataclass
class ConnectionBudget:
    """How many idle connections a process may keep, over all endpoints."""

    free: int


@dataclass
class EndpointClient:
    """The connections to one endpoint, opened through the egress guard and kept while in use."""

    url: str
    connector: guard.PinnedConnector
    budget: ConnectionBudget
    head: bytes  #: what each request begins with
    refusal: TargetRefused | None = None
    idle: list[HttpConnection] = field(default_factory=list)

    @classmethod
    def for_url(
        cls, url: str, settings: Settings, connector: guard.PinnedConnector, budget: ConnectionBudget
    ) -> EndpointClient:
        """The client for a URL; a URL that the guard refuses is refused at every attempt."""
        try:
            parsed = httpx2.URL(guard.parse(url, settings).url)
        except TargetRefused as refusal:
            return cls(url, connector, budget, b"", refusal)
        lines = (
            b"POST " + parsed.raw_path + b" HTTP/1.1",
            b"Host: " + parsed.netloc,
            f"User-Agent: render-farm/{__version__}".encode(),
            # no compression is offered, so an answer cannot unfold into more than was received
            b"Accept-Encoding: identity",
            b"Content-Type: application/json",
        )
        return cls(url, connector, budget, b"".join(line + b"\r\n" for line in lines))

    async def post(
        self, headers: Mapping[str, str], body: bytes, *, deadline: float, body_deadline: float
    ) -> AttemptResult:
        """Send, and read an answer that counts by its status alone.

        ``deadline`` is in seconds and for the whole of it, ``body_deadline`` for the response's body within that: after
        it, the rest of the body is not read, and the status counts.
        """
        loop = asyncio.get_running_loop()
        started = loop.time()
        reply: Reply | None = None
        error: FailureReason | None = None
        connection: HttpConnection | None = None
        try:
            if self.refusal is not None:
                raise self.refusal
            connection = self._reuse(started)
            if connection is None:
                connection = await self._open(deadline)
            left = max(0.0, deadline - (loop.time() - started))
            more = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
            request = b"%b%bContent-Length: %d\r\n\r\n%b" % (self.head, more.encode("ascii"), len(body), body)
            reply = await connection.send(request, left, body_deadline)
        except TargetRefused:
            error = FailureReason.REFUSED
        except TimeoutError:
            error = FailureReason.TIMEOUT
        except NotHTTP:
            error = FailureReason.PROTOCOL
        except ssl.SSLCertVerificationError:
            error = FailureReason.CERTIFICATE
        except ssl.SSLError:
            error = FailureReason.TLS if connection is None else FailureReason.NETWORK
        except (OSError, ValueError):  # a name or a resolver's answer that cannot be read is a ValueError
            error = FailureReason.CONNECT if connection is None else FailureReason.NETWORK
        if reply is None:
            return AttemptResult(None, error, loop.time() - started)
        assert connection is not None
        self._put_back(connection)
        text = reply.body[:MAX_LOGGED_BODY].decode("utf-8", "replace").replace("\0", "")
        wait = retry_after(reply.retry_after) if reply.status in _HONOURS_RETRY_AFTER else None
        return AttemptResult(reply.status, _reason(reply.status), loop.time() - started, text, wait)

    def close(self, idle_before: float | None = None) -> None:
        """Close the connections that were not used since ``idle_before`` (the loop's time); None: all that are idle."""
        stay: list[HttpConnection] = []
        for connection in self.idle:
            if connection.usable and idle_before is not None and connection.idle_since >= idle_before:
                stay.append(connection)
            else:
                connection.close()
                self.budget.free += 1
        self.idle = stay

    async def _open(self, deadline: float) -> HttpConnection:
        return await self.connector.open(self.url, HttpConnection, deadline)

    def _reuse(self, now: float) -> HttpConnection | None:
        while self.idle:
            connection = self.idle.pop()
            self.budget.free += 1
            if (
                connection.usable
                and now - connection.idle_since < IDLE_CONNECTION_SECONDS
                and now - connection.opened_at < MAX_CONNECTION_SECONDS
            ):
                return connection
            connection.close()
        return None

    def _put_back(self, connection: HttpConnection) -> None:
        if connection.usable and self.budget.free > 0:
            self.budget.free -= 1
            self.idle.append(connection)
        else:
            connection.close()


def _reason(status: int) -> FailureReason | None:
    if 200 <= status < 300:
        return None
    if status == 410:
        return FailureReason.GONE
    return FailureReason.REDIRECT if 300 <= status < 400 else FailureReason.STATUS
