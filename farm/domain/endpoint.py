"""Where a tenant wants events sent, and the words for how that goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final, Literal, get_args

from farm.domain.states import EventType

#: What an endpoint gets that asks for nothing else, and all that a job's own ``webhook`` URL gets.
WEBHOOK_EVENTS: Final[tuple[Subscribable, ...]] = (EventType.SUCCEEDED, EventType.FAILED, EventType.CANCELED)
#: The event types that an endpoint may subscribe to.
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
SUBSCRIBABLE: Final[tuple[Subscribable, ...]] = get_args(Subscribable)
MAX_SECRETS: Final = 4  #: of one endpoint that sign at the same time


class DeliveryState(StrEnum):
    """A delivery's state."""

    PENDING = "pending"
    DELIVERED = "delivered"
    DEAD = "dead"  #: given up after the last attempt of the schedule


class DisabledReason(StrEnum):
    """Why an endpoint is disabled."""

    GONE = "gone"  #: it answered 410
    FAILING = "failing"  #: it failed for days
    REQUESTED = "requested"  #: its tenant wanted so


@dataclass(frozen=True)
class Secret:
    """What signs an endpoint's webhooks."""

    text: str = field(repr=False)  #: ``whsec_…``, or of a key pair the private half, ``whsk_…``
    expires_at: datetime | None  #: None: the current one


@dataclass(frozen=True)
class Endpoint:
    """Where a tenant wants events sent."""

    id: str
    tenant_id: str
    url: str
    description: str
    events: frozenset[EventType]
    signing: tuple[Secret, ...]  #: those that sign now, newest first
    keys: tuple[Secret, ...]  #: the same of private keys, where ``v1a`` signatures were asked for
    one_off: bool  #: made for the ``webhook`` URL of a job
    sequence: int  #: of the last delivery made for it
    paused_until: datetime | None
    consecutive_failures: int  #: attempts that failed in a row
    failing_since: datetime | None
    disabled_at: datetime | None
    disabled_reason: DisabledReason | None
    created_at: datetime

    @property
    def secrets(self) -> tuple[str, ...]:
        """The texts of the secrets that sign now, newest first."""
        return tuple(secret.text for secret in self.signing)


def signing(secrets: Sequence[str], until: Sequence[datetime], now: datetime) -> tuple[Secret, ...]:
    """The secrets that sign at that time, of those that are kept; ``until`` says when all but the first end."""
    if not secrets:
        return ()
    return (
        Secret(secrets[0], None),
        *(Secret(text, end) for text, end in zip(secrets[1:], until, strict=True) if end > now),
    )
