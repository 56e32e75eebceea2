"""Pauses: an operator stops dispatch for the whole farm, a model or a tenant, and resumes it."""

from __future__ import annotations

from typing import Annotated, Final, Self

from fastapi import APIRouter, Path
from pydantic import Field

from farm.api.auth import Operator
from farm.api.dependencies import Context
from farm.api.problems import ALWAYS, responses
from farm.api.route import AuthenticatedRoute
from farm.api.schemas import Schema
from farm.domain import ids
from farm.domain.queue import Paused
from farm.services import pauses as services

router: Final = APIRouter(prefix="/v1/pauses", tags=["pauses"], route_class=AuthenticatedRoute)

ModelId = Annotated[str, Path(description="The model's id.", max_length=200)]
TenantId = Annotated[str, Path(description="The tenant's id.", json_schema_extra={"pattern": ids.pattern(ids.TENANT)})]


class PausesSchema(Schema):
    """What is paused: none of its jobs is dispatched; jobs that workers already have run to their end."""

    farm: bool
    models: list[str] = Field(description="Ids of paused models.")
    tenants: list[str] = Field(description="Ids of paused tenants.")

    @classmethod
    def of(cls, paused: Paused) -> Self:
        """The pauses."""
        return cls(farm=paused.farm, models=sorted(paused.models), tenants=list(paused.tenants))


@router.get("", summary="Show what is paused", responses=responses(*ALWAYS))
def get_pauses(context: Context, _: Operator) -> PausesSchema:
    """All pauses of the farm."""
    return PausesSchema.of(services.get(context))


@router.put("/farm", summary="Pause the farm", responses=responses(*ALWAYS))
def pause_farm(context: Context, key: Operator) -> PausesSchema:
    """Dispatch no job from now on. Jobs are accepted and wait. Pausing again changes nothing."""
    return PausesSchema.of(services.pause_farm(context, key.name))


@router.delete("/farm", summary="Resume the farm", responses=responses(*ALWAYS))
def resume_farm(context: Context, _: Operator) -> PausesSchema:
    """Dispatch jobs again. A farm that is not paused stays as it is."""
    return PausesSchema.of(services.resume_farm(context))


@router.put("/models/{model_id:path}", summary="Pause a model", responses=responses(*ALWAYS, 404))
def pause_model(context: Context, key: Operator, model_id: ModelId) -> PausesSchema:
    """Dispatch no job of the model from now on."""
    return PausesSchema.of(services.pause_model(context, model_id, key.name))


@router.delete("/models/{model_id:path}", summary="Resume a model", responses=responses(*ALWAYS, 404))
def resume_model(context: Context, _: Operator, model_id: ModelId) -> PausesSchema:
    """Dispatch the model's jobs again."""
    return PausesSchema.of(services.resume_model(context, model_id))


@router.put("/tenants/{tenant_id}", summary="Pause a tenant", responses=responses(*ALWAYS, 404))
def pause_tenant(context: Context, key: Operator, tenant_id: TenantId) -> PausesSchema:
    """Dispatch no job of the tenant from now on. Its requests are served as before."""
    return PausesSchema.of(services.pause_tenant(context, tenant_id, key.name))


@router.delete("/tenants/{tenant_id}", summary="Resume a tenant", responses=responses(*ALWAYS, 404))
def resume_tenant(context: Context, _: Operator, tenant_id: TenantId) -> PausesSchema:
    """Dispatch the tenant's jobs again."""
    return PausesSchema.of(services.resume_tenant(context, tenant_id))
