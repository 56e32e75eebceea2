"""Errors as the client sees them: RFC 9457 ``application/problem+json``, for every status that is not a success.

    Unauthorized 401 · Forbidden 403 · NotFound 404 · Conflict 409 · BadInput 422 · QuotaExceeded 429 · Unavailable 503
    DiskFull 507

A problem names the field as the client wrote it, the value that came and what is allowed. Values come from strangers,
so they are shortened and made encodable before they are sent back.
"""

from __future__ import annotations

import errno
import math
import tempfile
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.routing import Match

from farm.errors import (
    BadInput,
    BatchRefused,
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

log = structlog.get_logger(__name__)

MEDIA_TYPE: Final = "application/problem+json"
MAX_ERRORS: Final = 1_000  #: fields that one answer names
MAX_FIELD: Final = 200  #: characters of a field's name that are sent back
MAX_MESSAGE: Final = 2_000  #: characters of what is wrong with it
RETRY_SECONDS: Final = 2  #: what a client is asked to wait for when a server behind the API does not answer

_STATUS: Final[dict[type[FarmError], HTTPStatus]] = {
    Unauthorized: HTTPStatus.UNAUTHORIZED,
    Forbidden: HTTPStatus.FORBIDDEN,
    NotFound: HTTPStatus.NOT_FOUND,
    Conflict: HTTPStatus.CONFLICT,
    BadInput: HTTPStatus.UNPROCESSABLE_ENTITY,
    QuotaExceeded: HTTPStatus.TOO_MANY_REQUESTS,
    Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    DiskFull: HTTPStatus.INSUFFICIENT_STORAGE,
}

INTERNAL_ERROR: Final = "The server failed to answer this request; its log has the details under the request id."
UNAVAILABLE: Final = "A server that the API needs does not answer; try again soon."

#: The ``type`` and the title of each status.
_KINDS: Final[dict[int, tuple[str, str]]] = {
    400: ("bad-request", "Bad request"),
    401: ("unauthorized", "Unauthorized"),
    403: ("forbidden", "Forbidden"),
    404: ("not-found", "Not found"),
    405: ("method-not-allowed", "Method not allowed"),
    408: ("too-slow", "Request timeout"),
    409: ("conflict", "Conflict"),
    413: ("too-large", "Content too large"),
    415: ("unsupported-media-type", "Unsupported media type"),
    416: ("range-not-satisfiable", "Range not satisfiable"),
    422: ("invalid-request", "Unprocessable content"),
    429: ("quota-exceeded", "Too many requests"),
    500: ("internal-error", "Internal server error"),
    503: ("unavailable", "Service unavailable"),
    507: ("insufficient-storage", "Insufficient storage"),
}


def title_of(status: int) -> str:
    """The title of the problems with that status."""
    return _KINDS[status][1] if status in _KINDS else HTTPStatus(status).phrase


class FieldError(BaseModel):
    """An error of one field."""

    field: str = Field(description="Dotted path, as the client wrote it.")
    value: str | int | float | bool | None = Field(description="The given value, shortened.")
    message: str = Field(description="What is allowed.")
    line: int | None = Field(None, description="Of a bulk request: the line, or the place in the list, from 1.")


class Problem(BaseModel):
    """An error, by RFC 9457."""

    type: str = Field(description="A stable name of the kind of problem.")
    title: str
    status: int
    detail: str = Field(description="One sentence about this occurrence.")
    instance: str = Field(description="The path of the request.")
    request_id: str | None = Field(None, description="The `X-Request-Id` of the request, for the farm's operators.")
    errors: list[FieldError] | None = Field(None, description="Every invalid field; only with status 422.")
    error_count: int | None = Field(
        None, description="Of a bulk request: the number of errors, if not all are listed here."
    )
    error_file: str | None = Field(None, description="A URL that lists all errors as JSON lines, for a limited time.")


class UnreadableBody(HTTPException):
    """A body that cannot be read as what it claims to be. An HTTPException, because FastAPI lets nothing else out."""

    def __init__(self, message: str, value: str = "") -> None:
        super().__init__(HTTPStatus.UNPROCESSABLE_ENTITY, message)
        self.problem = FieldProblem("body", value, message)


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problems that an operation may answer with, for its OpenAPI entry."""
    return {
        status: {
            "description": title_of(status) + ".",
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status in sorted(statuses)
    }


#: What any operation that needs a key can answer with.
ALWAYS: Final = (401, 403, 422, 429, 503)


def problem(
    request: Request,
    status: int,
    detail: str,
    *,
    title: str | None = None,
    errors: Sequence[FieldProblem] = (),
    error_count: int | None = None,
    error_file: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """The answer that reports a problem."""
    kind = _KINDS[status][0] if status in _KINDS else "http-error"
    body = Problem(
        type=f"urn:farm:problem:{kind}",
        title=title or title_of(status),
        status=status,
        detail=validation.shortened(detail, MAX_MESSAGE),
        instance=validation.encodable(request.url.path)[:500],
        request_id=getattr(request.state, "request_id", None),
        error_count=error_count,
        error_file=error_file,
    ).model_dump(exclude_none=True)
    if errors:
        body["errors"] = [
            FieldError(
                field=validation.shortened(one.field, MAX_FIELD),
                value=validation.shown(one.value),
                message=validation.shortened(one.message, MAX_MESSAGE),
                line=one.line,
            ).model_dump(exclude=None if one.line is not None else {"line"})
            for one in errors[:MAX_ERRORS]
        ]
        if len(errors) > MAX_ERRORS:
            body.setdefault("error_count", len(errors))
    return JSONResponse(body, status_code=int(status), media_type=MEDIA_TYPE, headers=dict(headers or {}))


# -- handlers --------------------------------------------------------------------------------------------------------


def install(app: FastAPI) -> None:
    """Answer every error of the app with a problem."""
    app.add_exception_handler(FarmError, _farm_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)


def disk_full(error: BaseException) -> DiskFull | None:
    """The error for a client whose request found no room on this machine's disk; None for any other error."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        log.error("the disk for temporary files is full", action="disk_full", directory=tempfile.gettempdir())
        return DiskFull("the API's disk for temporary files is full; try again later")
    return None


def retry_after(error: QuotaExceeded | Unavailable | DiskFull) -> str:
    """How many seconds a client is asked to wait."""
    seconds = error.retry_after if isinstance(error, QuotaExceeded) else None
    return str(RETRY_SECONDS if seconds is None else max(1, math.ceil(seconds)))


def of_error(request: Request, error: FarmError) -> JSONResponse:
    """The answer to one of the farm's own errors."""
    status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), None)
    if status is None:
        raise error
    headers: dict[str, str] = {}
    match error:
        case Unauthorized():
            headers["WWW-Authenticate"] = 'Bearer realm="farm"'
            if "authorization" in request.headers:
                headers["WWW-Authenticate"] += ', error="invalid_token"'
        case Forbidden():
            headers["WWW-Authenticate"] = 'Bearer realm="farm", error="insufficient_scope"'
        case Unavailable() | QuotaExceeded() | DiskFull():
            headers["Retry-After"] = retry_after(error)
    if isinstance(error, Unavailable):
        log.warning(
            "a server does not answer",
            action="server_unavailable",
            error=str(error),
            cause=repr(error.__cause__)[:500],
        )
        # the cause may name hosts and keys of objects, which are not the client's business
        return problem(request, status, UNAVAILABLE, headers=headers)
    if isinstance(error, BatchRefused):
        more = error.count > len(error.problems)
        return problem(
            request,
            status,
            _sentence(error.problems, error.count),
            errors=error.problems,
            error_count=error.count if more else None,
            error_file=error.error_file,
        )
    if isinstance(error, BadInput):
        return problem(request, status, _sentence(error.problems), errors=error.problems, headers=headers)
    title = f"Missing scope: {' or '.join(error.scopes)}" if isinstance(error, ScopeMissing) else None
    return problem(request, status, str(error), title=title, headers=headers)


def _farm_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, FarmError)
    return of_error(request, error)


def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    detail = str(error.detail)
    if isinstance(error, UnreadableBody):
        return problem(request, error.status_code, detail, errors=[error.problem])
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(_allowed(request))
        detail = f"{request.method} is not allowed here; allowed: {headers['Allow']}"
    elif error.status_code == HTTPStatus.NOT_FOUND:
        detail = "the API has no such path; /docs lists its paths"
    return problem(request, error.status_code, detail, headers=headers)


def _allowed(request: Request) -> list[str]:
    """The methods of all routes at the request's path: the router knows only those of the first one."""
    methods: set[str] = set()
    for context in iter_route_contexts(request.app.routes):
        match, _ = context.matches(request.scope)
        if match is not Match.NONE:
            methods |= set(context.methods or ())
    return sorted(methods)


def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problems = [validation.problem_of(one) for one in error.errors()]
    return problem(request, HTTPStatus.UNPROCESSABLE_ENTITY, _sentence(problems), errors=problems)


def _sentence(problems: Sequence[FieldProblem], count: int | None = None) -> str:
    line = "" if problems[0].line is None else f"line {problems[0].line}: "
    first = f"{line}{problems[0].field}: {problems[0].message}"
    more = (len(problems) if count is None else count) - 1
    return first if more == 0 else f"{first} (and {more} more problem{'s' if more > 1 else ''}, see errors)"
