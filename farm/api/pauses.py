"""Pauses: an operator stops the hand-overs of the whole farm, of a model or of a tenant, and lets them go on."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Path
from pydantic import Field

from farm.api.auth import Operator
from farm.api.dependencies import AppContext, Context
from farm.api.problems import ALWAYS, responses
from farm.api.route import AuthenticatedRoute
from farm.api.schemas import Schema
from farm.domain import ids
from farm.errors import NotFound
from farm.store.events import QUEUE_CHANNEL
from farm.store.unit_of_work import UnitOfWork

router: Final = APIRouter(prefix="/v1/pauses", tags=["pauses"], route_class=AuthenticatedRoute)

ModelId = Annotated[str, Path(description="The model's id.", max_length=200)]
TenantId = Annotated[str, Path(description="The tenant's id.", json_schema_extra={"pattern": ids.pattern(ids.TENANT)})]


class PausesSchema(Schema):
    """What is paused: nothing of it is handed over, and what workers hold already goes on to its end."""

    farm: bool
    models: list[str] = Field(description="Ids of paused models.")
    tenants: list[str] = Field(description="Ids of paused tenants.")


@router.get("", summary="Show what is paused", responses=responses(*ALWAYS))
def get_pauses(context: Context, _: Operator) -> PausesSchema:
    """All pauses of the farm."""
    with context.store.begin() as unit:
        return _now(unit)


@router.put("/farm", summary="Pause the farm", responses=responses(*ALWAYS))
def pause_farm(context: Context, _: Operator) -> PausesSchema:
    """Hand nothing over from now on. Jobs are accepted and wait. Pausing again changes nothing."""
    with context.store.begin() as unit:
        unit.pauses.pause()
        return _now(unit)


@router.delete("/farm", summary="Resume the farm", responses=responses(*ALWAYS))
def resume_farm(context: Context, _: Operator) -> PausesSchema:
    """Hand jobs over again. A farm that is not paused stays as it is."""
    with context.store.begin() as unit:
        unit.pauses.resume()
        return _resumed(unit)


@router.put("/models/{model_id:path}", summary="Pause a model", responses=responses(*ALWAYS, 404))
def pause_model(context: Context, _: Operator, model_id: ModelId) -> PausesSchema:
    """Hand over no job of the model from now on."""
    _known(context, model_id)
    with context.store.begin() as unit:
        unit.pauses.pause(model_id)
        return _now(unit)


@router.delete("/models/{model_id:path}", summary="Resume a model", responses=responses(*ALWAYS, 404))
def resume_model(context: Context, _: Operator, model_id: ModelId) -> PausesSchema:
    """Hand the model's jobs over again."""
    with context.store.begin() as unit:
        # a model may have left the registry while it was paused
        if not unit.pauses.resume(model_id):
            _known(context, model_id)
        return _resumed(unit)


@router.put("/tenants/{tenant_id}", summary="Pause a tenant", responses=responses(*ALWAYS, 404))
def pause_tenant(context: Context, _: Operator, tenant_id: TenantId) -> PausesSchema:
    """Hand over no job of the tenant from now on. Its requests are answered as ever."""
    with context.store.begin() as unit:
        if not ids.is_id(ids.TENANT, tenant_id) or not unit.tenants.pause(tenant_id):
            raise NotFound("tenant", tenant_id)
        return _now(unit)


@router.delete("/tenants/{tenant_id}", summary="Resume a tenant", responses=responses(*ALWAYS, 404))
def resume_tenant(context: Context, _: Operator, tenant_id: TenantId) -> PausesSchema:
    """Hand the tenant's jobs over again."""
    with context.store.begin() as unit:
        if not ids.is_id(ids.TENANT, tenant_id) or not unit.tenants.resume(tenant_id):
            raise NotFound("tenant", tenant_id)
        return _resumed(unit)


def _known(context: AppContext, model_id: str) -> None:
    if context.registry.get(model_id) is None:
        raise NotFound("model", model_id)


def _resumed(unit: UnitOfWork) -> PausesSchema:
    unit.events.notify(QUEUE_CHANNEL)
    return _now(unit)


def _now(unit: UnitOfWork) -> PausesSchema:
    stopped = unit.pauses.now()
    return PausesSchema(farm=stopped.farm, models=sorted(stopped.models), tenants=list(stopped.tenants))
