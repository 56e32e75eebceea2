"""How attempts ended, and what follows from it for deliveries and endpoints.

Plain statements, whose arrays hold any number of rows: their texts never change, so the driver prepares them once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from sqlalchemy import case, func, null, or_, select, update
from sqlalchemy.orm import Session

from farm.domain import ids
from farm.domain.endpoint import DisabledReason
from farm.domain.states import EventType
from farm.store.events import Events
from farm.store.tables import EndpointRow
from farm.store.workers import seconds

_DELIVERED: Final = """
    UPDATE delivery SET state = 'delivered', lease_until = NULL
    WHERE id = ANY(%(ids)s::uuid[]) AND state = 'pending' RETURNING id
"""
_FAILED: Final = """
    UPDATE delivery SET lease_until = NULL, next_attempt_at = now() + make_interval(secs => outcome.delay),
        state = CASE WHEN outcome.last THEN 'dead' ELSE delivery.state END
    FROM unnest(%(ids)s::uuid[], %(numbers)s::int[], %(delays)s::float8[], %(last)s::bool[])
        AS outcome (id, number, delay, last)
    WHERE delivery.id = outcome.id AND delivery.attempt_count = outcome.number AND delivery.state = 'pending'
    RETURNING delivery.id
"""
_THERE: Final = "SELECT id FROM delivery WHERE id = ANY(%(ids)s::uuid[]) FOR KEY SHARE"
# one that was taken for lost was only slow to be noted
_NOTE: Final = """
    INSERT INTO delivery_attempt (delivery_id, number, at, status, seconds, error, response)
    SELECT tried.id, tried.number, now() - make_interval(secs => tried.seconds), tried.status, tried.seconds,
        tried.error, tried.response
    FROM unnest(%(ids)s::uuid[], %(numbers)s::int[], %(statuses)s::int[], %(seconds)s::float8[], %(errors)s::text[],
        %(responses)s::text[]) AS tried (id, number, status, seconds, error, response)
    ON CONFLICT (delivery_id, number) DO UPDATE SET at = excluded.at, status = excluded.status,
        seconds = excluded.seconds, error = excluded.error, response = excluded.response
"""


@dataclass(frozen=True, slots=True)
class DeliveryResult:
    """How a try ended, and what follows from it."""

    delivery_id: str
    endpoint_id: str
    number: int
    delivered: bool
    status: int | None
    seconds: float
    error: str | None
    response: str
    retry_in: float | None = None  #: seconds to the next try; None: delivered, or given up
    pause: float | None = None  #: seconds that the whole endpoint rests
    probe: bool = False
    blames: bool = True  #: whether a failure is the endpoint's
    gone: bool = False  #: the endpoint asked not to be called again


@dataclass(frozen=True)
class AttemptEffects:
    """What a group of outcomes did to its endpoints."""

    disabled: tuple[str, ...]
    rescheduled: bool  #: an endpoint may be due earlier than the last look said


class DeliveryResults:
    """The log of attempts, and what they say of their endpoints."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def record(
        self,
        outcomes: Sequence[DeliveryResult],
        give_up_seconds: float,
        probe_after: int,
        pause_of: Callable[[int], float | None],
    ) -> AttemptEffects:
        """Record how attempts ended, each delivery at most once, and what that says of their endpoints.

        A delivered one stays delivered, also when its lease had run out: the receiver has it. Any other outcome counts
        only while the delivery is still the caller's. An endpoint is disabled when it is gone, or a try fails after
        ``give_up_seconds`` without a success. ``pause_of`` says how long an endpoint rests after so many failures in a
        row; beyond ``probe_after`` only probes count, so that what was under way at once does not lengthen the pause.
        """
        verdict = self._judge_endpoints(outcomes, give_up_seconds, probe_after, pause_of)
        attempts = {ids.to_uuid(ids.DELIVERY, one.delivery_id): one for one in outcomes}
        delivered = [key for key, one in attempts.items() if one.delivered]
        there: set[UUID] = set()
        if delivered:
            there |= {row.id for row in self._rows(_DELIVERED, ids=delivered)}
        failed = {key: one for key, one in attempts.items() if not one.delivered}
        if failed:
            rows = self._rows(
                _FAILED,
                ids=list(failed),
                numbers=[one.number for one in failed.values()],
                delays=[one.retry_in or 0.0 for one in failed.values()],
                last=[one.retry_in is None for one in failed.values()],
            )
            there |= {row.id for row in rows}
        others = [key for key in attempts if key not in there]
        if others:  # no longer the caller's; or their endpoint was deleted meanwhile, and they with it
            there |= {row.id for row in self._rows(_THERE, ids=others)}
        noted = {key: one for key, one in attempts.items() if key in there}
        if noted:
            self._run(
                _NOTE,
                ids=list(noted),
                numbers=[one.number for one in noted.values()],
                statuses=[one.status for one in noted.values()],
                seconds=[one.seconds for one in noted.values()],
                errors=[one.error for one in noted.values()],
                responses=[one.response for one in noted.values()],
            )
        return verdict

    def _judge_endpoints(
        self,
        outcomes: Sequence[DeliveryResult],
        give_up_seconds: float,
        probe_after: int,
        pause_of: Callable[[int], float | None],
    ) -> AttemptEffects:
        """What the outcomes mean for their endpoints; a healthy one's success touches no row."""
        by_endpoint: dict[str, list[DeliveryResult]] = {}
        for one in outcomes:
            by_endpoint.setdefault(one.endpoint_id, []).append(one)
        failed = [name for name, attempts in by_endpoint.items() if not all(one.delivered for one in attempts)]
        locked = self._session.execute(
            select(
                EndpointRow.id,
                EndpointRow.consecutive_failures,
                EndpointRow.tenant_id,
                EndpointRow.url,
                EndpointRow.description,
                EndpointRow.failing_since,
                func.now().label("now"),
                (EndpointRow.failing_since < func.now() - seconds(give_up_seconds)).label("hopeless"),
            )
            .where(
                EndpointRow.id.in_(list(by_endpoint)),
                EndpointRow.disabled_at.is_(None),
                or_(
                    EndpointRow.id.in_(failed),
                    EndpointRow.consecutive_failures > 0,
                    EndpointRow.paused_until.is_not(None),
                ),
            )
            .order_by(EndpointRow.id)
            .with_for_update()
        ).all()
        disabled: list[str] = []
        for row in locked:
            attempts = by_endpoint[row.id]
            blamed = [one for one in attempts if not one.delivered and one.blames]
            succeeded = any(one.delivered for one in attempts)
            values: dict[str, Any]
            gone = any(one.gone for one in attempts)
            if gone or (row.hopeless and blamed and not succeeded):
                reason = DisabledReason.GONE if gone else DisabledReason.FAILING
                values = {"disabled_at": func.now(), "disabled_reason": reason.value, "due_at": null()}
                disabled.append(row.id)
                data = {
                    "id": row.id,
                    "url": row.url,
                    "description": row.description,
                    "reason": reason.value,
                    "failing_since": None if row.failing_since is None else row.failing_since.isoformat(),
                    "disabled_at": row.now.isoformat(),
                }
                Events(self._session).record(row.tenant_id, None, 0, EventType.ENDPOINT_DISABLED, {"endpoint": data})
            else:
                values = self._after(attempts, row.consecutive_failures, probe_after, pause_of)
            self._session.execute(
                update(EndpointRow)
                .where(EndpointRow.id == row.id)
                .values(values)
                .execution_options(synchronize_session=False)
            )
        return AttemptEffects(tuple(disabled), bool(locked))

    def _after(
        self,
        attempts: Sequence[DeliveryResult],
        failures: int,
        probe_after: int,
        pause_of: Callable[[int], float | None],
    ) -> dict[str, Any]:
        """An endpoint's columns after those attempts."""
        recovered = False
        pauses: list[float] = []
        for one in attempts:
            if one.delivered:
                failures, pauses, recovered = 0, [], True
            elif one.blames:
                if one.probe or failures < probe_after:
                    failures += 1
                pauses += [pause for pause in (one.pause, pause_of(failures)) if pause is not None]
        since: Any = null()
        if failures:
            since = func.now() if recovered else func.coalesce(EndpointRow.failing_since, func.now())
        # A success ends every pause, and a probe's end the one that the probe had set; others only grow.
        released = recovered or any(one.probe for one in attempts)
        until: Any = null() if released else EndpointRow.paused_until
        if pauses:
            until = func.greatest(until, func.now() + seconds(max(pauses)))
        # All of these pass over NULL. What a pause held back is due at once: an early look costs little.
        retries = [0.0] if released else [one.retry_in for one in attempts if one.retry_in is not None]
        due: Any = EndpointRow.due_at
        if retries:
            due = func.least(due, func.now() + seconds(min(retries)))
        return {
            "consecutive_failures": failures,
            "failing_since": since,
            "paused_until": until,
            "due_at": case((due.is_(None), null()), else_=func.greatest(due, until)),
        }

    def _rows(self, statement: str, **values: Any) -> Sequence[Any]:
        return self._session.connection().exec_driver_sql(statement, values).all()

    def _run(self, statement: str, **values: Any) -> None:
        self._session.connection().exec_driver_sql(statement, values)
