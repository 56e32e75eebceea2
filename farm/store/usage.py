"""What tenants have used: written in the transaction that ends a job, summed when it is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Final

from sqlalchemy import bindparam, func, select, text, update
from sqlalchemy.orm import Session

from farm.domain import ids
from farm.store.tables import (
    BatchRow,
    FileRow,
    JobRow,
    OutputRow,
    PendingDeletionRow,
    RequestFileRow,
    TenantRow,
    UsageRow,
)

#: Rows per tenant, day and model: a commit waits only for another of the same slot.
SLOTS: Final = 16

_COUNT: Final = """
    INSERT INTO usage (tenant_id, day, model, slot, jobs, outputs, bytes, device_seconds)
    SELECT job.tenant_id, (now() AT TIME ZONE 'UTC')::date, job.model, %(slot)s, count(*), sum(made.outputs),
        sum(made.bytes), sum(greatest(0, extract(epoch FROM now() - coalesce(started_at, claimed_at, now()))))
    FROM unnest(%(ids)s::uuid[]) AS done (id) JOIN job ON job.id = done.id CROSS JOIN LATERAL (
        SELECT count(*) AS outputs, coalesce(sum(size), 0) AS bytes FROM output WHERE job_id = job.id) AS made
    GROUP BY job.tenant_id, job.model
    ORDER BY job.tenant_id, job.model  -- every transaction locks these rows in the same order
    ON CONFLICT (tenant_id, day, model, slot) DO UPDATE SET
        jobs = usage.jobs + excluded.jobs, outputs = usage.outputs + excluded.outputs,
        bytes = usage.bytes + excluded.bytes,
        device_seconds = usage.device_seconds + excluded.device_seconds
"""


@dataclass(frozen=True)
class Used:
    """What a tenant used of a model on a day (UTC)."""

    tenant_id: str
    day: date
    model: str
    jobs: int  #: that succeeded
    outputs: int
    bytes: int  #: of outputs
    device_seconds: float  #: each job's own time on its device, whether or not it shared it


class Usage:
    """The usage of all tenants."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def count(self, job_ids: Sequence[str]) -> None:
        """Note jobs that succeed in this transaction."""
        jobs = [ids.to_uuid(ids.JOB, one) for one in job_ids]
        # one slot for all of them, or two transactions could each hold a row that the other wants
        self._session.connection().exec_driver_sql(_COUNT, {"ids": jobs, "slot": jobs[0].int % SLOTS})

    def between(self, first: date, last: date, tenant_id: str | None = None) -> list[Used]:
        """By day, tenant and model, from ``first`` to ``last``; of all tenants if none is named."""
        keys = (UsageRow.day, UsageRow.tenant_id, UsageRow.model)
        sums = (
            func.sum(UsageRow.jobs),
            func.sum(UsageRow.outputs),
            func.sum(UsageRow.bytes),
            func.sum(UsageRow.device_seconds),
        )
        statement: Any = select(*keys, *sums).where(UsageRow.day.between(first, last)).group_by(*keys).order_by(*keys)
        if tenant_id is not None:
            statement = statement.where(UsageRow.tenant_id == tenant_id)
        return [
            Used(row[1], row[0], row[2], int(row[3]), int(row[4]), int(row[5]), float(row[6]))
            for row in self._session.execute(statement)
        ]

    def today(self, tenant_id: str) -> tuple[float, float]:
        """Device-seconds used since midnight (UTC), and the seconds until the next."""
        used = (
            select(func.coalesce(func.sum(UsageRow.device_seconds), 0.0))
            .where(UsageRow.tenant_id == tenant_id, UsageRow.day == text("(now() AT TIME ZONE 'UTC')::date"))
            .scalar_subquery()
        )
        left = text(
            "extract(epoch FROM (date_trunc('day', now() AT TIME ZONE 'UTC') + interval '1 day') "
            "- (now() AT TIME ZONE 'UTC'))"
        )
        row = self._session.execute(select(used, left)).one()
        return float(row[0]), float(row[1])

    def room(self, tenant_id: str) -> tuple[int, int] | None:
        """The bytes that a tenant stores, and those that it may; None: no limit."""
        row = self._session.execute(
            select(TenantRow.stored_bytes, TenantRow.storage_bytes).where(
                TenantRow.id == tenant_id, TenantRow.storage_bytes.is_not(None)
            )
        ).one_or_none()
        return None if row is None else (int(row[0] or 0), int(row[1] or 0))

    def add_stored(self, tenant_id: str, size: int) -> None:
        """Count bytes that were stored since the last measurement, for a tenant with a limit."""
        self._session.execute(
            update(TenantRow)
            .where(TenantRow.id == tenant_id, TenantRow.storage_bytes.is_not(None))
            .values(stored_bytes=TenantRow.stored_bytes + size)
            .execution_options(synchronize_session=False)
        )

    def measure_storage(self) -> int:
        """Sum up what each tenant with a limit stores; returns how many tenants that are."""
        outputs = (
            select(func.coalesce(func.sum(OutputRow.size), 0))
            .join(JobRow, JobRow.id == OutputRow.job_id)
            .where(JobRow.tenant_id == bindparam("tenant", type_=TenantRow.id.type))
            .scalar_subquery()
        )
        inputs = (
            select(func.coalesce(func.sum(FileRow.size), 0))
            .where(FileRow.tenant_id == bindparam("tenant", type_=TenantRow.id.type))
            .scalar_subquery()
        )
        reports = (
            select(func.coalesce(func.sum(BatchRow.error_bytes), 0))
            .where(BatchRow.tenant_id == bindparam("tenant", type_=TenantRow.id.type))
            .scalar_subquery()
        )
        kept = (
            select(func.coalesce(func.sum(PendingDeletionRow.size), 0))
            .where(PendingDeletionRow.tenant_id == bindparam("tenant", type_=TenantRow.id.type))
            .scalar_subquery()
        )
        requests = (
            select(func.coalesce(func.sum(RequestFileRow.size), 0))
            .where(RequestFileRow.tenant_id == bindparam("tenant", type_=TenantRow.id.type))
            .scalar_subquery()
        )
        limited = list(self._session.scalars(select(TenantRow.id).where(TenantRow.storage_bytes.is_not(None))))
        for tenant_id in limited:
            stored = self._session.scalar(select(outputs + inputs + reports + kept + requests), {"tenant": tenant_id})
            self._session.execute(
                update(TenantRow)
                .where(TenantRow.id == tenant_id)
                .values(stored_bytes=stored)
                .execution_options(synchronize_session=False)
            )
        return len(limited)
