"""Signing in with an API key, and out again."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Form, Query, Request, Response
from fastapi.responses import RedirectResponse

from farm.api.dependencies import Context
from farm.dashboard import session
from farm.dashboard.rendering import HOME, LOGIN, PageRoute, render
from farm.errors import Unauthorized

router: Final = APIRouter(prefix=HOME, include_in_schema=False, route_class=PageRoute)


def _inside(path: str) -> str:
    """The path, if it is one of our pages; else the first page. Never a URL of another site."""
    place = path.partition("?")[0]
    inside = place.startswith(f"{HOME}/") and "\\" not in path and "//" not in place and path.isprintable()
    return path if inside else HOME


@router.get("/login")
def form(request: Request, there: Annotated[str, Query(alias="next", max_length=2000)] = HOME) -> Response:
    """The form."""
    return render(request, "login.html", there=_inside(there), problem="")


@router.post("/login")
def sign_in(
    request: Request,
    context: Context,
    api_key: Annotated[str, Form(max_length=300)] = "",
    there: Annotated[str, Form(alias="next", max_length=2000)] = HOME,
) -> Response:
    """Begin a session."""
    try:
        with context.store.begin() as unit:
            key = unit.tenants.authenticate(api_key.strip())
            text = unit.sessions.begin(key.id, session.SECONDS)
    except Unauthorized as refused:
        return render(request, "login.html", status=401, there=_inside(there), problem=str(refused))
    response = RedirectResponse(_inside(there), status_code=303)
    session.begin(response, text, secure=request.url.scheme == "https")
    return response


@router.post("/logout")
def sign_out(request: Request, context: Context) -> Response:
    """End the session, for every copy of its cookie."""
    with context.store.begin() as unit:
        unit.sessions.end(request.cookies.get(session.COOKIE, ""))
    response = RedirectResponse(LOGIN, status_code=303)
    session.end(response)
    return response
