"""Every way to name a database works in every kind of connection, through a real PgBouncer too, or says why not."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import text

from farm.dispatch.leadership import Leadership
from farm.domain.states import JobState
from farm.errors import DatabaseUnavailable, SchemaOutdated, SetupError
from farm.settings import Settings
from farm.store.connection import Database
from farm.store.listen import Listener
from farm.store.migrate import head, require_schema, upgrade
from farm.store.unit_of_work import Store, make_engine
from tests import programs
from tests.conftest import TestServers
from tests.pooler import pgbouncer
from tests.waiting import wait_until

from .conftest import Submit, worker_info

PASSWORD = "50%off /@:?#&+ é"  #: of a role of the tests: whatever a password generator may draw


@pytest.fixture(scope="module")
def role(servers: TestServers) -> str:
    with psycopg.connect(servers.database_url, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP ROLE IF EXISTS odd"))
        connection.execute(sql.SQL("CREATE ROLE odd SUPERUSER LOGIN PASSWORD {}").format(sql.Literal(PASSWORD)))
    return "odd"


SPELLINGS = {
    "libpq's": "postgresql://farm:{password}@127.0.0.1:{port}/{name}",
    "the short scheme": "postgres://farm:{password}@127.0.0.1:{port}/{name}",
    "several hosts": "postgresql://farm:{password}@127.0.0.1:1,127.0.0.1:{port}/{name}?target_session_attrs=read-write",
    "all in parameters": "postgresql:///{name}?host=127.0.0.1&port={port}&user=farm&password={password}",
    "options": "postgresql://farm:{password}@127.0.0.1:{port}/{name}?options=-c%20search_path%3Dpublic",
    "SQLAlchemy's": "postgresql+psycopg2://farm:{password}@127.0.0.1:{port}/{name}",
    "SQLAlchemy's several hosts": "postgresql+psycopg://farm:{password}@/{name}?host=127.0.0.1:1&host=127.0.0.1:{port}",
    "an encoded password": "postgresql://odd:{encoded}@127.0.0.1:{port}/{name}",
    "an encoded password of SQLAlchemy": "postgresql+psycopg://odd:{encoded}@127.0.0.1:{port}/{name}",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_url_works_in_the_pool_the_listener_the_lock_and_the_migration(
    spelling: str, database_url: str, role: str
) -> None:
    server = urlsplit(database_url)
    url = SPELLINGS[spelling].format(
        password=server.password, encoded=quote(PASSWORD, safe=""), port=server.port, name=server.path[1:]
    )
    check_all_connections(Database.parse(url), Database.parse(url))


def check_all_connections(pooled: Database, direct: Database) -> None:
    """Use each kind of connection for what the farm uses it for."""
    store = Store(make_engine(pooled, pool=3))
    listener, leader, other = Listener(direct, ["news"]), Leadership(direct), Leadership(direct)
    try:
        listener.connect()
        assert leader.hold()
        assert leader.hold()
        assert not other.hold()
        with store.begin() as unit:
            assert unit.session.scalar(text("SHOW statement_timeout")) == "30s"
            unit.session.execute(text("SELECT pg_notify('news', 'one')"))
        assert [one.payload for one in listener.wait(5)] == ["one"]
        assert upgrade(direct) == head()
        require_schema(store)
    finally:
        leader.give_up()
        other.give_up()
        listener.close()
        store.close()


def test_limits_in_the_url_or_of_the_role_come_first(database_url: str) -> None:
    store = Store(make_engine(f"{database_url}?options=-c%20statement_timeout%3D7s", pool=1))
    try:
        with store.begin() as unit:
            assert unit.session.scalar(text("SHOW statement_timeout")) == "7s"
            assert unit.session.scalar(text("SHOW idle_in_transaction_session_timeout")) == "1min"
    finally:
        store.close()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("mysql://farm@h/farm", "must be a URL that begins with postgresql://"),
        ("host=h dbname=farm", "must be a URL that begins with postgresql://"),
        ("postgresql://farm:s3cret@h:54x2/farm", "its port is not a number"),
        ("postgresql://farm:s3c@ret@h/farm", "its user and password cannot be separated from its host"),
        ("postgresql://farm:s3cret@h/farm?pool_size=3", "'pool_size' is not an option of libpq"),
    ],
)
def test_a_url_that_no_connection_can_use_is_refused_without_its_password(url: str, reason: str) -> None:
    with pytest.raises(SetupError, match="FARM_DATABASE_URL") as refused:
        Database.of(Settings(database_url=url))
    assert reason in str(refused.value)
    assert "s3c" not in str(refused.value)


REASONS = {
    "postgresql://farm:wrong@127.0.0.1:{port}/{name}": 'password authentication failed for user "farm"; check user and',
    "postgresql://unknown:x@127.0.0.1:{port}/{name}": 'password authentication failed for user "unknown"',
    "postgresql://farm:{password}@127.0.0.1:{port}/none": 'database "none" does not exist; create the database',
    "postgresql://farm:{password}@127.0.0.1:{port}/{name}?sslmode=require": (
        "server does not support SSL, but SSL was required; sslmode in the database URL"
    ),
    "postgresql://farm:{password}@127.0.0.1:1/{name}": "Connection refused; nothing listens there",
    "postgresql://farm:{password}@no-such-host.invalid:{port}/{name}": "check the host name",
    "postgresql://farm:{password}@127.0.0.1:{port}/{name}?options=-c%20nonsense%3D1": (
        'unrecognized configuration parameter "nonsense"'
    ),
}


@pytest.mark.parametrize("url", REASONS)
def test_what_postgresql_says_is_said_with_what_to_check(url: str, database_url: str) -> None:
    server = urlsplit(database_url)
    database = Database.parse(url.format(password=server.password, port=server.port, name=server.path[1:]))
    store = Store(make_engine(database, pool=1))
    said = set()
    for use in (store.check, Listener(database, ["x"]).connect, Leadership(database).hold, lambda: upgrade(database)):
        with pytest.raises(DatabaseUnavailable) as raised:
            use()
        said.add(str(raised.value))
        assert REASONS[url] in str(raised.value)
        assert str(server.password) not in str(raised.value)
    assert len(said) == 1
    assert database.place in said.pop()


# -- PgBouncer ---------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["session", "transaction"])
def mode(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def pooled_url(mode: str, database_url: str, tmp_path: Path) -> Iterator[str]:
    with pgbouncer(database_url, tmp_path / "pgbouncer", mode, size=8) as url:
        yield url


@pytest.mark.parametrize("mode", ["session"], indirect=True)
def test_a_pooler_by_session_needs_nothing_more(pooled_url: str) -> None:
    check_all_connections(Database.parse(pooled_url), Database.parse(pooled_url))


@pytest.mark.parametrize("mode", ["transaction"], indirect=True)
def test_a_pooler_by_transaction_serves_all_but_sessions(pooled_url: str, database_url: str) -> None:
    check_all_connections(Database.parse(pooled_url), Database.parse(database_url))
    settings = Settings(database_url=pooled_url, database_direct_url=database_url)
    assert Database.direct(settings) == Database.parse(database_url)
    for refused in (
        Listener(Database.parse(pooled_url), ["news"]).connect,
        Leadership(Database.parse(pooled_url)).hold,
        lambda: upgrade(Database.parse(pooled_url)),
    ):
        with pytest.raises(SetupError, match=r"transaction mode.*set FARM_DATABASE_DIRECT_URL"):
            refused()


def test_threads_share_few_servers_of_a_pooler_without_its_state(
    mode: str, database_url: str, tmp_path: Path, servers: TestServers
) -> None:
    """More clients than server processes: a prepared statement or a setting of one would meet another."""
    clients = 6
    with pgbouncer(database_url, tmp_path / "pgbouncer", mode, size=clients if mode == "session" else 2) as url:
        store = Store(make_engine(url, pool=clients))
        failures: list[BaseException] = []

        def work(number: int) -> None:
            try:
                for turn in range(30):
                    with store.begin() as unit:
                        query = text("SELECT CAST(:n AS int) + CAST(:t AS int), current_setting('statement_timeout')")
                        row = unit.session.execute(query, {"n": number, "t": turn}).one()
                        assert tuple(row) == (number + turn, "30s")
                    with store.look() as unit:
                        assert unit.tenants.by_name(f"none{number}") is None
            except BaseException as error:  # noqa: BLE001 - of a thread, for the test to raise
                failures.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        store.close()
        assert not failures, failures


@pytest.mark.parametrize("mode", ["transaction"], indirect=True)
def test_a_dispatcher_behind_a_pooler_by_transaction_needs_the_direct_url(
    pooled_url: str, database_url: str, farm_env: dict[str, str], store: Store, submit: Submit
) -> None:
    env = {**os.environ, **farm_env, "FARM_DATABASE_URL": pooled_url}
    alone = subprocess.run(
        [sys.executable, "-m", "farm.cli", "dispatcher"], env=env, capture_output=True, text=True, timeout=60
    )
    assert alone.returncode == 2, alone.stderr
    assert "set FARM_DATABASE_DIRECT_URL" in alone.stderr
    assert "Traceback" not in alone.stderr

    from farm import lifecycle

    with store.begin() as unit:
        lifecycle.join(unit, worker_info())
    job = submit()
    child = subprocess.Popen(
        [sys.executable, "-m", "farm.cli", "dispatcher"], env={**env, "FARM_DATABASE_DIRECT_URL": database_url}
    )

    def state() -> JobState:
        with store.begin() as unit:
            found = unit.jobs.get(job.id)
            assert found is not None
            return found.state

    try:
        wait_until(lambda: state() is JobState.DISPATCHED, 30, what="the job is dispatched")
    finally:
        child.terminate()
        child.wait(20)


# -- the schema --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", ["dispatcher", "deliverer", "api"])
def test_a_service_says_that_the_schema_is_old(service: str, servers: TestServers) -> None:
    servers.postgres.create_database("unmigrated")
    env = {**os.environ, **servers.env(database_url=servers.postgres.url("unmigrated"))}
    env["FARM_API_PORT"] = str(programs.free_port())
    try:
        done = subprocess.run(
            [sys.executable, "-m", "farm.cli", service], env=env, capture_output=True, text=True, timeout=60
        )
    finally:
        servers.postgres.drop_database("unmigrated")
    assert done.returncode == 2, done.stderr
    assert f"schema is empty, and this release needs {head()}: run `farm migrate`" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_newer_schema_is_what_a_rolling_upgrade_has(store: Store) -> None:
    require_schema(store)
    with store.begin() as unit:
        unit.session.execute(text("UPDATE alembic_version SET version_num = '9999_of_the_next_release'"))
    require_schema(store)
    with store.begin() as unit:
        unit.session.execute(text("DELETE FROM alembic_version"))
    with pytest.raises(SchemaOutdated, match="run `farm migrate`"):
        require_schema(store)
