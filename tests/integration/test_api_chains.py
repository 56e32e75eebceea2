"""Chains over the API: one line of a batch names another, one job names another job's output."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from farm.settings import Settings
from farm.store.tenants import Scope
from tests.api_server import Api, Hand, running
from tests.depth import NIGHTLY
from tests.waiting import wait_until

from .conftest import worker_info

JSONL = {"Content-Type": "application/jsonl"}
SIZE = {"width": 64, "height": 64, "num_inference_steps": 2}


@pytest.fixture
def api(farm_env: dict[str, str]) -> Iterator[Api]:
    with running(Settings()) as one:
        yield one


@pytest.fixture
def client(api: Api) -> Iterator[httpx2.Client]:
    with api.client(timeout=300) as one:
        yield one


def base(name: str, **fields: Any) -> dict[str, Any]:
    return {"task": "text-to-image", "custom_id": name, "prompt": f"{name} red ball"} | SIZE | fields


def edit(name: str, image: object, **fields: Any) -> dict[str, Any]:
    return (
        {"task": "image-to-image", "custom_id": name, "prompt": name, "image": image, "strength": 0.9} | SIZE | fields
    )


def post(client: httpx2.Client, *lines: dict[str, Any], **query: Any) -> httpx2.Response:
    body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    return client.post("/v1/batches", params=query, content=body, headers=JSONL)


def jobs_of(client: httpx2.Client, batch_id: str) -> dict[str, dict[str, Any]]:
    page = client.get(f"/v1/batches/{batch_id}/jobs", params={"limit": 200}).json()
    return {job["custom_id"]: job for job in page["data"]}


def counts(client: httpx2.Client, batch_id: str) -> dict[str, int]:
    found = client.get(f"/v1/batches/{batch_id}").json()["request_counts"]
    return {name: number for name, number in found.items() if number}


def test_lines_name_earlier_and_later_lines(client: httpx2.Client) -> None:
    answer = post(
        client,
        edit("last", {"from": "middle"}),
        base("first", num_outputs=2),
        edit("middle", {"from": "first", "output": 1}),
        edit("short", "from:first/1"),
        base("alone"),
    )
    assert answer.status_code == 201, answer.text
    jobs = jobs_of(client, answer.json()["id"])
    first, middle = jobs["first"]["id"], jobs["middle"]["id"]
    assert {name: job["state"] for name, job in jobs.items()} == {
        "last": "pending",
        "first": "queued",
        "middle": "pending",
        "short": "pending",
        "alone": "queued",
    }
    assert (jobs["last"]["depends_on"], jobs["middle"]["depends_on"]) == ([middle], [first])
    assert jobs["middle"]["parameters"]["image"] == jobs["short"]["parameters"]["image"] == f"{first}/1"
    assert (jobs["first"]["dependents"], jobs["middle"]["dependents"], jobs["last"]["dependents"]) == (2, 1, 0)
    assert jobs["last"]["waiting_reason"] == f"waits for {middle}"
    assert counts(client, answer.json()["id"]) == {"total": 5, "pending": 3, "queued": 2}


def test_cells_of_csv_name_lines_and_jobs(client: httpx2.Client) -> None:
    parent = client.post("/v1/jobs", json={"task": "text-to-image", "prompt": "a red ball"} | SIZE).json()["id"]
    body = (
        "task,custom_id,prompt,image,strength\n"
        "text-to-image,one,a red ball,,\n"
        "image-to-image,two,a blue ball,from:one,0.9\n"
        'image-to-image,three,a blue ball,"{""from"": ""one"", ""output"": 0}",0.9\n'
        f"image-to-image,four,a blue ball,{parent},0.9\n"
    )
    answer = client.post("/v1/batches", content=body.encode(), headers={"Content-Type": "text/csv"})
    assert answer.status_code == 201, answer.text
    jobs = jobs_of(client, answer.json()["id"])
    one = jobs["one"]["id"]
    assert [jobs[name]["depends_on"] for name in ("two", "three", "four")] == [[one], [one], [parent]]
    assert client.get(f"/v1/jobs/{parent}").json()["dependents"] == 1


def test_a_chain_that_cannot_run_is_refused_with_its_reason(client: httpx2.Client) -> None:
    answer = post(
        client,
        base("start"),
        edit("a", {"from": "c"}),
        edit("b", {"from": "a"}),
        edit("c", {"from": "b"}),
        edit("self", "from:self"),
        edit("below", {"from": "b"}),
        edit("unknown", {"from": "nobody"}),
        edit("number", {"from": "start", "output": 1}),
        edit("wrong", {"from": "start", "output": -1}),
        edit("more", {"from": "start", "at": 1}),
    )
    assert answer.status_code == 422
    found = {error["line"]: error for error in answer.json()["errors"]}
    assert sorted(found) == [2, 3, 4, 5, 6, 7, 8, 9, 10]
    cycle = found[2]["message"]
    assert cycle.startswith("its inputs form a cycle, each needs the next: ")
    assert set(cycle.rsplit(": ", 1)[1].split(" → ")) == {"a", "b", "c"}
    assert found[5]["message"].endswith("self → self")
    assert found[6]["message"] == "is the custom_id of a line that is refused"
    assert found[7]["message"] == "is the custom_id of no line that is accepted in this batch"
    assert found[8]["message"] == "has 1 output, numbered from 0"
    assert found[9]["field"] == "image.output"

    skipped = post(client, base("start"), edit("a", {"from": "nobody"}), edit("b", {"from": "a"}), on_error="skip")
    assert skipped.status_code == 201
    assert (skipped.json()["skipped"], list(jobs_of(client, skipped.json()["id"]))) == (2, ["start"])


def test_what_a_single_job_cannot_have_as_an_input_is_refused(api: Api, client: httpx2.Client) -> None:
    def refused(image: object) -> str:
        answer = client.post("/v1/jobs", json=edit("x", image))
        assert answer.status_code == 422, answer.text
        return str(answer.json()["errors"][0]["message"])

    parent = client.post("/v1/jobs", json=base("parent")).json()["id"]
    assert refused({"from": "parent"}).startswith("names a line of the same batch")
    assert refused(f"{parent}/1") == "that job has 1 output, numbered from 0"
    assert refused("job_1").startswith("must be a job's id")
    assert refused("job_" + "0" * 32) == "there is no such job"
    with api.client(api.new_key(Scope.SUBMIT, tenant_id=api.new_tenant("other"))) as other:
        answer = other.post("/v1/jobs", json=edit("x", parent))
        assert answer.json()["errors"][0]["message"] == "there is no such job"
    client.post(f"/v1/jobs/{parent}/cancel")
    assert "was canceled, so it has no output" in refused(parent)


def test_a_key_sent_again_returns_the_chained_job_after_its_parent_is_gone(client: httpx2.Client) -> None:
    parent = client.post("/v1/jobs", json=base("parent")).json()["id"]
    key = {"Idempotency-Key": "once"}
    made = client.post("/v1/jobs", json=edit("x", parent), headers=key)
    assert made.status_code == 201
    client.post(f"/v1/jobs/{parent}/cancel")
    again = client.post("/v1/jobs", json=edit("x", parent), headers=key)
    assert (again.status_code, again.json()["id"]) == (200, made.json()["id"])


def test_a_canceled_batch_cancels_its_chains_and_a_retry_makes_them_anew(client: httpx2.Client) -> None:
    batch = post(client, base("a"), edit("b", {"from": "a"}), edit("c", {"from": "b"})).json()["id"]
    client.post(f"/v1/batches/{batch}/cancel")
    wait_until(lambda: client.get(f"/v1/batches/{batch}").json()["state"] == "canceled")
    assert counts(client, batch) == {"total": 3, "canceled": 3}
    again = client.post(f"/v1/batches/{batch}/retry").json()["id"]
    old, new = jobs_of(client, batch), jobs_of(client, again)
    assert {name: job["state"] for name, job in new.items()} == {"a": "queued", "b": "pending", "c": "pending"}
    assert (new["b"]["depends_on"], new["c"]["depends_on"]) == ([new["a"]["id"]], [new["b"]["id"]])
    assert {new[name]["retry_of"] for name in new} == {job["id"] for job in old.values()}
    assert counts(client, again) == {"total": 3, "queued": 1, "pending": 2}


def test_a_failed_parent_is_retried_with_its_dependents(api: Api, client: httpx2.Client) -> None:
    parent = client.post("/v1/jobs", json=base("parent")).json()["id"]
    child = client.post("/v1/jobs", json=edit("child", parent)).json()["id"]
    client.post(f"/v1/jobs/{parent}/cancel")
    failed = client.get(f"/v1/jobs/{child}").json()
    assert failed["error"] == {"code": "input_failed", "message": f"Its input {parent} was canceled."}
    assert client.post(f"/v1/jobs/{child}/retry").status_code == 422
    again = client.post(f"/v1/jobs/{parent}/retry", params={"with_dependents": True}).json()
    assert again["dependents"] == 1
    (waiting,) = client.get("/v1/jobs", params={"state": "pending"}).json()["data"]
    assert (waiting["retry_of"], waiting["depends_on"]) == (child, [again["id"]])


@pytest.mark.parametrize("end", ["succeed", "cancel"])
def test_a_crowd_behind_one_parent_follows_its_end(api: Api, client: httpx2.Client, end: str) -> None:
    """A million in `make nightly`, in 20 seconds."""
    many = 1_000_000 if NIGHTLY else 3_000
    hand = Hand(api)
    hand.join(worker_info(hand.name))
    parent = client.post("/v1/jobs", json=base("parent")).json()["id"]
    lines = (json.dumps(edit(f"child-{n}", parent, prompt=f"ball {n}")).encode() + b"\n" for n in range(many))
    answer = client.post("/v1/batches", content=b"".join(lines), headers=JSONL)
    assert answer.status_code == 201, answer.text
    batch = answer.json()["id"]
    assert counts(client, batch) == {"total": many, "pending": many}
    if end == "succeed":
        hand.succeed(hand.begin(parent))
        expected = {"total": many, "queued": many}
    else:
        client.post(f"/v1/jobs/{parent}/cancel")
        expected = {"total": many, "failed": many}
    wait_until(lambda: counts(client, batch) == expected, 20)
