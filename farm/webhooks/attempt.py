"""One POST to one endpoint, and what came back: it ends in bounded time and memory, whatever the other side does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import httpx2

from farm.webhooks.guard import TargetRefused
from farm.webhooks.schedule import retry_after

MAX_ANSWER: Final = 64 * 2**10  #: bytes of an answer that are read at most
KEPT_ANSWER: Final = 2_048  #: bytes of it that are kept for the log
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


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int | None
    error: Failure | None  #: None: delivered
    seconds: float
    text: str = ""  #: the beginning of the body, without NULs
    retry_after: float | None = None  #: seconds


async def post(
    client: httpx2.AsyncClient,
    url: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    deadline: float,
    body_deadline: float,
) -> Answer:
    """Send, and read an answer that counts by its status alone.

    ``deadline`` is in seconds and for the whole of it, ``body_deadline`` for the answer's body within that: when it is
    over, the rest of the body is not waited for, and the status stands.
    """
    started = time.monotonic()
    status: int | None = None
    received = bytearray()
    patience: float | None = None
    error: Failure | None
    try:
        async with asyncio.timeout(deadline), client.stream("POST", url, headers=dict(headers), content=body) as answer:
            status = answer.status_code
            if status in _ASKS_FOR_PATIENCE:
                patience = retry_after(answer.headers.get("retry-after"))
            async with asyncio.timeout(body_deadline):
                async for part in answer.aiter_raw():
                    received += part[: MAX_ANSWER - len(received)]
                    if len(received) >= MAX_ANSWER:
                        break
        error = None
    except TargetRefused:
        error = Failure.REFUSED
    except (TimeoutError, httpx2.TimeoutException):
        error = Failure.TIMEOUT
    except httpx2.ConnectError:
        error = Failure.CONNECT
    except (httpx2.ProtocolError, httpx2.DecodingError):
        error = Failure.PROTOCOL
    except httpx2.TransportError:
        error = Failure.NETWORK
    if status is not None:
        error = _judge(status)
    text = bytes(received[:KEPT_ANSWER]).decode("utf-8", "replace").replace("\0", "")
    return Answer(status, error, time.monotonic() - started, text, patience)


def _judge(status: int) -> Failure | None:
    if 200 <= status < 300:
        return None
    if status == 410:
        return Failure.GONE
    return Failure.REDIRECT if 300 <= status < 400 else Failure.STATUS
