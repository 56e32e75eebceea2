"""Pauses: stop dispatching the jobs of the whole farm, of a model or of a tenant, and dispatch them again."""

from __future__ import annotations

from farm.domain.queue import Paused
from farm.errors import NotFound
from farm.services.context import ServiceContext
from farm.store.events import QUEUE_CHANNEL


def get(context: ServiceContext) -> Paused:
    """What is paused."""
    with context.store.begin() as unit:
        return unit.pauses.now()


def pause_farm(context: ServiceContext, by: str | None = None) -> Paused:
    """Dispatch no job; pausing again changes nothing. ``by``: the name of the key that asks for it."""
    with context.store.begin() as unit:
        unit.pauses.pause(by=by)
        return unit.pauses.now()


def resume_farm(context: ServiceContext) -> Paused:
    """Dispatch jobs again."""
    with context.store.begin() as unit:
        unit.pauses.resume()
        unit.events.notify(QUEUE_CHANNEL)
        return unit.pauses.now()


def pause_model(context: ServiceContext, model_id: str, by: str | None = None) -> Paused:
    """Dispatch no job of a model. Raises `NotFound`."""
    _require_model(context, model_id)
    with context.store.begin() as unit:
        unit.pauses.pause(model_id, by)
        return unit.pauses.now()


def resume_model(context: ServiceContext, model_id: str) -> Paused:
    """Dispatch a model's jobs again. Raises `NotFound`."""
    with context.store.begin() as unit:
        # a model may have left the registry while it was paused
        if not unit.pauses.resume(model_id):
            _require_model(context, model_id)
        unit.events.notify(QUEUE_CHANNEL)
        return unit.pauses.now()


def pause_tenant(context: ServiceContext, tenant_id: str, by: str | None = None) -> Paused:
    """Dispatch no job of a tenant. Raises `NotFound`."""
    with context.store.begin() as unit:
        unit.tenants.existing(tenant_id)
        unit.tenants.pause(tenant_id, by)
        return unit.pauses.now()


def resume_tenant(context: ServiceContext, tenant_id: str) -> Paused:
    """Dispatch a tenant's jobs again. Raises `NotFound`."""
    with context.store.begin() as unit:
        unit.tenants.existing(tenant_id)
        unit.tenants.resume(tenant_id)
        unit.events.notify(QUEUE_CHANNEL)
        return unit.pauses.now()


def _require_model(context: ServiceContext, model_id: str) -> None:
    if context.registry.get(model_id) is None:
        raise NotFound("model", model_id)
