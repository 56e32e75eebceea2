"""What the rows say is in the storage: the outputs of the jobs that succeeded."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from farm.domain.job import Output
from farm.domain.states import JobState
from farm.store.tables import BatchRow, JobRow, OutputRow


@dataclass(frozen=True)
class RecordedOutput:
    """One output of a job that succeeded."""

    job_id: str
    tenant_id: str
    output: Output


class Outputs:
    """The outputs of all tenants' jobs."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def page(
        self, after: str | None, limit: int, *, since: datetime | None = None, batch_id: str | None = None
    ) -> tuple[list[RecordedOutput], str | None]:
        """The outputs of up to ``limit`` jobs that succeeded, in the order of the jobs' ids; and where to go on.

        That is None after the last job.

        Args:
            after: The last job of the page before.
            limit: Jobs, not outputs: the outputs of one job are in one page.
            since: Only of jobs that ended then or later.
            batch_id: Only of this batch.
        """
        jobs = (
            select(JobRow.id)
            .outerjoin(BatchRow, BatchRow.id == JobRow.batch_id)
            .where(JobRow.state == JobState.SUCCEEDED.value, BatchRow.deleted_at.is_(None))
            .order_by(JobRow.id)
            .limit(limit)
        )
        if after is not None:
            jobs = jobs.where(JobRow.id > after)
        if since is not None:
            jobs = jobs.where(JobRow.finished_at >= since)
        if batch_id is not None:
            jobs = jobs.where(JobRow.batch_id == batch_id)
        job_ids = list(self._session.scalars(jobs))
        return self._of(job_ids), job_ids[-1] if len(job_ids) == limit else None

    def of_jobs(self, job_ids: Collection[str]) -> list[RecordedOutput]:
        """The outputs of those of the jobs that are still there, in the order of the jobs' ids."""
        jobs = (
            select(JobRow.id)
            .outerjoin(BatchRow, BatchRow.id == JobRow.batch_id)
            .where(JobRow.id.in_(job_ids), JobRow.state == JobState.SUCCEEDED.value, BatchRow.deleted_at.is_(None))
        )
        return self._of(list(self._session.scalars(jobs)))

    def _of(self, job_ids: list[str]) -> list[RecordedOutput]:
        rows = self._session.execute(
            select(OutputRow, JobRow.tenant_id)
            .join(JobRow, JobRow.id == OutputRow.job_id)
            .where(OutputRow.job_id.in_(job_ids))
            .order_by(OutputRow.job_id, OutputRow.index)
        )
        return [
            RecordedOutput(
                row.job_id,
                tenant_id,
                Output(row.index, row.key, row.media_type, row.size, row.sha256, row.seed, row.meta),
            )
            for row, tenant_id in rows
        ]
