"""Each POST of the client that makes something has a name, and the second one with that name makes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx2
import psycopg
import pytest

from farm.client import requests
from farm.client.protocol import IDEMPOTENCY_KEY, Call
from farm.client.transport import Transport
from farm.settings import settings
from tests.api_server import Api, running

URL = "https://93.184.216.34/hook"


@pytest.fixture
def api(farm_env: Mapping[str, str]) -> Iterator[Api]:
    with running(settings()) as api:
        yield api


def made(api: Api, what: str) -> str:
    """The id of something that another request needs."""
    with api.client() as client:
        if what == "key":
            answer = client.post("/v1/keys", json={"name": "old", "scopes": ["read"]})
        else:
            answer = client.post("/v1/webhooks/endpoints", json={"url": URL})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])


#: Each of the client's calls that makes something, and the table that has it.
CALLS: dict[str, tuple[Callable[[Api], Call[Any]], str]] = {
    "key": (lambda _: requests.make_key("a key"), "api_key"),
    "rotated key": (lambda api: requests.rotate_key(made(api, "key")), "api_key"),
    "join token": (lambda _: requests.make_join_token("a machine"), "join_token"),
    "tenant": (lambda _: requests.make_tenant("studio"), "tenant"),
    "endpoint": (lambda _: requests.add_endpoint(URL), "endpoint"),
    "rotated secret": (lambda api: requests.rotate_secret(made(api, "endpoint")), "endpoint"),
    "test event": (lambda api: requests.test_endpoint(made(api, "endpoint")), "delivery"),
    "job": (lambda _: requests.submit_body({"task": "text-to-image", "model": "starter", "prompt": "a ball"}), "job"),
}
SHOWN = ("id", "key", "token", "secret", "secrets")


@pytest.mark.parametrize("what", CALLS)
def test_the_second_request_gets_the_first_one_s_answer(api: Api, what: str, database_url: str) -> None:
    make, table = CALLS[what]
    call = make(api)
    transport = Transport(api.url, api.key, 0, 30)

    def rows() -> int:
        with psycopg.connect(database_url) as connection:
            row = connection.execute(f"SELECT count(*) FROM {table}".encode()).fetchone()
        assert row is not None
        return int(row[0])

    with httpx2.Client(trust_env=False) as client:
        first = client.send(client.build_request(**transport.request(call)))
        assert first.is_success, first.text
        count = rows()
        second = client.send(client.build_request(**transport.request(call)))
        assert second.is_success, second.text
    assert rows() == count
    shown = {name: value for name, value in first.json().items() if name in SHOWN}
    assert shown
    assert {name: second.json()[name] for name in shown} == shown
    assert second.headers.get("location") == first.headers.get("location")
    # another call has another name
    assert make(api).headers[IDEMPOTENCY_KEY] != call.headers[IDEMPOTENCY_KEY]


def test_a_name_is_of_one_request(api: Api) -> None:
    name = {IDEMPOTENCY_KEY: "a"}
    with api.client() as client:
        assert client.post("/v1/keys", json={"name": "x"}, headers=name).status_code == 201
        for path, body in (("/v1/keys", {"name": "y"}), ("/v1/join-tokens", {"name": "x"})):
            answer = client.post(path, json=body, headers=name)
            assert answer.status_code == 422
            assert answer.json()["errors"][0]["field"] == IDEMPOTENCY_KEY
        # the order of fields means nothing
        first = client.post("/v1/keys", json={"name": "z", "scopes": ["read"]}, headers={IDEMPOTENCY_KEY: "b"})
        second = client.post("/v1/keys", json={"scopes": ["read"], "name": "z"}, headers={IDEMPOTENCY_KEY: "b"})
        assert first.json() == second.json()


def test_what_was_refused_may_be_sent_again(api: Api) -> None:
    with api.client() as client:
        first = client.post("/v1/tenants", json={"name": "studio"})
        assert first.status_code == 201
        refused = client.post("/v1/tenants", json={"name": "studio"}, headers={IDEMPOTENCY_KEY: "t"})
        assert refused.status_code == 409
        assert client.patch(f"/v1/tenants/{first.json()['id']}", json={"name": "atelier"}).is_success
        again = client.post("/v1/tenants", json={"name": "studio"}, headers={IDEMPOTENCY_KEY: "t"})
        assert again.status_code == 201


def test_a_remembered_secret_cannot_be_read_in_the_database(api: Api, database_url: str) -> None:
    with api.client() as client:
        text = client.post("/v1/keys", json={"name": "x"}, headers={IDEMPOTENCY_KEY: "k"}).json()["key"]
    with psycopg.connect(database_url) as connection:
        row = connection.execute("SELECT answer FROM idempotency WHERE key = 'k'").fetchone()
    assert row is not None
    assert row[0].startswith("sealed:")
    assert text not in row[0]


def test_every_post_that_may_be_repeated_has_a_name_and_no_other() -> None:
    assert IDEMPOTENCY_KEY in requests.cancel("job_" + "0" * 32).headers
    assert IDEMPOTENCY_KEY not in requests.get("job_" + "0" * 32).headers
    assert IDEMPOTENCY_KEY not in Call("POST", "/v1/x", dict, repeatable=False).headers
    mine = requests.submit_body({}, idempotency_key="mine")
    assert mine.headers[IDEMPOTENCY_KEY] == "mine"
