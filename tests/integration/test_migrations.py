"""Migrations make the schema that the tables declare, and the release before works on it."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from alembic import command
from psycopg.types.json import Jsonb

from farm import lifecycle
from farm.domain import ids
from farm.domain.job import Output
from farm.domain.states import JobState
from farm.errors import LeaseLost
from farm.store import migrate
from farm.store.tables import Base
from farm.store.unit_of_work import Store, make_engine
from tests import job_edges
from tests.conftest import TestServers

from .conftest import worker_info

#: The schema of the release before this one; before the first release, of the first.
BEFORE = "0001"
#: A job's spec as that release stores it.
SPEC = {
    "task": "text-to-image", "model": "starter", "scheduler": "ddim", "seed": 1, "num_outputs": 1, "inputs": {},
    "output_format": "png", "common": {"prompt": "a red ball on a blue background", "num_inference_steps": 4,
    "guidance_scale": 4.0, "width": 64, "height": 64},
}  # fmt: skip


#: What a table, its columns, constraints and indexes are, as the database itself writes it down.
SCHEMA = {
    "tables": """
        SELECT relname, reloptions FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'S') AND relname <> 'alembic_version'
    """,
    "columns": """
        SELECT table_name, column_name, data_type, udt_name, is_nullable, column_default, is_identity
        FROM information_schema.columns WHERE table_schema = 'public' AND table_name <> 'alembic_version'
    """,
    "constraints": """
        SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace AND conrelid::regclass::text <> 'alembic_version'
    """,
    "indexes": """
        SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename <> 'alembic_version'
    """,
}


def schema(database_url: str) -> dict[str, set[str]]:
    with psycopg.connect(database_url) as connection:
        return {kind: {repr(row) for row in connection.execute(query)} for kind, query in SCHEMA.items()}


@pytest.fixture
def empty_database(servers: TestServers) -> Iterator[str]:
    servers.postgres.create_database("empty")
    yield servers.postgres.url("empty")
    servers.postgres.drop_database("empty")


def test_migrating_an_empty_database_gives_the_schema_of_the_tables(database_url: str, empty_database: str) -> None:
    engine = make_engine(empty_database, pool=1)
    Base.metadata.create_all(engine)
    engine.dispose()
    migrated, declared = schema(database_url), schema(empty_database)
    for kind in SCHEMA:
        assert migrated[kind], kind
        assert migrated[kind] == declared[kind], kind
    engine = make_engine(database_url, pool=1)
    with engine.connect() as connection:
        assert migrate.differences(connection) == []
        assert migrate.current(connection) == migrate.head()
    engine.dispose()


def test_migrating_twice_changes_nothing(database_url: str) -> None:
    before = schema(database_url)
    assert migrate.upgrade(database_url) == migrate.head()
    assert schema(database_url) == before


def test_a_downgrade_of_the_baseline_leaves_nothing(empty_database: str) -> None:
    assert migrate.upgrade(empty_database) == migrate.head()
    engine = make_engine(empty_database, pool=1)
    with engine.connect() as connection:
        config = migrate.config()
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        connection.commit()
    engine.dispose()
    assert not any(schema(empty_database).values())


@pytest.fixture
def old_database(servers: TestServers) -> Iterator[str]:
    """A database as the release before this one has it."""
    servers.postgres.create_database("before")
    engine = make_engine(servers.postgres.url("before"), pool=1)
    with engine.connect() as connection:
        config = migrate.config()
        config.attributes["connection"] = connection
        command.upgrade(config, BEFORE)
        connection.commit()
    engine.dispose()
    yield servers.postgres.url("before")
    servers.postgres.drop_database("before")


class OldRelease:
    """What the processes of the release before do, in the statements that it has."""

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
    output = Output(0, "a key", "image/png", 1, "0" * 64, 1, {"width": 64, "height": 64})
    with store.begin() as unit:
        assert job_edges.claim(unit, jobs["dispatched"], 1, "host/cpu0", 30).state is JobState.RUNNING
        assert job_edges.succeed(unit, jobs["running"], 1, [output], {}).state is JobState.SUCCEEDED
        lifecycle.cancel(unit, old.tenant, jobs["queued"])
    with pytest.raises(LeaseLost), store.begin() as unit:
        job_edges.succeed(unit, jobs["theirs"], 1, [output], {})
    store.close()
