"""Queues as the dispatcher reads them: the first queued jobs of each, and dispatching them.

Read and written in each round, so these are plain statements over any number of rows, which the driver prepares once,
and times are seconds since 1970, as the policy counts them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import repeat
from typing import Any, Final

from sqlalchemy.orm import Session

from farm.domain import ids
from farm.domain.queue import Assignment, DispatchedJob, Queue, QueuedJob, QueueState
from farm.domain.states import Priority
from farm.store.numerics import CLASS_OF_PIN

MIN_CANDIDATES: Final = 8  #: jobs read of each queue at least
MAX_READS: Final = 8  #: of a queue in one round, while none of the jobs read so far is available

#: The queues, by a loose index scan: from each to the next by one probe, never over the jobs of one.
QUEUES: Final = """
    RECURSIVE queue AS (
        (SELECT tenant_id, priority, model, pin FROM job WHERE state = 'queued'
         ORDER BY tenant_id, priority, model, pin LIMIT 1)
        UNION ALL
        SELECT following.* FROM queue, LATERAL (
            SELECT tenant_id, priority, model, pin FROM job
            WHERE state = 'queued'
              AND (tenant_id, priority, model, pin)
                  > (queue.tenant_id, queue.priority, queue.model, queue.pin)
            ORDER BY tenant_id, priority, model, pin LIMIT 1
        ) AS following
    )
"""
# Jobs that wait for another attempt or for a worker of their numerics class, or whose deadline has passed, are filtered
# out: they leave the queue soon, so few are met on the way.
READ: Final = f"""
    WITH {QUEUES}, share AS (
        SELECT greatest(%(min)s, %(limit)s::integer / greatest(count(*), 1)) AS read FROM queue
    )
    SELECT 'ten_' || translate(queue.tenant_id::text, '-', ''), queue.priority, queue.model,
           coalesce(stored.skips, 0), date_part('epoch', stored.served_at), candidate.jobs = share.read,
           candidate.ids, candidate.costs, candidate.times, candidate.deadlines, candidate.failed,
           queue.pin, {CLASS_OF_PIN.format(pin="queue.pin")}, candidate.waiting
    FROM queue CROSS JOIN share LEFT JOIN queue_state AS stored USING (tenant_id, priority, model, pin)
    LEFT JOIN unnest(%(tenants)s::uuid[], %(priorities)s::smallint[], %(models)s::text[], %(pins)s::text[],
                     %(times)s::float8[])
        AS passed (tenant_id, priority, model, pin, queued_at) USING (tenant_id, priority, model, pin)
    CROSS JOIN LATERAL (
        SELECT count(*) AS jobs, string_agg('job_' || encode(uuid_send(id), 'hex'), ' ') AS ids,
               array_agg(cost) AS costs, array_agg(date_part('epoch', queued_at)) AS times,
               CASE WHEN count(deadline) > 0 THEN array_agg(date_part('epoch', deadline)) END AS deadlines,
               string_agg('job_' || encode(uuid_send(id), 'hex'), ' ')
                   FILTER (WHERE epoch > 0 AND id IN (SELECT job_id FROM job_failure)) AS failed,
               string_agg('job_' || encode(uuid_send(id), 'hex') || ' ' || first_numerics, ' ')
                   FILTER (WHERE waits_until > now()) AS waiting
        FROM (
            SELECT id, cost, queued_at, deadline, epoch, first_numerics, waits_until FROM job
            WHERE state = 'queued' AND job.tenant_id = queue.tenant_id AND job.priority = queue.priority
              AND job.model = queue.model AND job.pin = queue.pin AND NOT paused
              AND queued_at <= now() AND available_at <= now()
              AND (waits_until IS NULL OR waits_until <= now() OR first_numerics = ANY(%(free)s::text[]))
              AND queued_at > coalesce(to_timestamp(passed.queued_at), '-infinity')
              AND (deadline IS NULL OR deadline > now())
            ORDER BY queued_at, id LIMIT (SELECT read FROM share)
        ) AS first
    ) AS candidate
    WHERE candidate.jobs > 0 AND (passed.queued_at IS NOT NULL OR cardinality(%(tenants)s::uuid[]) = 0)
    ORDER BY queue.tenant_id, queue.priority DESC, queue.model, queue.pin
"""  # noqa: S608 - of constants
_SAVE_STATES: Final = """
    INSERT INTO queue_state (tenant_id, priority, model, pin, skips, served_at)
    SELECT tenant_id, priority, model, pin, skips, to_timestamp(served_at)
    FROM unnest(%(tenants)s::uuid[], %(priorities)s::smallint[], %(models)s::text[], %(pins)s::text[],
                %(skips)s::integer[], %(served)s::float8[])
        AS changed (tenant_id, priority, model, pin, skips, served_at)
    ON CONFLICT (tenant_id, priority, model, pin) DO UPDATE SET skips = excluded.skips, served_at = excluded.served_at
"""
# A batch's pause or cancel takes effect when it commits, but its jobs leave their queues later. Rows that another
# transaction has locked (it cancels or pauses a million jobs) are skipped, so dispatching others does not wait for it.
_AVAILABLE: Final = """
    job.state = 'queued'
        AND NOT EXISTS (SELECT FROM batch WHERE batch.id = job.batch_id
                        AND (batch.paused_at IS NOT NULL OR batch.cancel_requested_at IS NOT NULL))
    FOR NO KEY UPDATE OF job SKIP LOCKED
"""
_LOCK_AVAILABLE: Final = f"""
    SELECT 'job_' || translate(id::text, '-', '') FROM job WHERE id = ANY(%(ids)s::uuid[]) AND {_AVAILABLE}
"""  # noqa: S608 - of constants
_DISPATCH: Final = f"""
    WITH available AS (
        SELECT job.id, chosen.worker, chosen.place
        FROM unnest(%(ids)s::uuid[], %(workers_of)s::integer[]) WITH ORDINALITY AS chosen (id, worker, place)
        JOIN job ON job.id = chosen.id
        WHERE {_AVAILABLE}
    )
    UPDATE job SET state = 'dispatched', epoch = job.epoch + 1, worker = (%(workers)s::text[])[available.worker],
        lease_until = now() + make_interval(secs => %(lease)s), dispatched_at = now(), claimed_at = NULL,
        started_at = NULL, step = NULL, steps = NULL, steps_resumed = 0
    FROM available WHERE job.id = available.id
    RETURNING available.place, job.epoch
"""  # noqa: S608 - of constants


class Queues:
    """All queues of all tenants."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def read(self, limit: int, free: Collection[str] = ()) -> list[Queue]:
        """Every queue with its first jobs: about ``limit`` over all queues, a few of each at least.

        One index probe per queue to find it and one short index scan to read it, however long it is. A queue is one row
        of the result, because reading two thousand rows would take longer than finding them.

        Their candidates do not say yet who failed them: ``Queue.failed`` names those to ask for. Jobs that wait for a
        worker of their numerics class are candidates only if it is among ``free``.
        """
        return self._read(limit, free, ())

    def _read(self, limit: int, free: Collection[str], passed: Sequence[Queue]) -> list[Queue]:
        """Every queue, or those of ``passed`` behind the candidates that are known of them."""
        values = {
            "limit": limit,
            "min": MIN_CANDIDATES,
            "free": list(free),
            "tenants": [ids.to_uuid(ids.TENANT, queue.tenant_id) for queue in passed],
            "priorities": [queue.priority.rank for queue in passed],
            "models": [queue.model for queue in passed],
            "pins": [queue.pin for queue in passed],
            "times": [queue.candidates[-1].queued_at for queue in passed],
        }
        found = []
        for row in self._rows(READ, values):
            tenant_id, rank, model, skips, served_at, more, job_ids, costs, times, deadlines, failed, *rest = row
            pin, numerics, waiting = rest
            candidates = list(map(QueuedJob, job_ids.split(), costs, times, deadlines or repeat(None)))
            if waiting:
                words = waiting.split()
                wait_for = dict(zip(words[::2], words[1::2], strict=True))
                candidates = [job._replace(wait_for=wait_for.get(job.job_id)) for job in candidates]
            names = frozenset(failed.split() if failed else ())
            priority = Priority.of_rank(rank)
            found.append(Queue(tenant_id, model, priority, candidates, more, skips, served_at, names, pin, numerics))
        return found

    def read_available(self, limit: int, free: Collection[str] = ()) -> list[Queue]:
        """As `read`, with jobs that this transaction can dispatch: it locks their rows.

        Where none of a queue's first jobs is available, those behind them are read. The jobs of a batch were queued at
        one moment, so each further read passes one batch that is canceled or paused, however many of its jobs wait.
        """
        found: list[Queue] = []
        queues = self.read(limit, free)
        for _ in range(MAX_READS):
            values = {"ids": _array([job.job_id for queue in queues for job in queue.candidates])}
            free = {row[0] for row in self._rows(_LOCK_AVAILABLE, values)}
            left = [
                queue._replace(candidates=[job for job in queue.candidates if job.job_id in free]) for queue in queues
            ]
            found += [queue for queue in left if queue.candidates]
            behind = [queue for queue, kept in zip(queues, left, strict=True) if queue.more and not kept.candidates]
            if not behind:
                break
            queues = self._read(limit, free, behind)
        return found

    def save_states(self, states: Collection[QueueState]) -> None:
        """Store what these queues carry into the next round."""
        if not states:
            return
        values = {
            "tenants": [ids.to_uuid(ids.TENANT, state.tenant_id) for state in states],
            "priorities": [state.priority.rank for state in states],
            "models": [state.model for state in states],
            "pins": [state.pin for state in states],
            "skips": [state.skips for state in states],
            "served": [state.served_at for state in states],
        }
        self._session.connection().exec_driver_sql(_SAVE_STATES, values)

    def dispatch(self, assignments: Sequence[Assignment], lease_seconds: float) -> list[DispatchedJob]:
        """queued → dispatched for each job that is still available, in one statement; returns those, in that order."""
        workers = list(dict.fromkeys(one.worker for one in assignments))
        numbers = {worker: number for number, worker in enumerate(workers, 1)}
        values = {
            "ids": _array([one.job_id for one in assignments]),
            "workers_of": "{" + ",".join([str(numbers[one.worker]) for one in assignments]) + "}",
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
    """As PostgreSQL writes arrays: the driver's own way takes half as long as the statement for a thousand."""
    return "{" + ",".join([one.removeprefix("job_") for one in job_ids]) + "}"
