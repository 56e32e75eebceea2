"""What all adapters share: who calls, what a request holds, and every error in the shape that the client expects."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any, Final, cast

import structlog
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from farm.api import problems
from farm.api.auth import count
from farm.api.dependencies import AppContext
from farm.api.query import check_names
from farm.api.route import read_json
from farm.domain.model import Model
from farm.errors import (
    BadInput,
    Conflict,
    DiskFull,
    FarmError,
    FieldProblem,
    Forbidden,
    NotFound,
    QuotaExceeded,
    ScopeMissing,
    Unauthorized,
    Unavailable,
)
from farm.services import validation
from farm.store.tenants import Key, Scope

log = structlog.get_logger(__name__)

CLIENT_GONE: Final = 499  #: logged for a request whose client disconnected; nobody reads the response


@dataclass(frozen=True)
class ErrorInfo:
    """Why a request got no result, before it takes a dialect's shape."""

    status: int
    code: str  #: stable, for programs
    message: str  #: one sentence, for people
    field: str | None = None  #: as the client calls it
    problems: tuple[FieldProblem, ...] = ()  #: all that is wrong with the fields
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)


class AdapterError(FarmError):
    """A request that an adapter refuses with a status of its own."""

    def __init__(self, status: int, code: str, message: str, field: str | None = None) -> None:
        self.info = ErrorInfo(status, code, message, field)
        super().__init__(message)


@dataclass(frozen=True)
class AdapterCall:
    """One request by a known caller."""

    context: AppContext
    key: Key
    request: Request

    @property
    def tenant_id(self) -> str:
        """Whose request it is."""
        return self.key.tenant_id

    def path(self, name: str) -> str:
        """A part of the path."""
        return str(self.request.path_params[name])

    @property
    def base(self) -> str:
        """The adapter's own URL as the client wrote it, without a slash at the end."""
        url = self.request.url
        return f"{url.scheme}://{url.netloc}{self.request.scope['root_path']}"

    def model(self, name: str) -> Model | None:
        """The model of that name, or the one that the tenant calls so; blocks for a name that is not a model's."""
        found = self.context.registry.get(name)
        if found is None:
            found = self.context.registry.get(self.aliases().get(name, ""))
        return found

    def aliases(self) -> Mapping[str, str]:
        """The tenant's other names of models, to their ids; blocks."""
        with self.context.store.look() as unit:
            return unit.tenants.model_aliases(self.tenant_id)

    async def json(self) -> dict[str, Any]:
        """The body, which is a JSON object. Raises `BadInput` and `problems.UnreadableBody`."""
        found = await read_json(await self.request.body() or b"null")
        if not isinstance(found, dict):
            raise BadInput.of("body", found, "must be a JSON object")
        return found


#: Answers a call: a coroutine, or a plain function, which then runs in a thread.
Handler = Callable[[AdapterCall], Response | Awaitable[Response]]


@dataclass(frozen=True)
class Operation:
    """One thing that an adapter can do."""

    method: str
    path: str
    scopes: frozenset[Scope]  #: any of them lets a key in; none: the handler checks by itself
    handler: Handler
    query: frozenset[str] = frozenset()  #: the query parameters that it has


def reads(path: str, handler: Handler, *query: str, method: str = "GET") -> Operation:
    """A request for keys that may read, with those query parameters."""
    return Operation(method, path, frozenset({Scope.READ}), handler, frozenset(query))


def submits(path: str, handler: Handler, method: str = "POST", query: Collection[str] = ()) -> Operation:
    """A request that makes or stops jobs."""
    return Operation(method, path, frozenset({Scope.SUBMIT}), handler, frozenset(query))


@dataclass(frozen=True)
class Adapter:
    """How one foreign API names its callers and its errors."""

    name: str
    credentials: Callable[[Request], str | None]  #: the API key that a request carries
    ask: str  #: the sentence for who sends none
    body: Callable[[ErrorInfo, Request], Mapping[str, Any]]
    conflict: int = HTTPStatus.CONFLICT  #: some clients send a 409 again by themselves
    invalid: int = HTTPStatus.UNPROCESSABLE_ENTITY
    challenge: str = 'Bearer realm="farm"'

    def answer(self, info: ErrorInfo, request: Request) -> Response:
        """The answer that refuses a request."""
        shown = replace(info, message=validation.encodable(info.message))
        return JSONResponse(self.body(shown, request), shown.status, headers=dict(shown.headers))

    def error_info(self, error: FarmError) -> ErrorInfo:
        """What one of the farm's own errors means to a client. Raises it again if it is no client's business."""
        match error:
            case AdapterError():
                return error.info
            case BadInput():
                first = error.problems[0]
                line = "" if first.line is None else f"line {first.line}: "
                more = "" if len(error.problems) == 1 else f" (and {len(error.problems) - 1} more)"
                value = "" if first.value is None else f" (given: {validation.shown(first.value)})"
                return ErrorInfo(
                    self.invalid,
                    "invalid_value",
                    f"{line}{first.field}: {first.message}{value}{more}",
                    first.field,
                    error.problems,
                )
            case Unauthorized():
                return ErrorInfo(401, "invalid_api_key", str(error), headers={"WWW-Authenticate": self.challenge})
            case Forbidden():
                return ErrorInfo(403, "forbidden", str(error))
            case NotFound():
                return ErrorInfo(404, "not_found", str(error))
            case Conflict():
                return ErrorInfo(self.conflict, "conflict", str(error))
            case QuotaExceeded():
                retry = {"Retry-After": problems.retry_after(error)}
                return ErrorInfo(429, "quota_exceeded", str(error), headers=retry)
            case Unavailable():
                log.warning("a server does not answer", action="server_unavailable", error=str(error))
                retry = {"Retry-After": str(problems.RETRY_SECONDS)}
                return ErrorInfo(503, "unavailable", problems.UNAVAILABLE, headers=retry)
            case DiskFull():
                return ErrorInfo(507, "insufficient_storage", str(error), headers={"Retry-After": "2"})
            case _:
                raise error


def bearer(request: Request, *schemes: str) -> str | None:
    """What stands behind one of those schemes (`Bearer` if none is named) in ``Authorization``."""
    scheme, _, text = request.headers.get("authorization", "").strip().partition(" ")
    taken = schemes or ("bearer",)
    return text.strip() if scheme.lower() in taken and text.strip() else None


def application(
    main: FastAPI,
    adapter: Adapter,
    operations: Sequence[Operation],
    unkeyed: Mapping[str, Callable[[AppContext, Request], Response]] | None = None,
) -> Starlette:
    """An adapter's app: every request is admitted first, and every error leaves in the dialect's shape.

    ``unkeyed``: GETs by path that need no key, because their URLs are signed.
    """

    def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        status = error.status_code
        message = str(error.detail)
        if status == HTTPStatus.NOT_FOUND:
            message = f"{request.method} {request.url.path} is not a part of the {adapter.name} API that the farm has"
        elif status == HTTPStatus.METHOD_NOT_ALLOWED:
            message = f"{request.method} is not allowed here"
        if isinstance(error, problems.UnreadableBody):
            status = adapter.invalid
        code = HTTPStatus(status).phrase.lower().replace(" ", "_")
        return adapter.answer(ErrorInfo(status, code, message, headers=dict(error.headers or {})), request)

    def endpoint(operation: Operation) -> Callable[[Request], Awaitable[Response]]:
        handler = operation.handler

        async def handled(request: Request) -> Response:
            context = cast("AppContext", main.state.context)
            try:
                key = await run_in_threadpool(_admit, context, adapter, operation, request)
                request.state.key = key
                structlog.contextvars.bind_contextvars(tenant=key.tenant_id)
                check_names(request, operation.query)
                call = AdapterCall(context, key, request)
                if inspect.iscoroutinefunction(handler):
                    return cast("Response", await handler(call))
                return cast("Response", await run_in_threadpool(handler, call))
            except FarmError as error:
                return adapter.answer(adapter.error_info(error), request)
            except ClientDisconnect:
                return Response(status_code=CLIENT_GONE)
            except HTTPException:
                raise
            except Exception as error:
                full = problems.disk_full(error)
                if full is not None:
                    return adapter.answer(adapter.error_info(full), request)
                asked = getattr(request.state, "request_id", None)
                log.exception("a request failed", action="request_failed", request=asked, path=request.url.path)
                info = ErrorInfo(500, "internal_error", problems.INTERNAL_ERROR)
                return adapter.answer(info, request)

        return handled

    def signed(handler: Callable[[AppContext, Request], Response]) -> Callable[[Request], Awaitable[Response]]:
        async def handled(request: Request) -> Response:
            try:
                return await run_in_threadpool(handler, cast("AppContext", main.state.context), request)
            except FarmError as error:
                return adapter.answer(adapter.error_info(error), request)

        return handled

    routes = [Route(one.path, endpoint(one), methods=[one.method]) for one in operations]
    routes += [Route(path, signed(handler), methods=["GET"]) for path, handler in (unkeyed or {}).items()]
    made = Starlette(routes=routes, exception_handlers={HTTPException: refused})
    made.router.redirect_slashes = False
    return made


def _admit(context: AppContext, adapter: Adapter, operation: Operation, request: Request) -> Key:
    text = adapter.credentials(request)
    if text is None:
        raise Unauthorized(adapter.ask)
    with context.store.begin() as unit:
        key = unit.tenants.authenticate(text)
    count(context, key, request)
    if operation.scopes and key.scopes.isdisjoint(operation.scopes):
        raise ScopeMissing(*sorted(operation.scopes))
    return key


# -- what clients send besides ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ForeignParameter:
    """A parameter that the farm does not have, and the values of it that ask for nothing."""

    allowed: tuple[object, ...]
    reason: str  #: why any other is refused

    def allows(self, value: object) -> bool:
        """Whether the value asks for nothing."""
        return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in (None, *self.allowed))


#: A parameter that means nothing here, whatever it says.
IGNORED: Final = None


def drop_unsupported(given: dict[str, Any], moot: Mapping[str, ForeignParameter | None]) -> list[FieldProblem]:
    """Take out of a request what asks for nothing; returns what asks for something that the farm cannot do."""
    found: list[FieldProblem] = []
    for name, rule in moot.items():
        if name in given:
            value = given.pop(name)
            if rule is not None and not rule.allows(value):
                found.append(FieldProblem(name, value, rule.reason))
    return found
