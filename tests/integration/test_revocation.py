"""A revoked key ends what it began, and an operator's key shows no other tenant's images."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from ipaddress import ip_network

import pytest

from farm.egress import guard
from farm.egress.guard import TargetRefused
from farm.settings import Settings
from farm.store.tenants import Scope
from tests.api_server import Api, Hand, running
from tests.integration.test_trust import sign_in

from .conftest import worker_info

JOB = {"task": "text-to-image", "model": "starter", "prompt": "a red ball on a blue background"}


@pytest.fixture
def api(farm_env: dict[str, str]) -> Iterator[Api]:
    with running(Settings()) as one:
        yield one


def test_a_stream_ends_when_its_key_is_revoked(api: Api) -> None:
    key = api.new_key(Scope.SUBMIT, Scope.READ)
    ended, began = threading.Event(), threading.Event()
    with api.client(key, timeout=60) as client:
        job_id = client.post("/v1/jobs", json=JOB).json()["id"]

        def follow() -> None:
            with client.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
                for _ in answer.iter_bytes():
                    began.set()
            ended.set()

        thread = threading.Thread(target=follow)
        thread.start()
        assert began.wait(20)
        assert not ended.wait(3)
        with api.store.begin() as unit:
            unit.tenants.revoke(api.tenant_id, unit.tenants.authenticate(key).id)
        assert ended.wait(15)
        thread.join()


def test_an_operators_key_shows_only_the_images_that_the_api_shows_it(api: Api) -> None:
    hand = Hand(api)
    hand.join(worker_info(hand.name, slots=10))
    with api.client() as client:
        job_id = client.post("/v1/jobs", json=JOB).json()["id"]
    hand.succeed(hand.begin(job_id))
    other = api.new_tenant("others")
    image = f"/farm/images/{job_id}/0"
    for scopes, tenant, status in (
        ((Scope.OPERATE,), api.tenant_id, 403),
        ((Scope.OPERATE,), other, 403),
        ((Scope.OPERATE, Scope.READ), other, 404),
        ((Scope.READ,), api.tenant_id, 200),
        ((Scope.ADMIN,), other, 200),
    ):
        with closing(sign_in(api, api.new_key(*scopes, tenant_id=tenant))) as client:
            assert client.get(image).status_code == status, (scopes, tenant == other)


def test_webhooks_and_inputs_reach_no_server_of_the_farm_itself() -> None:
    open_loopback = Settings(
        webhook_allow=(ip_network("127.0.0.0/8"),), webhook_allow_http=True, own_ports=frozenset({5432, 9461})
    )
    for port in (5432, 9461):
        with guard.client(open_loopback) as client, pytest.raises(TargetRefused, match="belongs to the farm itself"):
            client.get(f"http://127.0.0.1:{port}/metrics")
    with guard.client(open_loopback, timeout=2) as client, pytest.raises(Exception, match="refused"):
        client.get("http://127.0.0.1:1/")  # another port is tried


# -- behind a proxy ----------------------------------------------------------------------------------------------------


def test_head_is_answered_where_get_is_and_ends_a_stream(api: Api) -> None:
    with api.client(timeout=20) as client:
        job_id = client.post("/v1/jobs", json=JOB).json()["id"]
        for path in ("/healthz", "/v1/jobs", f"/v1/jobs/{job_id}", f"/v1/jobs/{job_id}/events", "/openapi.json"):
            head = client.head(path)
            assert head.status_code == 200, path
            assert head.content == b""
        assert client.head("/v1/jobs/job_none").status_code == client.get("/v1/jobs/job_none").status_code == 404
        assert client.head("/v1/nothing").status_code == 404


@pytest.mark.parametrize(("trusted", "secure"), [("127.0.0.1", True), ("10.0.0.0/8", False)])
def test_only_a_trusted_proxy_says_that_there_was_tls(farm_env: dict[str, str], trusted: str, secure: bool) -> None:
    with running(Settings(trusted_proxies=trusted)) as api, api.client(None) as client:
        answer = client.post(
            "/farm/login",
            data={"api_key": api.key},
            headers={"Sec-Fetch-Site": "same-origin", "X-Forwarded-Proto": "https"},
        )
        assert ("secure" in answer.headers["set-cookie"].lower()) is secure


def test_pages_of_listed_origins_may_call_and_others_may_not(farm_env: dict[str, str]) -> None:
    with running(Settings(cors_origins="https://studio.example.com")) as api, api.client() as client:
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        for origin, allowed in (("https://studio.example.com", True), ("https://evil.example.com", False)):
            preflight = client.request("OPTIONS", "/v1/jobs", headers={"Origin": origin, **asked})
            answer = client.get("/v1/jobs", headers={"Origin": origin})
            for one in (preflight, answer):
                assert one.headers.get("access-control-allow-origin") == (origin if allowed else None)
                assert "access-control-allow-credentials" not in one.headers
    with pytest.raises(ValueError, match="is no origin"):
        Settings(cors_origins="*")
