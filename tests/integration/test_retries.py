"""Retrying twice makes no second job, and a canceled job is not a done one."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from farm.client import Farm
from farm.settings import Settings
from tests.api_server import Api, Hand, running

JOB = {"task": "text-to-image", "prompt": "x", "width": 64, "height": 64, "num_inference_steps": 4}


@pytest.fixture
def api(farm_env: dict[str, str]) -> Iterator[Api]:
    with running(Settings()) as one:
        yield one


@pytest.fixture
def client(api: Api) -> Iterator[httpx2.Client]:
    with api.client() as one:
        yield one


def total(client: httpx2.Client) -> int:
    return len(client.get("/v1/jobs?limit=200").json()["data"])


def test_retrying_a_job_twice_makes_one_job_also_at_the_same_time(api: Api, client: httpx2.Client) -> None:
    job_id = client.post("/v1/jobs", json=JOB).json()["id"]
    client.post(f"/v1/jobs/{job_id}/cancel")
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: client.post(f"/v1/jobs/{job_id}/retry"), range(4)))
    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 201]
    (again,) = {answer.json()["id"] for answer in answers}
    assert total(client) == 2
    # a retry that failed is retried, not its success
    hand = Hand(api)
    hand.fail(hand.begin(again))
    third = client.post(f"/v1/jobs/{job_id}/retry")
    assert (third.status_code, third.json()["retry_of"]) == (201, again)
    hand.succeed(hand.begin(third.json()["id"]))
    last = client.post(f"/v1/jobs/{job_id}/retry")
    assert (last.status_code, last.json()["id"]) == (200, third.json()["id"])
    assert total(client) == 3


def test_retrying_a_batch_twice_makes_one_batch_and_leaves_out_what_was_retried(
    api: Api, client: httpx2.Client
) -> None:
    def retry(batch_id: str) -> tuple[int, dict[str, Any]]:
        answer = client.post(f"/v1/batches/{batch_id}/retry")
        return answer.status_code, answer.json()

    batch_id = client.post("/v1/batches", json={"jobs": [JOB] * 3}).json()["id"]
    client.post(f"/v1/batches/{batch_id}/cancel")
    (first, *_) = client.get(f"/v1/batches/{batch_id}/jobs").json()["data"]
    assert client.post(f"/v1/jobs/{first['id']}/retry").status_code == 201
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: retry(batch_id), range(3)))
    assert sorted(status for status, _ in answers) == [200, 200, 201]
    (again,) = {batch["id"] for _, batch in answers}
    assert answers[0][1]["request_counts"]["total"] == 2
    client.post(f"/v1/batches/{again}/cancel")
    status, third = retry(batch_id)
    assert (status, third["retry_of"], third["request_counts"]["total"]) == (201, again, 2)
    hand = Hand(api)
    for job in client.get(f"/v1/batches/{third['id']}/jobs").json()["data"]:
        hand.succeed(hand.begin(job["id"]))
    assert retry(batch_id)[0] == 200
    assert total(client) == 3 + 1 + 2 + 2


def test_canceled_jobs_are_finished_and_not_done(api: Api, client: httpx2.Client) -> None:
    batch_id = client.post("/v1/batches", json={"jobs": [JOB] * 4}).json()["id"]
    jobs = client.get(f"/v1/batches/{batch_id}/jobs").json()["data"]
    hand = Hand(api)
    hand.succeed(hand.begin(jobs[0]["id"]))
    for job in jobs[1:]:
        client.post(f"/v1/jobs/{job['id']}/cancel")
    with Farm(api.url, api.key) as farm:
        batch = farm.batch(batch_id)
    assert (batch.over, batch.ended, batch.done) == (True, 4, 1)
    assert batch.jobs_per_second is None  # one job gives no speed, however many were canceled
    signed_in = client.post("/farm/login", data={"api_key": api.key}, headers={"Origin": api.url})
    assert signed_in.status_code == 303
    assert "<strong>25 %</strong>" in client.get(f"/farm/batches/{batch_id}").text


def test_an_equal_request_names_the_batch_that_it_repeats(client: httpx2.Client) -> None:
    body, headers = b"task,prompt\ntext-to-image,x\n", {"Content-Type": "text/csv"}
    first = client.post("/v1/batches", content=body, headers=headers).json()
    assert first["same_as"] is None
    assert client.post("/v1/batches?dry_run=true", content=body, headers=headers).json()["same_as"] == first["id"]
    second = client.post("/v1/batches", content=body, headers=headers).json()
    assert second["same_as"] == first["id"] != second["id"]
    assert client.post("/v1/batches", content=body + b"text-to-image,y\n", headers=headers).json()["same_as"] is None
    assert client.get(f"/v1/batches/{second['id']}").json()["same_as"] is None


def test_a_blank_output_is_counted_in_its_batch(api: Api, client: httpx2.Client) -> None:
    batch_id = client.post("/v1/batches", json={"jobs": [JOB] * 2}).json()["id"]
    jobs = client.get(f"/v1/batches/{batch_id}/jobs").json()["data"]
    hand = Hand(api)
    hand.succeed(hand.begin(jobs[0]["id"]))
    hand.succeed(hand.begin(jobs[1]["id"]), {"suspicious_output": "uniform"})
    assert client.get(f"/v1/batches/{batch_id}").json()["suspicious_output"] == 1
