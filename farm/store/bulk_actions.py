"""Jobs that one request is about: those it names, or all that match a filter; ended or repeated by few statements."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    Text,
    Uuid,
    any_,
    bindparam,
    case,
    cast,
    false,
    func,
    insert,
    literal,
    null,
    or_,
    select,
    text,
    true,
    update,
)
from sqlalchemy.orm import Session, aliased

from farm.domain import ids
from farm.domain.batch import Staged
from farm.domain.job import JobFilter, Selection
from farm.domain.states import EventType, JobState
from farm.store.tables import RETRY_COLUMNS, EndpointRow, EventRow, JobDependencyRow, JobRow, PropagationRow

CANCEL_CHUNK: Final = 100_000  #: jobs ended by one statement, so that the locks are not held for long
WAITING: Final = (JobState.PENDING.value, JobState.QUEUED.value, JobState.DISPATCHED.value)
# one at a time for a tenant: two at once would both repeat what neither has repeated yet
_LOCK_TENANT: Final = text("SELECT pg_advisory_xact_lock(hashtextextended('repeat ' || :tenant, 0))")


def matching(wanted: JobFilter) -> list[Any]:
    """A filter as SQL, without the tenant."""
    found: list[Any] = []
    if wanted.state:
        found.append(JobRow.state.in_([state.value for state in wanted.state]))
    for name in ("task", "model", "custom_id", "batch_id", "error_code", "worker"):
        value = getattr(wanted, name)
        if value is not None:
            found.append(getattr(JobRow, name) == value)
    if wanted.created_after is not None:
        found.append(JobRow.created_at > wanted.created_after)
    if wanted.created_before is not None:
        found.append(JobRow.created_at < wanted.created_before)
    return found


@dataclass(frozen=True)
class CanceledJobs:
    """Jobs of one batch, or of none, that one statement canceled."""

    batch_id: str | None
    jobs: int
    pending: int  #: those of them that were pending
    with_dependents: int  #: those of them that other jobs wait for


class BulkActions:
    """Many jobs of one tenant at once."""

    def __init__(self, session: Session) -> None:
        self._session = session

    # -- ending -------------------------------------------------------------------------------------------------------

    def count_cancelable(self, tenant_id: str, selection: Selection) -> int:
        """How many of them have not finished."""
        return self._count(*_selected(tenant_id, selection), or_(_waiting(), JobRow.state == JobState.RUNNING.value))

    def cancel_waiting(self, tenant_id: str, selection: Selection) -> list[CanceledJobs]:
        """pending, queued or dispatched → canceled, with their events; returns how many of each batch, see `any_left`.

        Those that other jobs wait for are marked, so that these follow (`Dependencies.follow`).

        Jobs that another transaction has locked are skipped, never waited for: two that each hold a part
        of what the other wants would wait for ever.
        """
        waiting = (
            select(JobRow.id)
            .where(*_selected(tenant_id, selection), _waiting())
            .limit(CANCEL_CHUNK)
            .with_for_update(skip_locked=True)
            .cte("waiting")
        )
        ended = (
            update(JobRow)
            .where(JobRow.id == waiting.c.id)
            .values(state=JobState.CANCELED.value, lease_until=null(), finished_at=func.now(), cancel_requested=true())
            .returning(
                JobRow.id,
                JobRow.tenant_id,
                JobRow.epoch,
                JobRow.batch_id,
                JobRow.webhook,
                JobRow.pending_inputs,
                JobRow.dependents,
            )
            .cte("ended")
        )
        recorded = (
            insert(EventRow)
            .from_select(
                ["tenant_id", "job_id", "epoch", "type", "data", "fanned_out"],
                select(
                    ended.c.tenant_id,
                    ended.c.id,
                    ended.c.epoch,
                    literal(EventType.CANCELED.value),
                    literal({}, EventRow.__table__.c.data.type),
                    ended.c.webhook.is_(None) & ~_subscribed(tenant_id, EventType.CANCELED),
                ),
                include_defaults=False,
            )
            .cte("recorded")
        )
        name = literal("job_") + func.encode(func.uuid_send(ended.c.id), "hex")
        cause = name + " was canceled"
        marked = (
            insert(PropagationRow)
            .from_select(
                ["job_id", "reason", "root"],
                select(ended.c.id, literal("Its input ") + cause + ".", cause).where(ended.c.dependents > 0),
                include_defaults=False,
            )
            .cte("marked")
        )
        counted = (
            select(
                ended.c.batch_id,
                func.count(),
                func.count().filter(ended.c.pending_inputs > 0),
                func.count().filter(ended.c.dependents > 0),
            )
            .group_by(ended.c.batch_id)
            .add_cte(recorded)
            .add_cte(marked)
        )
        return [CanceledJobs(*row) for row in self._session.execute(counted)]

    def request_cancel(self, tenant_id: str, selection: Selection) -> list[str]:
        """Ask the workers of those that run to stop; returns those jobs."""
        running = (
            select(JobRow.id)
            .where(*_selected(tenant_id, selection), *_not_requested())
            .with_for_update(skip_locked=True)
            .cte("running")
        )
        asked = update(JobRow).where(JobRow.id == running.c.id).values(cancel_requested=true()).returning(JobRow.id)
        return list(self._session.scalars(asked.execution_options(synchronize_session=False)))

    def any_left(self, tenant_id: str, selection: Selection) -> bool:
        """Whether some of them still wait, or run without having been asked to stop."""
        chosen = _selected(tenant_id, selection)
        # each by its own index
        for conditions in ([_waiting()], _not_requested()):
            if self._session.scalar(select(select(JobRow.id).where(*chosen, *conditions).exists())):
                return True
        return False

    # -- repeating ----------------------------------------------------------------------------------------------------

    def count_retryable(self, tenant_id: str, selection: Selection) -> Staged:
        """How many of them failed or were canceled and were not repeated since, and what they cost.

        From here to the end of the transaction no other one retries jobs of this tenant.
        """
        self._session.execute(_LOCK_TENANT, {"tenant": tenant_id})
        row = self._session.execute(
            select(func.count(), func.coalesce(func.sum(JobRow.cost), 0.0)).where(
                *_selected(tenant_id, selection), *_retryable()
            )
        ).one()
        return Staged(row[0], row[1])

    def copy_retryable(self, tenant_id: str, selection: Selection) -> int:
        """Make new jobs of those that `count_retryable` counted, for `RetriedChains.attach`; returns how many."""
        old = (
            select(JobRow.__table__, func.row_number().over(order_by=JobRow.id).label("place"))
            .where(*_selected(tenant_id, selection), *_retryable())
            .subquery("old")
        )
        # what `ids.IdSeries` makes, in SQL: ids that ascend with the place
        name = cast(
            literal(ids.IdSeries(ids.JOB).prefix)
            + func.lpad(func.to_hex(old.c.place), 8, "0")
            + func.substr(func.md5(cast(func.random(), Text)), 1, 7),
            Uuid,
        )
        waits = select(JobDependencyRow.job_id).where(JobDependencyRow.job_id == old.c.id).exists()
        made = (
            insert(JobRow.__table__)  # type: ignore[arg-type]
            .from_select(
                ["id", "tenant_id", "state", "retry_of", *RETRY_COLUMNS],
                select(
                    name,
                    old.c.tenant_id,
                    case((waits, JobState.PENDING.value), else_=JobState.QUEUED.value),
                    old.c.id,
                    *(old.c[column] for column in RETRY_COLUMNS),
                ).order_by(old.c.place),
                include_defaults=False,
            )
            .returning(JobRow.__table__.c.id)
            .cte("made")
        )
        return self._session.scalar(select(func.count()).select_from(made)) or 0

    def _count(self, *conditions: Any) -> int:
        return self._session.scalar(select(func.count()).select_from(JobRow).where(*conditions)) or 0


def _selected(tenant_id: str, selection: Selection) -> list[Any]:
    conditions: list[Any] = [JobRow.tenant_id == tenant_id]
    if selection.job_ids is None:
        return conditions + matching(selection.wanted)
    named: Collection[Any] = [ids.to_uuid(ids.JOB, one) for one in selection.job_ids if ids.is_id(ids.JOB, one)]
    if not named:
        return [false()]
    return [*conditions, JobRow.id == any_(bindparam(None, named, type_=ARRAY(Uuid)))]


def _subscribed(tenant_id: str, kind: EventType) -> Any:
    """Whether an endpoint of the tenant wants such events: asked once, whatever the number of jobs."""
    return (
        select(EndpointRow.id)
        .where(
            EndpointRow.tenant_id == tenant_id,
            ~EndpointRow.one_off,
            EndpointRow.disabled_at.is_(None),
            literal(kind.value) == any_(EndpointRow.events),
        )
        .exists()
    )


def _waiting() -> Any:
    return JobRow.state.in_(WAITING)


def _not_requested() -> list[Any]:
    return [JobRow.state == JobState.RUNNING.value, ~JobRow.cancel_requested]


def _retryable() -> list[Any]:
    again = aliased(JobRow)
    return [
        JobRow.state.in_((JobState.FAILED.value, JobState.CANCELED.value)),
        ~select(again.id).where(again.retry_of == JobRow.id).exists(),
    ]
