"""Numerics classes: workers whose exact outputs have the same bits."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter

from farm.api.auth import Reader
from farm.api.dependencies import Context
from farm.api.problems import ALWAYS, responses
from farm.api.route import AuthenticatedRoute
from farm.api.schemas import NumericsList, NumericsWorkersSchema

router: Final = APIRouter(prefix="/v1/numerics", tags=["workers"], route_class=AuthenticatedRoute)


@router.get("", summary="List numerics classes", responses=responses(*ALWAYS))
def list_numerics(context: Context, _: Reader) -> NumericsList:
    """Every numerics class that a worker ever had, oldest first, with its facts and the workers that have it now."""
    with context.store.begin() as unit:
        return NumericsList(data=[NumericsWorkersSchema.of(one) for one in unit.numerics.all()])
