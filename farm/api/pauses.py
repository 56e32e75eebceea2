"""Pauses: an operator stops the hand-overs of the whole farm, of a model or of a tenant, and lets them go on."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Path
from pydantic import Field

from farm.api.auth import Operator
from farm.api.dependencies import Farm, Services
from farm.api.problems import ALWAYS, responses
from farm.api.route import Guarded
from farm.api.schemas import Shape
from farm.domain import ids
from farm.errors import NotFound
from farm.store.events import QUEUE_CHANNEL
from farm.store.unit_of_work import Unit

router: Final = APIRouter(prefix="/v1/pauses", tags=["pauses"], route_class=Guarded)

ModelId = Annotated[str, Path(description="The model's id.", max_length=200)]
TenantId = Annotated[str, Path(description="The tenant's id.", json_schema_extra={"pattern": ids.pattern(ids.TENANT)})]


class PausesShape(Shape):
    """What is paused: nothing of it is handed over, and what workers hold already goes on to its end."""

    farm: bool
    models: list[str] = Field(description="Ids of paused models.")
    tenants: list[str] = Field(description="Ids of paused tenants.")


@router.get("", summary="Show what is paused", responses=responses(*ALWAYS))
def show_pauses(farm: Farm, _: Operator) -> PausesShape:
    """All pauses of the farm."""
    with farm.store.begin() as unit:
        return _now(unit)


@router.put("/farm", summary="Pause the farm", responses=responses(*ALWAYS))
def pause_farm(farm: Farm, _: Operator) -> PausesShape:
    """Hand nothing over from now on. Jobs are accepted and wait. Pausing again changes nothing."""
    with farm.store.begin() as unit:
        unit.pauses.pause()
        return _now(unit)


@router.delete("/farm", summary="Resume the farm", responses=responses(*ALWAYS))
def resume_farm(farm: Farm, _: Operator) -> PausesShape:
    """Hand jobs over again. A farm that is not paused stays as it is."""
    with farm.store.begin() as unit:
        unit.pauses.resume()
        return _resumed(unit)


@router.put("/models/{model_id:path}", summary="Pause a model", responses=responses(*ALWAYS, 404))
def pause_model(farm: Farm, _: Operator, model_id: ModelId) -> PausesShape:
    """Hand over no job of the model from now on."""
    _known(farm, model_id)
    with farm.store.begin() as unit:
        unit.pauses.pause(model_id)
        return _now(unit)


@router.delete("/models/{model_id:path}", summary="Resume a model", responses=responses(*ALWAYS, 404))
def resume_model(farm: Farm, _: Operator, model_id: ModelId) -> PausesShape:
    """Hand the model's jobs over again."""
    with farm.store.begin() as unit:
        # a model may have left the registry while it was paused
        if not unit.pauses.resume(model_id):
            _known(farm, model_id)
        return _resumed(unit)


@router.put("/tenants/{tenant_id}", summary="Pause a tenant", responses=responses(*ALWAYS, 404))
def pause_tenant(farm: Farm, _: Operator, tenant_id: TenantId) -> PausesShape:
    """Hand over no job of the tenant from now on. Its requests are answered as ever."""
    with farm.store.begin() as unit:
        if not ids.is_id(ids.TENANT, tenant_id) or not unit.tenants.pause(tenant_id):
            raise NotFound("tenant", tenant_id)
        return _now(unit)


@router.delete("/tenants/{tenant_id}", summary="Resume a tenant", responses=responses(*ALWAYS, 404))
def resume_tenant(farm: Farm, _: Operator, tenant_id: TenantId) -> PausesShape:
    """Hand the tenant's jobs over again."""
    with farm.store.begin() as unit:
        if not ids.is_id(ids.TENANT, tenant_id) or not unit.tenants.resume(tenant_id):
            raise NotFound("tenant", tenant_id)
        return _resumed(unit)


def _known(farm: Services, model_id: str) -> None:
    if farm.registry.get(model_id) is None:
        raise NotFound("model", model_id)


def _resumed(unit: Unit) -> PausesShape:
    unit.events.notify(QUEUE_CHANNEL)
    return _now(unit)


def _now(unit: Unit) -> PausesShape:
    stopped = unit.pauses.now()
    return PausesShape(farm=stopped.farm, models=sorted(stopped.models), tenants=list(stopped.tenants))
