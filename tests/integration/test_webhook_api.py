"""Webhooks through the API: a tenant's endpoints and deliveries, with a real deliverer and a real receiver."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import httpx2
import pytest

from farm.settings import Settings
from farm.store.tenants import Scope
from farm.webhooks import signature
from farm.webhooks.deliverer import Deliverer
from farm.webhooks.retry_policy import RetryPolicy
from tests.api_server import Api, Hand, running
from tests.integration.receiver import Received, Receiver, answer, in_turn, receiver
from tests.integration.test_webhook_delivery import LIMITS, SCHEDULE
from tests.waiting import wait_until

BALL: dict[str, Any] = {"task": "text-to-image", "prompt": "a red ball on a blue background", "seed": 7}
ENDPOINTS = "/v1/webhooks/endpoints"
DELIVERIES = "/v1/webhooks/deliveries"


@pytest.fixture
def hooks() -> Iterator[Receiver]:
    with receiver() as made:
        yield made


@pytest.fixture
def config(farm_env: dict[str, str]) -> Settings:
    return Settings(webhook_allow=(ip_network("127.0.0.0/8"),), webhook_allow_http=True)


@pytest.fixture
def api(config: Settings) -> Iterator[Api]:
    with running(config) as one:
        yield one


@pytest.fixture
def client(api: Api) -> Iterator[httpx2.Client]:
    with api.client() as one:
        yield one


Start = Callable[..., None]


@pytest.fixture
def start(config: Settings) -> Iterator[Start]:
    made: list[tuple[Deliverer, threading.Thread]] = []

    def one(retry_policy: RetryPolicy = SCHEDULE) -> None:
        deliverer = Deliverer(
            config, lambda key: f"https://bucket.example/{key}", retry_policy=retry_policy, limits=LIMITS
        )
        thread = threading.Thread(target=deliverer.run)
        thread.start()
        made.append((deliverer, thread))

    yield one
    for deliverer, _ in made:
        deliverer.stop()
    for _, thread in made:
        thread.join(10)
        assert not thread.is_alive()


def make(client: httpx2.Client, url: str, **fields: Any) -> dict[str, Any]:
    made = client.post(ENDPOINTS, json={"url": url} | fields)
    assert made.status_code == 201, made.text
    assert made.headers["location"] == f"{ENDPOINTS}/{made.json()['id']}"
    return dict(made.json())


def cancel_one(client: httpx2.Client, **fields: Any) -> str:
    """A job that ends at once; returns its id."""
    job_id = str(client.post("/v1/jobs", json=BALL | fields).json()["id"])
    assert client.post(f"/v1/jobs/{job_id}/cancel").status_code == 200
    return job_id


def listed(client: httpx2.Client, **query: Any) -> list[dict[str, Any]]:
    found = client.get(DELIVERIES, params=query)
    assert found.status_code == 200, found.text
    return list(found.json()["data"])


def arrived(hooks: Receiver, number: int, path: str = "/hook") -> list[Received]:
    return wait_until(lambda: hooks.at(path) if len(hooks.at(path)) >= number else [], 15, what=f"{number} POSTs")


def signatures(one: Received) -> list[str]:
    return one.headers["webhook-signature"].split(" ")


# -- endpoints -------------------------------------------------------------------------------------------------------


def test_an_endpoint_is_made_seen_changed_and_deleted(client: httpx2.Client, hooks: Receiver) -> None:
    made = make(client, hooks.url(), description="orders")
    secret = made.pop("secret")
    assert secret.startswith("whsec_")
    assert made["events"] == ["job.canceled", "job.failed", "job.succeeded"]
    assert made["enabled"]
    assert not made["one_off"]
    path = f"{ENDPOINTS}/{made['id']}"
    assert client.get(path).json() == made
    assert client.get(ENDPOINTS).json() == {"data": [made], "next": None}
    assert client.get(f"{path}/secret").json() == {"secret": secret, "previous": []}
    change = {"url": hooks.url("/other"), "description": "", "events": ["job.started"], "enabled": False}
    changed = client.patch(path, json=change).json()
    assert {name: changed[name] for name in change} == change
    assert changed["disabled_reason"] == "requested"
    assert client.patch(path, json={}).json() == changed
    enabled = client.patch(path, json={"enabled": True}).json()
    assert enabled["disabled_at"] is enabled["disabled_reason"] is None
    assert client.delete(path).status_code == 200
    assert client.get(path).status_code == client.delete(path).status_code == 404
    assert client.get(ENDPOINTS).json()["data"] == []


def test_endpoints_come_in_pages(client: httpx2.Client, hooks: Receiver) -> None:
    made = [make(client, hooks.url(f"/{number}"))["id"] for number in range(5)]
    found: list[str] = []
    cursor: str | None = None
    while True:
        page = client.get(ENDPOINTS, params={"limit": 2} | ({"cursor": cursor} if cursor else {})).json()
        found += [one["id"] for one in page["data"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert found == made[::-1]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"url": "http://10.0.0.1/hook"}, "url"),
        ({"url": "http://169.254.169.254/latest"}, "url"),
        ({"url": "ftp://example.com/"}, "url"),
        ({"url": "https://no-such-host.invalid/"}, "url"),
        ({"events": ["farm.test"]}, "events.0"),
        ({"events": ["job.requeued"]}, "events.0"),
        ({"events": []}, "events"),
        ({"description": "a\0b"}, "description"),
        ({"enabled": "yes"}, "enabled"),
        ({"secret": "mine"}, "secret"),
    ],
)
def test_what_cannot_be_an_endpoint_is_refused(
    client: httpx2.Client, hooks: Receiver, change: dict[str, Any], field: str
) -> None:
    refused = client.post(ENDPOINTS, json={"url": hooks.url()} | change)
    assert refused.status_code == 422
    assert [one["field"] for one in refused.json()["errors"]] == [field]
    path = f"{ENDPOINTS}/{make(client, hooks.url())['id']}"
    before = client.get(path).json()
    assert client.patch(path, json=change).status_code == 422
    assert client.get(path).json() == before


def test_scopes_say_who_may_see_and_change(api: Api, client: httpx2.Client, hooks: Receiver) -> None:
    path = f"{ENDPOINTS}/{make(client, hooks.url())['id']}"
    with api.client(api.new_key(Scope.READ)) as reader, api.client(api.new_key(Scope.ADMIN)) as admin:
        assert reader.get(path).status_code == 200
        assert reader.get(f"{path}/secret").status_code == 403
        assert reader.post(f"{path}/rotate").status_code == 403
        assert reader.post(f"{path}/test").status_code == 403
        assert reader.delete(path).status_code == 403
        assert admin.get(f"{path}/secret").status_code == 200
        assert admin.get(path).status_code == 403
    with api.client(api.new_key(Scope.SUBMIT)) as submitter:
        assert submitter.get(f"{path}/secret").status_code == 200
        assert submitter.post(f"{path}/rotate").status_code == 200


def test_what_belongs_to_another_tenant_looks_absent(
    api: Api, client: httpx2.Client, hooks: Receiver, start: Start
) -> None:
    endpoint = make(client, hooks.url())
    start()
    job_id = cancel_one(client)
    arrived(hooks, 1)
    (delivery,) = listed(client)
    with api.client(api.new_key(*Scope, tenant_id=api.new_tenant("stranger"))) as stranger:
        path, sent = f"{ENDPOINTS}/{endpoint['id']}", f"{DELIVERIES}/{delivery['id']}"
        answers = [
            stranger.get(path),
            stranger.patch(path, json={"url": "https://no-such-host.invalid/"}),
            stranger.patch(path, json={"enabled": False}),
            stranger.delete(path),
            stranger.get(f"{path}/secret"),
            stranger.post(f"{path}/rotate"),
            stranger.post(f"{path}/test"),
            stranger.get(sent),
            stranger.post(f"{sent}/resend"),
        ]
        assert [one.status_code for one in answers] == [404] * len(answers)
        nothing = f"{ENDPOINTS}/end_{'0' * 32}"
        absent, others = stranger.get(nothing).json(), stranger.get(path).json()
        assert absent["detail"].replace(f"end_{'0' * 32}", "") == others["detail"].replace(endpoint["id"], "")
        assert stranger.get(ENDPOINTS).json()["data"] == []
        for query in ({}, {"endpoint_id": endpoint["id"]}, {"job_id": job_id}):
            assert listed(stranger, **query) == []
        assert stranger.post(f"{DELIVERIES}/resend", json={"endpoint_id": endpoint["id"]}).json() == {"count": 0}
    assert client.get(path).json()["enabled"]


# -- secrets ---------------------------------------------------------------------------------------------------------


def test_after_a_rotation_both_secrets_sign_until_the_old_one_ends(
    client: httpx2.Client, hooks: Receiver, start: Start
) -> None:
    made = make(client, hooks.url(), asymmetric=True)
    path = f"{ENDPOINTS}/{made['id']}"
    start()
    client.post(f"{path}/test")
    arrived(hooks, 1)
    rotated = client.post(f"{path}/rotate", params={"overlap_seconds": 2}).json()
    assert rotated["secret"] != made["secret"]
    assert [one["secret"] for one in rotated["previous"]] == [made["secret"]]
    assert client.get(f"{path}/secret").json() == rotated
    client.post(f"{path}/test")
    first, second = arrived(hooks, 2)
    assert [one.partition(",")[0] for one in signatures(first)] == ["v1", "v1a"]
    assert [one.partition(",")[0] for one in signatures(second)] == ["v1", "v1", "v1a", "v1a"]
    keys = [one["key"] for one in client.get(path).json()["public_keys"]]
    assert keys[1] == made["public_keys"][0]["key"] != keys[0]
    for known in (made["secret"], rotated["secret"], *keys):
        signature.verify(known, second.headers, second.body)
    wait_until(lambda: client.get(f"{path}/secret").json()["previous"] == [], 10)
    client.post(f"{path}/test")
    third = arrived(hooks, 3)[2]
    signature.verify(rotated["secret"], third.headers, third.body)
    for ended in (made["secret"], keys[1]):
        with pytest.raises(signature.SignatureRefused):
            signature.verify(ended, third.headers, third.body)
    signature.verify(keys[0], third.headers, third.body)
    assert client.patch(path, json={"asymmetric": False}).json()["public_keys"] == []


def test_the_private_half_of_a_key_pair_is_never_shown(api: Api, client: httpx2.Client, hooks: Receiver) -> None:
    made = make(client, hooks.url(), asymmetric=True)
    path = f"{ENDPOINTS}/{made['id']}"
    with api.store.begin() as unit:
        (key,) = unit.webhooks.endpoint(api.tenant_id, made["id"]).keys
    assert signature.public_key(key.text) == made["public_keys"][0]["key"]
    assert client.patch(path, json={"asymmetric": True}).json()["public_keys"] == made["public_keys"]
    shown = [client.get(path), client.get(ENDPOINTS), client.get(f"{path}/secret"), client.post(f"{path}/rotate")]
    for told in shown:
        assert "whsk_" not in told.text
        assert key.text.removeprefix("whsk_") not in told.text


def test_a_tenant_has_so_many_endpoints_and_no_more(config: Settings, hooks: Receiver) -> None:
    with running(config.model_copy(update={"max_endpoints": 2})) as api, api.client() as client:
        cancel_one(client, webhook=hooks.url("/own"))  # a job's own webhook does not count
        first = make(client, hooks.url("/1"))
        make(client, hooks.url("/2"))
        refused = client.post(ENDPOINTS, json={"url": hooks.url("/3")})
        assert refused.status_code == 409
        assert "there are 2 endpoints, which is the limit of a tenant: delete one" in refused.json()["detail"]
        assert client.delete(f"{ENDPOINTS}/{first['id']}").status_code == 200
        make(client, hooks.url("/3"))


def test_old_secrets_can_be_ended_at_once_and_do_not_pile_up(client: httpx2.Client, hooks: Receiver) -> None:
    path = f"{ENDPOINTS}/{make(client, hooks.url())['id']}"
    assert [client.post(f"{path}/rotate").status_code for _ in range(4)] == [200, 200, 200, 409]
    before = client.get(f"{path}/secret").json()
    assert len(before["previous"]) == 3
    after = client.post(f"{path}/rotate", params={"overlap_seconds": 0}).json()
    assert after["previous"] == []
    assert after["secret"] not in [before["secret"], *(one["secret"] for one in before["previous"])]


def test_the_endpoint_of_a_jobs_own_webhook_is_listed_and_its_secret_readable(
    client: httpx2.Client, hooks: Receiver, start: Start
) -> None:
    start()
    job_id = cancel_one(client, webhook=hooks.url())
    (got,) = arrived(hooks, 1)
    assert client.get(ENDPOINTS, params={"one_off": False}).json()["data"] == []
    (made,) = client.get(ENDPOINTS, params={"one_off": True}).json()["data"]
    assert made["one_off"]
    secret = client.get(f"{ENDPOINTS}/{made['id']}/secret").json()["secret"]
    signature.verify(secret, got.headers, got.body)
    assert got.event["data"]["id"] == job_id
    refused = client.patch(f"{ENDPOINTS}/{made['id']}", json={"url": hooks.url("/other")})
    assert refused.status_code == 409
    assert client.patch(f"{ENDPOINTS}/{made['id']}", json={"description": "one"}).json()["description"] == "one"


# -- events ----------------------------------------------------------------------------------------------------------


def test_a_test_event_goes_to_its_endpoint_alone(client: httpx2.Client, hooks: Receiver, start: Start) -> None:
    wanted = make(client, hooks.url(), events=["job.failed"], description="mine")
    make(client, hooks.url("/other"))
    start()
    sent = client.post(f"{ENDPOINTS}/{wanted['id']}/test")
    assert sent.status_code == 201
    (got,) = arrived(hooks, 1)
    assert got.id == sent.json()["id"]
    assert got.event["type"] == "farm.test"
    assert got.event["data"] == {"endpoint": {"id": wanted["id"], "url": hooks.url(), "description": "mine"}}
    signature.verify(wanted["secret"], got.headers, got.body)
    wait_until(lambda: client.get(sent.headers["location"]).json()["state"] == "delivered")
    assert not hooks.at("/other")
    client.patch(f"{ENDPOINTS}/{wanted['id']}", json={"enabled": False})
    assert client.post(f"{ENDPOINTS}/{wanted['id']}/test").status_code == 409


def test_started_and_progress_are_sent_to_whom_asks_for_them(
    api: Api, client: httpx2.Client, hooks: Receiver, start: Start
) -> None:
    make(client, hooks.url("/ends"))
    make(client, hooks.url(), events=["job.started", "job.progress", "job.succeeded"])
    job_id = client.post("/v1/jobs", json=BALL).json()["id"]
    hand = Hand(api)
    job = hand.begin(job_id)
    for step in (4, 5, 6):  # within the time that one message about progress lasts
        hand.step(job, step)
    hand.succeed(job)
    start()
    by_type = {one.event["type"]: one.event["data"] for one in arrived(hooks, 3)}
    assert set(by_type) == {"job.started", "job.progress", "job.succeeded"}
    # told late, they still say what was
    assert by_type["job.started"]["state"] == by_type["job.progress"]["state"] == "running"
    assert by_type["job.progress"]["progress"] == {"step": 4, "steps": 20}
    assert "progress" not in by_type["job.started"]
    assert by_type["job.started"]["worker"] == hand.name
    assert by_type["job.started"]["outputs"] == []
    assert by_type["job.succeeded"]["state"] == "succeeded"
    assert [one.event["type"] for one in arrived(hooks, 1, "/ends")] == ["job.succeeded"]


def test_progress_that_nobody_asks_for_is_not_written(api: Api, client: httpx2.Client, hooks: Receiver) -> None:
    unwanted = make(client, hooks.url(), events=["job.progress"], enabled=False)
    make(client, hooks.url("/ends"))
    job_id = client.post("/v1/jobs", json=BALL).json()["id"]
    hand = Hand(api)
    job = hand.begin(job_id)

    def written() -> int:
        with api.store.begin() as unit:
            return len(unit.session.connection().exec_driver_sql("SELECT FROM event WHERE type = 'job.progress'").all())

    hand.step(job, 1)
    assert written() == 0
    client.patch(f"{ENDPOINTS}/{unwanted['id']}", json={"enabled": True})
    hand.step(job, 2)
    hand.step(job, 3)
    assert written() == 1


def test_a_disabled_endpoint_is_reported_to_the_others(client: httpx2.Client, hooks: Receiver, start: Start) -> None:
    hooks.behaviours["/hook"] = answer(410)
    gone = make(client, hooks.url(), description="old")
    watcher = make(client, hooks.url("/watch"), events=["endpoint.disabled"])
    start()
    cancel_one(client)
    (told,) = arrived(hooks, 1, "/watch")
    assert told.event["type"] == "endpoint.disabled"
    about = told.event["data"]["endpoint"]
    assert (about["id"], about["url"], about["description"], about["reason"]) == (
        gone["id"],
        hooks.url(),
        "old",
        "gone",
    )
    signature.verify(watcher["secret"], told.headers, told.body)
    seen = client.get(f"{ENDPOINTS}/{gone['id']}").json()
    assert (seen["enabled"], seen["disabled_reason"]) == (False, "gone")


# -- deliveries ------------------------------------------------------------------------------------------------------


def test_a_dead_delivery_is_sent_again_under_its_id(client: httpx2.Client, hooks: Receiver, start: Start) -> None:
    hooks.behaviours["/hook"] = in_turn(*[answer(500, b"broken")] * 4, answer(503), answer(200, b"thanks"))
    made = make(client, hooks.url())
    start()
    job_id = cancel_one(client)
    (dead,) = wait_until(lambda: listed(client, state="dead"), 15)
    assert (dead["type"], dead["job_id"], dead["endpoint_id"]) == ("job.canceled", job_id, made["id"])
    assert (dead["attempt_count"], dead["status"], dead["error"]) == (len(SCHEDULE.delays), 500, "status")
    assert dead["next_attempt_at"] is None
    again = client.post(f"{DELIVERIES}/{dead['id']}/resend")
    assert again.status_code == 200, again.text
    path = f"{DELIVERIES}/{dead['id']}"
    over = wait_until(lambda: client.get(path).json() if client.get(path).json()["state"] == "delivered" else None, 15)
    assert {one.id for one in arrived(hooks, 6)} == {dead["id"]}
    # it failed once more, and was retried: the retry schedule started again
    assert [(one["number"], one["status"]) for one in over["attempts"]] == [
        *((number, 500) for number in (1, 2, 3, 4)),
        (5, 503),
        (6, 200),
    ]
    assert over["attempts"][0]["response"] == "broken"
    assert over["attempts"][-1]["error"] is None


def test_all_dead_ones_of_a_filter_are_sent_again(client: httpx2.Client, hooks: Receiver, start: Start) -> None:
    bad, other = make(client, hooks.url()), make(client, hooks.url("/other"))
    for path in ("/hook", "/other"):
        hooks.behaviours[path] = answer(500)
    start(replace(SCHEDULE, delays=(0,), break_after=50))
    jobs = [cancel_one(client) for _ in range(3)]
    wait_until(lambda: len(listed(client, state="dead")) == 6, 15)
    hooks.behaviours.clear()
    resend = f"{DELIVERIES}/resend"
    assert client.post(resend, json={"created_before": "2020-01-01T00:00:00Z"}).json() == {"count": 0}
    assert client.post(resend, json={"type": "job.failed"}).json() == {"count": 0}
    assert client.post(resend, json={"endpoint_id": "x"}).json() == {"count": 0}
    assert client.post(resend, json={"created_before": 0}).status_code == 422
    assert client.get(resend).status_code == 405
    assert client.get(resend).headers["allow"] == "POST"
    assert client.post(resend, json={"endpoint_id": bad["id"], "job_id": jobs[0]}).json() == {"count": 1}
    assert client.post(resend, json={"endpoint_id": bad["id"]}).json() == {"count": 2}
    wait_until(lambda: len(listed(client, state="delivered")) == 3, 15)
    client.patch(f"{ENDPOINTS}/{other['id']}", json={"enabled": False})
    assert client.post(resend, json={}).json() == {"count": 0}
    (dead, *_) = listed(client, state="dead")
    assert client.post(f"{DELIVERIES}/{dead['id']}/resend").status_code == 409
    client.patch(f"{ENDPOINTS}/{other['id']}", json={"enabled": True})
    assert client.post(resend, json={}).json() == {"count": 3}
    wait_until(lambda: len(listed(client, state="delivered")) == 6, 15)


def test_deliveries_are_filtered_and_come_in_pages(client: httpx2.Client, hooks: Receiver, start: Start) -> None:
    one, two = make(client, hooks.url("/1")), make(client, hooks.url("/2"))
    start()
    jobs = [cancel_one(client) for _ in range(3)]
    wait_until(lambda: len(listed(client, state="delivered")) == 6, 15)
    everything = listed(client)
    assert [each["job_id"] for each in everything] == [job for job in reversed(jobs) for _ in range(2)]
    paged: list[dict[str, Any]] = []
    cursor: str | None = None
    while True:
        page = client.get(DELIVERIES, params={"limit": 1} | ({"cursor": cursor} if cursor else {})).json()
        paged += page["data"]
        cursor = page["next"]
        if cursor is None:
            break
    assert paged == everything
    assert {each["endpoint_id"] for each in listed(client, job_id=jobs[0])} == {one["id"], two["id"]}
    assert [each["job_id"] for each in listed(client, endpoint_id=two["id"])] == jobs[::-1]
    assert listed(client, endpoint_id=two["id"], job_id=jobs[1], type="job.canceled")[0]["sequence"] == 2
    assert listed(client, type="job.failed") == listed(client, state="pending") == []
    middle = everything[3]["created_at"]
    assert all(each["created_at"] > middle for each in listed(client, created_after=middle))
    assert all(each["created_at"] < middle for each in listed(client, created_before=middle))
    for bad in ("x", "A" * 32, "_" * 32, "%00", "ä" * 32):
        assert client.get(DELIVERIES, params={"cursor": bad}).status_code in (200, 422)
        assert client.get(ENDPOINTS, params={"cursor": bad}).status_code in (200, 422)


def test_an_endpoint_deleted_during_a_try_costs_the_others_nothing(
    client: httpx2.Client, hooks: Receiver, start: Start
) -> None:
    begun, release = threading.Event(), threading.Event()

    def slow(handler: Any, before: int) -> None:
        begun.set()
        release.wait(10)
        answer(200)(handler, before)

    hooks.behaviours["/hook"] = slow
    made = make(client, hooks.url())
    make(client, hooks.url("/other"))
    start()
    cancel_one(client)
    assert begun.wait(10)
    assert client.delete(f"{ENDPOINTS}/{made['id']}").status_code == 200
    release.set()
    wait_until(lambda: [one["state"] for one in listed(client)] == ["delivered"], 15)
    cancel_one(client)
    arrived(hooks, 2, "/other")
