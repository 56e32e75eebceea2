"""What is kept too long: ended jobs beyond their tenant's retention, and what lost attempts left in the storage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from farm.domain import ids

_BATCHES: Final = text("""
    SELECT batch.tenant_id, batch.id FROM batch JOIN tenant ON tenant.id = batch.tenant_id
    WHERE tenant.retention_days IS NOT NULL AND batch.deleted_at IS NULL
        AND batch.finished_at < now() - make_interval(days => tenant.retention_days)
        AND NOT EXISTS (
            SELECT FROM job AS parent JOIN job_dependency AS edge ON edge.parent_id = parent.id
                JOIN job ON job.id = edge.job_id
            WHERE parent.batch_id = batch.id AND parent.dependents > 0 AND job.finished_at IS NULL)
    ORDER BY batch.id LIMIT :limit
""")
_JOBS: Final = text("""
    DELETE FROM job WHERE id = ANY(ARRAY(
        SELECT old.id FROM tenant CROSS JOIN LATERAL (
            SELECT id FROM job
            WHERE job.tenant_id = tenant.id AND batch_id IS NULL
                AND finished_at < now() - make_interval(days => tenant.retention_days)
                AND NOT (dependents > 0 AND EXISTS (
                    SELECT FROM job_dependency AS edge JOIN job AS child ON child.id = edge.job_id
                    WHERE edge.parent_id = job.id AND child.finished_at IS NULL))
            ORDER BY finished_at LIMIT :limit FOR UPDATE SKIP LOCKED
        ) AS old WHERE tenant.retention_days IS NOT NULL LIMIT :limit
    )) RETURNING tenant_id, id
""")
_EDGES: Final = text("DELETE FROM job_dependency WHERE job_id = ANY(:gone) OR parent_id = ANY(:gone)")
_TENANTS: Final = text("""
    SELECT id, orphans_collected_until, now() - make_interval(secs => :grace) AS until FROM tenant
    WHERE orphans_collected_until IS NULL OR orphans_collected_until < now() - make_interval(secs => :grace)
    ORDER BY id
""")
_MATTER: Final = """
    tenant_id = :tenant AND finished_at > coalesce(:since, '-infinity'::timestamptz) AND finished_at <= :until
    AND epoch > CASE WHEN state = 'succeeded' THEN 1 ELSE 0 END
"""
# the moment up to which there are so many; all of one moment belong together
_BOUND: Final = text(
    f"SELECT finished_at FROM job WHERE {_MATTER} ORDER BY finished_at OFFSET :limit LIMIT 1"  # noqa: S608 - no values
)
_ORPHANS: Final = text(f"SELECT id, epoch, state FROM job WHERE {_MATTER} ORDER BY finished_at")  # noqa: S608 - no values
_DONE: Final = text("UPDATE tenant SET orphans_collected_until = :until WHERE id = :tenant")


@dataclass(frozen=True)
class OrphanedObjects:
    """An ended job that lost attempts before, which may have left objects."""

    tenant_id: str
    job_id: str
    epochs: tuple[int, ...] | None  #: whose objects are orphans; None: all of the job's


class Retention:
    """What the farm may forget."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def expired_batches(self, limit: int) -> list[tuple[str, str]]:
        """Batches beyond their tenant's retention, with their tenants."""
        rows = self._session.execute(_BATCHES, {"limit": limit})
        return [(ids.from_uuid(ids.TENANT, row[0]), ids.from_uuid(ids.BATCH, row[1])) for row in rows]

    def delete_expired_jobs(self, limit: int) -> list[tuple[str, str]]:
        """Delete jobs of no batch beyond their tenant's retention; returns them with their tenants."""
        rows = self._session.execute(_JOBS, {"limit": limit}).all()
        if rows:
            self._session.execute(_EDGES, {"gone": [row[1] for row in rows]})
        return [(ids.from_uuid(ids.TENANT, row[0]), ids.from_uuid(ids.JOB, row[1])) for row in rows]

    def orphans(self, grace_seconds: float, limit: int) -> list[OrphanedObjects]:
        """Jobs that ended at least so long ago and may have left objects; each is returned once."""
        found: list[OrphanedObjects] = []
        for row in self._session.execute(_TENANTS, {"grace": grace_seconds}).all():
            values: dict[str, Any] = {"tenant": row.id, "since": row.orphans_collected_until, "until": row.until}
            values["until"] = self._session.scalar(_BOUND, values | {"limit": limit}) or row.until
            found += [self._orphans(row.id, *one) for one in self._session.execute(_ORPHANS, values)]
            self._session.execute(_DONE, {"tenant": row.id, "until": values["until"]})
        return found

    def _orphans(self, tenant: UUID, job: UUID, epoch: int, state: str) -> OrphanedObjects:
        epochs = tuple(range(1, epoch)) if state == "succeeded" else None
        return OrphanedObjects(ids.from_uuid(ids.TENANT, tenant), ids.from_uuid(ids.JOB, job), epochs)
