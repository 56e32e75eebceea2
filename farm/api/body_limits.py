"""Every request's body on its way in: its size, its speed, its encoding, and what it may hold of memory and disk.

The limits are kept while the body arrives, before anything parses it. A body that breaks one is refused with a status
of its own: 408 (too slow), 413 (too large), 415 (an encoding that is not supported), 422 (not what its encoding says),
429 (the tenant has too many on their way) or 503 (all tenants together have).
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections import Counter
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, Protocol

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from farm.api import problems
from farm.api.problems import UnreadableBody

try:
    from compression import zstd  # type: ignore[import-not-found,unused-ignore]
except ImportError:
    from backports import zstd

STALL_SECONDS: Final = 30.0  #: without a byte
BODY_SECONDS: Final = 3600.0  #: for a whole body
GRACE_SECONDS: Final = 10.0  #: before the average speed counts
MIN_RATE: Final = 1024  #: bytes a second on average, while the API waits for them
#: What a small JSON body may have of brackets, quotes, commas and colons; see `structure`.
JSON_STRUCTURE: Final = 128 * 2**10
FORM_BYTES: Final = 2**20  #: a form without files
DRAIN_SECONDS: Final = 5.0  #: for the rest of a refused body, so that its client reads the answer
DRAIN_BYTES: Final = 256 * 2**20
DECODED_BYTES: Final = 2**18  #: decoded at once, before other requests have their turn
BODIES: Final = 512  #: on their way at once, of all tenants
TENANT_BODIES: Final = 64  #: of one tenant
WAIT_SECONDS: Final = 10.0  #: for memory that other bodies hold
RETRY_AFTER: Final = 5  #: seconds that a client is asked to wait for its turn
JSON_WEIGHT: Final = 3  #: a JSON body is held as bytes, as text and as decoded images

ENCODINGS: Final = ("gzip", "zstd")
#: The bytes that cost no more in memory than in the body: all that strings are made of. What is left is structure.
_CONTENT: Final = bytes(sorted(set(range(256)) - set(b'{}[]",:')))


def structure(chunk: bytes) -> int:
    """How many of the bytes are brackets, quotes, commas and colons of JSON: its values are not more than these.

    Images as base64 have none, so a limit on these bounds what parsing costs without limiting images.
    """
    return len(chunk.translate(None, _CONTENT))


class BodyTooLarge(HTTPException):
    """A body beyond the limit. An HTTPException, because FastAPI lets nothing else out of reading a body."""

    def __init__(self, limit: int, what: str = "") -> None:
        super().__init__(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"the request's body is too large; at most {limit:,} bytes are allowed here{what}",
        )


class BodyTimeout(HTTPException):
    """A body that stopped arriving, or arrives too slowly."""

    def __init__(self) -> None:
        super().__init__(
            HTTPStatus.REQUEST_TIMEOUT,
            f"the body arrived too slowly: at least {MIN_RATE:,} bytes a second, at most {STALL_SECONDS:.0f} s without "
            f"a byte and {BODY_SECONDS:.0f} s in all are allowed",
            headers={"Connection": "close"},
        )


class TooManyBodies(HTTPException):
    """The tenant, or all tenants together, have too many or too large bodies on their way."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(status, message, headers={"Retry-After": str(RETRY_AFTER)})

    @classmethod
    def of_tenant(cls, what: str) -> TooManyBodies:
        """The tenant's own share is used up."""
        return cls(HTTPStatus.TOO_MANY_REQUESTS, f"this tenant {what}; wait until some have been answered")

    @classmethod
    def of_all(cls, what: str) -> TooManyBodies:
        """All shares are used up."""
        return cls(HTTPStatus.SERVICE_UNAVAILABLE, f"the API {what}; try again soon")


class Budget:
    """An amount that all requests share, and of which one tenant gets at most half. For one event loop.

    A request that alone asks for more than the total gets it while no other holds any.

    Args:
        total: how much there is.
        what: the message for a tenant that asks for too much, after "this tenant" or "the API".
    """

    def __init__(self, total: int, what: str) -> None:
        self.total = total
        self.used = 0
        self._what = what
        self._by_owner: Counter[str] = Counter()
        self._freed = asyncio.Condition()

    async def take(self, owner: str, own: int, amount: int, *, wait: float) -> None:
        """Take an amount for a request that holds ``own`` of it already. Raises `TooManyBodies`."""
        if not self._fits(owner, own, amount):
            refused = TooManyBodies.of_tenant if self._of_tenant(owner, own, amount) else TooManyBodies.of_all
            try:
                async with asyncio.timeout(wait), self._freed:
                    await self._freed.wait_for(lambda: self._fits(owner, own, amount))
            except TimeoutError:
                raise refused(self._what) from None
        self.used += amount
        self._by_owner[owner] += amount

    async def give(self, owner: str, amount: int) -> None:
        """Return what a request holds."""
        if not amount:
            return
        self.used -= amount
        self._by_owner[owner] -= amount
        if not self._by_owner[owner]:
            del self._by_owner[owner]
        async with self._freed:
            self._freed.notify_all()

    def _fits(self, owner: str, own: int, amount: int) -> bool:
        alone = self.used == own
        return alone or (self.used + amount <= self.total and not self._of_tenant(owner, own, amount))

    def _of_tenant(self, owner: str, own: int, amount: int) -> bool:
        held = self._by_owner[owner]
        return held != own and held + amount > self.total // 2


class InFlight:
    """Counts bodies that are on their way."""

    def __init__(self) -> None:
        self._all = 0
        self._by_owner: Counter[str] = Counter()

    def enter(self, owner: str) -> None:
        """Count one more. Raises `TooManyBodies`."""
        if self._by_owner[owner] >= TENANT_BODIES:
            raise TooManyBodies.of_tenant(f"has {TENANT_BODIES} requests whose bodies have not arrived")
        if self._all >= BODIES:
            raise TooManyBodies.of_all(f"waits for the bodies of {BODIES} requests")
        self._all += 1
        self._by_owner[owner] += 1

    def leave(self, owner: str) -> None:
        """Count one less."""
        self._all -= 1
        self._by_owner[owner] -= 1
        if not self._by_owner[owner]:
            del self._by_owner[owner]


# -- encodings ---------------------------------------------------------------------------------------------------------


class Decoder(Protocol):
    """Decodes a body piece by piece."""

    @property
    def idle(self) -> bool:
        """Whether all that was fed is decoded."""
        ...

    def feed(self, data: bytes) -> None:
        """Add encoded bytes."""
        ...

    def read(self) -> bytes:
        """The next decoded bytes, at most `DECODED_BYTES`. Raises `UnreadableBody`."""
        ...

    def finish(self) -> None:
        """Raise `UnreadableBody` unless the encoded bytes are whole."""
        ...


class Gzip:
    """gzip, of one member or several."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(wbits=31)
        self._input = b""

    @property
    def idle(self) -> bool:
        """Whether all that was fed is decoded."""
        return not self._input

    def feed(self, data: bytes) -> None:
        """Add encoded bytes."""
        self._input += data

    def read(self) -> bytes:
        """The next decoded bytes. Raises `UnreadableBody`."""
        if self._member.eof:
            self._member = zlib.decompressobj(wbits=31)
        try:
            found = self._member.decompress(self._input, DECODED_BYTES)
        except zlib.error as error:
            raise UnreadableBody(f"the body is not valid gzip: {error}") from None
        self._input = self._member.unconsumed_tail or self._member.unused_data
        return found

    def finish(self) -> None:
        """Raise `UnreadableBody` unless the encoded bytes are whole."""
        if not self._member.eof:
            raise UnreadableBody("the body is not valid gzip: it ends too early")


class Zstd:
    """Zstandard, with the window that RFC 9659 allows."""

    _OPTIONS: Final = {zstd.DecompressionParameter.window_log_max: 23}

    def __init__(self) -> None:
        self._frame = zstd.ZstdDecompressor(options=self._OPTIONS)
        self._input = b""

    @property
    def idle(self) -> bool:
        """Whether all that was fed is decoded."""
        return not self._input and (self._frame.eof or self._frame.needs_input)

    def feed(self, data: bytes) -> None:
        """Add encoded bytes."""
        self._input += data

    def read(self) -> bytes:
        """The next decoded bytes. Raises `UnreadableBody`."""
        if self._frame.eof:
            self._frame = zstd.ZstdDecompressor(options=self._OPTIONS)
        try:
            found: bytes = self._frame.decompress(self._input, DECODED_BYTES)
        except zstd.ZstdError as error:
            raise UnreadableBody(f"the body is not valid zstd: {error}") from None
        self._input = self._frame.unused_data if self._frame.eof else b""
        return found

    def finish(self) -> None:
        """Raise `UnreadableBody` unless the encoded bytes are whole."""
        if not self._frame.eof:
            raise UnreadableBody("the body is not valid zstd: it ends too early")


_DECODERS: Final[dict[str, type[Gzip | Zstd]]] = {"gzip": Gzip, "x-gzip": Gzip, "zstd": Zstd}


# -- limits ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BodyLimit:
    """What a path's bodies may be."""

    bytes: int  #: decoded
    structure: int = JSON_STRUCTURE  #: of JSON
    json_bytes: int | None = None  #: of JSON, where that is less
    on_disk: bool = False  #: whether a body that is not JSON goes to a file instead of the memory


@dataclass
class BodyBudgets:
    """What all bodies of one process may hold."""

    memory: Budget
    disk: Budget
    in_flight: InFlight = field(default_factory=InFlight)

    @classmethod
    def of(cls, memory: int, disk: int) -> BodyBudgets:
        """Budgets of so many bytes."""
        return cls(
            Budget(memory, "holds as many bytes of requests in memory as it may"),
            Budget(disk, "holds as many bytes of requests on disk as it may"),
        )


class BodyLimitMiddleware:
    """ASGI middleware that keeps the limits of bodies.

    Args:
        app: what it wraps.
        limit: of paths that have none of their own.
        limits: of single paths.
        memory: bytes that the bodies of all requests may hold in memory.
        disk: bytes that they may hold in temporary files.
    """

    def __init__(self, app: ASGIApp, limit: BodyLimit, limits: dict[str, BodyLimit], *, memory: int, disk: int) -> None:
        self._app = app
        self._limit = limit
        self._limits = limits
        self._budgets = BodyBudgets.of(memory, disk)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        body = _Body(self._budgets, self._limits.get(path, self._limit), scope, receive)
        try:
            refused = body.refuse_by_headers()
            if refused is not None:
                # a client that still sends would see a broken connection instead of the answer
                if "expect" not in body.headers:
                    await body.drain()
                problem = problems.problem(
                    Request(scope),
                    refused.status_code,
                    str(refused.detail),
                    headers={"Connection": "close", **(refused.headers or {})},
                )
                await problem(scope, receive, send)
                return
            await self._app(scope, body.receive, send)
        finally:
            await body.release()


class _Body:
    """The body of one request."""

    def __init__(self, budgets: BodyBudgets, limit: BodyLimit, scope: Scope, receive: Receive) -> None:
        self.headers = Headers(scope=scope)
        media_type = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        self._json = media_type == "application/json" or media_type.endswith("+json")
        form = media_type == "application/x-www-form-urlencoded"
        self._limit = limit.bytes
        if form:
            self._limit = min(self._limit, FORM_BYTES)
        elif self._json and limit.json_bytes is not None:
            self._limit = limit.json_bytes
        self._structure_limit = limit.structure
        self._on_disk = limit.on_disk and not self._json and not form
        self._budgets = budgets
        self._budget = budgets.disk if self._on_disk else budgets.memory
        self._weight = JSON_WEIGHT if self._json else 1
        self._scope = scope
        self._receive = receive
        self._in_flight = False
        self._owner = ""
        self._held = 0
        self._ended = False
        self._waited = 0.0
        self._wire = self._size = self._structure = 0
        self._decoder: Decoder | None = None
        self._last = False  #: whether the last encoded bytes were fed to the decoder

    def refuse_by_headers(self) -> HTTPException | None:
        """What its headers say against it."""
        declared = self.headers.get("content-length", "")
        if declared.isdecimal() and (len(declared) > 18 or int(declared) > self._limit):
            return BodyTooLarge(self._limit)
        encoding = self.headers.get("content-encoding", "identity").strip().lower()
        if encoding in _DECODERS:
            self._decoder = _DECODERS[encoding]()
        elif encoding != "identity":
            return HTTPException(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                f"Content-Encoding {encoding[:40]} is not supported; send the body as it is, or as one of "
                f"{', '.join(ENCODINGS)}",
                headers={"Accept-Encoding": ", ".join(ENCODINGS)},
            )
        return None

    async def receive(self) -> Message:
        """The next piece of the body, decoded, as an ASGI server gives it."""
        if self._ended:
            return await self._receive()
        if self._decoder is not None:
            return await self._decoded()
        message = await self._next()
        if message["type"] == "http.request":
            await self._count(message.get("body", b""), message.get("more_body", False))
        return message

    async def _decoded(self) -> Message:
        assert self._decoder is not None
        while True:
            if self._decoder.idle:
                if self._last:
                    self._decoder.finish()
                    self._arrived()
                    return {"type": "http.request", "body": b"", "more_body": False}
                message = await self._next()
                if message["type"] != "http.request":
                    return message
                self._last = not message.get("more_body", False)
                self._decoder.feed(message.get("body", b""))
                continue
            data = self._decoder.read()
            if data:
                await self._count(data, more=True)
                return {"type": "http.request", "body": data, "more_body": True}

    async def _next(self) -> Message:
        """What the server has next, if it comes in time."""
        begun = time.monotonic()
        left = min(STALL_SECONDS, BODY_SECONDS - self._waited)
        if self._wire < MIN_RATE * (self._waited + left - GRACE_SECONDS):
            # the moment at which the average falls below the rate
            left = max(0.05, min(left, self._wire / MIN_RATE + GRACE_SECONDS - self._waited))
        try:
            async with asyncio.timeout(left):
                message = await self._receive()
        except TimeoutError:
            self._ended = True
            raise BodyTimeout from None
        self._waited += time.monotonic() - begun
        if message["type"] != "http.request":
            self._ended = True
            return message
        self._wire += len(message.get("body", b""))
        if self._wire < MIN_RATE * (self._waited - GRACE_SECONDS) or self._waited > BODY_SECONDS:
            self._ended = True
            raise BodyTimeout
        return message

    async def _count(self, data: bytes, more: bool) -> None:
        """Hold the limits against another piece. Raises `HTTPException`."""
        if not self._owner:
            key = self._scope["state"].get("key")
            client = self._scope.get("client")
            self._owner = f"address {client[0] if client else ''}" if key is None else key.tenant_id
        if more and not self._in_flight:
            self._budgets.in_flight.enter(self._owner)
            self._in_flight = True
        self._size += len(data)
        refused = BodyTooLarge(self._limit) if self._size > self._limit else None
        if refused is None and self._json:
            self._structure += structure(data)
            if self._structure > self._structure_limit:
                values = f" of which {self._structure_limit:,} may be brackets, quotes, commas and colons of JSON"
                refused = BodyTooLarge(self._limit, values)
        if refused is not None:
            if more:
                await self.drain()
            raise refused
        amount = len(data) * self._weight
        await self._budget.take(self._owner, self._held, amount, wait=WAIT_SECONDS)
        self._held += amount
        if not more:
            self._arrived()

    def _arrived(self) -> None:
        self._ended = True
        if self._in_flight:
            self._in_flight = False
            self._budgets.in_flight.leave(self._owner)

    async def release(self) -> None:
        """The request was answered: return what its body held."""
        self._arrived()
        held, self._held = self._held, 0
        await self._budget.give(self._owner, held)

    async def drain(self) -> None:
        """Let the rest of a refused body pass, within limits."""
        self._ended = True
        passed, more = 0, True
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                while more and passed < DRAIN_BYTES:
                    message = await self._receive()
                    passed += len(message.get("body", b""))
                    more = message["type"] == "http.request" and message.get("more_body", False)
        except TimeoutError:
            pass
