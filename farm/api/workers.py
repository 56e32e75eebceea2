"""Workers: who renders."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter

from farm.api.auth import Reader
from farm.api.problems import ALWAYS, responses
from farm.api.route import Guarded
from farm.api.services import Farm
from farm.api.shapes import WorkerList, WorkerShape

router: Final = APIRouter(prefix="/v1/workers", tags=["workers"], route_class=Guarded)


@router.get("", summary="List workers", responses=responses(*ALWAYS))
def list_workers(farm: Farm, _: Reader) -> WorkerList:
    """Every worker that ever joined, with its card, what it holds and when it was last heard of."""
    with farm.store.begin() as unit:
        return WorkerList(data=[WorkerShape.of(worker) for worker in unit.workers.all()])
