"""Models: what there is to render with."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Path

from farm.api.auth import Reader
from farm.api.dependencies import AppContext, Context
from farm.api.problems import ALWAYS, responses
from farm.api.route import AuthenticatedRoute
from farm.api.schemas import ModelDetailsSchema, ModelList, ModelSchema
from farm.domain.model import Model
from farm.domain.worker import Worker, WorkerState
from farm.errors import NotFound

router: Final = APIRouter(prefix="/v1/models", tags=["models"], route_class=AuthenticatedRoute)


@router.get("", summary="List models", responses=responses(*ALWAYS))
def list_models(context: Context, _: Reader) -> ModelList:
    """Every model of the registry, with its limits and defaults, and the workers that have it loaded."""
    workers = _present(context)
    return ModelList(data=[ModelSchema.of(model, *_seen(model, workers)) for model in context.registry.models])


@router.get("/{model_id:path}", summary="Look at a model", responses=responses(*ALWAYS, 404))
def get_model(
    context: Context, _: Reader, model_id: Annotated[str, Path(description="The model's id.")]
) -> ModelDetailsSchema:
    """A model with the JSON Schema of what it takes for each of its tasks."""
    model = context.registry.get(model_id)
    if model is None:
        raise NotFound("model", model_id)
    return ModelDetailsSchema.of_details(model, *_seen(model, _present(context)))


def _present(context: AppContext) -> list[Worker]:
    with context.store.begin() as unit:
        return [worker for worker in unit.workers.all() if worker.state is not WorkerState.OFFLINE]


def _seen(model: Model, workers: list[Worker]) -> tuple[list[str], str | None]:
    """Who has the model in memory, and why its jobs do not share forwards, where a worker found that."""
    alone = (one.runs_alone for worker in workers for one in worker.loaded if one.model == model.id and one.runs_alone)
    return [worker.info.name for worker in workers if model.id in worker.models], next(alone, None)
