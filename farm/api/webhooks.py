"""Webhooks: where a tenant wants events sent, what was sent, and sending it again."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Body, Path, Query, Response
from pydantic import StringConstraints
from starlette.convertors import Convertor, register_url_convertor

from farm.api.auth import Reader, SecretReader, Submitter
from farm.api.dependencies import Context
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
from farm.domain.tasks import Moment, NoNul, Storable
from farm.egress import guard
from farm.store.deliveries import DeliveryFilter
from farm.webhooks import signature


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

OVERLAP_SECONDS: Final = 24 * 3600  #: how long a rotated secret still signs, unless another time is asked for
_AT_ONCE: Final = 5_000  #: deliveries changed in one transaction

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
    "since": {"summary": "All that died since a time", "value": {"created_after": "2026-01-31T12:00:00Z"}}
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
    request: Annotated[EndpointCreate, Body(openapi_examples=_ENDPOINT)],
    response: Response,
) -> NewEndpointSchema:
    """Have events sent to a URL, from now on. The URL's host is resolved at once, and refused if it is not public."""
    url = guard.check(request.url, context.settings).url
    with context.store.begin() as unit:
        made = unit.webhooks.create_endpoint(
            key.tenant_id,
            url,
            signature.new_secret(),
            frozenset(request.events),
            request.description,
            key=signature.new_key() if request.asymmetric else None,
            limit=context.settings.max_endpoints,
        )
        if not request.enabled:
            made = unit.webhooks.disable(key.tenant_id, made.id)
    response.headers["Location"] = f"/v1/webhooks/endpoints/{made.id}"
    return NewEndpointSchema(**EndpointSchema.of(made).model_dump(), secret=made.secrets[0])


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
    """The endpoint and how it fares."""
    with context.store.begin() as unit:
        return EndpointSchema.of(unit.webhooks.endpoint(key.tenant_id, endpoint_id))


@router.patch(
    "/endpoints/{endpoint_id}", summary="Change an endpoint", responses=responses(*ALWAYS, 404, 409, 413, 415)
)
def change_endpoint(
    context: Context,
    key: Submitter,
    endpoint_id: EndpointId,
    request: Annotated[EndpointUpdate, Body(openapi_examples=_CHANGE)],
) -> EndpointSchema:
    """Change its URL, description, events or signatures, and switch it off or on. What waits goes to its new URL."""
    with context.store.begin() as unit:
        unit.webhooks.endpoint(key.tenant_id, endpoint_id)  # a stranger's guesses are not resolved for him
    url = None if request.url is None else guard.check(request.url, context.settings).url
    with context.store.begin() as unit:
        now = unit.webhooks.edit(
            key.tenant_id,
            endpoint_id,
            url=url,
            description=request.description,
            events=None if request.events is None else frozenset(request.events),
        )
        if request.asymmetric is not None:
            now = unit.webhooks.set_key(key.tenant_id, endpoint_id, signature.new_key() if request.asymmetric else None)
        if request.enabled is not None:
            switch = unit.webhooks.enable if request.enabled else unit.webhooks.disable
            now = switch(key.tenant_id, endpoint_id)
    return EndpointSchema.of(now)


@router.delete("/endpoints/{endpoint_id}", summary="Delete an endpoint", responses=responses(*ALWAYS, 404))
def delete_endpoint(context: Context, key: Submitter, endpoint_id: EndpointId) -> EndpointSchema:
    """Send it nothing more, and forget what was sent. One that jobs name as `webhook` comes back with the next one."""
    with context.store.begin() as unit:
        last = unit.webhooks.disable(key.tenant_id, endpoint_id)
    cleared = _AT_ONCE
    while cleared == _AT_ONCE:  # in parts: a million deliveries must not be one transaction
        with context.store.begin() as unit:
            cleared = unit.webhooks.delete_deliveries(key.tenant_id, endpoint_id, _AT_ONCE)
            if cleared < _AT_ONCE:
                unit.webhooks.remove(key.tenant_id, endpoint_id)
    return EndpointSchema.of(last)


@router.get("/endpoints/{endpoint_id}/secret", summary="Read an endpoint's secret", responses=responses(*ALWAYS, 404))
def get_secret(context: Context, key: SecretReader, endpoint_id: EndpointId) -> SecretSchema:
    """What its webhooks are signed with, also of an endpoint that was made for the `webhook` of jobs."""
    with context.store.begin() as unit:
        return SecretSchema.of(unit.webhooks.endpoint(key.tenant_id, endpoint_id))


@router.post(
    "/endpoints/{endpoint_id}/rotate", summary="Rotate an endpoint's secret", responses=responses(*ALWAYS, 404, 409)
)
def rotate_secret(
    context: Context,
    key: Submitter,
    endpoint_id: EndpointId,
    overlap_seconds: Annotated[
        int, Query(ge=0, le=7 * 24 * 3600, description="How long the old secret signs beside the new one.")
    ] = OVERLAP_SECONDS,
) -> SecretSchema:
    """Give it a new secret, and a new key pair if it has one. Until the old ones expire each webhook carries all."""
    with context.store.begin() as unit:
        now = unit.webhooks.rotate(
            key.tenant_id, endpoint_id, signature.new_secret(), overlap_seconds, signature.new_key()
        )
    return SecretSchema.of(now)


@router.post(
    "/endpoints/{endpoint_id}/test",
    status_code=201,
    summary="Send a test event",
    responses={201: {"description": "The delivery.", "headers": _LOCATION}, **responses(*ALWAYS, 404, 409)},
)
def test_endpoint(context: Context, key: Submitter, endpoint_id: EndpointId, response: Response) -> DeliverySchema:
    """Send a `context.test` event to this endpoint alone, whatever events it asks for."""
    with context.store.begin() as unit:
        delivery_id = unit.webhooks.send_test(key.tenant_id, endpoint_id)
        made = unit.deliveries.get(key.tenant_id, delivery_id)
    response.headers["Location"] = f"/v1/webhooks/deliveries/{made.id}"
    return DeliverySchema.of(made)


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
    """What was sent or is to be sent to the tenant's endpoints, newest event first."""
    wanted = DeliveryFilter(endpoint_id, state, job_id, type, created_after, created_before)
    with context.store.begin() as unit:
        found, following = unit.deliveries.page(key.tenant_id, wanted, cursor, limit)
    return DeliveryPage(data=list(map(DeliverySchema.of, found)), next=following)


@router.post("/deliveries/resend", summary="Send dead deliveries again", responses=responses(*ALWAYS, 413, 415))
def resend_dead(
    context: Context, key: Submitter, request: Annotated[ResendRequest, Body(openapi_examples=_RESEND)]
) -> ResendReport:
    """Send again what was given up, under the same ids and by the whole schedule. Disabled endpoints are left out."""
    wanted = DeliveryFilter(
        endpoint_id=request.endpoint_id,
        job_id=request.job_id,
        type=request.type,
        created_after=request.created_after,
        created_before=request.created_before,
    )
    with context.store.begin() as unit:
        begun = unit.now()
    count, some = 0, _AT_ONCE
    while some == _AT_ONCE:
        with context.store.begin() as unit:
            some = unit.deliveries.resend_dead(key.tenant_id, wanted, begun, _AT_ONCE)
        count += some
    return ResendReport(count=count)


@router.get("/deliveries/{delivery_id:delivery}", summary="Look at a delivery", responses=responses(*ALWAYS, 404))
def get_delivery(context: Context, key: Reader, delivery_id: DeliveryId) -> DeliveryWithAttempts:
    """The delivery and everything that was tried for it."""
    with context.store.begin() as unit:
        found = unit.deliveries.get(key.tenant_id, delivery_id)
        attempts = unit.deliveries.attempts(delivery_id)
    return DeliveryWithAttempts(**DeliverySchema.of(found).model_dump(), attempts=list(map(AttemptSchema.of, attempts)))


@router.post(
    "/deliveries/{delivery_id:delivery}/resend", summary="Send a delivery again", responses=responses(*ALWAYS, 404, 409)
)
def resend_delivery(context: Context, key: Submitter, delivery_id: DeliveryId) -> DeliverySchema:
    """Send it now, delivered before or not, under the same `webhook-id`, and by the whole schedule if that fails."""
    with context.store.begin() as unit:
        return DeliverySchema.of(unit.deliveries.resend(key.tenant_id, delivery_id))
