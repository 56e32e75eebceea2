"""Queues: what waits, line by line, and what of it is at workers."""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter, Request, Response

from farm.api.dependencies import Farm, Services
from farm.dashboard.rendering import HOME, Link, PageRoute, Who, render
from farm.dashboard.session import Visitor
from farm.store.dashboard_queries import LINES

PATH: Final = f"{HOME}/queues"
LINK: Final = Link("Farm", "Queues", PATH, 5)
router: Final = APIRouter(prefix=PATH, include_in_schema=False, route_class=PageRoute)


@router.get("")
def queues(request: Request, farm: Farm, who: Who) -> Response:
    """The page."""
    return render(request, "queues.html", **_now(farm, who))


@router.get("/now")
def now(request: Request, farm: Farm, who: Who) -> Response:
    """The lines as they are now."""
    return render(request, "queues_now.html", **_now(farm, who))


def _now(farm: Services, who: Visitor) -> dict[str, Any]:
    with farm.store.begin() as unit:
        lines = unit.search.lines(who.tenant)
        queue = unit.search.queue(who.tenant)
        speed = unit.batches.speed()
        stopped = unit.pauses.now()
        names = unit.search.tenant_names([one.tenant_id for one in lines]) if who.operates else {}
    return {
        "lines": lines,
        "most": LINES,
        "queue": queue,
        "held": sum(one.held for one in lines),
        "seconds": queue.cost / speed if speed else None,
        "stopped": stopped,
        "names": names,
    }
