"""Leases of deliveries that a deliverer sends.

The deliverers walk *endpoints* by the time they are due and take a few deliveries of each, so a million deliveries
that wait for one failing endpoint cost one row per look. ``endpoint.due_at`` is therefore never later than the
``next_attempt_at`` of its first pending delivery, unless the endpoint is paused or disabled; it may be earlier, which
costs one look. It is only set under the endpoint's row lock. Endpoints are locked before deliveries and in the order
of their ids, so that no two units of work wait for each other.

Plain statements, whose arrays hold any number of rows: their texts never change, so the driver prepares them once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter
from typing import Any, Final, cast
from uuid import UUID

from sqlalchemy import Uuid, any_, bindparam, inspect, select
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Session

from farm.domain import ids
from farm.domain.endpoint import signing
from farm.domain.job import Job
from farm.domain.states import EventType
from farm.store.jobs import job_of
from farm.store.secret_box import unseal
from farm.store.tables import JobRow, OutputRow

LOST: Final = "lost"  #: error class of a try whose deliverer died before it could note how it went

_DUE: Final = """
    SELECT id, consecutive_failures, url, secrets, secrets_until, keys, keys_until, now() AS now FROM endpoint
    WHERE due_at <= now() AND disabled_at IS NULL AND id <> ALL(%(full)s::uuid[])
    ORDER BY due_at LIMIT %(room)s FOR UPDATE SKIP LOCKED
"""
# where there is more than room, each endpoint gets one before any gets a second
_FIRST: Final = """
    SELECT due.id, due.leased
    FROM unnest(%(ids)s::uuid[], %(most)s::int[]) AS one (id, most)
    CROSS JOIN LATERAL (
        SELECT id, next_attempt_at, lease_until IS NOT NULL AS leased,
            row_number() OVER (ORDER BY next_attempt_at) AS rank
        FROM delivery
        WHERE endpoint_id = one.id AND state = 'pending' AND next_attempt_at <= now()
        ORDER BY next_attempt_at LIMIT one.most
    ) AS due
    ORDER BY due.rank, due.next_attempt_at LIMIT %(room)s
"""
_TAKE: Final = """
    UPDATE delivery SET attempt_count = attempt_count + 1,
        lease_until = now() + make_interval(secs => %(lease)s),
        next_attempt_at = now() + make_interval(secs => %(lease)s)
    FROM event
    WHERE delivery.id = ANY(%(ids)s::uuid[]) AND delivery.state = 'pending' AND next_attempt_at <= now()
        AND event.id = delivery.event_id
    RETURNING delivery.id, endpoint_id, sequence, attempt_count, attempts_before,
        event.job_id, event.type, event.data, event.created_at
"""
_NOTE_LOST: Final = """
    INSERT INTO delivery_attempt (delivery_id, number, seconds, error)
    SELECT lost.id, lost.number, 0, %(error)s FROM unnest(%(ids)s::uuid[], %(numbers)s::int[]) AS lost (id, number)
    ON CONFLICT DO NOTHING
"""
# while the probe is in flight, nothing else is sent
_PROBED: Final = """
    UPDATE endpoint SET paused_until = now() + make_interval(secs => %(lease)s) WHERE id = ANY(%(ids)s::uuid[])
"""
# A statement of its own, which sees all that was committed before the lock was ours.
_LOOKED_AT: Final = """
    UPDATE endpoint SET due_at = (
        SELECT CASE WHEN min(next_attempt_at) IS NOT NULL THEN greatest(min(next_attempt_at), endpoint.paused_until) END
        FROM delivery WHERE endpoint_id = endpoint.id AND state = 'pending'
    )
    WHERE id = ANY(%(ids)s::uuid[])
"""
# what one that may get no more has left over, and how long it is to the next due one of the others
_LATER: Final = """
    SELECT
        ARRAY(SELECT id FROM endpoint WHERE id = ANY(%(full)s::uuid[]) AND due_at <= now() AND disabled_at IS NULL),
        (
            SELECT extract(epoch FROM min(due_at) - clock_timestamp())::float8 FROM endpoint
            WHERE due_at IS NOT NULL AND disabled_at IS NULL AND id <> ALL(%(full)s::uuid[])
        )
"""
# endpoints first, as everywhere
_LOCK: Final = "SELECT id FROM endpoint WHERE id = ANY(%(ids)s::uuid[]) ORDER BY id FOR UPDATE"
_UNTAKE: Final = """
    UPDATE delivery SET attempt_count = attempt_count - 1, lease_until = NULL, next_attempt_at = now()
    FROM unnest(%(ids)s::uuid[], %(numbers)s::int[]) AS back (id, number)
    WHERE delivery.id = back.id AND delivery.attempt_count = back.number AND delivery.state = 'pending'
"""
_DUE_AGAIN: Final = """
    UPDATE endpoint SET due_at = greatest(least(due_at, now()), until.pause), paused_until = until.pause
    FROM (
        SELECT id, CASE WHEN id <> ALL(%(probes)s::uuid[]) THEN paused_until END AS pause
        FROM endpoint WHERE id = ANY(%(ids)s::uuid[])
    ) AS until
    WHERE endpoint.id = until.id AND disabled_at IS NULL
"""
_IDS: Final[Any] = any_(bindparam("ids", type_=ARRAY(Uuid)))


def _columns(table: Any) -> list[Any]:
    """A table's columns under the names of its class."""
    return [one.columns[0].label(one.key) for one in inspect(table).column_attrs]


_JOBS: Final[Any] = select(*_columns(JobRow)).where(JobRow.__table__.c.id == _IDS)
_OUTPUTS: Final[Any] = (
    select(*_columns(OutputRow))
    .where(OutputRow.__table__.c.job_id == _IDS)
    .order_by(OutputRow.__table__.c.job_id, OutputRow.__table__.c.index)
)


@dataclass(frozen=True, slots=True)
class Recipient:
    """An endpoint as a deliverer sees it."""

    id: str
    url: str
    secrets: tuple[str, ...]  #: those that sign now, newest first
    keys: tuple[str, ...]  #: the same of private keys


@dataclass(frozen=True, slots=True)
class ClaimedDelivery:
    """A delivery in this deliverer's hands, until its lease ends."""

    id: str
    endpoint: Recipient
    type: EventType
    job_id: str | None
    data: dict[str, Any]  #: what the event's row says
    occurred_at: datetime
    sequence: int
    number: int  #: of the try about to be made, 1-based
    turn: int  #: the same, counted from when it was last sent again: the schedule goes by it
    probe: bool  #: the one try that a failing endpoint is given


@dataclass(frozen=True)
class ClaimResult:
    """What one look gave."""

    claimed: tuple[ClaimedDelivery, ...]
    starved: frozenset[str]  #: endpoints that have more due deliveries than the caller may hold
    due_in: float | None  #: seconds until another endpoint is due; None: none waits


class DeliveryLeases:
    """Leasing due deliveries, and releasing those that were not sent."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def claim(
        self, room: int, per_endpoint: int, left: Mapping[str, int], lease_seconds: float, probe_after: int
    ) -> ClaimResult:
        """Lease at most ``room`` due deliveries, and look when the next ones are due.

        At most ``left[id]`` of an endpoint that is named there and ``per_endpoint`` of any other, and a single one, the
        probe, of an endpoint that failed ``probe_after`` times in a row. A delivery whose lease ran out is due again;
        its lost try is noted.
        """
        allowed = {ids.to_uuid(ids.ENDPOINT, one): count for one, count in left.items()}
        full = {one for one, count in allowed.items() if count <= 0}
        due = self._rows(_DUE, full=list(full), room=room)
        if not due:
            return ClaimResult((), *self._later(full))
        probes = {row.id for row in due if row.consecutive_failures >= probe_after}
        most = {row.id: allowed.get(row.id, per_endpoint) for row in due}
        # one that this deliverer has something of in hand already gets no probe beside it
        most |= {one: int(allowed.get(one, per_endpoint) >= per_endpoint) for one in probes}
        first = self._rows(_FIRST, ids=list(most), most=list(most.values()), room=room)
        taken = self._rows(_TAKE, ids=[row.id for row in first], lease=lease_seconds) if first else []
        self._note_lost({row.id for row in first if row.leased}, taken)
        counts: dict[UUID, int] = {}
        for row in taken:
            counts[row.endpoint_id] = counts.get(row.endpoint_id, 0) + 1
        probed = probes & counts.keys()
        if probed:
            self._run(_PROBED, ids=list(probed), lease=lease_seconds)
        self._run(_LOOKED_AT, ids=list(most))
        full |= {one for one, count in counts.items() if count >= most[one]}
        return ClaimResult(self._claimed(taken, due, probed), *self._later(full))

    def release(self, untried: Sequence[ClaimedDelivery]) -> None:
        """Undo claims whose attempts were not begun: the deliveries are due again, and nothing counts.

        The pause that a probe had set ends; any other stays.
        """
        endpoints = list({ids.to_uuid(ids.ENDPOINT, one.endpoint.id) for one in untried})
        self._run(_LOCK, ids=endpoints)
        self._run(
            _UNTAKE,
            ids=[ids.to_uuid(ids.DELIVERY, one.id) for one in untried],
            numbers=[one.number for one in untried],
        )
        probes = [ids.to_uuid(ids.ENDPOINT, one.endpoint.id) for one in untried if one.probe]
        self._run(_DUE_AGAIN, ids=endpoints, probes=probes)

    def jobs(self, job_ids: Collection[str]) -> dict[str, Job]:
        """The jobs that deliveries tell of, by id: columns without their objects, which cost more than all the rest."""
        uuids: list[UUID] = [ids.to_uuid(ids.JOB, one) for one in job_ids]
        if not uuids:
            return {}
        outputs: dict[str, list[Any]] = {}
        for output in self._session.execute(_OUTPUTS, {"ids": uuids}):
            outputs.setdefault(output.job_id, []).append(output)
        return {
            row.id: job_of(cast("Any", row), outputs.get(row.id, ()))
            for row in self._session.execute(_JOBS, {"ids": uuids})
        }

    def _note_lost(self, leased: set[UUID], taken: Sequence[Any]) -> None:
        lost = [row for row in taken if row.id in leased]
        if lost:
            self._run(
                _NOTE_LOST, ids=[row.id for row in lost], numbers=[row.attempt_count - 1 for row in lost], error=LOST
            )

    def _claimed(self, taken: Sequence[Any], due: Sequence[Any], probed: set[UUID]) -> tuple[ClaimedDelivery, ...]:
        """In the order of their numbers within their endpoints."""
        taking = {row[1] for row in taken}
        targets = {
            row.id: Recipient(
                ids.from_uuid(ids.ENDPOINT, row.id),
                row.url,
                tuple(unseal(one.text) for one in signing(row.secrets, row.secrets_until, row.now)),
                tuple(unseal(one.text) for one in signing(row.keys, row.keys_until, row.now)),
            )
            for row in due
            if row.id in taking
        }
        return tuple(
            ClaimedDelivery(
                id=ids.from_uuid(ids.DELIVERY, delivery_id),
                endpoint=targets[endpoint_id],
                type=EventType(kind),
                job_id=None if job_id is None else ids.from_uuid(ids.JOB, job_id),
                data=data,
                occurred_at=occurred_at,
                sequence=sequence,
                number=number,
                turn=number - before,
                probe=endpoint_id in probed,
            )
            for delivery_id, endpoint_id, sequence, number, before, job_id, kind, data, occurred_at in sorted(
                taken, key=itemgetter(1, 2)
            )  # as _TAKE returns them
        )

    def _later(self, full: set[UUID]) -> tuple[frozenset[str], float | None]:
        """`ClaimResult.starved` and `ClaimResult.due_in`."""
        ((starved, seconds),) = self._rows(_LATER, full=list(full))
        return frozenset(ids.from_uuid(ids.ENDPOINT, one) for one in starved), seconds

    def _rows(self, statement: str, **values: Any) -> Sequence[Any]:
        return self._session.connection().exec_driver_sql(statement, values).all()

    def _run(self, statement: str, **values: Any) -> None:
        self._session.connection().exec_driver_sql(statement, values)
