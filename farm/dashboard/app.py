"""The farm's one HTTP app: the API under ``/v1``, the pages under ``/farm``."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import RedirectResponse
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from farm.api import app as api
from farm.api.body_limits import BodyLimit
from farm.dashboard import rendering
from farm.dashboard.pages import PAGES, new_batch
from farm.errors import NotFound
from farm.settings import Settings

LOGIN_BYTES: Final = 16 * 2**10
FOREVER: Final = "public, max-age=31536000, immutable"

root: Final = APIRouter(include_in_schema=False)


@root.get("/")
def home() -> RedirectResponse:
    """The way to the first page."""
    return RedirectResponse(rendering.HOME)


@root.get("/gallery")
@root.get("/studio")
def shortcut(request: Request) -> RedirectResponse:
    """The short addresses of pages that people type."""
    return RedirectResponse(rendering.HOME + request.url.path)


unknown: Final = APIRouter(include_in_schema=False, route_class=rendering.PageRoute)


@unknown.get(f"{rendering.HOME}/{{rest:path}}")
def unknown_page(rest: str) -> None:
    """What an address under ``/farm`` without a page is answered with. Raises `NotFound`."""
    raise NotFound("page", rest)


class Assets(StaticFiles):
    """Files that browsers keep: their addresses carry their version."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """One file."""
        response = await super().get_response(path, scope)
        if scope["query_string"] and response.status_code == 200:
            response.headers["Cache-Control"] = FOREVER
        return response


def create_app(settings: Settings) -> FastAPI:
    """The API with the pages beside it. Nothing is opened before the app starts."""
    limits = {
        rendering.LOGIN: BodyLimit(LOGIN_BYTES),
        new_batch.PATH: BodyLimit(settings.max_bulk_bytes, on_disk=True),
    }
    app = api.create_app(settings, limits)
    app.include_router(root)
    for module in PAGES:
        app.include_router(module.router)
    app.mount(rendering.STATIC, Assets(directory=rendering.ASSETS), name="static")
    app.include_router(unknown)
    return app
