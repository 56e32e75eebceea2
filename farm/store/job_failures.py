"""Which worker failed which job: jobs that no worker completes fail, workers that fail what others complete drain."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from sqlalchemy import Uuid, any_, cast, delete, func, select
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.orm import Session

from farm.domain import ids
from farm.store.tables import JobFailureRow, WorkerRow

_REFUTE: Final = """
    UPDATE job_failure SET refuted = true
    FROM unnest(%(ids)s::uuid[], %(workers)s::text[]) AS done (id, worker)
    WHERE job_failure.job_id = done.id AND job_failure.worker <> done.worker AND NOT job_failure.refuted
    RETURNING job_failure.worker
"""


class JobFailures:
    """One row for each job and worker that failed it."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def record(self, job_id: str, worker: str) -> int:
        """A worker failed a job; returns how many different ones have by now."""
        self._session.execute(insert(JobFailureRow).values(job_id=job_id, worker=worker).on_conflict_do_nothing())
        counted = select(func.count()).select_from(JobFailureRow).where(JobFailureRow.job_id == job_id)
        return self._session.scalar(counted) or 0

    def refute(self, completed: Mapping[str, str]) -> dict[str, int]:
        """Jobs were completed, each by a worker; returns the workers that had failed them, and how often by now."""
        done = {"ids": [ids.to_uuid(ids.JOB, one) for one in completed], "workers": list(completed.values())}
        refuted = self._session.connection().exec_driver_sql(_REFUTE, done)
        names = {row.worker for row in refuted}
        if not names:
            return {}
        # two transactions that count the same worker's failures must not each miss the other's
        self._session.scalars(
            select(WorkerRow.name).where(WorkerRow.name.in_(names)).order_by(WorkerRow.name).with_for_update()
        ).all()
        counts = self._session.execute(
            select(JobFailureRow.worker, func.count())
            .where(JobFailureRow.worker.in_(names), JobFailureRow.refuted)
            .group_by(JobFailureRow.worker)
        )
        return {row[0]: row[1] for row in counts}

    def clear_refuted(self, worker: str) -> None:
        """An operator trusts a worker again: what it was refuted in no longer counts."""
        self._session.execute(delete(JobFailureRow).where(JobFailureRow.worker == worker, JobFailureRow.refuted))

    def workers_of(self, job_ids: Collection[str]) -> dict[str, frozenset[str]]:
        """The workers that failed each of these jobs, by job; jobs that none failed are absent."""
        found: dict[str, set[str]] = {}
        if not job_ids:
            return {}
        rows = self._session.execute(
            select(JobFailureRow.job_id, JobFailureRow.worker).where(
                # an array, whose statement is the same for any number of jobs
                JobFailureRow.job_id == any_(cast([ids.to_uuid(ids.JOB, one) for one in job_ids], ARRAY(Uuid)))
            )
        )
        for job_id, worker in rows:
            found.setdefault(job_id, set()).add(worker)
        return {job_id: frozenset(workers) for job_id, workers in found.items()}
