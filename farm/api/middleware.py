"""The outermost layer: a request id, one line of log, and an answer to every unexpected error."""

from __future__ import annotations

import re
import time
from typing import Final

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from farm import metrics
from farm.api import problems
from farm.domain import ids

log = structlog.get_logger(__name__)

_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
#: Requested every few seconds; logged only when they fail.
QUIET: Final = frozenset({"/healthz", "/readyz", "/farm/alive"})
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class RequestMiddleware:
    """ASGI middleware around the whole app.

    Args:
        app: what it wraps.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

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
        app = scope["app"]  # an app that is mounted in this one puts itself there

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
                if app.state.stopping:
                    out["Connection"] = "close"  # the next request goes to a process that stays
            await send(message)

        try:
            await self._app(scope, receive, answer)
        except Exception as error:
            full = problems.disk_full(error)
            if full is not None and not status:
                await problems.of_error(Request(scope), full)(scope, receive, answer)
                return
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
