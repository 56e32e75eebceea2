"""What a join token, a database backup, a stolen cookie and a revoked key can still do: as little as possible."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from urllib.parse import quote, urlsplit

import httpx2
import psycopg
import pytest
from psycopg import errors as pg
from pydantic import SecretStr
from sqlalchemy import text

from farm.cli.enroll import join
from farm.domain.states import JobState
from farm.errors import SetupError, Unauthorized
from farm.local.bootstrap import ensure_worker_role
from farm.redis_server import WORKER_ACL
from farm.settings import Settings, settings
from farm.store import worker_role
from farm.store.connection import Database
from farm.store.secret_box import PREFIX, seal, unseal
from farm.store.tenants import Scope
from tests import programs
from tests.api_server import Api, running
from tests.conftest import TestServers
from tests.integration.worker_process import Farm, NoiseWorker, spec
from tests.valkey_servers import valkey

PASSWORD = "a password of the tests"


@pytest.fixture
def worker_url(database_url: str) -> Iterator[str]:
    """The database by the role of workers that join."""
    role = f"worker_{urlsplit(database_url).path[1:]}"
    url = urlsplit(database_url)
    joined = url._replace(netloc=f"{role}:{quote(PASSWORD)}@{url.hostname}:{url.port}").geturl()
    ensure_worker_role(Settings(database_url=database_url, join_database_url=joined))
    yield joined
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f'DROP OWNED BY "{role}"')
        connection.execute(f'DROP ROLE "{role}"')


# -- joining -----------------------------------------------------------------------------------------------------------


def test_the_role_of_workers_runs_nothing_on_the_server_and_reads_no_secret(worker_url: str, tmp_path: Path) -> None:
    with Database.parse(worker_url).connect(autocommit=True) as connection:
        for statement in (
            f"COPY (SELECT 1) TO PROGRAM 'touch {tmp_path}/pwned'",
            "COPY job FROM PROGRAM 'id'",
            "SELECT pg_read_file('postgresql.conf')",
            "SELECT * FROM api_key",
            "SELECT * FROM endpoint",
            "SELECT secrets FROM endpoint",
            "SELECT url FROM endpoint",
            "SELECT * FROM join_token",
            "SELECT * FROM dashboard_session",
            "DELETE FROM job",
            "DELETE FROM tenant",
            "INSERT INTO job SELECT * FROM job",
            "CREATE TABLE mine (id int)",
            "CREATE ROLE another",
            "ALTER ROLE farm PASSWORD 'x'",
            "DROP TABLE job",
        ):
            with pytest.raises((pg.InsufficientPrivilege, pg.UndefinedTable)):
                connection.execute(statement)
        row = connection.execute(
            "SELECT rolsuper OR rolcreaterole OR rolcreatedb OR rolbypassrls OR rolreplication FROM pg_roles "
            "WHERE rolname = current_user"
        ).fetchone()
        assert row == (False,)
    assert not (tmp_path / "pwned").exists()


def test_a_worker_does_its_whole_work_with_that_role_and_that_acl(
    worker_url: str, database_url: str, servers: TestServers, tmp_path: Path
) -> None:
    port = programs.free_port()
    env = {"FARM_HEARTBEAT_SECONDS": "0.5", "FARM_RUN_LEASE_SECONDS": "6", "FARM_DRAIN_SECONDS": "1"}
    with valkey(tmp_path, port, "requirepass all", f"user worker on >pw {WORKER_ACL}"):
        farm = Farm(
            servers.env(database_url=database_url, redis_url=f"redis://worker:pw@127.0.0.1:{port}/0") | env, tmp_path
        )
        worker = NoiseWorker(farm, env={"FARM_DATABASE_URL": worker_url})
        dispatcher = subprocess.Popen([sys.executable, "-m", "farm.cli", "dispatcher"], env={**os.environ, **farm.env})
        try:
            worker.start().wait_online()
            farm.wait(farm.submit(spec()), JobState.SUCCEEDED)
            farm.wait(farm.submit(spec(model="nobody-has-it"), max_attempts=1), JobState.FAILED)
            long = farm.submit(spec(num_inference_steps=150, num_outputs=16))
            farm.wait(long, JobState.RUNNING)
            from farm import lifecycle

            with farm.store.begin() as unit:
                lifecycle.cancel(unit, farm.tenant, long.id)
            farm.wait(long, JobState.CANCELED)
            released = farm.submit(spec(num_inference_steps=150, num_outputs=16))
            farm.wait(released, JobState.RUNNING)
            worker.signal(15)
            worker.wait()
            farm.wait(released, JobState.QUEUED, JobState.DISPATCHED)
            assert "permission denied" not in worker.log()
            assert "NOPERM" not in worker.log()
        except AssertionError:
            print(worker.log()[-4000:])
            raise
        finally:
            worker.kill()
            dispatcher.terminate()
            dispatcher.wait(20)
            farm.close()


def test_the_owner_of_the_tables_is_no_role_for_workers(database_url: str) -> None:
    with pytest.raises(SetupError, match="must name a role of its own"):
        ensure_worker_role(Settings(database_url=database_url, join_database_url=database_url))


def test_no_table_is_forgotten_in_the_grants(database_url: str) -> None:
    """A new table must be decided about: granted, or named here."""
    kept = {
        "api_key", "audit", "dashboard_session", "delivery", "delivery_attempt", "idempotency", "join_token",
        "output_label", "probe", "request_file",
    }  # fmt: skip
    with psycopg.connect(database_url) as connection:
        tables = {row[0] for row in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}
    assert tables == kept | worker_role.GRANTS.keys()


@pytest.fixture
def api(farm_env: dict[str, str], worker_url: str) -> Iterator[Api]:
    given = Settings().model_copy(
        update={
            "join_database_url": SecretStr(worker_url),
            "join_s3_access_key": "worker",
            "join_host": "10.1.2.3",
            "webhook_allow": (ip_network("127.0.0.0/8"),),
        }
    )
    with running(given) as one:
        yield one


def test_tokens_are_made_listed_used_and_revoked(api: Api, worker_url: str) -> None:
    with api.client() as client:
        made = client.post("/v1/join-tokens", json={"name": "rack 3", "seconds": 3600})
        assert made.status_code == 201, made.text
        token, token_id = made.json()["token"], made.json()["id"]
        environment: dict[str, str] = {}
        join(api.url, token, environment)
        assert environment["FARM_DATABASE_URL"] == worker_url.replace("127.0.0.1", "10.1.2.3")
        assert environment["FARM_S3_ACCESS_KEY"] == "worker"
        assert "FARM_SECRET_KEY" not in environment
        (listed,) = client.get("/v1/join-tokens").json()["data"]
        assert listed["last_used_at"] is not None
        assert "token" not in listed
        assert token.split("_", 2)[2] not in client.get("/v1/join-tokens").text
        assert client.delete(f"/v1/join-tokens/{token_id}").json()["revoked_at"] is not None
        with pytest.raises(Unauthorized, match="the join token was revoked"):
            join(api.url, token, {})
    with api.client(api.new_key(Scope.SUBMIT, Scope.READ, Scope.OPERATE)) as client:
        assert client.get("/v1/join-tokens").status_code == 403
        assert client.post("/v1/join-tokens", json={"name": "x"}).status_code == 403


def test_a_token_expires(api: Api) -> None:
    with api.store.begin() as unit:
        made, text_of = unit.join_tokens.create("old", 60)
        unit.session.execute(text("UPDATE join_token SET expires_at = now() - interval '1 second'"))
    with pytest.raises(Unauthorized, match="has expired"):
        join(api.url, text_of, {})
    with pytest.raises(Unauthorized, match="is not known"):
        join(api.url, text_of[:-1] + "x", {})
    with api.store.begin() as unit:
        assert not unit.join_tokens.is_live(text_of)
        assert unit.join_tokens.all()[0].id == made.id


# -- the dashboard -----------------------------------------------------------------------------------------------------


def sign_in(api: Api, key: str) -> httpx2.Client:
    client = api.client(None)
    answer = client.post("/farm/login", data={"api_key": key}, headers={"Sec-Fetch-Site": "same-origin"})
    assert answer.status_code == 303, answer.text
    return client


def signed_in(client: httpx2.Client) -> bool:
    return client.get("/farm/jobs").status_code == 200


def test_nobody_signs_in_with_what_the_database_holds(api: Api) -> None:
    """By the old way a cookie was signed with the key's stored hash: with any column of any row it must not work."""
    with closing(sign_in(api, api.key)) as client:
        assert signed_in(client)
        cookie = client.cookies["farm_session"]
    with api.store.begin() as unit:
        held = unit.session.execute(text("SELECT encode(id, 'hex'), encode(id, 'base64') FROM dashboard_session")).one()
        hashes = unit.session.execute(text("SELECT encode(secret_hash, 'hex') FROM api_key")).scalars().all()
    assert cookie not in held
    for guess in (*held, *hashes):
        with api.client(None) as client:
            client.cookies.set("farm_session", guess.strip(), path="/farm")
            assert not signed_in(client)


def test_a_logout_ends_every_copy_of_the_cookie(api: Api) -> None:
    with closing(sign_in(api, api.key)) as client, api.client(None) as thief:
        thief.cookies.set("farm_session", client.cookies["farm_session"], path="/farm")
        assert signed_in(thief)
        client.post("/farm/logout", headers={"Sec-Fetch-Site": "same-origin"})
        assert not signed_in(thief)


def test_a_session_ends_with_its_key_and_with_time(api: Api) -> None:
    other = api.new_key(Scope.READ)
    with closing(sign_in(api, other)) as client, closing(sign_in(api, api.key)) as late:
        assert signed_in(client)
        with api.store.begin() as unit:
            unit.tenants.revoke(api.tenant_id, unit.tenants.authenticate(other).id)
        assert not signed_in(client)
        assert signed_in(late)
        with api.store.begin() as unit:
            unit.session.execute(text("UPDATE dashboard_session SET expires_at = now() - interval '1 second'"))
        assert not signed_in(late)


# -- secrets at rest ---------------------------------------------------------------------------------------------------


def test_webhook_secrets_are_encrypted_at_rest(api: Api) -> None:
    with api.client() as client:
        body = {"url": "https://127.0.0.1/x", "asymmetric": True}
        made = client.post("/v1/webhooks/endpoints", json=body).json()
        rotated = client.post(f"/v1/webhooks/endpoints/{made['id']}/rotate?overlap_seconds=600").json()
        assert rotated["previous"][0]["secret"] == made["secret"]
        secret = client.get(f"/v1/webhooks/endpoints/{made['id']}/secret").json()["secret"]
    assert secret == rotated["secret"] != made["secret"]
    with api.store.begin() as unit:
        rows = unit.session.execute(text("SELECT secrets, keys FROM endpoint")).all()
        dump = " ".join(unit.session.execute(text("SELECT endpoint::text FROM endpoint")).scalars())
    assert all(kept.startswith(PREFIX) for row in rows for column in row for kept in column)
    assert len(rows[0][0]) == len(rows[0][1]) == 2
    for plain in (secret, made["secret"], "whsec_", "whsk_"):
        assert plain not in dump


def test_a_secret_is_read_with_any_key_of_the_list_and_with_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = "an old key of thirty-two characters", "a new key of thirty-two characters!"

    def use(keys: str) -> None:
        monkeypatch.setenv("FARM_SECRET_KEY", keys)
        settings.cache_clear()

    try:
        use(old)
        kept = seal("whsec_x")
        assert kept != seal("whsec_x")  # a nonce of its own
        use(f"{new},{old}")
        assert unseal(kept) == "whsec_x"
        renewed = seal("whsec_y")
        use(new)
        assert unseal(renewed) == "whsec_y"
        with pytest.raises(SetupError, match="another FARM_SECRET_KEY"):
            unseal(kept)
        use("short")
        with pytest.raises(SetupError, match="at least 32 characters"):
            seal("x")
    finally:
        settings.cache_clear()


@pytest.mark.parametrize("service", ["api", "deliverer"])
def test_a_service_that_needs_the_key_says_so_at_the_start(service: str, farm_env: dict[str, str]) -> None:
    env = {**os.environ, **farm_env, "FARM_SECRET_KEY": ""}
    done = subprocess.run(
        [sys.executable, "-m", "farm.cli", service], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2, done.stderr
    assert "FARM_SECRET_KEY is not set" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_token_of_a_day_is_the_default(api: Api) -> None:
    with api.client() as client:
        client.post("/v1/join-tokens", json={"name": "default"})
    with api.store.begin() as unit:
        (token,) = unit.join_tokens.all()
        assert token.expires_at - token.created_at == timedelta(days=1)
