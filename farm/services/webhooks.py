"""Webhook endpoints and deliveries: what a tenant may change of them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from farm.domain.endpoint import Endpoint
from farm.domain.states import EventType
from farm.egress import guard
from farm.services.context import ServiceContext
from farm.store.deliveries import Delivery, DeliveryFilter
from farm.store.unit_of_work import UnitOfWork
from farm.webhooks import signature

OVERLAP_SECONDS: Final = 24 * 3600  #: how long a rotated secret still signs, unless another time is asked for
AT_ONCE: Final = 5_000  #: deliveries changed in one transaction


def get_endpoint(context: ServiceContext, tenant_id: str, endpoint_id: str) -> Endpoint:
    """An endpoint of the tenant. Raises `NotFound`."""
    with context.store.begin() as unit:
        return unit.webhooks.endpoint(tenant_id, endpoint_id)


def create_endpoint(
    context: ServiceContext,
    tenant_id: str,
    url: str,
    *,
    events: Collection[EventType],
    description: str = "",
    enabled: bool = True,
    asymmetric: bool = False,
) -> Endpoint:
    """Send events to a URL from now on.

    Args:
        context: the process's connections.
        tenant_id: whose events are sent.
        url: resolved at once, and refused if its host is not public.
        events: the types of event that are sent.
        description: what the endpoint is for.
        enabled: whether anything is sent yet.
        asymmetric: whether webhooks also carry ``v1a`` signatures.

    Raises:
        BadInput: the URL is refused.
        Conflict: the tenant has as many endpoints as it may.
    """
    checked = check_url(context, url)
    with context.store.begin() as unit:
        return add_endpoint(
            context, unit, tenant_id, checked,
            events=events, description=description, enabled=enabled, asymmetric=asymmetric,
        )  # fmt: skip


def check_url(context: ServiceContext, url: str) -> str:
    """A URL that webhooks may be sent to, resolved at once. Raises `BadInput`."""
    return guard.check(url, context.settings).url


def add_endpoint(
    context: ServiceContext,
    unit: UnitOfWork,
    tenant_id: str,
    checked: str,
    *,
    events: Collection[EventType],
    description: str,
    enabled: bool,
    asymmetric: bool,
) -> Endpoint:
    """`create_endpoint` in a unit of work, for a URL that `check_url` gave. Raises `Conflict`."""
    endpoint = unit.webhooks.create_endpoint(
        tenant_id,
        checked,
        signature.new_secret(),
        frozenset(events),
        description,
        key=signature.new_key() if asymmetric else None,
        limit=context.settings.max_endpoints,
    )
    return endpoint if enabled else unit.webhooks.disable(tenant_id, endpoint.id)


def reserve_urls(context: ServiceContext, unit: UnitOfWork, tenant_id: str, urls: Collection[str]) -> None:
    """Have endpoints for the ``webhook`` URLs of jobs that are about to be submitted. Raises `QuotaExceeded`."""
    if urls:
        unit.webhooks.reserve_urls(tenant_id, urls, signature.new_secret, context.settings.max_webhook_urls)


def update_endpoint(
    context: ServiceContext,
    tenant_id: str,
    endpoint_id: str,
    *,
    url: str | None = None,
    description: str | None = None,
    events: Collection[EventType] | None = None,
    enabled: bool | None = None,
    asymmetric: bool | None = None,
) -> Endpoint:
    """Change what is not None; deliveries that are not sent yet go to the new URL. Raises `NotFound`, `BadInput`."""
    get_endpoint(context, tenant_id, endpoint_id)  # before a URL is resolved for a guessed id
    checked = None if url is None else guard.check(url, context.settings).url
    with context.store.begin() as unit:
        endpoint = unit.webhooks.edit(
            tenant_id,
            endpoint_id,
            url=checked,
            description=description,
            events=None if events is None else frozenset(events),
        )
        if asymmetric is not None:
            endpoint = unit.webhooks.set_key(tenant_id, endpoint_id, signature.new_key() if asymmetric else None)
        if enabled is not None:
            switch = unit.webhooks.enable if enabled else unit.webhooks.disable
            endpoint = switch(tenant_id, endpoint_id)
    return endpoint


def delete_endpoint(context: ServiceContext, tenant_id: str, endpoint_id: str) -> Endpoint:
    """Delete an endpoint with its deliveries; returns what it was. Raises `NotFound`."""
    with context.store.begin() as unit:
        last = unit.webhooks.disable(tenant_id, endpoint_id)
    cleared = AT_ONCE
    while cleared == AT_ONCE:  # a million deliveries must not be one transaction
        with context.store.begin() as unit:
            cleared = unit.webhooks.delete_deliveries(tenant_id, endpoint_id, AT_ONCE)
            if cleared < AT_ONCE:
                unit.webhooks.remove(tenant_id, endpoint_id)
    return last


def rotate_secret(
    context: ServiceContext, tenant_id: str, endpoint_id: str, overlap_seconds: int = OVERLAP_SECONDS
) -> Endpoint:
    """Give an endpoint a new secret, and a new key pair if it has one; the old ones sign as well until they expire.

    Raises `NotFound`, and `Conflict` if too many secrets sign already.
    """
    with context.store.begin() as unit:
        return rotate(unit, tenant_id, endpoint_id, overlap_seconds)


def rotate(unit: UnitOfWork, tenant_id: str, endpoint_id: str, overlap_seconds: int) -> Endpoint:
    """`rotate_secret` in a unit of work."""
    return unit.webhooks.rotate(tenant_id, endpoint_id, signature.new_secret(), overlap_seconds, signature.new_key())


def send_test(context: ServiceContext, tenant_id: str, endpoint_id: str) -> Delivery:
    """Send a ``farm.test`` event to one endpoint, whatever events it is subscribed to.

    Raises `NotFound`, and `Conflict` if the endpoint is disabled.
    """
    with context.store.begin() as unit:
        return add_test(unit, tenant_id, endpoint_id)


def add_test(unit: UnitOfWork, tenant_id: str, endpoint_id: str) -> Delivery:
    """`send_test` in a unit of work."""
    return unit.deliveries.get(tenant_id, unit.webhooks.send_test(tenant_id, endpoint_id))


def resend(context: ServiceContext, tenant_id: str, delivery_id: str) -> Delivery:
    """Send a delivery again now, with the same ``webhook-id``. Raises `NotFound` and `Conflict`."""
    with context.store.begin() as unit:
        return unit.deliveries.resend(tenant_id, delivery_id)


def resend_dead(context: ServiceContext, tenant_id: str, wanted: DeliveryFilter) -> int:
    """Send again what was given up before this call and matches; returns how many deliveries.

    Disabled endpoints are left out.
    """
    with context.store.begin() as unit:
        begun = unit.now()
    count, some = 0, AT_ONCE
    while some == AT_ONCE:
        with context.store.begin() as unit:
            some = unit.deliveries.resend_dead(tenant_id, wanted, begun, AT_ONCE)
        count += some
    return count
