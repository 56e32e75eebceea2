"""Audit log: which key changed what, and when; for operators."""

from __future__ import annotations

from typing import Annotated, Final
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response

from farm.api.dependencies import Context
from farm.dashboard.rendering import HOME, CurrentUser, Link, PageRoute, render
from farm.store.tenants import Scope

PATH: Final = f"{HOME}/audit"
LINK: Final = Link("Settings", "Audit log", PATH, 40, (Scope.OPERATE, Scope.ADMIN))
router: Final = APIRouter(prefix=PATH, include_in_schema=False, route_class=PageRoute)

PAGE: Final = 100
Text = Annotated[str, Query(max_length=200)]


@router.get("")
def audit(
    request: Request, context: Context, user: CurrentUser, key: Text = "", q: Text = "", cursor: Text = ""
) -> Response:
    """The changes, newest first."""
    user.require(Scope.OPERATE, Scope.ADMIN)
    key, q = (one.replace("\0", "").strip() for one in (key, q))
    with context.store.begin() as unit:
        found, following = unit.audit.page(key or None, q or None, cursor or None, PAGE)
        names = unit.tenants.names({one.tenant_id for one in found})
    query = urlencode({name: value for name, value in (("key", key), ("q", q)) if value})
    return render(
        request, "audit.html", entries=found, names=names, key=key, q=q, query=query, first=not cursor,
        following=following,
    )  # fmt: skip
