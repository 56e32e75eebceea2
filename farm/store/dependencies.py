"""Jobs whose inputs are outputs of other jobs: their edges, and how they follow the end of what they wait for.

An edge is written with the job that waits, under a lock of the row of its parent (the job whose output it is), and
counted there. So whoever ends the parent afterwards knows whether jobs wait for it, and jobs without dependents cost
nothing. A few dependents follow in the transaction of the end; of many it leaves a row of `PropagationRow`, and they
follow in slices.

The rows of jobs are locked in the order of the graph, parents first, and of one level in the order of ids.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from sqlalchemy.orm import Session

from farm.domain import ids
from farm.domain.job_spec import InputFile
from farm.domain.states import JobState
from farm.store.events import EVENT_CHANNEL, Events

SLICE: Final = 20_000  #: jobs that follow in one transaction

_LOCK: Final = """
    SELECT id, state FROM job WHERE id = ANY(%(parents)s::uuid[]) AND tenant_id = %(tenant)s
        AND NOT EXISTS (SELECT FROM batch WHERE batch.id = job.batch_id AND batch.deleted_at IS NOT NULL)
    ORDER BY id FOR NO KEY UPDATE
"""
_ADD: Final = """
    INSERT INTO job_dependency (parent_id, job_id, waits)
    SELECT * FROM unnest(%(parents)s::uuid[], %(jobs)s::uuid[], %(waits)s::boolean[])
"""
_COUNT: Final = """
    UPDATE job SET dependents = job.dependents + made.jobs
    FROM (SELECT parent_id, count(*) AS jobs FROM unnest(%(parents)s::uuid[]) AS parent_id GROUP BY 1) AS made
    WHERE job.id = made.parent_id
"""
_WITH_DEPENDENTS: Final = "SELECT id, dependents FROM job WHERE id = ANY(%(ids)s::uuid[]) AND dependents > 0"

#: Jobs that wait for some parents: with how many of them, and one of them.
_OF_PARENTS: Final = """
    SELECT job_id, count(*) AS inputs, min(parent_id::text)::uuid AS parent_id FROM job_dependency
    WHERE parent_id = ANY(%(parents)s::uuid[]) AND waits GROUP BY job_id
"""
#: Those of one parent behind a place in the order of ids.
_SLICE: Final = """
    SELECT job_id, 1 AS inputs, parent_id FROM job_dependency
    WHERE parent_id = (%(parents)s::uuid[])[1] AND waits AND (%(after)s::uuid IS NULL OR job_id > %(after)s::uuid)
    ORDER BY job_id LIMIT %(limit)s
"""
# Of a slice by an array, so that the planner looks each job up, and never reads the whole table for each slice.
_ALL_PROMOTED: Final = "waiting.inputs FROM waiting JOIN job ON job.id = waiting.job_id"
_SLICE_PROMOTED: Final = "1 AS inputs FROM job"
_ALL_FAILED: Final = """
    waiting.parent_id, failed.reason FROM waiting JOIN job ON job.id = waiting.job_id
    JOIN unnest(%(parents)s::uuid[], %(reasons)s::text[]) AS failed (parent_id, reason)
        ON failed.parent_id = waiting.parent_id
"""
_SLICE_FAILED: Final = "(%(parents)s::uuid[])[1] AS parent_id, (%(reasons)s::text[])[1] AS reason FROM job"
_IN_SLICE: Final = "job.id = ANY(ARRAY(SELECT job_id FROM waiting)) AND"
_PROMOTE: Final = """
    WITH waiting AS MATERIALIZED ({waiting}), mine AS (
        SELECT job.id, {mine}
        WHERE {which} job.state = 'pending' ORDER BY job.id FOR NO KEY UPDATE OF job
    ), followed AS (
        UPDATE job SET pending_inputs = job.pending_inputs - mine.inputs,
            state = CASE WHEN job.pending_inputs <= mine.inputs THEN 'queued' ELSE job.state END,
            available_at = greatest(job.available_at, now()), queued_at = greatest(job.queued_at, now())
        FROM mine WHERE job.id = mine.id
        RETURNING job.id, job.batch_id, job.state
    )
    {result}
"""
# A batch that is being canceled cancels its jobs itself.
_FAIL: Final = """
    WITH waiting AS MATERIALIZED ({waiting}), mine AS (
        SELECT job.id, {mine}
        WHERE {which} job.state = 'pending' AND NOT EXISTS (
            SELECT FROM batch WHERE batch.id = job.batch_id AND batch.cancel_requested_at IS NOT NULL)
        ORDER BY job.id FOR NO KEY UPDATE OF job
    ), followed AS (
        UPDATE job SET state = 'failed', error_code = 'input_failed', error_message = mine.reason, finished_at = now()
        FROM mine WHERE job.id = mine.id
        RETURNING job.id, job.tenant_id, job.batch_id, job.epoch, job.state, job.webhook, job.dependents,
                  job.error_message, mine.parent_id
    ), recorded AS (
        INSERT INTO event (tenant_id, job_id, epoch, type, data, fanned_out)
        SELECT followed.tenant_id, followed.id, followed.epoch, 'job.failed',
            jsonb_build_object('code', 'input_failed', 'message', followed.error_message),
            followed.webhook IS NULL AND NOT EXISTS (
                SELECT FROM endpoint WHERE endpoint.tenant_id = followed.tenant_id
                    AND 'job.failed' = ANY (endpoint.events) AND NOT one_off AND disabled_at IS NULL)
        FROM followed
    )
    {result}
"""
_EACH_PROMOTED: Final = "SELECT id, batch_id FROM followed WHERE state = 'queued'"
_EACH_FAILED: Final = "SELECT id, batch_id, dependents, parent_id FROM followed"
# Of a slice: how many of each batch followed, and where the slice ended.
_SUMS: Final = """
    SELECT batch_id, count(id), (SELECT max(job_id::text)::uuid FROM waiting), (SELECT count(*) FROM waiting)
    FROM (SELECT NULL::uuid AS batch_id, NULL::uuid AS id
          UNION ALL SELECT batch_id, id FROM followed WHERE state <> 'pending') AS each GROUP BY batch_id
"""
_MARK_FAILED: Final = """, marked AS (
        INSERT INTO propagation (job_id, reason, root)
        SELECT id, replace(%(child_reason)s, '%%', 'job_' || encode(uuid_send(id), 'hex')), %(root)s
        FROM followed WHERE dependents > 0
    )
"""
_MARK: Final = """
    INSERT INTO propagation (job_id, reason, root)
    SELECT * FROM unnest(%(ids)s::uuid[], %(reasons)s::text[], %(roots)s::text[]) ON CONFLICT DO NOTHING
"""
_TAKE: Final = """
    SELECT job_id, reason, root, after FROM propagation ORDER BY created_at, job_id LIMIT 1 FOR UPDATE SKIP LOCKED
"""
_OUTPUTS: Final = """
    SELECT job_id, index, key, media_type, size, sha256, metadata FROM output WHERE job_id = ANY(%(jobs)s::uuid[])
"""
_WAITS_FOR: Final = """
    SELECT edge.job_id, edge.parent_id FROM job_dependency AS edge JOIN job AS parent ON parent.id = edge.parent_id
    WHERE edge.job_id = ANY(%(jobs)s::uuid[]) AND edge.waits AND parent.finished_at IS NULL
    ORDER BY edge.job_id, edge.parent_id
"""
_DEPENDENTS: Final = """
    SELECT job.id, job.state FROM job_dependency AS edge JOIN job ON job.id = edge.job_id
    WHERE edge.parent_id = %(parent)s ORDER BY job.id LIMIT %(limit)s
"""


@dataclass(frozen=True)
class FailedInput:
    """A job that failed or was canceled, as the jobs that wait for it tell it."""

    job_id: str
    ended: str  #: ``failed`` or ``was canceled``
    root: str | None = None  #: what began it, where that is another job: ``job_… was canceled``

    @property
    def reason(self) -> str:
        """How a job that waits for it fails, in one sentence."""
        because = "" if self.root is None else f", because {self.root}"
        return f"Its input {self.job_id} {self.ended}{because}."

    @property
    def cause(self) -> str:
        """What the failure of jobs further on is put down to."""
        return self.root or f"{self.job_id} {self.ended}"


@dataclass(frozen=True)
class FollowedJob:
    """A job that followed the end of an input in this transaction."""

    job_id: str
    batch_id: str | None
    dependents: int = 0
    parent_id: str = ""


@dataclass(frozen=True)
class Slice:
    """What followed in one transaction."""

    failed: bool  #: whether these jobs failed; else they are queued
    by_batch: Mapping[str | None, int]


class Dependencies:
    """The edges between all jobs."""

    def __init__(self, session: Session) -> None:
        self._session = session

    # -- reading ------------------------------------------------------------------------------------------------------

    def waits_for(self, job_ids: Collection[str]) -> dict[str, list[str]]:
        """The unfinished jobs that each of these pending jobs waits for."""
        found: dict[str, list[str]] = {}
        if job_ids:
            for row in self._rows(_WAITS_FOR, {"jobs": _uuids(job_ids)}):
                found.setdefault(ids.from_uuid(ids.JOB, row[0]), []).append(ids.from_uuid(ids.JOB, row[1]))
        return found

    def dependents(self, parent_id: str, limit: int) -> list[tuple[str, JobState]]:
        """The first jobs that have an output of this one as an input, oldest first, with their states."""
        rows = self._rows(_DEPENDENTS, {"parent": ids.to_uuid(ids.JOB, parent_id), "limit": limit})
        return [(ids.from_uuid(ids.JOB, row[0]), JobState(row[1])) for row in rows]

    def with_dependents(self, job_ids: Collection[str]) -> dict[str, int]:
        """Those of the jobs that others depend on, and on how many."""
        rows = self._rows(_WITH_DEPENDENTS, {"ids": _uuids(job_ids)}) if job_ids else ()
        return {ids.from_uuid(ids.JOB, row[0]): row[1] for row in rows}

    def outputs(self, job_ids: Collection[str]) -> dict[tuple[str, int], InputFile]:
        """The outputs of these jobs as inputs of others, by job and index."""
        found = {}
        for row in self._rows(_OUTPUTS, {"jobs": _uuids(job_ids)}):
            job_id = ids.from_uuid(ids.JOB, row.job_id)
            found[job_id, row.index] = InputFile(
                sha256=row.sha256,
                key=row.key,
                media_type=row.media_type,
                size=row.size,
                metadata=row.metadata,
                job=job_id,
                output=row.index,
            )
        return found

    # -- submitting ---------------------------------------------------------------------------------------------------

    def lock_parents(self, tenant_id: str, parent_ids: Collection[str]) -> dict[str, JobState]:
        """Hold the tenant's jobs of these ids against their end; returns the states of those that exist."""
        values = {"parents": _uuids(parent_ids), "tenant": ids.to_uuid(ids.TENANT, tenant_id)}
        return {ids.from_uuid(ids.JOB, row[0]): JobState(row[1]) for row in self._rows(_LOCK, values)}

    def add(self, job_id: str, parents: Mapping[str, bool]) -> None:
        """Note what a new job depends on, and whether it waits for it. Take `lock_parents` before."""
        parent_ids = _uuids(parents)
        values = {
            "parents": parent_ids,
            "jobs": [ids.to_uuid(ids.JOB, job_id)] * len(parents),
            "waits": list(parents.values()),
        }
        self._execute(_ADD, values)
        self._execute(_COUNT, {"parents": parent_ids})

    # -- following an end ---------------------------------------------------------------------------------------------

    def promote(self, parent_ids: Collection[str]) -> list[FollowedJob]:
        """pending → queued for jobs that waited only for these, which succeeded; returns them."""
        statement = _PROMOTE.format(waiting=_OF_PARENTS, mine=_ALL_PROMOTED, which="", result=_EACH_PROMOTED)
        return [
            FollowedJob(ids.from_uuid(ids.JOB, row[0]), _batch(row[1]))
            for row in self._rows(statement, {"parents": _uuids(parent_ids)})
        ]

    def fail(self, failed: Sequence[FailedInput]) -> list[FollowedJob]:
        """pending → failed for jobs that wait for any of these, with their events; returns them."""
        values = {
            "parents": _uuids([one.job_id for one in failed]),
            "reasons": [one.reason for one in failed],
        }
        statement = _FAIL.format(waiting=_OF_PARENTS, mine=_ALL_FAILED, which="", result=_EACH_FAILED)
        rows = self._rows(statement, values)
        return [
            FollowedJob(ids.from_uuid(ids.JOB, row[0]), _batch(row[1]), row[2], ids.from_uuid(ids.JOB, row[3]))
            for row in rows
        ]

    def mark(self, succeeded: Collection[str] = (), failed: Sequence[FailedInput] = ()) -> None:
        """Leave it to `follow` to let the dependents of these follow."""
        marked = [*succeeded, *(one.job_id for one in failed)]
        if marked:
            none = [None] * len(succeeded)
            values = {
                "ids": _uuids(marked),
                "reasons": [*none, *(one.reason for one in failed)],
                "roots": [*none, *(one.cause for one in failed)],
            }
            self._execute(_MARK, values)

    def follow(self, limit: int = SLICE) -> Slice | None:
        """Let some of the jobs that wait for a marked one follow its end; None: nothing is marked.

        Those that fail and have dependents are marked in turn.
        """
        taken = self._rows(_TAKE, {})
        if not taken:
            return None
        parent, reason, root, after = taken[0]
        values: dict[str, Any] = {"parents": [parent], "after": after, "limit": limit}
        if reason is None:
            statement = _PROMOTE.format(waiting=_SLICE, mine=_SLICE_PROMOTED, which=_IN_SLICE, result=_SUMS)
        else:
            result = _MARK_FAILED + _SUMS
            statement = _FAIL.format(waiting=_SLICE, mine=_SLICE_FAILED, which=_IN_SLICE, result=result)
            values |= {"reasons": [reason], "root": root, "child_reason": f"Its input % failed, because {root}."}
        rows = self._rows(statement, values)
        seen, last = rows[0][3], rows[0][2]
        if seen < limit:
            self._execute("DELETE FROM propagation WHERE job_id = %(id)s", {"id": parent})
        else:
            self._execute("UPDATE propagation SET after = %(last)s WHERE job_id = %(id)s", {"id": parent, "last": last})
        if reason is not None:
            Events(self._session).notify(EVENT_CHANNEL)
        return Slice(reason is not None, {_batch(row[0]): row[1] for row in rows if row[1]})

    def _rows(self, statement: str, values: dict[str, Any]) -> Sequence[Any]:
        return self._session.connection().exec_driver_sql(statement, values).all()

    def _execute(self, statement: str, values: dict[str, Any]) -> None:
        self._session.connection().exec_driver_sql(statement, values)


def _uuids(job_ids: Collection[str]) -> list[UUID]:
    return [ids.to_uuid(ids.JOB, one) for one in job_ids]


def _batch(value: UUID | None) -> str | None:
    return None if value is None else ids.from_uuid(ids.BATCH, value)
