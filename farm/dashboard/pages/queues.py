"""Queues: the waiting jobs of each queue, and its jobs at workers."""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter, Request, Response

from farm.api.dependencies import AppContext, Context
from farm.dashboard.rendering import HOME, CurrentUser, Link, PageRoute, render
from farm.dashboard.session import User
from farm.domain.waiting import FarmSnapshot, WaitingJob, waiting_reason
from farm.services import waiting
from farm.store.dashboard_queries import MAX_QUEUES, QueueSummary

PATH: Final = f"{HOME}/queues"
LINK: Final = Link("Farm", "Queues", PATH, 5)
router: Final = APIRouter(prefix=PATH, include_in_schema=False, route_class=PageRoute)


@router.get("")
def queues(request: Request, context: Context, user: CurrentUser) -> Response:
    """The page."""
    return render(request, "queues.html", **_now(context, user))


@router.get("/now")
def now(request: Request, context: Context, user: CurrentUser) -> Response:
    """The queues as they are now."""
    return render(request, "queues_now.html", **_now(context, user))


def _now(context: AppContext, user: User) -> dict[str, Any]:
    with context.store.begin() as unit:
        queues = unit.dashboard_queries.queues(user.tenant)
        queue = unit.dashboard_queries.queue_totals(user.tenant)
        estimator = unit.activity.estimator()
        farm = waiting.snapshot(unit, context.registry)
        names = unit.dashboard_queries.tenant_names([one.tenant_id for one in queues]) if user.is_operator else {}
    return {
        "queues": queues,
        "reasons": [_reason(one, farm) for one in queues],
        "most": MAX_QUEUES,
        "queue": queue,
        "held": sum(one.held for one in queues),
        "seconds": estimator.seconds(queue.costs),
        "names": names,
    }


def _reason(queue: QueueSummary, farm: FarmSnapshot) -> str | None:
    """What blocks the queue's jobs that are due."""
    if not queue.waiting:
        return None
    job = WaitingJob(queue.tenant_id, queue.model, queue.priority, farm.now, numerics=queue.numerics_class)
    return waiting_reason(job, farm)
