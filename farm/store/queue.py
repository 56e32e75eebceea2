"""The backlog as the dispatcher sees it: the first waiting jobs of each line, and handing them over.

Read and written in each round, so all of it is plain statements over any number of rows, which the driver prepares
once, and times are seconds since 1970, as the policy counts them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any, Final

from sqlalchemy.orm import Session

from farm.domain import ids
from farm.domain.job import Assignment, DispatchedJob, QueuedJob
from farm.domain.states import Priority

FEW_HEADS: Final = 8  #: jobs read of each line at least
LOOKS: Final = 8  #: at a line, whose first jobs are not to be had, in one round

#: The lines of waiting jobs, by a loose index scan: from each to the next by one probe, never over the jobs of one.
QUEUES: Final = """
    RECURSIVE waiting AS (
        (SELECT tenant_id, priority, model FROM job WHERE state = 'queued'
         ORDER BY tenant_id, priority, model LIMIT 1)
        UNION ALL
        SELECT following.* FROM waiting, LATERAL (
            SELECT tenant_id, priority, model FROM job
            WHERE state = 'queued'
              AND (tenant_id, priority, model) > (waiting.tenant_id, waiting.priority, waiting.model)
            ORDER BY tenant_id, priority, model LIMIT 1
        ) AS following
    )
"""
# Jobs that wait for another attempt or whose deadline has passed are filtered out: they are elsewhere soon, so few are
# met on the way.
_HEADS: Final = f"""
    WITH {QUEUES}, share AS (
        SELECT greatest(%(few)s, %(limit)s::integer / greatest(count(*), 1)) AS read FROM waiting
    )
    SELECT 'ten_' || translate(waiting.tenant_id::text, '-', ''), waiting.priority, waiting.model,
           coalesce(mark.skips, 0), date_part('epoch', mark.served_at), head.jobs = share.read,
           head.ids, head.costs, head.since, head.deadlines, head.failed
    FROM waiting CROSS JOIN share LEFT JOIN queue_state AS mark USING (tenant_id, priority, model)
    LEFT JOIN unnest(%(tenants)s::uuid[], %(priorities)s::smallint[], %(models)s::text[], %(times)s::float8[])
        AS passed (tenant_id, priority, model, since) USING (tenant_id, priority, model)
    CROSS JOIN LATERAL (
        SELECT count(*) AS jobs, string_agg('job_' || encode(uuid_send(id), 'hex'), ' ') AS ids,
               array_agg(cost) AS costs, array_agg(date_part('epoch', queued_at)) AS since,
               CASE WHEN count(deadline) > 0 THEN array_agg(date_part('epoch', deadline)) END AS deadlines,
               string_agg('job_' || encode(uuid_send(id), 'hex'), ' ')
                   FILTER (WHERE epoch > 0 AND id IN (SELECT job_id FROM job_failure)) AS failed
        FROM (
            SELECT id, cost, queued_at, deadline, epoch FROM job
            WHERE state = 'queued' AND job.tenant_id = waiting.tenant_id AND job.priority = waiting.priority
              AND job.model = waiting.model AND queued_at <= now() AND available_at <= now()
              AND queued_at > coalesce(to_timestamp(passed.since), '-infinity')
              AND (deadline IS NULL OR deadline > now())
            ORDER BY queued_at, id LIMIT (SELECT read FROM share)
        ) AS first
    ) AS head
    WHERE head.jobs > 0 AND (passed.since IS NOT NULL OR cardinality(%(tenants)s::uuid[]) = 0)
    ORDER BY waiting.tenant_id, waiting.priority DESC, waiting.model
"""  # noqa: S608 - of constants
_KEEP_MARKS: Final = """
    INSERT INTO queue_state (tenant_id, priority, model, skips, served_at)
    SELECT tenant_id, priority, model, skips, to_timestamp(served_at)
    FROM unnest(%(tenants)s::uuid[], %(priorities)s::smallint[], %(models)s::text[], %(skips)s::integer[],
                %(served)s::float8[]) AS mark (tenant_id, priority, model, skips, served_at)
    ON CONFLICT (tenant_id, priority, model) DO UPDATE SET skips = excluded.skips, served_at = excluded.served_at
"""
# A batch's pause or end holds from its commit on; that its jobs leave their lines takes longer. Jobs whose rows
# somebody holds, who cancels or moves a million of them, are passed over: nobody else's hand-overs wait for that.
_FREE: Final = """
    job.state = 'queued'
        AND NOT EXISTS (SELECT FROM batch WHERE batch.id = job.batch_id
                        AND (batch.paused_at IS NOT NULL OR batch.cancel_requested_at IS NOT NULL))
    FOR NO KEY UPDATE OF job SKIP LOCKED
"""
_TO_BE_HAD: Final = f"""
    SELECT 'job_' || translate(id::text, '-', '') FROM job WHERE id = ANY(%(ids)s::uuid[]) AND {_FREE}
"""  # noqa: S608 - of constants
_DISPATCH: Final = f"""
    WITH free AS (
        SELECT job.id, chosen.worker, chosen.place
        FROM unnest(%(ids)s::uuid[], %(places)s::integer[]) WITH ORDINALITY AS chosen (id, worker, place)
        JOIN job ON job.id = chosen.id
        WHERE {_FREE}
    )
    UPDATE job SET state = 'dispatched', epoch = job.epoch + 1, worker = (%(workers)s::text[])[free.worker],
        lease_until = now() + make_interval(secs => %(lease)s), dispatched_at = now(), claimed_at = NULL,
        started_at = NULL, step = NULL, steps = NULL
    FROM free WHERE job.id = free.id
    RETURNING free.place, job.epoch
"""  # noqa: S608 - of constants


@dataclass(frozen=True)
class Mark:
    """A line, and what the policy remembers of it."""

    tenant_id: str
    priority: Priority
    model: str
    skips: int  #: hand-overs since it was last served that passed it over
    served_at: float | None  #: its last hand-over


@dataclass(frozen=True)
class Line:
    """The first waiting jobs of one tenant, class and model, oldest first."""

    mark: Mark
    heads: list[QueuedJob]  #: not yet with who failed them
    more: bool  #: whether others may wait behind these
    failed: frozenset[str] = frozenset()  #: the heads that a worker failed before


class Queues:
    """All jobs that wait, of all tenants."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def read(self, limit: int) -> list[Line]:
        """Every line with its first jobs: about ``limit`` over all lines, a few of each at least.

        One index probe per line to find it and one short index scan to read it, however long it is. A line is a row, or
        reading two thousand rows would take longer than finding them.
        """
        return self._read(limit, ())

    def _read(self, limit: int, passed: Sequence[Line]) -> list[Line]:
        """Every line, or those given behind the jobs that are known of them."""
        values = {
            "limit": limit,
            "few": FEW_HEADS,
            "tenants": [ids.to_uuid(ids.TENANT, line.mark.tenant_id) for line in passed],
            "priorities": [line.mark.priority.rank for line in passed],
            "models": [line.mark.model for line in passed],
            "times": [line.heads[-1].since for line in passed],
        }
        found = []
        for row in self._rows(_HEADS, values):
            tenant_id, rank, model, skips, served_at, more, job_ids, costs, since, deadlines, failed = row
            heads = map(QueuedJob, job_ids.split(), costs, since, deadlines or repeat(None))
            mark = Mark(tenant_id, Priority.of_rank(rank), model, skips, served_at)
            found.append(Line(mark, list(heads), more, frozenset(failed.split() if failed else ())))
        return found

    def candidates(self, limit: int) -> list[QueuedJob]:
        """The jobs of `read`, one after the other."""
        return [head for line in self.read(limit) for head in line.heads]

    def read_available(self, limit: int) -> list[Line]:
        """The `read` with jobs that this transaction could hand over: it holds their rows from now on.

        Where none of a line's first jobs is to be had, those behind them are looked at. The jobs of a batch came at one
        moment, so each such look passes one batch that is canceled or paused, however many of its jobs wait.
        """
        found: list[Line] = []
        lines = self.read(limit)
        for _ in range(LOOKS):
            values = {"ids": _array([head.job_id for line in lines for head in line.heads])}
            free = {row[0] for row in self._rows(_TO_BE_HAD, values)}
            left = [replace(line, heads=[head for head in line.heads if head.job_id in free]) for line in lines]
            found += [line for line in left if line.heads]
            behind = [line for line, had in zip(lines, left, strict=True) if line.more and not had.heads]
            if not behind:
                break
            lines = self._read(limit, behind)
        return found

    def save_states(self, marks: Collection[Mark]) -> None:
        """Remember these of the lines."""
        if not marks:
            return
        values = {
            "tenants": [ids.to_uuid(ids.TENANT, mark.tenant_id) for mark in marks],
            "priorities": [mark.priority.rank for mark in marks],
            "models": [mark.model for mark in marks],
            "skips": [mark.skips for mark in marks],
            "served": [mark.served_at for mark in marks],
        }
        self._session.connection().exec_driver_sql(_KEEP_MARKS, values)

    def dispatch(self, assignments: Sequence[Assignment], lease_seconds: float) -> list[DispatchedJob]:
        """queued → dispatched for each that still waits, in one statement; returns what was, in that order."""
        workers = list(dict.fromkeys(one.worker for one in assignments))
        places = {worker: place for place, worker in enumerate(workers, 1)}
        values = {
            "ids": _array([one.job_id for one in assignments]),
            "places": "{" + ",".join([str(places[one.worker]) for one in assignments]) + "}",
            "workers": workers,
            "lease": lease_seconds,
        }
        epochs: dict[int, int] = {row[0]: row[1] for row in self._rows(_DISPATCH, values)}
        return [
            DispatchedJob(one.job_id, epoch, one.worker)
            for place, one in enumerate(assignments, 1)
            if (epoch := epochs.get(place)) is not None
        ]

    def _rows(self, statement: str, values: dict[str, Any]) -> Sequence[Any]:
        return self._session.connection().exec_driver_sql(statement, values).all()


def _array(job_ids: Iterable[str]) -> str:
    """As PostgreSQL writes arrays: for a thousand, the driver's own way takes as long as the statement's half."""
    return "{" + ",".join([one.removeprefix("job_") for one in job_ids]) + "}"
