"""What happens before FastAPI reads a body: the key is checked, the content type too, and JSON is read strictly."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Iterator, Mapping
from email.message import Message
from http import HTTPStatus
from typing import Any, Final, NoReturn

import structlog
from fastapi import Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from farm.api.auth import RequireScope
from farm.api.problems import UnreadableBody
from farm.domain import ids
from farm.services import audit

INLINE_BYTES: Final = 64 * 2**10  #: parsed on the event loop; what is larger is parsed by a thread
MAX_DEPTH: Final = 64  #: lists and objects inside each other


class StrictRequest(Request):
    """A request whose JSON is JSON: no NaN, no Infinity, no broken UTF-8, no nesting that exhausts the parser."""

    async def json(self) -> Any:
        """The body. Raises `UnreadableBody`."""
        if not hasattr(self, "_strict"):
            self._strict = await read_json(await self.body())
        return self._strict


async def read_json(body: bytes) -> Any:
    """`parse_json`, in a thread if the body is large."""
    return parse_json(body) if len(body) <= INLINE_BYTES else await run_in_threadpool(parse_json, body)


def parse_json(body: bytes) -> Any:
    """A body as JSON, read strictly. Raises `UnreadableBody`."""
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise UnreadableBody("the body is not valid UTF-8", f"byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise UnreadableBody(f"the body is not valid JSON: {error.msg} at character {error.pos}") from error
    except RecursionError as error:
        raise UnreadableBody("the body is nested too deeply") from error
    except ValueError as error:  # an integer of thousands of digits
        raise UnreadableBody("the body holds a number with too many digits") from error
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH and _deeper(value):
        raise UnreadableBody(f"the body is nested too deeply: at most {MAX_DEPTH} levels are allowed")
    return value


def _deeper(value: object) -> bool:
    """Whether lists and objects are nested more than `MAX_DEPTH` levels deep."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        inner: list[object] = []
        for one in level:
            if isinstance(one, dict):
                inner += one.values()
            elif isinstance(one, list):
                inner += one
        level = [one for one in inner if isinstance(one, (dict, list))]
        if not level:
            return False
    return True


def _no_constant(name: str) -> NoReturn:
    raise UnreadableBody(f"the body is not valid JSON: {name} is not a JSON value", name)


class AuthenticatedRoute(APIRoute):
    """A route that admits first and reads second: a stranger's megabytes are not even received."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, wrapped."""
        handle = super().get_route_handler()
        guards = tuple(_guards(self.dependant))
        takes_json = self.body_field is not None

        async def guarded(request: Request) -> Response:
            for guard in guards:
                await run_in_threadpool(guard.admit, request)
                structlog.contextvars.bind_contextvars(tenant=request.state.key.tenant_id)
            if ids.is_id(ids.JOB, job := request.path_params.get("job_id", "")):
                structlog.contextvars.bind_contextvars(job=job)
            if takes_json:
                _must_be_json(request)
            response = await handle(StrictRequest(request.scope, request.receive))
            if request.method in audit.CHANGES and response.status_code < HTTPStatus.BAD_REQUEST:
                await record(request, self.path_format, {})
            return response

        return guarded


async def record(request: Request, path: str, form: Mapping[str, list[str]]) -> None:
    """Put a change that was made into the audit log, unless requests of that path are not recorded."""
    key = getattr(request.state, "key", None)
    if path in audit.NOT_RECORDED or key is None:
        return
    given = {name: request.query_params.getlist(name) for name in request.query_params} | dict(form)
    request_id = str(structlog.contextvars.get_contextvars().get("request", ""))
    params = {name: str(value) for name, value in request.path_params.items()}
    change = f"{request.method} {path}"
    await run_in_threadpool(audit.record, request.app.state.context, key, change, params, given, request_id)


def _guards(dependant: Dependant) -> Iterator[RequireScope]:
    for one in dependant.dependencies:
        if isinstance(one.call, RequireScope):
            yield one.call


def media_type(request: Request) -> str:
    """The declared content type without its parameters, in lower case; empty if there is none."""
    header = request.headers.get("content-type")
    if not header:
        return ""
    message = Message()
    message["content-type"] = header
    return message.get_content_type() if "/" in header else ""


def _must_be_json(request: Request) -> None:
    given = media_type(request)
    if given != "application/json" and not (given.startswith("application/") and given.endswith("+json")):
        raise HTTPException(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "send JSON, with `Content-Type: application/json`",
            headers={"Accept-Post": "application/json"},
        )
