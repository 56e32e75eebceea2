"""The outermost layer: a request id, a limit on the body's size, one line of log, and the last net under a mistake."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Final

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from farm import metrics
from farm.api import problems
from farm.domain import ids

log = structlog.get_logger(__name__)

_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
QUIET: Final = frozenset({"/healthz", "/readyz"})  #: requested every few seconds; logged only when they fail
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
DRAIN_SECONDS: Final = 5.0
DRAIN_BYTES: Final = 256 * 2**20


class BodyTooLarge(HTTPException):
    """A body beyond the limit. An HTTPException, because FastAPI lets nothing else out of reading a body."""

    def __init__(self, limit: int) -> None:
        super().__init__(413, f"the request's body is too large; at most {limit:,} bytes are allowed here")


class RequestMiddleware:
    """ASGI middleware around the whole app.

    Args:
        app: what it wraps.
        limit: bytes that a body may have.
        limits: other limits for single paths.
    """

    def __init__(self, app: ASGIApp, limit: int, limits: dict[str, int]) -> None:
        self._app = app
        self._limit = limit
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else ids.new("req")
        scope.setdefault("state", {})["request_id"] = request_id
        structlog.contextvars.bind_contextvars(request=request_id)
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                out = MutableHeaders(scope=message)
                out["X-Request-Id"] = request_id
                out["X-Content-Type-Options"] = "nosniff"
                rate = scope["state"].get("rate")
                if rate is not None:
                    out.update(rate.headers())
            await send(message)

        try:
            await self._limited(scope, headers, receive, answer)
        except Exception:
            log.exception("a request failed", action="request_failed", path=scope["path"])
            if status:
                raise  # half an answer is out: the connection must break, so that it is not taken for a whole one
            request = Request(scope)
            await problems.problem(request, 500, problems.INTERNAL_ERROR)(scope, receive, answer)
        finally:
            # The template (as the schema shows it, without converters): a stranger's paths must not become labels.
            route = getattr(scope.get("route"), "path_format", "")
            method = scope["method"] if scope["method"] in METHODS else ""
            metrics.REQUEST_SECONDS.labels(method, route, status).observe(time.perf_counter() - started)
            if scope["path"] not in QUIET or status >= 400:
                key = scope["state"].get("key")
                log.info(
                    "request",
                    action="request",
                    method=scope["method"],
                    path=scope["path"],
                    status=status,
                    seconds=round(time.perf_counter() - started, 4),
                    key=None if key is None else key.id,
                )
            structlog.contextvars.unbind_contextvars("request", "tenant", "job")

    async def _limited(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        limit = self._limits.get(scope["path"], self._limit)
        declared = headers.get("content-length", "")
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > limit:
                    await _drain(receive, message.get("more_body", False))
                    raise BodyTooLarge(limit)
            return message

        if declared.isdecimal() and (len(declared) > 18 or int(declared) > limit):
            # a client that still sends would see a broken connection instead of the answer
            if "expect" not in headers and len(declared) <= 18 and int(declared) <= DRAIN_BYTES:
                await _drain(receive, more=True)
            refused = BodyTooLarge(limit)
            answer = problems.problem(Request(scope), 413, str(refused.detail), headers={"Connection": "close"})
            await answer(scope, receive, send)
            return
        await self._app(scope, counted, send)


async def _drain(receive: Receive, more: bool) -> None:
    """Let the rest of a refused body pass, within limits."""
    passed = 0
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            while more and passed < DRAIN_BYTES:
                message = await receive()
                passed += len(message.get("body", b""))
                more = message["type"] == "http.request" and message.get("more_body", False)
    except TimeoutError:
        pass
