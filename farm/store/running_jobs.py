"""What workers write of the jobs they hold: claims, steps, renewals and successes, of any number of jobs at once.

The busiest statements of the farm. Their texts never change, whatever the number of jobs, so that the driver prepares
them once; and each locks its rows in the order of their ids, so that no two of them wait for each other.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from farm.domain import ids
from farm.domain.job import HeldJob, Job, JobResult
from farm.store.dependencies import Dependencies
from farm.store.jobs import job_of
from farm.store.tables import JobRow

_CLAIM: Final = text("""
    WITH mine AS (
        SELECT job.id FROM job
        JOIN unnest(CAST(:ids AS uuid[]), CAST(:epochs AS integer[])) AS asked (id, epoch)
            ON job.id = asked.id AND job.epoch = asked.epoch
        WHERE job.state = 'dispatched' AND job.worker = :worker
        ORDER BY job.id FOR NO KEY UPDATE OF job
    )
    UPDATE job SET state = 'running', attempts = job.attempts + 1, claimed_at = now(),
        lease_until = now() + make_interval(secs => :lease), waits_until = NULL,
        first_numerics = CASE WHEN (job.spec -> 'exact')::boolean THEN
            coalesce(job.first_numerics, (SELECT numerics FROM worker WHERE name = :worker)) END
    FROM mine WHERE job.id = mine.id
    RETURNING job.*
""")
_START: Final = """
    WITH mine AS (
        SELECT job.id, started.steps FROM job
        JOIN unnest(%(ids)s::uuid[], %(epochs)s::integer[], %(steps)s::smallint[]) AS started (id, epoch, steps)
            ON job.id = started.id AND job.epoch = started.epoch
        WHERE job.state = 'running' ORDER BY job.id FOR NO KEY UPDATE OF job
    )
    UPDATE job SET started_at = now(), step = 0, steps = mine.steps FROM mine WHERE job.id = mine.id
    RETURNING job.id
"""
_PROGRESS: Final = """
    WITH mine AS (
        SELECT job.id, reached.step FROM job
        JOIN unnest(%(ids)s::uuid[], %(epochs)s::integer[], %(steps)s::smallint[]) AS reached (id, epoch, step)
            ON job.id = reached.id AND job.epoch = reached.epoch
        WHERE job.state = 'running' ORDER BY job.id FOR NO KEY UPDATE OF job
    )
    UPDATE job SET step = mine.step FROM mine WHERE job.id = mine.id
    RETURNING job.id, job.cancel_requested
"""
_RENEW: Final = """
    WITH mine AS (
        SELECT job.id FROM job
        JOIN unnest(%(ids)s::uuid[], %(epochs)s::integer[]) AS held (id, epoch)
            ON job.id = held.id AND job.epoch = held.epoch
        WHERE job.state = 'running' AND job.worker = %(worker)s ORDER BY job.id FOR NO KEY UPDATE OF job
    )
    UPDATE job SET lease_until = now() + make_interval(secs => %(lease)s) FROM mine WHERE job.id = mine.id
    RETURNING job.id, job.cancel_requested
"""
# A quick job may end before it was noted that the device began with it: then that is noted here.
_SUCCEED: Final = """
    WITH done AS (
        SELECT * FROM unnest(%(ids)s::uuid[], %(epochs)s::integer[], %(recipes)s::jsonb[], %(outputs)s::jsonb[],
                             %(steps)s::smallint[], %(seconds)s::float8[], %(warnings)s::jsonb[])
            AS done (id, epoch, recipe, outputs, steps, seconds, warnings)
    ), mine AS (
        SELECT job.id FROM job JOIN done ON job.id = done.id AND job.epoch = done.epoch
        WHERE job.state = 'running' ORDER BY job.id FOR NO KEY UPDATE OF job
    ), won AS (
        UPDATE job SET state = 'succeeded', recipe = done.recipe, warnings = done.warnings, lease_until = NULL,
            error_code = NULL, error_message = NULL, finished_at = now(), steps = coalesce(done.steps, job.steps),
            step = coalesce(done.steps, job.steps),
            started_at = coalesce(job.started_at, now() - make_interval(secs => done.seconds))
        FROM mine JOIN done ON mine.id = done.id WHERE job.id = mine.id
        RETURNING job.id, job.tenant_id, job.epoch, job.worker, job.attempts, job.dependents,
            jsonb_array_length(done.outputs) AS outputs
    ), stored AS (
        INSERT INTO output (job_id, index, epoch, key, media_type, size, sha256, seed, metadata)
        SELECT won.id, made.index, won.epoch, made.key, made.media_type, made.size, made.sha256, made.seed,
               made.metadata
        FROM won JOIN done ON won.id = done.id, jsonb_to_recordset(done.outputs) AS made (
            index smallint, key text, media_type text, size bigint, sha256 text, seed bigint, metadata jsonb)
    )
    SELECT id, tenant_id, epoch, worker, attempts, outputs, dependents FROM won
"""
_SET_SPEC: Final = "UPDATE job SET spec = %(spec)s::jsonb WHERE id = %(id)s"
_JSON: Final = json.JSONEncoder(ensure_ascii=False).encode


@dataclass(frozen=True)
class SucceededJob:
    """A job that succeeded in this transaction."""

    job_id: str
    tenant_id: str
    epoch: int
    worker: str
    attempts: int
    outputs: int
    dependents: int  #: jobs that have an output of it as an input


class RunningJobs:
    """The jobs that workers hold."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def claim(self, asked: Sequence[HeldJob], worker: str, lease_seconds: float) -> list[Job]:
        """dispatched → running, one attempt more, for those that are the worker's to claim; returns them."""
        values = _held(asked) | {"worker": worker, "lease": lease_seconds}
        rows = self._session.scalars(
            select(JobRow).from_statement(_CLAIM).execution_options(populate_existing=True), values
        )
        return self._with_inputs([job_of(row, ()) for row in rows])

    def _with_inputs(self, jobs: list[Job]) -> list[Job]:
        """Record the outputs of other jobs that these have as inputs, now that they exist."""
        waited = {job.id for job in jobs if any(not file.known for files in job.spec.inputs.values() for file in files)}
        if not waited:
            return jobs
        parents = {one for job in jobs if job.id in waited for one in job.spec.depends_on}
        outputs = Dependencies(self._session).outputs(parents)
        found = []
        for job in jobs:
            if job.id in waited:
                inputs = {
                    role: tuple(outputs.get((file.job or "", file.output), file) for file in files)
                    for role, files in job.spec.inputs.items()
                }
                job = replace(job, spec=job.spec.model_copy(update={"inputs": inputs}))  # noqa: PLW2901
                values = {"id": ids.to_uuid(ids.JOB, job.id), "spec": job.spec.model_dump_json()}
                self._session.connection().exec_driver_sql(_SET_SPEC, values)
            found.append(job)
        return found

    def start(self, begun: Mapping[HeldJob, int]) -> set[str]:
        """Note that the device begins with jobs of so many denoising steps; returns those still held at their epoch."""
        rows = self._rows(_START, _held(begun) | {"steps": list(begun.values())})
        return {ids.from_uuid(ids.JOB, row.id) for row in rows}

    def progress(self, reached: Mapping[HeldJob, int]) -> dict[str, bool]:
        """Note how many denoising steps are done; returns the jobs still held, and whether a cancel is asked for."""
        rows = self._rows(_PROGRESS, _held(reached) | {"steps": list(reached.values())})
        return {ids.from_uuid(ids.JOB, row.id): row.cancel_requested for row in rows}

    def renew(self, worker: str, held: Collection[HeldJob], lease_seconds: float) -> dict[str, bool]:
        """Extend the run leases of what a worker holds; returns those still its own, and if a cancel is asked for."""
        if not held:
            return {}
        rows = self._rows(_RENEW, _held(held) | {"worker": worker, "lease": lease_seconds})
        return {ids.from_uuid(ids.JOB, row.id): row.cancel_requested for row in rows}

    def succeed(self, done: Sequence[JobResult]) -> list[SucceededJob]:
        """running → succeeded with their outputs, for those still held at their epoch; returns them."""
        values = _held([one.held for one in done]) | {
            "recipes": [_JSON(one.recipe) for one in done],
            "outputs": [_JSON([vars(output) for output in one.outputs]) for one in done],
            "steps": [one.steps for one in done],
            "seconds": [one.seconds for one in done],
            "warnings": [_JSON(one.warnings) for one in done],
        }
        return [
            SucceededJob(ids.from_uuid(ids.JOB, row.id), ids.from_uuid(ids.TENANT, row.tenant_id), *row[2:])
            for row in self._rows(_SUCCEED, values)
        ]

    def _rows(self, statement: str, values: dict[str, Any]) -> Sequence[Any]:
        return self._session.connection().exec_driver_sql(statement, values).all()


def _held(held: Collection[HeldJob]) -> dict[str, Any]:
    return {"ids": [ids.to_uuid(ids.JOB, one.job_id) for one in held], "epochs": [one.epoch for one in held]}
