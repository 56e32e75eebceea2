"""How the API says "not now": a tenant's rate of requests, and a database that is away."""

from __future__ import annotations

import time

import pytest

from farm.api.rates import Rates
from farm.client import Farm
from farm.settings import Settings
from farm.store.tenants import Scope
from tests.api_server import running


def test_a_bucket_lets_a_burst_through_and_then_its_rate_and_a_refused_request_costs_nothing() -> None:
    now = 0.0
    rates = Rates(2, 4, lambda: now)
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


def test_beyond_its_rate_a_tenant_is_told_when_to_come_back_and_our_client_does(farm_env: dict[str, str]) -> None:
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
