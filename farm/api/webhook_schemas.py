"""What the webhook operations take and response with."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from farm.api.patch import Patch
from farm.api.schemas import Schema
from farm.domain.endpoint import WEBHOOK_EVENTS, DeliveryState, DisabledReason, Endpoint, Secret, Subscribable
from farm.domain.states import EventType
from farm.egress.guard import MAX_URL
from farm.fields import Moment, NoNul, Storable
from farm.store.deliveries import Delivery, DeliveryAttempt
from farm.webhooks import signature

#: What can be sent.
Sendable = Literal[Subscribable, EventType.TEST]

Url = Annotated[str, StringConstraints(min_length=1, max_length=MAX_URL), Storable, NoNul]
Description = Annotated[str, StringConstraints(max_length=500), Storable, NoNul]
Events = Annotated[list[Subscribable], Field(min_length=1, max_length=20)]

DEFAULT_EVENTS: Final[list[Subscribable]] = list(WEBHOOK_EVENTS)


class EndpointCreate(BaseModel):
    """An endpoint to make."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: Url = Field(
        description="The URL that events are POSTed to. Its host must be public, unless the farm allows it."
    )
    description: Description = Field("", description="A description.")
    events: Events = Field(DEFAULT_EVENTS, description="The event types to send.")
    enabled: bool = Field(True, strict=True, description="Whether events are sent.")
    asymmetric: bool = Field(
        False, strict=True, description="Whether its webhooks also carry `v1a` signatures (ed25519)."
    )


class EndpointUpdate(Patch):
    """Changes of an endpoint; an absent field stays as it is."""

    url: Url | None = Field(None, description="A new URL.")
    description: Description | None = None
    events: Events | None = Field(None, description="The event types to send from now on.")
    enabled: Annotated[bool, Field(strict=True)] | None = Field(
        None, description="`false`: nothing is sent. `true`: events are sent again, waiting ones included."
    )
    asymmetric: Annotated[bool, Field(strict=True)] | None = Field(
        None, description="`true`: webhooks also carry `v1a` signatures; a key pair is made unless there is one."
    )


class ResendRequest(BaseModel):
    """Which dead deliveries to send again; empty: all."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    endpoint_id: Annotated[str, StringConstraints(max_length=100), Storable, NoNul] | None = None
    job_id: Annotated[str, StringConstraints(max_length=100), Storable, NoNul] | None = None
    type: Sendable | None = None
    created_after: Moment | None = None
    created_before: Moment | None = None


class ResendReport(Schema):
    """What was done."""

    count: int = Field(description="Deliveries that are sent again.")


class PublicKeySchema(Schema):
    """The public key that verifies `v1a` signatures."""

    key: str = Field(description="`whpk_` and base64 of an ed25519 public key.")
    expires_at: datetime | None = Field(description="Null: the current one.")

    @classmethod
    def of(cls, key: Secret) -> Self:
        """The public half of a key pair."""
        return cls(key=signature.public_key(key.text), expires_at=key.expires_at)


class EndpointSchema(Schema):
    """Where events are sent."""

    id: str
    url: str
    description: str
    events: list[EventType] = Field(description="The event types to send.")
    enabled: bool
    one_off: bool = Field(description="Whether it was made for the `webhook` of jobs.")
    consecutive_failures: int = Field(description="Attempts that failed in a row.")
    failing_since: datetime | None
    paused_until: datetime | None = Field(description="Nothing is sent before: it asked for that, or failed too often.")
    disabled_at: datetime | None
    disabled_reason: DisabledReason | None = Field(
        description="`gone`: it responded with 410. `failing`: it failed for days. `requested`: with one of your keys."
    )
    public_keys: list[PublicKeySchema] = Field(
        description="With `v1a` signatures: the keys that sign now, newest first."
    )
    created_at: datetime

    @classmethod
    def of(cls, endpoint: Endpoint) -> Self:
        """The endpoint without its secrets."""
        return cls(
            id=endpoint.id,
            url=endpoint.url,
            description=endpoint.description,
            events=sorted(endpoint.events),
            enabled=endpoint.disabled_at is None,
            one_off=endpoint.one_off,
            consecutive_failures=endpoint.consecutive_failures,
            failing_since=endpoint.failing_since,
            paused_until=endpoint.paused_until,
            disabled_at=endpoint.disabled_at,
            disabled_reason=endpoint.disabled_reason,
            public_keys=list(map(PublicKeySchema.of, endpoint.keys)),
            created_at=endpoint.created_at,
        )


class NewEndpointSchema(EndpointSchema):
    """A new endpoint."""

    secret: str = Field(description="The secrets that sign its webhooks.")


class EndpointPage(Schema):
    """Some of the tenant's endpoints, newest first."""

    data: list[EndpointSchema]
    next: str | None = Field(description="The `cursor` of the next page; null on the last one.")


class OldSecretSchema(Schema):
    """A replaced secret that still signs."""

    secret: str
    expires_at: datetime

    @classmethod
    def of(cls, secret: Secret) -> Self:
        """A secret with an end."""
        assert secret.expires_at is not None
        return cls(secret=secret.text, expires_at=secret.expires_at)


class SecretSchema(Schema):
    """The secrets that sign an endpoint's webhooks."""

    secret: str = Field(description="The current secret: `whsec_` and base64.")
    previous: list[OldSecretSchema] = Field(description="Older secrets that also sign until they expire, newest first.")

    @classmethod
    def of(cls, endpoint: Endpoint) -> Self:
        """The endpoint's secrets."""
        current, *old = endpoint.signing
        return cls(secret=current.text, previous=list(map(OldSecretSchema.of, old)))


class DeliverySchema(Schema):
    """One event on its way to one endpoint."""

    id: str = Field(description="The `webhook-id` of each of its requests.")
    endpoint_id: str
    type: EventType
    job_id: str | None
    state: DeliveryState = Field(description="`dead`: given up after the last attempt of the schedule.")
    sequence: int = Field(description="Number within its endpoint; also in the body.")
    attempt_count: int = Field(description="Attempts begun so far.")
    next_attempt_at: datetime | None = Field(description="Null unless it is pending.")
    status: int | None = Field(description="The HTTP status of the last response.")
    error: str | None = Field(description="Why the last attempt failed.")
    occurred_at: datetime = Field(description="When the event happened.")
    created_at: datetime

    @classmethod
    def of(cls, delivery: Delivery) -> Self:
        """The delivery as its tenant sees it."""
        return cls(
            id=delivery.id,
            endpoint_id=delivery.endpoint_id,
            type=delivery.type,
            job_id=delivery.job_id,
            state=delivery.state,
            sequence=delivery.sequence,
            attempt_count=delivery.attempt_count,
            next_attempt_at=delivery.next_attempt_at if delivery.state is DeliveryState.PENDING else None,
            status=delivery.status,
            error=delivery.error,
            occurred_at=delivery.occurred_at,
            created_at=delivery.created_at,
        )


class DeliveryPage(Schema):
    """Some of the tenant's deliveries, newest event first."""

    data: list[DeliverySchema]
    next: str | None = Field(description="The `cursor` of the next page; null on the last one.")


class AttemptSchema(Schema):
    """One request and its response."""

    number: int
    at: datetime
    status: int | None = Field(description="Null: there was no response.")
    seconds: float
    error: str | None = Field(description="Null: delivered.")
    response: str = Field(description="The beginning of the response's body.")

    @classmethod
    def of(cls, attempt: DeliveryAttempt) -> Self:
        """The attempt as it was noted."""
        return cls(
            number=attempt.number,
            at=attempt.at,
            status=attempt.status,
            seconds=round(attempt.seconds, 6),
            error=attempt.error,
            response=attempt.response,
        )


class DeliveryWithAttempts(DeliverySchema):
    """One delivery and its attempts."""

    attempts: list[AttemptSchema]
