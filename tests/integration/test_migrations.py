"""The schema that migrations make is the one that the tables describe."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from alembic import command
from psycopg.types.json import Jsonb
from sqlalchemy import create_engine

from farm import lifecycle
from farm.domain import ids
from farm.domain.job import Output
from farm.domain.states import JobState
from farm.errors import LeaseLost
from farm.store import migrate
from farm.store.unit_of_work import Store, make_engine, sqlalchemy_url
from tests.conftest import TestServers

from .conftest import worker_info

#: The schema of the release before this one.
BEFORE = "0004"
#: A job's spec as that release stored it.
SPEC = {
    "task": "text-to-image", "model": "starter", "prompt": "a red ball on a blue background", "negative_prompt": "",
    "num_inference_steps": 4, "guidance_scale": 4.0, "scheduler": "ddim", "seed": 1, "num_images_per_prompt": 1,
    "width": 64, "height": 64, "strength": None, "output_format": "png", "inputs": {},
}  # fmt: skip


def test_migrations_and_tables_agree(database_url: str) -> None:
    engine = create_engine(sqlalchemy_url(database_url))
    with engine.connect() as connection:
        assert migrate.differences(connection) == []
        assert migrate.current(connection) == migrate.head()
    engine.dispose()


def test_migrating_twice_changes_nothing(database_url: str) -> None:
    assert migrate.upgrade(database_url) == migrate.head()


@pytest.fixture
def old_database(servers: TestServers) -> Iterator[str]:
    """A database as the release before this one has it."""
    servers.postgres.create_database("before")
    engine = create_engine(sqlalchemy_url(servers.postgres.url("before")))
    with engine.connect() as connection:
        made = migrate.config()
        made.attributes["connection"] = connection
        command.upgrade(made, BEFORE)
        connection.commit()
    engine.dispose()
    yield servers.postgres.url("before")
    servers.postgres.drop_database("before")


class OldRelease:
    """What the processes of the release before do, in the statements that it had."""

    def __init__(self, database_url: str) -> None:
        self.tenant = ids.new(ids.TENANT)
        self._tenant = ids.to_uuid(ids.TENANT, self.tenant)
        self._connection = psycopg.connect(database_url, autocommit=True)
        self._connection.execute("INSERT INTO tenant (id, name) VALUES (%s, 'acme')", (self._tenant,))

    def submit(self) -> str:
        job = ids.new(ids.JOB)
        self._connection.execute(
            "INSERT INTO job (id, tenant_id, state, task, model, priority, spec, cost, max_attempts) "
            "VALUES (%s, %s, 'queued', 'text-to-image', 'starter', 1, %s, 0.1, 3)",
            (ids.to_uuid(ids.JOB, job), self._tenant, Jsonb(SPEC)),
        )
        return job

    def _edge(self, job: str, change: str, condition: str) -> None:
        done = self._connection.execute(
            f"UPDATE job SET {change} WHERE id = %s AND {condition}", (ids.to_uuid(ids.JOB, job),)
        )
        assert done.rowcount == 1

    def dispatch(self, job: str) -> None:
        self._edge(
            job, "state = 'dispatched', epoch = epoch + 1, worker = 'host/cpu0', dispatched_at = now(), "
            "lease_until = now() + interval '30 s'", "state = 'queued'",
        )  # fmt: skip

    def claim(self, job: str) -> None:
        self._edge(
            job, "state = 'running', attempts = attempts + 1, claimed_at = now(), "
            "lease_until = now() + interval '30 s'", "state = 'dispatched' AND epoch = 1",
        )  # fmt: skip

    def succeed(self, job: str) -> None:
        with self._connection.transaction():
            self._edge(
                job, "state = 'succeeded', finished_at = now(), recipe = '{}'", "state = 'running' AND epoch = 1"
            )
            self._connection.execute(
                "INSERT INTO event (tenant_id, job_id, type, epoch) VALUES (%s, %s, 'job.succeeded', 1)",
                (self._tenant, ids.to_uuid(ids.JOB, job)),
            )

    def close(self) -> None:
        self._connection.close()


def test_an_upgrade_with_jobs_in_flight_loses_none_and_lets_the_old_processes_finish(old_database: str) -> None:
    old = OldRelease(old_database)
    jobs = {name: old.submit() for name in ("queued", "dispatched", "running", "done", "theirs")}
    for name in ("dispatched", "running", "done", "theirs"):
        old.dispatch(jobs[name])
    for name in ("running", "done", "theirs"):
        old.claim(jobs[name])
    old.succeed(jobs["done"])

    assert migrate.upgrade(old_database) == migrate.head()

    # A process that was not replaced yet goes on with what it holds, and takes in new jobs.
    old.succeed(jobs["theirs"])
    jobs["late"] = old.submit()
    old.close()

    store = Store(make_engine(old_database, pool=3))
    with store.begin() as unit:
        states = {name: unit.jobs.get(job).state for name, job in jobs.items()}  # type: ignore[union-attr]
        assert states == {
            "queued": JobState.QUEUED, "dispatched": JobState.DISPATCHED, "running": JobState.RUNNING,
            "done": JobState.SUCCEEDED, "theirs": JobState.SUCCEEDED, "late": JobState.QUEUED,
        }  # fmt: skip
        lifecycle.join(unit, worker_info("host/cpu1"))
    output = Output(0, "a key", "0" * 64, 1, 64, 64, "image/png", 1)
    with store.begin() as unit:
        assert lifecycle.claim(unit, jobs["dispatched"], 1, "host/cpu0", 30).state is JobState.RUNNING
        assert lifecycle.succeed(unit, jobs["running"], 1, [output], {}).state is JobState.SUCCEEDED
        lifecycle.cancel(unit, old.tenant, jobs["queued"])
    with pytest.raises(LeaseLost), store.begin() as unit:
        lifecycle.succeed(unit, jobs["theirs"], 1, [output], {})
    store.close()
