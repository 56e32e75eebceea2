"""What open pages ask every two seconds: whether the farm answers, and what stands above every page."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, Request, Response

from farm.dashboard.rendering import HOME, PageRoute, render

router: Final = APIRouter(prefix=f"{HOME}/alive", include_in_schema=False, route_class=PageRoute)


@router.get("")
def alive(request: Request) -> Response:
    """The notices. That the visitor was looked up says that the database answers, too."""
    return render(request, "notices.html")
