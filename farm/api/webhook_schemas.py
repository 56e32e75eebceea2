"""What the webhook operations take and answer with."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from farm.api.schemas import Schema
from farm.domain.endpoint import WEBHOOK_EVENTS, DeliveryState, DisabledReason, Endpoint, Secret
from farm.domain.states import EventType
from farm.egress.guard import MAX_URL
from farm.fields import Moment, NoNul, Storable
from farm.store.deliveries import Delivery, DeliveryAttempt
from farm.webhooks import signature

#: What can be subscribed to: `farm.domain.endpoint.SUBSCRIBABLE`, as a type.
Subscribable = Literal[
    EventType.STARTED,
    EventType.PROGRESS,
    EventType.SUCCEEDED,
    EventType.FAILED,
    EventType.CANCELED,
    EventType.BATCH_PROGRESS,
    EventType.BATCH_COMPLETED,
    EventType.ENDPOINT_DISABLED,
]
#: What can be sent.
Sendable = Literal[Subscribable, EventType.TEST]

Url = Annotated[str, StringConstraints(min_length=1, max_length=MAX_URL), Storable, NoNul]
Description = Annotated[str, StringConstraints(max_length=500), Storable, NoNul]
Events = Annotated[list[Subscribable], Field(min_length=1, max_length=20)]

DEFAULT_EVENTS: Final[list[Subscribable]] = [EventType.SUCCEEDED, EventType.FAILED, EventType.CANCELED]
assert tuple(DEFAULT_EVENTS) == WEBHOOK_EVENTS


class EndpointCreate(BaseModel):
    """An endpoint to make."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: Url = Field(description="Where events are POSTed to. It must be on the public internet, unless allowed.")
    description: Description = Field("", description="What it is for.")
    events: Events = Field(DEFAULT_EVENTS, description="The types of event that it gets.")
    enabled: bool = Field(True, strict=True, description="Whether it gets any.")
    asymmetric: bool = Field(
        False, strict=True, description="Whether its webhooks also carry `v1a` signatures (ed25519)."
    )


class EndpointUpdate(BaseModel):
    """What to change of an endpoint; what is left out or null stays as it is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: Url | None = Field(None, description="A new URL.")
    description: Description | None = None
    events: Events | None = Field(None, description="The types of event that it gets from now on.")
    enabled: Annotated[bool, Field(strict=True)] | None = Field(
        None, description="`false`: nothing is sent. `true`: events are sent again, and what waited."
    )
    asymmetric: Annotated[bool, Field(strict=True)] | None = Field(
        None, description="`true`: webhooks carry `v1a` signatures too, of a key pair made now unless there is one."
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
    """What `v1a` signatures are checked with."""

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
    events: list[EventType] = Field(description="The types of event that it gets.")
    enabled: bool
    one_off: bool = Field(description="Whether it was made for the `webhook` of jobs.")
    failures: int = Field(description="Tries that failed in a row.")
    failing_since: datetime | None
    paused_until: datetime | None = Field(description="Nothing is sent before: it asked for that, or fails too often.")
    disabled_at: datetime | None
    disabled_reason: DisabledReason | None = Field(
        description="`gone`: it answered 410. `failing`: for days. `requested`: by one of your keys."
    )
    public_keys: list[PublicKeySchema] = Field(
        description="Where `v1a` signatures were asked for: those that sign now, newest first."
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
            failures=endpoint.failures,
            failing_since=endpoint.failing_since,
            paused_until=endpoint.paused_until,
            disabled_at=endpoint.disabled_at,
            disabled_reason=endpoint.disabled_reason,
            public_keys=list(map(PublicKeySchema.of, endpoint.keys)),
            created_at=endpoint.created_at,
        )


class NewEndpointSchema(EndpointSchema):
    """A fresh endpoint."""

    secret: str = Field(description="What its webhooks are signed with.")


class EndpointPage(Schema):
    """Some of the tenant's endpoints, newest first."""

    data: list[EndpointSchema]
    next: str | None = Field(description="The `cursor` of the next page; null on the last one.")


class OldSecretSchema(Schema):
    """A secret that was replaced and still signs."""

    secret: str
    expires_at: datetime

    @classmethod
    def of(cls, secret: Secret) -> Self:
        """A secret with an end."""
        assert secret.expires_at is not None
        return cls(secret=secret.text, expires_at=secret.expires_at)


class SecretSchema(Schema):
    """What an endpoint's webhooks are signed with."""

    secret: str = Field(description="The current secret: `whsec_` and base64.")
    previous: list[OldSecretSchema] = Field(description="Older ones that sign as well until they expire, newest first.")

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
    state: DeliveryState = Field(description="`dead`: given up after the last try of the schedule.")
    sequence: int = Field(description="Within its endpoint; in the body too.")
    tries: int = Field(description="Begun so far.")
    next_try_at: datetime | None = Field(description="Null unless it is pending.")
    status: int | None = Field(description="The HTTP status of the last answer.")
    error: str | None = Field(description="Why the last try did not deliver.")
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
            tries=delivery.tries,
            next_try_at=delivery.next_at if delivery.state is DeliveryState.PENDING else None,
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
    """One request and what came back."""

    number: int
    at: datetime
    status: int | None = Field(description="Null: no answer came.")
    seconds: float
    error: str | None = Field(description="Null: delivered.")
    answer: str = Field(description="The beginning of the answer's body.")

    @classmethod
    def of(cls, attempt: DeliveryAttempt) -> Self:
        """The attempt as it was noted."""
        return cls(
            number=attempt.number,
            at=attempt.at,
            status=attempt.status,
            seconds=round(attempt.seconds, 6),
            error=attempt.error,
            answer=attempt.answer,
        )


class DeliveryWithAttempts(DeliverySchema):
    """One delivery and everything that was tried for it."""

    attempts: list[AttemptSchema]
