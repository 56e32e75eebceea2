"""Models: what there is to render with, where it is loaded, and stopping one."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Form, Request, Response

from farm.api.dependencies import Context
from farm.dashboard.rendering import HOME, CurrentUser, Link, PageRoute, render, see
from farm.domain.worker import WorkerState
from farm.services import pauses
from farm.store.tenants import Scope

PATH: Final = f"{HOME}/models"
LINK: Final = Link("Farm", "Models", PATH, 20)
router: Final = APIRouter(prefix=PATH, include_in_schema=False, route_class=PageRoute)


@router.get("")
def models(request: Request, context: Context, user: CurrentUser) -> Response:
    """The registry, and who has what in memory."""
    with context.store.begin() as unit:
        workers = [one for one in unit.workers.all() if one.state is not WorkerState.OFFLINE]
        stopped = unit.pauses.now()
        held = unit.dashboard_queries.held_jobs(user.tenant)
    loaded = {
        model.id: [one.info.name for one in workers if model.id in one.models] for model in context.registry.models
    }
    return render(
        request,
        "models.html",
        models=context.registry.models,
        problems=context.registry.problems if user.has_scope(Scope.OPERATE, Scope.ADMIN) else (),
        loaded=loaded,
        stopped=stopped.models,
        held=held,
    )


@router.post("/pause")
def pause(context: Context, user: CurrentUser, model: Annotated[str, Form(max_length=200)]) -> Response:
    """Dispatch no job of this model."""
    user.require(Scope.OPERATE, Scope.ADMIN)
    pauses.pause_model(context, model, user.key.name)
    return see(PATH, f"Model {model} is paused. Jobs at workers are finished; the others wait.")


@router.post("/resume")
def resume(context: Context, user: CurrentUser, model: Annotated[str, Form(max_length=200)]) -> Response:
    """Hand its jobs over again."""
    user.require(Scope.OPERATE, Scope.ADMIN)
    pauses.resume_model(context, model)
    return see(PATH, f"Model {model} is resumed.")
