"""How the API says "not now": a tenant's rate of requests, and a database that is away."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from farm.api.rate_limit import RateLimiter
from farm.client import Farm
from farm.local import servers as local
from farm.local.ports import PortReservations
from farm.local.postgres import EmbeddedPostgres
from farm.local.process_manager import ProcessManager
from farm.local.state import DataDirectory
from farm.settings import Settings
from farm.store.migrate import upgrade
from farm.store.tenants import Scope
from tests.api_server import Api, running
from tests.waiting import wait_until

JOB = {"task": "text-to-image", "model": "starter", "prompt": "a red ball on a blue background"}


def test_a_bucket_lets_a_burst_through_and_then_its_rate_and_a_refused_request_costs_nothing() -> None:
    now = 0.0
    rates = RateLimiter(2, 4, lambda: now)
    assert [rates.take("a").left for _ in range(4)] == [3, 2, 1, 0]
    for _ in range(3):
        refused = rates.take("a")
        assert refused.retry_after == pytest.approx(0.5)
        assert refused.headers() == {"RateLimit-Policy": '"requests";q=4;w=2', "RateLimit": '"requests";r=0;t=2'}
    assert rates.take("b").retry_after is None
    now = 0.5
    assert [rates.take("a").retry_after is None for _ in range(2)] == [True, False]
    now = 100.0
    assert rates.take("a").left == 3  # never more than a bucket


def test_above_its_rate_a_tenant_gets_retry_after_and_our_client_waits(farm_env: dict[str, str]) -> None:
    with running(Settings(rate_limit=0.5, rate_burst=3)) as api, api.client() as client:
        answers = [client.get("/v1/models")]
        assert answers[0].headers["ratelimit-policy"] == '"requests";q=3;w=6'
        assert answers[0].headers["ratelimit"] == '"requests";r=2;t=2'
        while answers[-1].status_code == 200 and len(answers) < 20:
            answers.append(client.get("/v1/models"))
        refused = answers[-1]
        assert refused.status_code == 429
        assert refused.headers["content-type"] == "application/problem+json"
        assert 1 <= int(refused.headers["retry-after"]) <= 2
        assert refused.headers["ratelimit"].startswith('"requests";r=0;t=')
        # another dialect draws from the same bucket, and other tenants and those who watch from none of it
        assert client.get("/compat/openai/v1/models").status_code == 429
        with api.client(api.new_key(Scope.READ, tenant_id=api.new_tenant("other"))) as other:
            assert other.get("/v1/models").status_code == 200
        health = client.get("/healthz")
        assert (health.status_code, "ratelimit" in health.headers) == (200, False)
        with Farm(api.url, api.key) as farm:
            started = time.monotonic()
            assert farm.models()
            assert time.monotonic() - started < 10


@pytest.fixture
def own_postgres(tmp_path: Path) -> Iterator[tuple[ProcessManager, EmbeddedPostgres]]:
    """A database server that a test may stop."""
    directory = DataDirectory(tmp_path / "own")
    directory.create()
    reservations = PortReservations()
    farm = local.prepare(directory, reservations)
    postgres = local.Servers.of(directory, farm, Settings(database_url=None)).postgres
    assert postgres is not None
    manager = ProcessManager([postgres.program()], directory)
    try:
        manager.start()
        manager.wait_ready()
        postgres.create_database()
        upgrade(postgres.url())
        yield manager, postgres
    finally:
        manager.stop()
        reservations.release()


def walk(api: Api) -> Counter[int]:
    """Ask every operation of the document, and the adapters, something; each must say that it cannot now."""
    seen: Counter[int] = Counter()
    with api.client() as client:
        document = client.get("/openapi.json").json()
        asked = [
            (method.upper(), re.sub(r"{\w+}", "x", path))
            for path, methods in document["paths"].items()
            for method, operation in methods.items()
            if operation.get("security")
        ]
        asked += [("GET", path) for path in ("/compat/openai/v1/models", "/sdapi/v1/sd-models", "/readyz")]
        for method, path in asked:
            answer = client.request(method, path, json={} if method != "GET" else None)
            assert answer.status_code == 503, f"{method} {path}: {answer.status_code} {answer.text}"
            assert path == "/readyz" or 1 <= int(answer.headers["retry-after"]) <= 10, path
            if path.startswith("/v1"):
                assert answer.headers["content-type"] == "application/problem+json"
            seen[answer.status_code] += 1
        assert client.get("/healthz").status_code == 200
        signed_in = client.post("/farm/login", data={"api_key": api.key}, headers={"Origin": api.url})
        assert signed_in.status_code == 503
    return seen


def test_a_database_that_is_away_restarts_or_is_read_only_is_503_and_never_500(
    farm_env: dict[str, str], own_postgres: tuple[ProcessManager, EmbeddedPostgres]
) -> None:
    manager, postgres = own_postgres
    settings = Settings.model_validate({"database_url": postgres.url()})
    answers: Counter[int] = Counter()
    unfit: list[str] = []
    done = threading.Event()
    with running(settings) as api:

        def use() -> None:
            with api.client() as client:
                while not done.is_set():
                    for answer in (
                        client.post("/v1/jobs", json=JOB),
                        client.post("/v1/batches", json={"name": "b", "jobs": [JOB]}),
                        client.get("/v1/jobs"),
                        client.get("/v1/usage"),
                    ):
                        answers[answer.status_code] += 1
                        if not (answer.is_success or (answer.status_code == 503 and "retry-after" in answer.headers)):
                            unfit.append(f"{answer.request.method} {answer.request.url}: {answer.text}")

        users = [threading.Thread(target=use) for _ in range(2)]
        for user in users:
            user.start()
        try:
            wait_until(lambda: answers[200] > 4, 20, what="the farm is used")
            manager.stop()
            wait_until(lambda: answers[503] > 4, 20, what="requests meet a database that went away")
            assert walk(api)[503] > 50
            before = answers[200]
            manager.start()
            manager.wait_ready()
            wait_until(lambda: answers[200] > before + 4, 20, what="the farm works again")
        finally:
            done.set()
            for user in users:
                user.join(30)
        assert not unfit, unfit[:3]
        with psycopg.connect(postgres.url(), autocommit=True) as connection:
            connection.execute("ALTER ROLE CURRENT_USER SET default_transaction_read_only = on")
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
        with api.client() as client:
            assert client.get("/v1/jobs").status_code == 200
            refused = client.post("/v1/jobs", json=JOB)
            assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
