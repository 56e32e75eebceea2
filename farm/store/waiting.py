"""What decides which queued jobs start, read at one moment: for `farm.domain.waiting`, which says why they wait."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy.orm import Session

from farm.domain import ids
from farm.domain.states import Priority
from farm.domain.waiting import FarmSnapshot, ModelNeeds, Pause, QueueLength, TenantLoad, WaitingJob, WaitingWorker
from farm.store.numerics import CLASS_OF_PIN
from farm.store.pauses import Pauses
from farm.store.queue import QUEUES

MAX_OWN: Final = 2_000  #: older jobs of the job's own tenant that are counted
MAX_OTHERS: Final = 5_000  #: jobs of all other queues that are counted; a few of each at least
MIN_OF_QUEUE: Final = 8

_WORKERS: Final = """
    SELECT now(), name, (device ->> 'memory_bytes')::bigint, tags, numerics, state = 'draining',
           slots + prefetch - (SELECT count(*) FROM job
               WHERE job.worker = worker.name AND job.state IN ('dispatched', 'running'))
    FROM worker WHERE state <> 'offline'
"""
_LOADS: Final = """
    SELECT 'ten_' || translate(tenant.id::text, '-', ''), max_running,
           (SELECT count(*) FROM job WHERE state IN ('dispatched', 'running') AND job.tenant_id = tenant.id)
    FROM tenant WHERE max_running IS NOT NULL
"""
_JOBS: Final = f"""
    SELECT 'job_' || translate(job.id::text, '-', ''), 'ten_' || translate(job.tenant_id::text, '-', ''), job.model,
           job.priority, job.available_at, job.attempts, {CLASS_OF_PIN.format(pin="job.pin")}, job.first_numerics,
           job.waits_until, batch.paused_at, batch.paused_by, job.pin, job.queued_at
    FROM job LEFT JOIN batch ON batch.id = job.batch_id
    WHERE job.id = ANY(%(ids)s::uuid[]) AND job.state = 'queued'
"""  # noqa: S608 - of constants
_AHEAD: Final = f"""
    WITH {QUEUES}, share AS (
        SELECT greatest({MIN_OF_QUEUE}, {MAX_OTHERS} / greatest(count(*), 1)) AS jobs FROM queue
    ), bound AS (
        SELECT queue.*, own, CASE WHEN own THEN {MAX_OWN} ELSE share.jobs END AS most,
               CASE WHEN own THEN %(queued_at)s ELSE now() END AS before_at,
               CASE WHEN own THEN %(id)s::uuid ELSE 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid END AS before_id
        FROM queue CROSS JOIN share
        CROSS JOIN LATERAL (SELECT queue.tenant_id = %(tenant)s::uuid AND queue.priority = %(priority)s AS own) AS whose
        WHERE queue.priority >= %(priority)s
    )
    SELECT bound.own, 'ten_' || translate(bound.tenant_id::text, '-', ''), bound.model, bound.priority,
           {CLASS_OF_PIN.format(pin="bound.pin")}, counted.jobs, counted.cost, tenant.weight, counted.jobs = bound.most
    FROM bound JOIN tenant ON tenant.id = bound.tenant_id CROSS JOIN LATERAL (
        SELECT count(*) AS jobs, coalesce(sum(cost), 0) AS cost FROM (
            SELECT cost FROM job
            WHERE state = 'queued' AND job.tenant_id = bound.tenant_id AND job.priority = bound.priority
              AND job.model = bound.model AND job.pin = bound.pin AND NOT paused
              AND (queued_at, id) < (bound.before_at, bound.before_id)
            ORDER BY queued_at, id LIMIT bound.most
        ) AS first
    ) AS counted
"""  # noqa: S608 - of constants
_HELD: Final = """
    SELECT model, sum(cost * (1 - coalesce(step::float8 / nullif(steps, 0), 0))) FROM job
    WHERE state IN ('dispatched', 'running') GROUP BY model
"""


@dataclass(frozen=True)
class QueuedFacts:
    """A queued job, and its place."""

    job: WaitingJob
    queued_at: datetime


class WaitingJobs:
    """Queued jobs of all tenants, and what they wait for."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def snapshot(self, models: Mapping[str, ModelNeeds]) -> FarmSnapshot:
        """The farm now. ``models``: those of the registry."""
        pauses = Pauses(self._session).details()
        rows = self._rows(_WORKERS)
        now = rows[0][0] if rows else self._rows("SELECT now()")[0][0]
        workers = tuple(
            WaitingWorker(name, memory, frozenset(tags), numerics, draining, max(0, free))
            for _, name, memory, tags, numerics, draining, free in rows
        )
        loads = {tenant: TenantLoad(held, most) for tenant, most, held in self._rows(_LOADS)}
        return FarmSnapshot(now, workers, models, pauses.farm, pauses.models, pauses.tenants, loads)

    def jobs(self, job_ids: Collection[str]) -> dict[str, QueuedFacts]:
        """Those of the jobs that are queued, by id."""
        if not job_ids:
            return {}
        found = {}
        for row in self._rows(_JOBS, {"ids": [ids.to_uuid(ids.JOB, one) for one in job_ids]}):
            job_id, tenant_id, model, rank, available_at, attempts, numerics, began, until, paused_at, by, *place = row
            pause = None if paused_at is None else Pause(paused_at, by)
            wait_for = began if until is not None else None
            priority = Priority.of_rank(rank)
            waiting = WaitingJob(
                tenant_id, model, priority, available_at, attempts, numerics, wait_for, until, pause
            )  # fmt: skip
            found[job_id] = QueuedFacts(waiting, place[1])
        return found

    def ahead(self, job_id: str, facts: QueuedFacts) -> tuple[QueueLength, tuple[QueueLength, ...], float]:
        """The older jobs of the job's tenant and priority; the other queues that may go first; the tenant's weight."""
        job = facts.job
        values = {
            "id": ids.to_uuid(ids.JOB, job_id),
            "queued_at": facts.queued_at,
            "tenant": ids.to_uuid(ids.TENANT, job.tenant_id),
            "priority": job.priority.rank,
        }
        own: list[QueueLength] = []
        others: list[QueueLength] = []
        weight = 1.0
        for is_own, tenant_id, model, rank, numerics, jobs, cost, share, more in self._rows(_AHEAD, values):
            queue = QueueLength(tenant_id, model, Priority.of_rank(rank), numerics, jobs, float(cost), share, more)
            (own if is_own else others).append(queue)
            weight = share if is_own else weight
        total = QueueLength(
            job.tenant_id, job.model, job.priority, job.numerics,
            sum(one.jobs for one in own), sum(one.cost for one in own), weight, any(one.more for one in own),
        )  # fmt: skip
        return total, tuple(others), weight

    def held(self) -> dict[str, float]:
        """What is left of the jobs at workers, in megapixel-steps by model."""
        return {model: float(cost) for model, cost in self._rows(_HELD)}

    def _rows(self, statement: str, values: Mapping[str, Any] | None = None) -> Sequence[Any]:
        return self._session.connection().exec_driver_sql(statement, dict(values) if values else None).all()
