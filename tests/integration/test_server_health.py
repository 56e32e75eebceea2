"""Readiness is the database; what Redis and S3 do not take is found by writing, and said everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import psycopg
import pytest
import redis
from prometheus_client import REGISTRY

from farm.local.servers import Servers
from farm.local.state import DataDirectory
from farm.services import server_health
from farm.services.server_health import DATABASE, REDIS, STORAGE, ServerHealth
from farm.settings import Settings, settings
from tests.api_server import Api, running
from tests.conftest import TestServers
from tests.waiting import wait_until

JOB = {
    "task": "text-to-image",
    "model": "starter",
    "prompt": "a red ball",
    "width": 64,
    "height": 64,
    "num_inference_steps": 2,
}


@pytest.fixture
def api(farm_env: dict[str, str]) -> Iterator[Api]:
    with running(settings()) as found:
        yield found


def health(api: Api) -> ServerHealth:
    found: ServerHealth = api.server.config.app.state.context.health  # type: ignore[union-attr]
    return found


def ready(api: Api) -> tuple[int, dict[str, str]]:
    with api.client(None) as client:
        answer = client.get("/readyz")
    return answer.status_code, dict(answer.json())


def checked(api: Api, server: str) -> tuple[int, dict[str, str]]:
    """What `/readyz` says after a check of that server."""
    health(api).check(server)
    return ready(api)


def up(server: str) -> float | None:
    return REGISTRY.get_sample_value("farm_server_up", {"server": server})


def dashboard(api: Api) -> str:
    with httpx2.Client(base_url=api.url, trust_env=False, follow_redirects=True) as browser:
        origin = {"Origin": api.url, "Sec-Fetch-Site": "same-origin"}
        browser.post("/farm/login", data={"api_key": api.key}, headers=origin)
        return browser.get("/farm").text


def test_a_bucket_that_is_gone_degrades_and_jobs_are_still_accepted(
    api: Api, servers: TestServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    health(api).check(STORAGE)
    assert up(STORAGE) == 1
    monkeypatch.setattr(api.server.config.app.state.context.storage, "bucket", "gone")  # type: ignore[union-attr]
    health(api).check(STORAGE)
    assert ready(api) == (200, {"status": "degraded", "database": "ok", "redis": "ok", "storage": "error"})
    assert up(STORAGE) == 0
    assert "The storage takes no writes" in dashboard(api)
    with api.client() as client:
        assert client.post("/v1/jobs", json=JOB).status_code == 201
    monkeypatch.undo()
    health(api).check(STORAGE)
    assert ready(api)[1]["status"] == "ok"
    assert "takes no writes" not in dashboard(api)


def test_a_storage_that_answers_and_takes_no_object_is_found_by_writing(api: Api, servers: TestServers) -> None:
    context: Any = api.server.config.app.state.context  # type: ignore[union-attr]

    directory = DataDirectory(servers.directory)
    store = Servers.of(directory, directory.farm(), Settings(s3_endpoint_url=None)).s3
    assert store is not None
    assert store.configure_bucket(read_only=True)
    try:
        context.storage.check()  # it answers
        health(api)._next_object = 0.0
        health(api).check(STORAGE)
        assert ready(api) == (200, {"status": "degraded", "database": "ok", "redis": "ok", "storage": "error"})
    finally:
        assert store.configure_bucket()
    health(api).check(STORAGE)  # at once, not a minute later
    assert ready(api)[1]["storage"] == "ok"


def test_a_redis_that_answers_and_takes_nothing_degrades(api: Api, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        try:
            client.config_set("maxmemory", 1)
            assert client.ping()
            health(api).check(REDIS)
            assert ready(api) == (200, {"status": "degraded", "database": "ok", "redis": "error", "storage": "ok"})
            assert "maxmemory" in dashboard(api)
        finally:
            client.config_set("maxmemory", 0)
        health(api).check(REDIS)
        assert up(REDIS) == 1


def test_a_database_that_is_read_only_is_not_ready(api: Api, database_url: str) -> None:
    name = database_url.rpartition("/")[2]
    reconnect = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()"
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
        connection.execute(reconnect, (name,))
        wait_until(lambda: checked(api, DATABASE)[0] == 503, 10, what="the read-only database is noticed")
        assert ready(api)[1] == {"status": "error", "database": "error", "redis": "ok", "storage": "ok"}
        connection.execute(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')
        connection.execute(reconnect, (name,))
    wait_until(lambda: checked(api, DATABASE)[0] == 200, 10, what="it is ready again")


def test_a_server_is_looked_at_without_being_asked(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_health, "INTERVAL_SECONDS", 0.1)
    again = ServerHealth(api.store, None, api.storage)
    again.start()
    try:
        wait_until(lambda: set(again.problems) == {REDIS}, 5, what="the missing Redis is noticed")
        assert "FARM_REDIS_URL" in again.problems[REDIS]
    finally:
        again.stop()
