"""Webhooks: where a tenant wants events sent, what was sent, and sending it again."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Body, Path, Query, Response
from pydantic import StringConstraints
from starlette.convertors import Convertor, register_url_convertor

from farm.api.auth import Reader, SecretReader, Submitter
from farm.api.dependencies import Context
from farm.api.idempotency import Once
from farm.api.jobs import Cursor as ShortCursor
from farm.api.problems import ALWAYS, responses
from farm.api.route import AuthenticatedRoute
from farm.api.webhook_schemas import (
    AttemptSchema,
    DeliveryPage,
    DeliverySchema,
    DeliveryWithAttempts,
    EndpointCreate,
    EndpointPage,
    EndpointSchema,
    EndpointUpdate,
    NewEndpointSchema,
    ResendReport,
    ResendRequest,
    SecretSchema,
    Sendable,
)
from farm.domain import ids
from farm.domain.endpoint import DeliveryState
from farm.fields import Moment, NoNul, Storable
from farm.services import webhooks as services
from farm.store.deliveries import DeliveryFilter


class _OneDelivery(Convertor[str]):
    """A segment that is not the name of the bulk operation, so that the two paths never answer for each other."""

    regex = "(?!resend$)[^/]+"

    def convert(self, value: str) -> str:
        """As it came."""
        return value

    def to_string(self, value: str) -> str:
        """As it goes."""
        return value


register_url_convertor("delivery", _OneDelivery())

router: Final = APIRouter(prefix="/v1/webhooks", tags=["webhooks"], route_class=AuthenticatedRoute)


EndpointId = Annotated[
    str, Path(description="The endpoint's id.", json_schema_extra={"pattern": ids.pattern(ids.ENDPOINT)})
]
DeliveryId = Annotated[
    str,
    Path(
        description="The delivery's id, which is its `webhook-id`.",
        json_schema_extra={"pattern": ids.pattern(ids.DELIVERY)},
    ),
]
LongCursor = Annotated[
    str | None,
    Query(
        description="The `next` of the page before.",
        max_length=100,
        json_schema_extra={"pattern": "^[A-Za-z0-9_-]{32}$"},
    ),
]
IdFilter = Annotated[str | None, StringConstraints(max_length=100), Storable, NoNul]

_LOCATION: Final = {"Location": {"description": "Where it is.", "schema": {"type": "string"}}}
_ENDPOINT: Final[dict[str, Any]] = {
    "orders": {
        "summary": "The ends of all jobs",
        "value": {"url": "https://example.com/hooks/renders", "description": "orders"},
    }
}
_CHANGE: Final[dict[str, Any]] = {
    "progress": {"summary": "Progress too", "value": {"events": ["job.progress", "job.succeeded", "job.failed"]}}
}
_RESEND: Final[dict[str, Any]] = {
    "since": {"summary": "All dead deliveries since a time", "value": {"created_after": "2026-01-31T12:00:00Z"}}
}


# -- endpoints ---------------------------------------------------------------------------------------------------------


@router.post(
    "/endpoints",
    status_code=201,
    summary="Make an endpoint",
    responses={201: {"description": "The new endpoint.", "headers": _LOCATION}, **responses(*ALWAYS, 409, 413, 415)},
)
def create_endpoint(
    context: Context,
    key: Submitter,
    once: Once,
    request: Annotated[EndpointCreate, Body(openapi_examples=_ENDPOINT)],
    response: Response,
) -> NewEndpointSchema:
    """Send events to a URL, from now on. The URL's host is resolved at once, and refused if it is not public."""
    checked = services.check_url(context, request.url)
    with context.store.begin() as unit:

        def make() -> NewEndpointSchema:
            endpoint = services.add_endpoint(
                context,
                unit,
                key.tenant_id,
                checked,
                events=request.events,
                description=request.description,
                enabled=request.enabled,
                asymmetric=request.asymmetric,
            )
            return NewEndpointSchema(**EndpointSchema.of(endpoint).model_dump(), secret=endpoint.secrets[0])

        made = once.once(unit, NewEndpointSchema, make)
    response.headers["Location"] = f"/v1/webhooks/endpoints/{made.id}"
    return made


@router.get("/endpoints", summary="List endpoints", responses=responses(*ALWAYS))
def list_endpoints(
    context: Context,
    key: Reader,
    one_off: Annotated[bool | None, Query(description="Only those made for the `webhook` of jobs, or none.")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: ShortCursor = None,
) -> EndpointPage:
    """The tenant's endpoints, newest first, without their secrets."""
    with context.store.begin() as unit:
        found, following = unit.webhooks.endpoint_page(key.tenant_id, cursor, limit, one_off=one_off)
    return EndpointPage(data=list(map(EndpointSchema.of, found)), next=following)


@router.get("/endpoints/{endpoint_id}", summary="Look at an endpoint", responses=responses(*ALWAYS, 404))
def get_endpoint(context: Context, key: Reader, endpoint_id: EndpointId) -> EndpointSchema:
    """The endpoint and the state of its deliveries."""
    return EndpointSchema.of(services.get_endpoint(context, key.tenant_id, endpoint_id))


@router.patch(
    "/endpoints/{endpoint_id}", summary="Change an endpoint", responses=responses(*ALWAYS, 404, 409, 413, 415)
)
def change_endpoint(
    context: Context,
    key: Submitter,
    endpoint_id: EndpointId,
    request: Annotated[EndpointUpdate, Body(openapi_examples=_CHANGE)],
) -> EndpointSchema:
    """Change its URL, description, events or signatures, disable or enable it. Waiting deliveries go to the new URL."""
    changed = services.update_endpoint(
        context,
        key.tenant_id,
        endpoint_id,
        url=request.url,
        description=request.description,
        events=request.events,
        enabled=request.enabled,
        asymmetric=request.asymmetric,
    )
    return EndpointSchema.of(changed)


@router.delete("/endpoints/{endpoint_id}", summary="Delete an endpoint", responses=responses(*ALWAYS, 404))
def delete_endpoint(context: Context, key: Submitter, endpoint_id: EndpointId) -> EndpointSchema:
    """Delete the endpoint and its deliveries. One that jobs name as `webhook` is made again by the next job."""
    return EndpointSchema.of(services.delete_endpoint(context, key.tenant_id, endpoint_id))


@router.get("/endpoints/{endpoint_id}/secret", summary="Read an endpoint's secret", responses=responses(*ALWAYS, 404))
def get_secret(context: Context, key: SecretReader, endpoint_id: EndpointId) -> SecretSchema:
    """The secret that signs its webhooks, also for an endpoint that was made for the `webhook` of jobs."""
    return SecretSchema.of(services.get_endpoint(context, key.tenant_id, endpoint_id))


@router.post(
    "/endpoints/{endpoint_id}/rotate", summary="Rotate an endpoint's secret", responses=responses(*ALWAYS, 404, 409)
)
def rotate_secret(
    context: Context,
    key: Submitter,
    once: Once,
    endpoint_id: EndpointId,
    overlap_seconds: Annotated[
        int, Query(ge=0, le=7 * 24 * 3600, description="How long the old secret also signs.")
    ] = services.OVERLAP_SECONDS,
) -> SecretSchema:
    """Replace the secret, and the key pair if any. Until the old ones expire, webhooks carry all signatures."""
    with context.store.begin() as unit:
        return once.once(
            unit,
            SecretSchema,
            lambda: SecretSchema.of(services.rotate(unit, key.tenant_id, endpoint_id, overlap_seconds)),
        )


@router.post(
    "/endpoints/{endpoint_id}/test",
    status_code=201,
    summary="Send a test event",
    responses={201: {"description": "The delivery.", "headers": _LOCATION}, **responses(*ALWAYS, 404, 409)},
)
def test_endpoint(
    context: Context, key: Submitter, once: Once, endpoint_id: EndpointId, response: Response
) -> DeliverySchema:
    """Send a `farm.test` event to this endpoint alone, whatever events it is subscribed to."""
    with context.store.begin() as unit:
        made = once.once(
            unit, DeliverySchema, lambda: DeliverySchema.of(services.add_test(unit, key.tenant_id, endpoint_id))
        )
    response.headers["Location"] = f"/v1/webhooks/deliveries/{made.id}"
    return made


# -- deliveries --------------------------------------------------------------------------------------------------------


@router.get("/deliveries", summary="List deliveries", responses=responses(*ALWAYS))
def list_deliveries(
    context: Context,
    key: Reader,
    endpoint_id: IdFilter = None,
    state: DeliveryState | None = None,
    job_id: IdFilter = None,
    type: Sendable | None = None,  # noqa: A002  the field's name
    created_after: Moment | None = None,
    created_before: Moment | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: LongCursor = None,
) -> DeliveryPage:
    """Deliveries to the tenant's endpoints, sent and waiting, newest event first."""
    wanted = DeliveryFilter(endpoint_id, state, job_id, type, created_after, created_before)
    with context.store.begin() as unit:
        found, following = unit.deliveries.page(key.tenant_id, wanted, cursor, limit)
    return DeliveryPage(data=list(map(DeliverySchema.of, found)), next=following)


@router.post("/deliveries/resend", summary="Send dead deliveries again", responses=responses(*ALWAYS, 413, 415))
def resend_dead(
    context: Context, key: Submitter, request: Annotated[ResendRequest, Body(openapi_examples=_RESEND)]
) -> ResendReport:
    """Send dead deliveries again, with the same ids and the whole retry schedule. Disabled endpoints are left out."""
    wanted = DeliveryFilter(
        endpoint_id=request.endpoint_id,
        job_id=request.job_id,
        type=request.type,
        created_after=request.created_after,
        created_before=request.created_before,
    )
    return ResendReport(count=services.resend_dead(context, key.tenant_id, wanted))


@router.get("/deliveries/{delivery_id:delivery}", summary="Look at a delivery", responses=responses(*ALWAYS, 404))
def get_delivery(context: Context, key: Reader, delivery_id: DeliveryId) -> DeliveryWithAttempts:
    """The delivery and its attempts."""
    with context.store.begin() as unit:
        found = unit.deliveries.get(key.tenant_id, delivery_id)
        attempts = unit.deliveries.attempts(delivery_id)
    return DeliveryWithAttempts(**DeliverySchema.of(found).model_dump(), attempts=list(map(AttemptSchema.of, attempts)))


@router.post(
    "/deliveries/{delivery_id:delivery}/resend", summary="Send a delivery again", responses=responses(*ALWAYS, 404, 409)
)
def resend_delivery(context: Context, key: Submitter, delivery_id: DeliveryId) -> DeliverySchema:
    """Send it now, even if it was delivered, with the same `webhook-id`, and with all retries if that fails."""
    return DeliverySchema.of(services.resend(context, key.tenant_id, delivery_id))
