"""Models: what there is to render with."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter

from farm.api.auth import Reader
from farm.api.dependencies import Context
from farm.api.problems import ALWAYS, responses
from farm.api.route import AuthenticatedRoute
from farm.api.schemas import ModelList, ModelSchema
from farm.domain.worker import WorkerState

router: Final = APIRouter(prefix="/v1/models", tags=["models"], route_class=AuthenticatedRoute)


@router.get("", summary="List models", responses=responses(*ALWAYS))
def list_models(context: Context, _: Reader) -> ModelList:
    """Every model of the registry, with its limits and defaults, and the workers that have it loaded."""
    with context.store.begin() as unit:
        workers = [worker for worker in unit.workers.all() if worker.state is not WorkerState.OFFLINE]
    return ModelList(
        data=[
            ModelSchema.of(
                model,
                [worker.info.name for worker in workers if model.id in worker.models],
                next(
                    (
                        one.runs_alone
                        for worker in workers
                        for one in worker.loaded
                        if one.model == model.id and one.runs_alone
                    ),
                    None,
                ),
            )
            for model in context.registry.models
        ]
    )
