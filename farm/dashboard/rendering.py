"""The response of every page: a template, strict headers, and errors in plain words.

A page module has a ``router`` of `PageRoute`s and, if the navigation shows it, a ``LINK``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import quote, unquote

from fastapi import Depends, Form, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.routing import APIRoute
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from farm.api import problems
from farm.api.dependencies import AppContext
from farm.api.route import record
from farm.dashboard import filters, session
from farm.dashboard.session import User
from farm.domain.waiting import paused_sentence
from farm.errors import BadInput, FarmError, Forbidden, NotFound, ScopeMissing, Unauthorized, Unavailable
from farm.store.tenants import Scope

HOME: Final = "/farm"
LOGIN: Final = "/farm/login"
NOTE: Final = "farm_note"  #: the cookie that carries what an action did to the next page
STATIC: Final = "/farm/static"
IMAGES: Final = f"{HOME}/images"
MAX_PAUSES: Final = 5  #: that a page lists
ASSETS: Final = Path(__file__).with_name("static")

#: No script but our own files, no style but our own sheet, no media but what comes through here; nobody frames it.
HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; media-src 'self'; "
        "connect-src 'self'; font-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass(frozen=True)
class Link:
    """A page's place in the navigation."""

    group: str  #: the heading it stands under, see `GROUPS`
    label: str
    path: str
    order: int  #: within its group
    scopes: tuple[Scope, ...] = ()  #: one of these is needed to see it; empty: everybody sees it


#: The navigation's headings, from top to bottom.
GROUPS: Final = ("Farm", "Work", "Settings")

LINKS: Final[list[Link]] = []  #: filled by `farm.dashboard.pages`


def _asset(name: str) -> str:
    """The address of a static file, with its version: a new release is never met with an old file."""
    return f"{STATIC}/{name}?v={_version(name)}"


def _version(name: str) -> str:
    if name not in _VERSIONS:
        _VERSIONS[name] = hashlib.sha256((ASSETS / name).read_bytes()).hexdigest()[:12]
    return _VERSIONS[name]


_VERSIONS: dict[str, str] = {}


def _environment() -> Environment:
    found = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.globals["asset"] = _asset
    found.filters.update(filters.FILTERS)
    return found


TEMPLATES: Final = _environment()


def render(
    request: Request, template: str, *, status: int = 200, headers: dict[str, str] | None = None, **values: Any
) -> HTMLResponse:
    """A page, or a part of one: ``visitor``, the navigation and a note from the last action come by themselves."""
    user: User | None = getattr(request.state, "user", None)
    # a part of a page, which htmx asks for, leaves the note to the next whole page
    noted = NOTE in request.cookies and "hx-request" not in request.headers
    text = TEMPLATES.get_template(template).render(
        user=user,
        navigation=_navigation(request.url.path, user),
        path=request.url.path,
        flower=request.app.state.context.settings.flower_url,
        server_problems=_server_problems(request, user),
        pauses=getattr(request.state, "pauses", ()),
        note=unquote(request.cookies[NOTE])[:500] if noted else "",
        **values,
    )
    response = HTMLResponse(text, status_code=status, headers={**HEADERS, **(headers or {})})
    if noted:
        response.delete_cookie(NOTE, path=HOME)
    return response


def _server_problems(request: Request, user: User | None) -> Mapping[str, str]:
    """What is wrong with the farm's servers: for operators, who can do something about it."""
    if user is None or not user.has_scope(Scope.OPERATE, Scope.ADMIN):
        return {}
    context: AppContext = request.app.state.context
    return context.health.problems


def _navigation(path: str, user: User | None) -> list[tuple[str, list[tuple[Link, bool]]]]:
    """The links that the visitor may follow, by group, and which of them is open."""
    if user is None:
        return []
    shown = [link for link in LINKS if not link.scopes or user.has_scope(*link.scopes)]
    under = [link for link in shown if path == link.path or path.startswith(f"{link.path}/")]
    here = max(under, key=lambda link: len(link.path), default=None)
    groups = []
    for group in GROUPS:
        links = sorted((link for link in shown if link.group == group), key=lambda link: link.order)
        if links:
            groups.append((group, [(link, link is here) for link in links]))
    return groups


def see(path: str, note: str = "") -> RedirectResponse:
    """The answer to a form: look at that page, which tells in a sentence what was done."""
    response = RedirectResponse(path, status_code=303)
    if note:
        response.set_cookie(NOTE, quote(note), max_age=60, path=HOME, httponly=True, samesite="strict")
    return response


class PageRoute(APIRoute):
    """A route whose visitor is known first, whose changes come from our own pages, and whose errors are pages."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, wrapped."""
        handle = super().get_route_handler()

        async def answered(request: Request) -> Response:
            try:
                if request.method not in ("GET", "HEAD"):
                    session.same_site(request)
                if not self.path.startswith(LOGIN):
                    context: AppContext = request.app.state.context
                    request.state.user, request.state.pauses = await run_in_threadpool(_visit, context, request)
                    request.state.key = request.state.user.key  # for the log
                    if not self.path.endswith("/logout"):
                        request.state.user.require(Scope.READ, Scope.OPERATE, Scope.ADMIN)
                response = await handle(request)
            except Unauthorized:
                return _to_login(request)
            except (FarmError, HTTPException, RequestValidationError) as error:
                return _mistake(request, error)
            await _record(request, self.path_format, response)
            return response

        return answered


def _visit(context: AppContext, request: Request) -> tuple[User, tuple[str, ...]]:
    """Who looks, and what is paused of what they see, a sentence each. Raises `Unauthorized`."""
    with context.store.look() as unit:
        user = session.current_user(unit, request)
        if request.method != "GET" or request.url.path.startswith(IMAGES):
            return user, ()
        paused = unit.pauses.details()
        tenants = {one: pause for one, pause in paused.tenants.items() if user.tenant in (None, one)}
        names = unit.tenants.names(list(tenants)[:MAX_PAUSES]) if tenants else {}
    found = [] if paused.farm is None else [paused_sentence("the farm", paused.farm)]
    found += [paused_sentence(f"the model {model}", pause) for model, pause in sorted(paused.models.items())]
    found += [paused_sentence(f"the tenant {name}", tenants[one]) for one, name in names.items()]
    more = len(paused.models) + len(tenants) + (paused.farm is not None) - MAX_PAUSES
    rest = [filters.plural(more, "more pause") + " of models and tenants"] if more > 0 else []
    return user, (*found[:MAX_PAUSES], *rest)


async def _record(request: Request, path: str, response: Response) -> None:
    """Put what a form changed into the audit log; a page that only asks for confirmation is no change."""
    if request.method in ("GET", "HEAD") or response.status_code >= HTTPStatus.BAD_REQUEST:
        return
    sent = getattr(request, "_form", None)  # what the handler has read
    form = {name: [one for one in sent.getlist(name) if isinstance(one, str)] for name in sent} if sent else {}
    if response.status_code != HTTPStatus.OK or form.get("sure") == ["1"] or not form:
        await record(request, path, form)


def _to_login(request: Request) -> Response:
    there = LOGIN
    if request.method == "GET" and request.url.path != HOME:
        asked = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        there += f"?next={quote(asked)}"
    if request.headers.get("hx-request"):
        # a part of a page cannot be a login form: the browser goes there itself
        return Response(status_code=204, headers={"HX-Redirect": LOGIN})
    return RedirectResponse(there, status_code=303)


def _mistake(request: Request, error: Exception) -> Response:
    sentences: list[str]
    if isinstance(error, BadInput):
        status, sentences = 422, [f"{one.field}: {one.message}" for one in error.problems[:20]]
    elif isinstance(error, RequestValidationError):
        status, sentences = 422, [f"{one['loc'][-1]}: {one['msg']}" for one in error.errors()[:20]]
    elif isinstance(error, FarmError):
        status = problems.of_error(request, error).status_code
        sentences = [problems.UNAVAILABLE]
        if not isinstance(error, Unavailable):
            sentences = [str(error)]
    else:
        assert isinstance(error, HTTPException)
        status, sentences = error.status_code, [str(error.detail)]
    title = problems.title_of(status)
    if isinstance(error, ScopeMissing):
        title = f"Missing scope: {' or '.join(error.scopes)}"
        sentences.append("Sign in with another key.")
    return render(request, "error.html", status=status, title=title, sentences=sentences)


# -- what pages ask for ----------------------------------------------------------------------------------------------


async def _current_user(request: Request) -> User:
    user: User = request.state.user
    return user


CurrentUser = Annotated[User, Depends(_current_user)]
Ids = Annotated[list[str], Form()]

__all__ = [
    "GROUPS",
    "HOME",
    "LINKS",
    "CurrentUser",
    "Forbidden",
    "Ids",
    "Link",
    "NotFound",
    "PageRoute",
    "render",
    "see",
]
