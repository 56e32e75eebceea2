"""The stored work of jobs that have not finished: which objects have it, written under the fence of the job's lease."""

from __future__ import annotations

import json
from typing import Any, Final

from sqlalchemy.orm import Session

from farm.domain import ids
from farm.domain.checkpoint import Checkpoint
from farm.domain.job import HeldJob

_MINE: Final = """
    SELECT id, tenant_id FROM job WHERE id = %(id)s::uuid AND epoch = %(epoch)s AND state = 'running'
    FOR NO KEY UPDATE
"""
_SAVE: Final = f"""
    WITH mine AS ({_MINE})
    INSERT INTO checkpoint (job_id, tenant_id, parts, steps, size)
    SELECT id, tenant_id, %(parts)s::jsonb, %(steps)s, %(size)s FROM mine
    ON CONFLICT (job_id) DO UPDATE
        SET parts = excluded.parts, steps = excluded.steps, size = excluded.size, written_at = now()
    RETURNING job_id
"""  # noqa: S608 - of constants
_VOID: Final = f"""
    WITH mine AS ({_MINE}), gone AS (
        DELETE FROM checkpoint USING mine WHERE checkpoint.job_id = mine.id RETURNING parts
    )
    SELECT mine.tenant_id, gone.parts FROM mine LEFT JOIN gone ON true
"""  # noqa: S608 - of constants
_RESUMED: Final = """
    UPDATE job SET steps_resumed = %(steps)s
    WHERE id = %(id)s::uuid AND epoch = %(epoch)s AND state = 'running' RETURNING id
"""
_GET: Final = "SELECT parts, steps, size FROM checkpoint WHERE job_id = %(id)s::uuid"
_TAKE_ENDED: Final = """
    DELETE FROM checkpoint WHERE job_id = ANY(ARRAY(
        SELECT job_id FROM checkpoint LEFT JOIN job ON job.id = checkpoint.job_id
        WHERE job.id IS NULL OR job.state IN ('succeeded', 'failed', 'canceled')
        LIMIT %(limit)s FOR UPDATE OF checkpoint SKIP LOCKED
    )) RETURNING tenant_id, job_id
"""


class StoredCheckpoints:
    """All checkpoints."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def get(self, job_id: str) -> Checkpoint | None:
        """The job's."""
        row = self._rows(_GET, {"id": ids.to_uuid(ids.JOB, job_id)}).first()
        return None if row is None else Checkpoint(tuple((one[0], one[1]) for one in row[0]), row[1], row[2])

    def save(self, held: HeldJob, checkpoint: Checkpoint) -> bool:
        """Replace the job's; False if the lease is lost."""
        values = {"parts": json.dumps(checkpoint.parts), "steps": checkpoint.steps, "size": checkpoint.size}
        return self._rows(_SAVE, _of(held) | values).first() is not None

    def void(self, held: HeldJob) -> tuple[str, list[int]] | None:
        """Forget the job's; returns its tenant and the epochs whose objects it names. None if the lease is lost."""
        row = self._rows(_VOID, _of(held)).first()
        return None if row is None else (ids.from_uuid(ids.TENANT, row[0]), [epoch for epoch, _ in row[1] or ()])

    def note_resumed(self, held: HeldJob, steps: int) -> bool:
        """Note how many steps the attempt did not compute; False if the lease is lost."""
        return self._rows(_RESUMED, _of(held) | {"steps": steps}).first() is not None

    def take_ended(self, limit: int) -> list[tuple[str, str]]:
        """Delete those of jobs that have ended, or are gone; returns these jobs with their tenants."""
        return [
            (ids.from_uuid(ids.TENANT, row[0]), ids.from_uuid(ids.JOB, row[1]))
            for row in self._rows(_TAKE_ENDED, {"limit": limit})
        ]

    def _rows(self, statement: str, values: dict[str, Any]) -> Any:
        return self._session.connection().exec_driver_sql(statement, values)


def _of(held: HeldJob) -> dict[str, Any]:
    return {"id": ids.to_uuid(ids.JOB, held.job_id), "epoch": held.epoch}
