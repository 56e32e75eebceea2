"""Webhooks: a tenant's endpoints, what was sent to each, how it went, and sending it again."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Final

from fastapi import APIRouter, Form, Query, Request, Response
from pydantic import ValidationError

from farm.api.dependencies import AppContext, Context
from farm.api.webhook_schemas import DEFAULT_EVENTS, EndpointCreate, EndpointUpdate
from farm.dashboard.filters import plural
from farm.dashboard.rendering import HOME, CurrentUser, Link, PageRoute, render, see
from farm.dashboard.session import User
from farm.domain.endpoint import SUBSCRIBABLE, DeliveryState, DisabledReason, Endpoint
from farm.errors import BadInput, FieldProblem, NotFound
from farm.services import webhooks as services
from farm.store.deliveries import DeliveryFilter

PATH: Final = f"{HOME}/webhooks"
LINK: Final = Link("Settings", "Webhooks", PATH, 0)
router: Final = APIRouter(prefix=PATH, include_in_schema=False, route_class=PageRoute)

PAGE: Final = 50
MOST: Final = 10_000  #: deliveries that are counted
REASONS: Final = {
    DisabledReason.GONE: "it answered 410, which asks not to be called again",
    DisabledReason.FAILING: "it failed for days",
    DisabledReason.REQUESTED: "disabled by a request",
}
KINDS: Final = sorted(kind.value for kind in SUBSCRIBABLE)

Cursor = Annotated[str, Query(max_length=100)]
Text = Annotated[str, Form(max_length=3000)]
Events = Annotated[list[str], Form()]


@router.get("")
def endpoints(
    request: Request,
    context: Context,
    user: CurrentUser,
    tenant: Annotated[str, Query(max_length=60)] = "",
    cursor: Cursor = "",
) -> Response:
    """A tenant's endpoints: one's own, or for who runs the farm anybody's."""
    of_id = tenant or user.key.tenant_id
    if user.tenant not in (None, of_id):
        raise NotFound("tenant", of_id)
    with context.store.begin() as unit:
        of = unit.tenants.existing(of_id)
        found, following = unit.webhooks.endpoint_page(of.id, cursor or None, PAGE)
        tenants = unit.tenants.page(None, 200) if user.is_operator else []
    return render(
        request,
        "webhooks.html",
        of=of,
        tenants=tenants,
        endpoints=found,
        first=not cursor,
        following=following,
        reasons=REASONS,
        kinds=KINDS,
        chosen=[kind.value for kind in DEFAULT_EVENTS],
        can_change=user.can_change(of.id),
    )


@router.post("")
def make(
    request: Request,
    context: Context,
    user: CurrentUser,
    url: Text = "",
    description: Text = "",
    event: Events = [],  # noqa: B006
    tenant: Text = "",
) -> Response:
    """A new endpoint, whose secret is shown this once."""
    tenant_id = user.require_change(tenant or user.key.tenant_id)
    new = _checked(EndpointCreate, url=url.strip(), description=description.strip(), events=event)
    endpoint = services.create_endpoint(context, tenant_id, new.url, events=new.events, description=new.description)
    return _secret(request, endpoint.id, endpoint.secrets[0], f"signs the webhooks to {endpoint.url}")


@router.get("/deliveries/{delivery_id}")
def delivery(request: Request, context: Context, user: CurrentUser, delivery_id: str) -> Response:
    """One event on its way to one endpoint, and each try."""
    tenant_id = _owner_of_delivery(context, user, delivery_id)
    with context.store.begin() as unit:
        sent = unit.deliveries.get(tenant_id, delivery_id)
        attempts = unit.deliveries.attempts(delivery_id)
        endpoint = unit.webhooks.endpoint(tenant_id, sent.endpoint_id)
    can_change = user.can_change(tenant_id)
    return render(request, "delivery.html", sent=sent, attempts=attempts, endpoint=endpoint, can_change=can_change)


@router.post("/deliveries/{delivery_id}/resend")
def resend(context: Context, user: CurrentUser, delivery_id: str) -> Response:
    """Send it now, by the whole schedule if that fails."""
    tenant_id = user.require_change(_owner_of_delivery(context, user, delivery_id))
    services.resend(context, tenant_id, delivery_id)
    return see(f"{PATH}/deliveries/{delivery_id}", "It is sent again, under the same id.")


@router.get("/{endpoint_id}")
def endpoint(
    request: Request,
    context: Context,
    user: CurrentUser,
    endpoint_id: str,
    state: Annotated[str, Query(max_length=20)] = "",
    cursor: Cursor = "",
) -> Response:
    """One endpoint and what was sent to it."""
    one = _found(context, user, endpoint_id)
    if state not in ("", *DeliveryState):
        raise BadInput.of("state", state, f"must be one of {', '.join(DeliveryState)}")
    wanted = DeliveryFilter(endpoint_id=one.id, state=DeliveryState(state) if state else None)
    with context.store.begin() as unit:
        found, following = unit.deliveries.page(one.tenant_id, wanted, cursor or None, PAGE)
        dead = unit.deliveries.count_dead(one.tenant_id, DeliveryFilter(endpoint_id=one.id), MOST)
    return render(
        request,
        "webhook.html",
        one=one,
        deliveries=found,
        first=not cursor,
        following=following,
        state=state,
        dead=dead,
        most=MOST,
        reasons=REASONS,
        kinds=KINDS,
        can_change=user.can_change(one.tenant_id),
    )


@router.post("/{endpoint_id}")
def change(
    context: Context,
    user: CurrentUser,
    endpoint_id: str,
    url: Text = "",
    description: Text = "",
    event: Events = [],  # noqa: B006
) -> Response:
    """Another URL, description or choice of events."""
    tenant_id = _owner(context, user, endpoint_id)
    new = _checked(EndpointUpdate, url=url.strip(), description=description.strip(), events=event)
    services.update_endpoint(
        context, tenant_id, endpoint_id, url=new.url, description=new.description, events=new.events
    )
    return see(f"{PATH}/{endpoint_id}", "Saved. What waits goes to the URL that it has now.")


@router.post("/{endpoint_id}/test")
def test(context: Context, user: CurrentUser, endpoint_id: str) -> Response:
    """A test event."""
    services.send_test(context, _owner(context, user, endpoint_id), endpoint_id)
    return see(f"{PATH}/{endpoint_id}", "A farm.test event is on its way; reload to see how it went.")


@router.post("/{endpoint_id}/rotate")
def rotate(request: Request, context: Context, user: CurrentUser, endpoint_id: str) -> Response:
    """A new secret; the old one signs beside it for a day."""
    endpoint = services.rotate_secret(context, _owner(context, user, endpoint_id), endpoint_id)
    return _secret(request, endpoint_id, endpoint.secrets[0], "is the new secret; the old one also signs for a day")


@router.post("/{endpoint_id}/enable")
def enable(context: Context, user: CurrentUser, endpoint_id: str) -> Response:
    """Send to it again."""
    services.update_endpoint(context, _owner(context, user, endpoint_id), endpoint_id, enabled=True)
    return see(f"{PATH}/{endpoint_id}", "Enabled: what happens from now on is sent.")


@router.post("/{endpoint_id}/disable")
def disable(context: Context, user: CurrentUser, endpoint_id: str) -> Response:
    """Send nothing more to it."""
    services.update_endpoint(context, _owner(context, user, endpoint_id), endpoint_id, enabled=False)
    return see(f"{PATH}/{endpoint_id}", "Disabled: nothing is sent to it.")


@router.post("/{endpoint_id}/resend")
def resend_dead(context: Context, user: CurrentUser, endpoint_id: str, since: Text = "") -> Response:
    """Send again what was given up, all of it or since a time."""
    tenant_id = _owner(context, user, endpoint_id)
    try:
        after = datetime.fromisoformat(since).replace(tzinfo=UTC) if since else None
    except ValueError as error:
        raise BadInput.of("since", since, "is not a time") from error
    wanted = DeliveryFilter(endpoint_id=endpoint_id, created_after=after)
    count = services.resend_dead(context, tenant_id, wanted)
    return see(f"{PATH}/{endpoint_id}", f"{plural(count, 'delivery', 'deliveries')} will be sent again.")


@router.post("/{endpoint_id}/delete")
def delete(context: Context, user: CurrentUser, endpoint_id: str) -> Response:
    """Delete the endpoint and its deliveries."""
    tenant_id = _owner(context, user, endpoint_id)
    gone = services.delete_endpoint(context, tenant_id, endpoint_id)
    return see(f"{PATH}?tenant={tenant_id}", f"Deleted: nothing more is sent to {gone.url}.")


def _secret(request: Request, endpoint_id: str, secret: str, what: str) -> Response:
    back = f"{PATH}/{endpoint_id}"
    return render(request, "secret.html", title="Signing secret", secret=secret, what=what, back=back)


def _checked(kind: Any, **values: Any) -> Any:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems = [FieldProblem(str(one["loc"][0]), one["input"], one["msg"]) for one in error.errors()]
        raise BadInput(*problems) from error


def _found(context: AppContext, user: User, endpoint_id: str) -> Endpoint:
    with context.store.begin() as unit:
        owner = unit.dashboard_queries.owner_of_endpoint(endpoint_id)
        if owner is None or user.tenant not in (None, owner):
            raise NotFound("endpoint", endpoint_id)
        return unit.webhooks.endpoint(owner, endpoint_id)


def _owner(context: AppContext, user: User, endpoint_id: str) -> str:
    """The tenant of an endpoint that the user may change. Raises `NotFound` and `Forbidden`."""
    return user.require_change(_found(context, user, endpoint_id).tenant_id)


def _owner_of_delivery(context: AppContext, user: User, delivery_id: str) -> str:
    """The tenant of a delivery that the user may see. Raises `NotFound`."""
    with context.store.begin() as unit:
        owner = unit.dashboard_queries.owner_of_delivery(delivery_id)
    if owner is None or user.tenant not in (None, owner):
        raise NotFound("delivery", delivery_id)
    return owner
