"""Many retried jobs whose inputs are outputs of other jobs: they get their inputs from the retries of those.

The copies of jobs with dependencies are inserted as pending, without a count of what they wait for. `attach` then gives
each its edges: to the last retry of what the old job depended on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy.orm import Session

from farm.domain import ids
from farm.domain.states import JobState

#: The state of the copy of a job, in a statement over rows of ``job``.
RETRIED_STATE: Final = """
    CASE WHEN EXISTS (SELECT FROM job_dependency AS edge WHERE edge.job_id = ended.id) THEN 'pending' ELSE 'queued' END
"""
_FRESH: Final = "tenant_id = %(tenant)s AND state = 'pending' AND pending_inputs = 0 AND retry_of IS NOT NULL"
_ANY: Final = f"SELECT EXISTS (SELECT FROM job WHERE {_FRESH})"  # noqa: S608 - of constants
_COLLECT: Final = f"""
    CREATE TEMPORARY TABLE retried_edge ON COMMIT DROP AS
    SELECT fresh.id AS job_id, edge.parent_id AS old_id, last.id AS parent_id, true AS waits, NULL::text AS state
    FROM (SELECT id, retry_of FROM job WHERE {_FRESH}) AS fresh
    JOIN job_dependency AS edge ON edge.job_id = fresh.retry_of
    CROSS JOIN LATERAL (
        WITH RECURSIVE retry AS (
            SELECT edge.parent_id AS id UNION ALL SELECT job.id FROM retry JOIN job ON job.retry_of = retry.id
        )
        SELECT id FROM retry ORDER BY id DESC LIMIT 1
    ) AS last
"""  # noqa: S608 - of constants
_LOCK: Final = """
    WITH locked AS MATERIALIZED (
        SELECT id, state FROM job WHERE id IN (SELECT parent_id FROM retried_edge) ORDER BY id FOR NO KEY UPDATE
    )
    UPDATE retried_edge SET state = locked.state, waits = locked.state <> 'succeeded'
    FROM locked WHERE locked.id = retried_edge.parent_id
"""
_ATTACH: Final = """
    UPDATE job SET pending_inputs = up.waits, state = CASE WHEN up.waits > 0 THEN 'pending' ELSE 'queued' END,
        spec = jsonb_set(job.spec, '{inputs}', (
            SELECT jsonb_object_agg(role.key, (
                SELECT jsonb_agg(
                    CASE WHEN up.names ->> (file.value ->> 'job') IS NULL THEN file.value
                    ELSE file.value || jsonb_build_object(
                        'job', up.names ->> (file.value ->> 'job'), 'sha256', '', 'key', '', 'size', 0) END
                    ORDER BY place)
                FROM jsonb_array_elements(role.value) WITH ORDINALITY AS file (value, place)))
            FROM jsonb_each(job.spec -> 'inputs') AS role))
    FROM (
        SELECT job_id, count(*) FILTER (WHERE waits) AS waits,
            coalesce(jsonb_object_agg('job_' || encode(uuid_send(old_id), 'hex'),
                                      'job_' || encode(uuid_send(parent_id), 'hex'))
                     FILTER (WHERE old_id <> parent_id), '{}') AS names
        FROM retried_edge GROUP BY job_id
    ) AS up
    WHERE job.id = up.job_id
"""
_ADD: Final = """
    INSERT INTO job_dependency (parent_id, job_id, waits) SELECT parent_id, job_id, waits FROM retried_edge
"""
_COUNT: Final = """
    UPDATE job SET dependents = job.dependents + made.jobs
    FROM (SELECT parent_id, count(*) AS jobs FROM retried_edge GROUP BY 1) AS made WHERE job.id = made.parent_id
"""
_COUNT_PENDING: Final = """
    UPDATE batch SET pending = (SELECT count(DISTINCT job_id) FROM retried_edge WHERE waits) WHERE id = %(batch)s
"""
_LOST: Final = """
    SELECT parent_id, state, count(*) FROM retried_edge WHERE state IS NULL OR state IN ('failed', 'canceled')
    GROUP BY 1, 2
"""


class RetriedChains:
    """The edges of the jobs that this transaction has copied."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def attach(self, tenant_id: str, batch_id: str | None) -> Mapping[str, tuple[JobState | None, int]]:
        """Give the copies their edges and states.

        Args:
            tenant_id: whose they are.
            batch_id: the new batch that all of them belong to; None: they belong to none.

        Returns:
            The jobs without outputs that copies wait for nevertheless: their states, None where a job was deleted, and
            how many wait.
        """
        values = {"tenant": ids.to_uuid(ids.TENANT, tenant_id)}
        if not self._rows(_ANY, values)[0][0]:
            return {}
        self._execute(_COLLECT, values)
        self._execute("ANALYZE retried_edge", {})
        for statement in (_LOCK, _ATTACH, _ADD, _COUNT):
            self._execute(statement, {})
        if batch_id is not None:
            self._execute(_COUNT_PENDING, {"batch": ids.to_uuid(ids.BATCH, batch_id)})
        return {
            ids.from_uuid(ids.JOB, row[0]): (None if row[1] is None else JobState(row[1]), row[2])
            for row in self._rows(_LOST, {})
        }

    def _rows(self, statement: str, values: Mapping[str, Any]) -> Any:
        return self._session.connection().exec_driver_sql(statement, dict(values)).all()

    def _execute(self, statement: str, values: Mapping[str, Any]) -> None:
        self._session.connection().exec_driver_sql(statement, dict(values))
