"""The API over real servers: what a client is promised."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest
from sqlalchemy import text

from farm import lifecycle, model_registry
from farm.domain.worker import ResidentModel
from farm.settings import Settings
from farm.store.tenants import Scope
from tests import job_edges
from tests.api_server import Api, Hand, png, running
from tests.integration.conftest import worker_info
from tests.queues import candidates
from tests.waiting import wait_until

BALL: dict[str, Any] = {"task": "text-to-image", "prompt": "a red ball on a blue background", "seed": 7}


@pytest.fixture
def api(farm_env: dict[str, str]) -> Iterator[Api]:
    with running(Settings()) as one:
        yield one


@pytest.fixture
def client(api: Api) -> Iterator[httpx2.Client]:
    with api.client() as one:
        yield one


def submit(client: httpx2.Client, **fields: Any) -> dict[str, Any]:
    answer = client.post("/v1/jobs", json=BALL | fields)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def events(lines: Iterator[str]) -> Iterator[tuple[str, Any, str | None]]:
    """(name, data, id) of a stream of server-sent events."""
    current: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(": ")
            current[name] = value
        elif "event" in current:
            yield current["event"], json.loads(current["data"]), current.get("id")
            current = {}


# -- submitting ------------------------------------------------------------------------------------------------------


def test_a_submitted_job_is_returned_with_its_place_and_everything_decided(client: httpx2.Client) -> None:
    answer = client.post("/v1/jobs", json={"task": "text-to-image", "prompt": "a red ball", "metadata": {"a": "b"}})
    job = answer.json()
    assert answer.status_code == 201
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert job["state"] == "queued"
    assert job["metadata"] == {"a": "b"}
    assert isinstance(job["parameters"]["seed"], int)  # drawn, and told
    assert job["parameters"]["width"] == model_registry.load(None).models[0].defaults["width"]
    assert client.get(answer.headers["location"]).json() == job


def test_the_same_key_and_body_make_one_job_however_often_they_come_at_once(client: httpx2.Client) -> None:
    headers = {"Idempotency-Key": "order 17"}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: client.post("/v1/jobs", json=BALL, headers=headers), range(16)))
    assert {answer.json()["id"] for answer in answers} == {answers[0].json()["id"]}
    assert sorted(answer.status_code for answer in answers) == [200] * 15 + [201]
    assert len(client.get("/v1/jobs").json()["data"]) == 1
    # the order of fields and defaults that are written out do not make it another request
    same = client.post("/v1/jobs", json=dict(reversed(BALL.items())) | {"output_format": "png"}, headers=headers)
    assert same.status_code == 200
    other = client.post("/v1/jobs", json=BALL | {"seed": 8}, headers=headers)
    assert other.status_code == 422
    assert other.json()["errors"][0]["field"] == "Idempotency-Key"


def test_a_repeated_request_returns_its_job_although_its_image_is_gone(api: Api, client: httpx2.Client) -> None:
    body = {"task": "image-to-image", "prompt": "a ball", "image": "https://no-such-host.invalid/a.png"}
    headers = {"Idempotency-Key": "gone"}
    assert client.post("/v1/jobs", json=body, headers=headers).status_code == 422
    given = body | {"image": "data:image/png;base64," + base64.b64encode(png(colour="white")).decode()}
    first = client.post("/v1/jobs", json=given, headers=headers)  # the refused request took no key
    assert first.status_code == 201
    assert client.post("/v1/jobs", json=given, headers=headers).json()["id"] == first.json()["id"]


def test_prefer_wait_responds_when_the_job_has_finished(api: Api, client: httpx2.Client) -> None:
    hand = Hand(api)

    def render() -> None:
        (job_id,) = wait_until(hand.queued, 10)
        hand.succeed(hand.begin(job_id))

    thread = threading.Thread(target=render)
    thread.start()
    started = time.monotonic()
    answer = client.post("/v1/jobs", json=BALL, headers={"Prefer": "respond-async, wait=20"})
    thread.join()
    assert time.monotonic() - started < 10
    assert answer.status_code == 201
    assert answer.headers["preference-applied"] == "wait"
    assert answer.json()["state"] == "succeeded"


def test_prefer_wait_gives_up_after_the_time_it_names(client: httpx2.Client) -> None:
    started = time.monotonic()
    answer = client.post("/v1/jobs", json=BALL, headers={"Prefer": "wait=1"})
    assert 0.9 < time.monotonic() - started < 5
    assert answer.json()["state"] == "queued"


def test_images_come_as_upload_content_or_data_url(client: httpx2.Client) -> None:
    image = png(64, 48, "white")
    uploaded = client.post("/v1/files", files={"file": ("a/../b.png", image)})
    assert uploaded.status_code == 201
    file = uploaded.json()
    assert file["filename"] == "b.png"
    assert (file["width"], file["height"], file["media_type"]) == (64, 48, "image/png")
    again = client.post("/v1/files", content=image, headers={"Content-Type": "image/png"})
    assert (again.status_code, again.json()["id"]) == (200, file["id"])
    assert client.get(f"/v1/files/{file['id']}").json() == file
    content = hashlib.sha256(image).hexdigest()
    data = "data:image/png;base64," + base64.b64encode(image).decode()
    for reference in (file["id"], f"sha256:{content}", data):
        job = submit(client, task="inpainting", image=reference, mask_image=file["id"])
        assert job["parameters"]["image"] == f"sha256:{content}"


def test_all_images_that_cannot_be_used_are_named_at_once(client: httpx2.Client) -> None:
    answer = client.post(
        "/v1/jobs",
        json={
            "task": "inpainting",
            "prompt": "x",
            "image": "https://127.0.0.1/a.png",
            "mask_image": "file_" + "0" * 32,
        },
    )
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == ["image", "mask_image"]


# -- looking ---------------------------------------------------------------------------------------------------------


def test_a_finished_job_shows_outputs_that_anyone_with_the_url_can_read(api: Api, client: httpx2.Client) -> None:
    job = submit(client, num_outputs=2, custom_id="shot-1")
    hand = Hand(api)
    running_job = hand.begin(job["id"])
    hand.step(running_job, 10)
    half = client.get(f"/v1/jobs/{job['id']}").json()
    assert half["progress"] == {"step": 10, "steps": 20, "fraction": 0.5}
    assert half["worker"] == "test/cpu0"
    assert half["timings"]["total_seconds"] is None
    hand.succeed(running_job)
    done = client.get(f"/v1/jobs/{job['id']}").json()
    assert done["state"] == "succeeded"
    assert [output["seed"] for output in done["outputs"]] == [7, 8]
    for output in done["outputs"]:
        image = httpx2.get(output["url"], trust_env=False)
        assert hashlib.sha256(image.content).hexdigest() == output["sha256"]
        assert image.headers["content-type"] == output["media_type"]
    assert all(seconds >= 0 for seconds in done["timings"].values())
    assert done["custom_id"] == "shot-1"


def test_pages_cover_every_job_once_and_filters_narrow_them(api: Api, client: httpx2.Client) -> None:
    made = [submit(client, custom_id=f"c{number % 2}")["id"] for number in range(7)]
    seen: list[str] = []
    cursor = None
    while True:
        page = client.get("/v1/jobs", params={"limit": 3} | ({"cursor": cursor} if cursor else {})).json()
        seen += [job["id"] for job in page["data"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert seen == made[::-1]
    client.post(f"/v1/jobs/{made[0]}/cancel")
    assert [job["id"] for job in client.get("/v1/jobs?state=canceled&state=failed").json()["data"]] == made[:1]
    assert len(client.get("/v1/jobs?custom_id=c1").json()["data"]) == 3
    assert client.get("/v1/jobs?task=inpainting").json() == {"data": [], "next": None}
    assert client.get("/v1/jobs?created_after=2100-01-01T00:00:00Z").json()["data"] == []


def test_models_and_workers_are_listed(api: Api, client: httpx2.Client) -> None:
    starter, steps = client.get("/v1/models").json()["data"]
    assert (starter["id"], steps["id"]) == ("starter", "image-steps")
    assert starter["vocabulary"]["colours"][0] == "red"
    assert client.get("/v1/workers").json() == {"data": []}


# -- ending ----------------------------------------------------------------------------------------------------------


def test_cancel_is_idempotent_and_retry_makes_a_new_job(api: Api, client: httpx2.Client) -> None:
    job = submit(client)
    first = client.post(f"/v1/jobs/{job['id']}/cancel")
    assert (first.status_code, first.json()["state"]) == (200, "canceled")
    assert client.post(f"/v1/jobs/{job['id']}/cancel").json()["finished_at"] == first.json()["finished_at"]
    again = client.post(f"/v1/jobs/{job['id']}/retry")
    assert again.status_code == 201
    assert again.json()["retry_of"] == job["id"]
    assert again.json()["parameters"] == job["parameters"]
    assert again.headers["location"] == f"/v1/jobs/{again.json()['id']}"
    hand = Hand(api)
    hand.succeed(hand.begin(again.json()["id"]))
    assert client.post(f"/v1/jobs/{again.json()['id']}/cancel").status_code == 409
    assert client.post(f"/v1/jobs/{again.json()['id']}/retry").status_code == 409


# -- following -------------------------------------------------------------------------------------------------------


def test_a_stream_tells_a_jobs_life_and_ends_with_it(api: Api, client: httpx2.Client) -> None:
    job_id = submit(client)["id"]
    hand = Hand(api)
    told: list[tuple[str, Any, str | None]] = []
    with client.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        stream = events(answer.iter_lines())
        told.append(next(stream))
        job = hand.begin(job_id)
        told.append(next(stream))
        hand.step(job, 7)
        while told[-1][:2] != ("progress", {"step": 7, "steps": 20}):
            told.append(next(stream))
        with api.store.begin() as unit:  # as a worker does for a job that asks for previews
            job_edges.progress(unit, job.id, job.epoch, 9, "data:image/jpeg;base64,AAAA")
        while told[-1][0] != "progress" or told[-1][1]["step"] < 9:
            told.append(next(stream))
        assert told[-1][1]["preview"] == "data:image/jpeg;base64,AAAA"
        hand.succeed(job)
        told += stream
    names = [name for name, _, _ in told]
    assert names[0] == "job"
    assert told[0][1]["state"] == "queued"
    assert [name for name in names if name.startswith("job.")] == ["job.started", "job.succeeded"]
    final = [data for name, data, _ in told if name == "job"][-1]
    assert final["state"] == "succeeded"
    assert final["outputs"][0]["url"]
    ids = [number for _, _, number in told if number is not None]
    # a reader that comes back hears only what it missed
    with client.stream("GET", f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": ids[0]}) as answer:
        later = list(events(answer.iter_lines()))
    assert [name for name, _, _ in later if name.startswith("job.")] == ["job.succeeded"]
    assert later[0][1]["state"] == "succeeded"


def test_a_stream_ends_soon_after_the_server_is_stopped(api: Api, client: httpx2.Client) -> None:
    job_id = submit(client)["id"]
    with client.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
        lines = answer.iter_lines()
        next(lines)
        api.server.should_exit = True
        started = time.monotonic()
        list(lines)
    assert time.monotonic() - started < 4


# -- who may ---------------------------------------------------------------------------------------------------------


def test_no_key_no_entry(api: Api) -> None:
    with api.client(None) as stranger:
        for path in ("/v1/jobs", "/v1/models", "/v1/workers", "/v1/keys", "/v1/files/x", "/v1/jobs/x/events"):
            answer = stranger.get(path)
            assert answer.status_code == 401, path
            assert answer.headers["www-authenticate"].startswith("Bearer")
            assert answer.headers["content-type"] == "application/problem+json"
        # before anything is read
        assert stranger.post("/v1/jobs", content=b"{", headers={"Content-Type": "text/plain"}).status_code == 401
        assert stranger.get("/healthz").status_code == 200
        assert stranger.get("/readyz").json() == {"status": "ok", "database": "ok", "redis": "ok", "storage": "ok"}


def test_a_scope_reaches_no_further_than_its_name(api: Api) -> None:
    for scope, allowed in ((Scope.SUBMIT, {"submit"}), (Scope.READ, {"read"}), (Scope.ADMIN, {"admin"})):
        with api.client(api.new_key(scope)) as client:
            done = {
                "submit": client.post("/v1/jobs", json=BALL).status_code,
                "read": client.get("/v1/jobs").status_code,
                "admin": client.get("/v1/keys").status_code,
            }
        assert {name for name, status in done.items() if status < 400} == allowed
        assert {status for status in done.values() if status >= 400} == {403}


def test_a_key_works_from_its_making_to_its_revocation(api: Api, client: httpx2.Client) -> None:
    made = client.post("/v1/keys", json={"name": "ci", "scopes": ["read"]})
    assert made.status_code == 201
    key = made.json()
    with api.client(key["key"]) as other:
        assert other.get("/v1/jobs").status_code == 200
        assert key["key"] not in client.get("/v1/keys").text
        assert client.delete(f"/v1/keys/{key['id']}").json()["revoked_at"]
        assert other.get("/v1/jobs").status_code == 401


def test_another_tenants_things_look_absent(api: Api, client: httpx2.Client) -> None:
    job = submit(client)["id"]
    file = client.post("/v1/files", files={"file": ("a.png", png())}).json()
    stranger = api.new_key(*Scope, tenant_id=api.new_tenant("others"))
    with api.client(stranger) as other:
        absent = other.get("/v1/jobs/job_" + "0" * 32)
        found = other.get(f"/v1/jobs/{job}")
        assert found.status_code == absent.status_code == 404
        assert found.json()["type"] == absent.json()["type"]
        for path in (f"/v1/jobs/{job}/events", f"/v1/files/{file['id']}"):
            assert other.get(path).status_code == 404
        for path in (f"/v1/jobs/{job}/cancel", f"/v1/jobs/{job}/retry"):
            assert other.post(path).status_code == 404
        assert other.get("/v1/jobs").json()["data"] == []
        body = {"task": "image-to-image", "prompt": "x", "image": f"sha256:{file['sha256']}"}
        assert other.post("/v1/jobs", json=body).status_code == 422
    assert client.get(f"/v1/jobs/{job}").json()["state"] == "queued"


def test_a_model_that_was_found_to_run_alone_says_so(api: Api, client: httpx2.Client) -> None:
    model = model_registry.load(None).models[0].id
    assert client.get("/v1/models").json()["data"][0]["runs_alone"] is None
    info = worker_info("host/cpu5")
    with api.store.begin() as unit:
        lifecycle.join(unit, info)
        loaded = (ResidentModel(model, 1234, "its rows see each other"),)
        lifecycle.heartbeat(unit, info.name, info.boot_id, [], (model,), 30, loaded)
    assert client.get("/v1/models").json()["data"][0]["runs_alone"] == "its rows see each other"
    (worker,) = [one for one in client.get("/v1/workers").json()["data"] if one["name"] == info.name]
    assert worker["loaded"] == [{"model": model, "bytes": 1234, "runs_alone": "its rows see each other"}]
    assert worker["device"]["kind"] == "cpu"
    with api.store.begin() as unit:
        lifecycle.leave(unit, info.name, info.boot_id)


def test_a_job_waits_for_its_time_and_fails_when_its_deadline_passes(api: Api, client: httpx2.Client) -> None:
    now = datetime.now(UTC)
    begin, end = (now + timedelta(hours=1)).isoformat(), (now + timedelta(hours=2)).isoformat()
    past = (now - timedelta(seconds=1)).isoformat()
    wrong = [
        ({"deadline": past}, "has passed already"),
        ({"not_before": end, "deadline": begin}, "is not after not_before"),
        ({"not_before": "2026-01-31T12:00:00"}, "timezone"),
        ({"not_before": (now + timedelta(days=400)).isoformat()}, "days ahead"),
    ]
    for fields, sentence in wrong:
        answer = client.post("/v1/jobs", json=BALL | fields)
        assert answer.status_code == 422, answer.text
        (problem,) = answer.json()["errors"]
        assert sentence in problem["message"]
    times = {"not_before": begin, "deadline": end}
    submit(client, **times)
    lines = "".join(json.dumps(BALL | fields) + "\n" for fields in ({}, {"deadline": end}))
    for query, body in (({}, json.dumps(BALL | times)), (times, json.dumps(BALL)), ({"not_before": begin}, lines)):
        made = client.post("/v1/batches", params=query, content=body, headers={"Content-Type": "application/jsonl"})
        assert made.status_code == 201, made.text
    jobs = client.get("/v1/jobs").json()["data"]
    assert len(jobs) == 5
    for job in jobs:
        assert datetime.fromisoformat(job["available_at"]) == datetime.fromisoformat(begin)
    assert [job["deadline"] is None for job in jobs].count(True) == 1
    submit(client, not_before=past, custom_id="now")
    with api.store.begin() as unit:
        heads = [unit.jobs.get(one.job_id, api.tenant_id) for one in candidates(unit, 10)]
        assert [job and job.custom_id for job in heads] == ["now"]
        unit.session.execute(text("UPDATE job SET deadline = now() WHERE deadline IS NOT NULL"))
    with api.store.begin() as unit:
        lifecycle.expire(unit)
    failed = client.get("/v1/jobs", params={"state": "failed"}).json()["data"]
    assert [job["error"]["code"] for job in failed] == ["deadline_exceeded"] * 4
