"""One POST to one endpoint, and what came back: it ends in bounded time and memory, whatever the other side does."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import httpx2

from farm import __version__
from farm.egress import guard
from farm.egress.connection import Channel, NotHttp, Reply
from farm.egress.guard import TargetRefused
from farm.settings import Settings
from farm.webhooks.retry_policy import retry_after

KEPT_ANSWER: Final = 2_048  #: bytes of an answer that are kept for the log
KEEP_SECONDS: Final = 4.0  #: an idle connection is kept for so long: less than servers commonly do
RENEW_SECONDS: Final = 60.0  #: a connection is used for so long; then the host is resolved anew
_ASKS_FOR_PATIENCE: Final = frozenset({429, 503})


class Failure(StrEnum):
    """Why a try did not deliver: the error class in the log."""

    STATUS = "status"  #: an answer, and not a 2xx
    REDIRECT = "redirect"  #: a 3xx, which is never followed
    GONE = "gone"  #: 410: the endpoint asks not to be called again
    REFUSED = "refused"  #: the guard does not connect there
    CONNECT = "connect"  #: no name, no route, nobody listens, or the certificate is not trusted
    TIMEOUT = "timeout"  #: no status in time
    NETWORK = "network"  #: the connection broke
    PROTOCOL = "protocol"  #: what came was not HTTP
    INTERRUPTED = "interrupted"  #: this deliverer was stopped meanwhile
    INTERNAL = "internal"  #: our own mistake; the process's log has the trace


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int | None
    error: Failure | None  #: None: delivered
    seconds: float
    text: str = ""  #: the beginning of the body, without NULs
    retry_after: float | None = None  #: seconds


@dataclass
class Keeper:
    """How many idle connections a process keeps, over all endpoints."""

    room: int


@dataclass
class Route:
    """The way to one endpoint: its connections go to addresses that the guard has checked, and are kept while used."""

    url: str
    door: guard.Door
    keeper: Keeper
    head: bytes  #: what each request begins with
    refusal: TargetRefused | None = None
    idle: list[Channel] = field(default_factory=list)

    @classmethod
    def to(cls, url: str, settings: Settings, door: guard.Door, keeper: Keeper) -> Route:
        """The way to a URL; one that the guard refuses is refused at every try."""
        try:
            parsed = httpx2.URL(guard.parse(url, settings).url)
        except TargetRefused as refusal:
            return cls(url, door, keeper, b"", refusal)
        lines = (
            b"POST " + parsed.raw_path + b" HTTP/1.1",
            b"Host: " + parsed.netloc,
            f"User-Agent: render-farm/{__version__}".encode(),
            # no compression is offered, so an answer cannot unfold into more than was received
            b"Accept-Encoding: identity",
            b"Content-Type: application/json",
        )
        return cls(url, door, keeper, b"".join(line + b"\r\n" for line in lines))

    async def post(self, headers: Mapping[str, str], body: bytes, *, deadline: float, body_deadline: float) -> Answer:
        """Send, and read an answer that counts by its status alone.

        ``deadline`` is in seconds and for the whole of it, ``body_deadline`` for the answer's body within that: when it
        is over, the rest of the body is not waited for, and the status stands.
        """
        loop = asyncio.get_running_loop()
        started = loop.time()
        reply: Reply | None = None
        error: Failure | None = None
        channel: Channel | None = None
        try:
            if self.refusal is not None:
                raise self.refusal
            channel = self._kept(started)
            if channel is None:
                channel = await self._open(deadline)
            left = max(0.0, deadline - (loop.time() - started))
            more = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
            request = b"%b%bContent-Length: %d\r\n\r\n%b" % (self.head, more.encode("ascii"), len(body), body)
            reply = await channel.send(request, left, body_deadline)
        except TargetRefused:
            error = Failure.REFUSED
        except TimeoutError:
            error = Failure.TIMEOUT
        except NotHttp:
            error = Failure.PROTOCOL
        except (OSError, ValueError):  # a name or a resolver's answer that cannot be read is a ValueError
            error = Failure.CONNECT if channel is None else Failure.NETWORK
        if reply is None:
            return Answer(None, error, loop.time() - started)
        assert channel is not None
        self._keep(channel)
        text = reply.body[:KEPT_ANSWER].decode("utf-8", "replace").replace("\0", "")
        patience = retry_after(reply.retry_after) if reply.status in _ASKS_FOR_PATIENCE else None
        return Answer(reply.status, _judge(reply.status), loop.time() - started, text, patience)

    def close(self, idle_before: float | None = None) -> None:
        """End the connections that nobody used since ``idle_before`` (the loop's time); None: all that are idle."""
        stay: list[Channel] = []
        for channel in self.idle:
            if channel.usable and idle_before is not None and channel.idle_since >= idle_before:
                stay.append(channel)
            else:
                channel.close()
                self.keeper.room += 1
        self.idle = stay

    async def _open(self, deadline: float) -> Channel:
        return await self.door.open(self.url, Channel, deadline)

    def _kept(self, now: float) -> Channel | None:
        while self.idle:
            channel = self.idle.pop()
            self.keeper.room += 1
            if channel.usable and now - channel.idle_since < KEEP_SECONDS and now - channel.opened_at < RENEW_SECONDS:
                return channel
            channel.close()
        return None

    def _keep(self, channel: Channel) -> None:
        if channel.usable and self.keeper.room > 0:
            self.keeper.room -= 1
            self.idle.append(channel)
        else:
            channel.close()


def _judge(status: int) -> Failure | None:
    if 200 <= status < 300:
        return None
    if status == 410:
        return Failure.GONE
    return Failure.REDIRECT if 300 <= status < 400 else Failure.STATUS
