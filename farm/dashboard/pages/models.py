"""Models: what there is to render with, where it is loaded, pausing, adding and removing one."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Form, Request, Response
from pydantic import ValidationError

from farm.api.dependencies import Context
from farm.dashboard.rendering import HOME, CurrentUser, Link, PageRoute, render, see
from farm.domain.model import ModelEntry
from farm.domain.worker import WorkerState
from farm.errors import BadInput, FieldProblem
from farm.services import models as services
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
        unready=services.unready(context) if user.has_scope(Scope.OPERATE, Scope.ADMIN) else (),
        declared={model.id for model in context.registry.models if context.models.declares(model.id)},
        loaded=loaded,
        stopped=stopped.models,
        held=held,
    )


@router.post("/add")
def add(
    context: Context,
    user: CurrentUser,
    model: Annotated[str, Form(max_length=200)],
    source: Annotated[str, Form(max_length=1000)],
    config: Annotated[str, Form(max_length=1000)] = "",
) -> Response:
    """Add a model that the workers can reach; one of them checks it."""
    user.require(Scope.ADMIN)
    try:
        entry = ModelEntry(id=model, source=source, config=config or None)
    except ValidationError as error:
        raise BadInput(
            *(FieldProblem(".".join(map(str, one["loc"])), one["input"], one["msg"]) for one in error.errors())
        ) from error
    services.add(context, entry)
    return see(PATH, f"Model {model} is added. A worker checks it before jobs may name it.")


@router.post("/remove")
def remove(context: Context, user: CurrentUser, model: Annotated[str, Form(max_length=200)]) -> Response:
    """Let no new job name this model."""
    user.require(Scope.ADMIN)
    services.remove(context, model)
    return see(PATH, f"Model {model} is removed. Jobs that were accepted before still end with it.")


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
