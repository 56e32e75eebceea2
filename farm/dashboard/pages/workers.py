"""Workers: who renders, on what, with which models in memory; drain, stop and resume."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Form, Query, Request, Response

from farm import lifecycle
from farm.api.dependencies import Context
from farm.dashboard.rendering import HOME, CurrentUser, Link, PageRoute, render, see
from farm.domain.worker import WorkerState
from farm.errors import NotFound
from farm.store.tenants import Scope

PATH: Final = f"{HOME}/workers"
LINK: Final = Link("Farm", "Workers", PATH, 10)
router: Final = APIRouter(prefix=PATH, include_in_schema=False, route_class=PageRoute)

HISTORY: Final = 40  #: jobs shown of a worker's past


@router.get("")
def workers(request: Request, context: Context, user: CurrentUser) -> Response:
    """All of them, those that are there first."""
    with context.store.begin() as unit:
        found = unit.workers.all()
        held = unit.dashboard_queries.held_jobs(user.tenant)
        moment = unit.now()
    found.sort(key=lambda one: (one.state is WorkerState.OFFLINE, one.info.name))
    return render(request, "workers.html", workers=found, held=held, moment=moment)


@router.get("/one")
def worker(
    request: Request, context: Context, user: CurrentUser, name: Annotated[str, Query(max_length=300)]
) -> Response:
    """One worker and the jobs it held last. Its name has a slash, so it is a parameter."""
    with context.store.begin() as unit:
        found = next((one for one in unit.workers.all() if one.info.name == name), None)
        if found is None:
            raise NotFound("worker", name)
        held = [one for one in unit.dashboard_queries.held_jobs(user.tenant) if one.worker == name]
        last = unit.dashboard_queries.recent_on_worker(name, HISTORY)
        jobs = [job for job in unit.jobs.many(last).values() if user.tenant in (None, job.tenant_id)]
    jobs.sort(key=lambda job: job.id, reverse=True)
    return render(request, "worker.html", worker=found, held=held, jobs=jobs)


@router.post("/drain")
def drain(context: Context, user: CurrentUser, name: Annotated[str, Form(max_length=300)]) -> Response:
    """Let it finish what it holds and give it nothing new."""
    user.require(Scope.OPERATE, Scope.ADMIN)
    with context.store.begin() as unit:
        lifecycle.drain_worker(unit, name, f"drained by the key {user.key.name!r}")
    return see(PATH, f"{name} finishes what it holds and gets nothing new.")


@router.post("/stop")
def stop(context: Context, user: CurrentUser, name: Annotated[str, Form(max_length=300)]) -> Response:
    """Drain it and end its process."""
    user.require(Scope.OPERATE, Scope.ADMIN)
    with context.store.begin() as unit:
        lifecycle.stop_worker(unit, name, f"stopped by the key {user.key.name!r}")
    return see(PATH, f"{name} finishes what is on its device and ends.")


@router.post("/resume")
def resume(context: Context, user: CurrentUser, name: Annotated[str, Form(max_length=300)]) -> Response:
    """Give it jobs again."""
    user.require(Scope.OPERATE, Scope.ADMIN)
    with context.store.begin() as unit:
        lifecycle.resume_worker(unit, name)
    return see(PATH, f"{name} gets jobs again.")
