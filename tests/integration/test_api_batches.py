"""Batches over real servers: what is promised about many jobs in one request, and about all that comes of them."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import random
import resource
import socket
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from sqlalchemy import text

from farm import lifecycle
from farm.api import body_limits
from farm.domain import ids
from farm.domain.job import JobError
from farm.domain.queue import Assignment
from farm.errors import LeaseLost
from farm.settings import Settings
from farm.store.tenants import Scope
from tests.api_server import Api, Hand, png, running
from tests.queues import candidates
from tests.waiting import wait_until

JSONL = {"Content-Type": "application/jsonl"}
CSV = {"Content-Type": "text/csv"}


@pytest.fixture
def api(farm_env: dict[str, str]) -> Iterator[Api]:
    with running(Settings()) as one:
        yield one


@pytest.fixture
def client(api: Api) -> Iterator[httpx2.Client]:
    with api.client(timeout=120) as one:
        yield one


def jsonl(*jobs: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(job).encode() + b"\n" for job in jobs)


def balls(count: int, **fields: Any) -> bytes:
    size = {"width": 64, "height": 64}
    return jsonl(*({"prompt": f"ball {n}", "custom_id": f"ball-{n}", "seed": n} | size | fields for n in range(count)))


def submit(client: httpx2.Client, body: bytes, headers: dict[str, str] = JSONL, **query: Any) -> dict[str, Any]:
    answer = client.post("/v1/batches", params={"task": "text-to-image"} | query, content=body, headers=headers)
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == f"/v1/batches/{answer.json()['id']}"
    return dict(answer.json())


def count(api: Api, table: str, where: str = "true") -> int:
    with api.store.begin() as unit:
        return int(unit.session.execute(text(f"SELECT count(*) FROM {table} WHERE {where}")).scalar_one())


def jobs_of(client: httpx2.Client, batch_id: str, **query: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor: str | None = None
    while True:
        params = {"limit": 7, **query} | ({"cursor": cursor} if cursor else {})
        page = client.get(f"/v1/batches/{batch_id}/jobs", params=params).json()
        found += page["data"]
        cursor = page["next"]
        if cursor is None:
            return found


# -- submitting ------------------------------------------------------------------------------------------------------


def test_json_lines_become_jobs_in_their_order_with_the_defaults_of_the_query(client: httpx2.Client) -> None:
    body = b"\xef\xbb\xbf" + balls(20) + b"\n" + jsonl({"prompt": "last", "num_inference_steps": 9})
    batch = submit(client, body, num_inference_steps=5, name="balls")
    assert batch["name"] == "balls"
    assert batch["state"] == "in_progress"
    assert batch["request_counts"] == {
        "total": 21,
        "pending": 0,
        "queued": 21,
        "dispatched": 0,
        "running": 0,
        "succeeded": 0,
        "failed": 0,
        "canceled": 0,
    }
    found = jobs_of(client, batch["id"])
    assert [job["parameters"]["prompt"] for job in found] == [f"ball {n}" for n in range(20)] + ["last"]
    assert {job["parameters"]["num_inference_steps"] for job in found[:20]} == {5}
    assert found[20]["parameters"]["num_inference_steps"] == 9
    assert {job["priority"] for job in found} == {"bulk"}
    assert {job["batch_id"] for job in found} == {batch["id"]}
    assert [job["id"] for job in found] == sorted(job["id"] for job in found)
    assert client.get("/v1/batches").json()["data"] == [client.get(f"/v1/batches/{batch['id']}").json()]


def test_a_table_becomes_jobs_with_numbers_empty_cells_and_metadata(client: httpx2.Client) -> None:
    out = io.StringIO()
    table = csv.writer(out)
    table.writerow(["custom_id", "prompt", "seed", "guidance_scale", "metadata.colour", "width"])
    table.writerow(["a", 'a "red" ball,\nand a blue one', "7", "5.5", "red", ""])
    table.writerow(["b", "12", "", "4", "", "64.0"])
    batch = submit(client, out.getvalue().encode(), CSV)
    first, second = jobs_of(client, batch["id"])
    assert first["parameters"]["prompt"] == 'a "red" ball,\nand a blue one'
    assert first["parameters"]["seed"] == 7
    assert first["parameters"]["guidance_scale"] == 5.5
    assert first["metadata"] == {"colour": "red"}
    assert second["parameters"]["prompt"] == "12"  # a prompt stays text
    assert second["parameters"]["width"] == 64
    assert second["metadata"] == {}


def test_a_table_with_an_unknown_column_is_refused_by_its_name(api: Api, client: httpx2.Client) -> None:
    body = b"prompt,sed\nball,1\n"
    answer = client.post("/v1/batches?task=text-to-image", content=body, headers=CSV)
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert (error["field"], error["line"]) == ("sed", 1)
    assert count(api, "job") == count(api, "batch") == 0


def test_a_list_of_jobs_and_a_sweep_come_as_json(client: httpx2.Client) -> None:
    answer = client.post(
        "/v1/batches",
        json={
            "jobs": [{"prompt": "a"}, {"prompt": "b"}],
            "defaults": {"task": "text-to-image"},
            "name": "two",
            "metadata": {"shop": "north"},
        },
    )
    assert answer.status_code == 201, answer.text
    assert answer.json()["metadata"] == {"shop": "north"}
    assert answer.json()["request_counts"]["total"] == 2
    answer = client.post(
        "/v1/batches",
        json={
            "defaults": {"task": "text-to-image"},
            "sweep": [
                {"prompt": ["a red ball", "a blue cube"], "custom_id": ["ball", "cube"]},
                {"guidance_scale": [5, 7]},
            ],
            "repeats": 2,
        },
    )
    assert answer.status_code == 201, answer.text
    found = jobs_of(client, answer.json()["id"])
    told = [(j["parameters"]["prompt"], j["parameters"]["guidance_scale"], j["custom_id"]) for j in found]
    assert told == [
        ("a red ball", 5, "ball-0"),
        ("a red ball", 5, "ball-1"),
        ("a red ball", 7, "ball-2"),
        ("a red ball", 7, "ball-3"),
        ("a blue cube", 5, "cube-0"),
        ("a blue cube", 5, "cube-1"),
        ("a blue cube", 7, "cube-2"),
        ("a blue cube", 7, "cube-3"),
    ]
    seeds = [job["parameters"]["seed"] for job in found]
    assert seeds[1] == seeds[0] + 1
    assert seeds == [seeds[0], seeds[1]] * 4  # the same seeds for every combination, so that they can be compared
    uneven = {"sweep": [{"prompt": ["a", "b"], "seed": [1]}], "defaults": {"task": "text-to-image"}}
    answer = client.post("/v1/batches", json=uneven)
    assert answer.status_code == 422
    assert "equally long" in answer.text


def test_every_bad_line_is_named_and_nothing_is_stored(api: Api, client: httpx2.Client) -> None:
    good = balls(50).splitlines(keepends=True)
    good[10] = jsonl({"prompt": "x", "num_inference_steps": "many"})
    good[20] = b"{not json\n"
    good[30] = jsonl({"prompt": "x", "colour": "red", "width": 63})
    good[40] = jsonl({"prompt": "x", "custom_id": "ball-5"})
    good[45] = jsonl({"task": "image-to-image", "prompt": "x", "image": "https://example.com/a.png"})
    body = b"".join(good)
    answer = client.post("/v1/batches?task=text-to-image", content=body, headers=JSONL)
    assert answer.status_code == 422
    told = {(error["line"], error["field"]) for error in answer.json()["errors"]}
    assert told == {
        (11, "num_inference_steps"),
        (21, "line"),
        (31, "colour"),
        (31, "width"),
        (41, "custom_id"),
        (46, "image"),
    }
    assert answer.json()["detail"].startswith("line 11: num_inference_steps: ")
    assert count(api, "job") == count(api, "batch") == 0
    # and the same body with `skip` takes the others
    batch = submit(client, body, on_error="skip")
    assert (batch["request_counts"]["total"], batch["skipped"]) == (45, 5)
    lines = [json.loads(line) for line in client.get(f"/v1/batches/{batch['id']}/errors").text.splitlines()]
    assert [line["line"] for line in lines] == [11, 21, 31, 46, 41]
    found = jobs_of(client, batch["id"])
    assert [job["custom_id"] for job in found if job["custom_id"] == "ball-5"] == ["ball-5"]


def test_more_problems_than_an_answer_holds_are_in_a_file(client: httpx2.Client) -> None:
    body = balls(1_500, seed=-1)
    answer = client.post("/v1/batches?task=text-to-image", content=body, headers=JSONL)
    assert answer.status_code == 422
    problem = answer.json()
    assert (len(problem["errors"]), problem["error_count"]) == (1_000, 1_500)
    told = httpx2.get(problem["error_file"], trust_env=False).text.splitlines()
    assert len(told) == 1_500
    assert json.loads(told[-1])["line"] == 1_500


def test_a_dry_run_counts_and_stores_nothing(api: Api, client: httpx2.Client) -> None:
    body = balls(10) + jsonl({"prompt": "x", "seed": -1})
    answer = client.post(
        "/v1/batches?task=text-to-image&dry_run=true&num_inference_steps=10", content=body, headers=JSONL
    )
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert (found["jobs"], found["refused"], found["estimated_seconds"]) == (10, 1, None)
    assert found["cost"] == pytest.approx(10 * 10 * 64 * 64 / 1e6)
    assert found["errors"][0]["line"] == 11
    assert count(api, "job") == count(api, "batch") == 0


def test_ten_thousand_lines_in_seconds_and_in_the_same_memory(api: Api, client: httpx2.Client) -> None:
    def lines(n: int) -> Iterator[bytes]:
        for start in range(0, n, 500):
            yield b"".join(
                b'{"prompt": "ball %d", "custom_id": "b%d", "metadata": {"n": "%d"}}\n' % (k, k, k)
                for k in range(start, min(start + 500, n))
            )

    submit(client, b"".join(lines(500)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    batch = submit(client, lines(10_000))  # type: ignore[arg-type]
    seconds = time.monotonic() - started
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"10,000 lines: {seconds:.2f} s, {grown} KiB more memory at the peak")
    assert batch["request_counts"]["total"] == 10_000
    assert seconds < 30
    assert grown < 32 * 1024
    assert client.get(f"/v1/batches/{batch['id']}/jobs?cursor=9999").json()["data"][0]["custom_id"] == "b9999"


def test_images_are_named_by_file_or_content(client: httpx2.Client) -> None:
    uploaded = client.post("/v1/files", files={"file": ("a.png", png())}).json()
    task = {"task": "image-to-image", "prompt": "x", "strength": 0.9}
    good = [task | {"image": uploaded["id"]}, task | {"image": f"sha256:{uploaded['sha256']}"}]
    found = jobs_of(client, submit(client, jsonl(*good))["id"])
    assert [job["parameters"]["image"] for job in found] == [f"sha256:{uploaded['sha256']}"] * 2
    bad = [task | {"image": "file_" + "0" * 32}, task | {"image": "data:image/png;base64,AAAA"}]
    answer = client.post("/v1/batches", content=jsonl(*good, *bad), headers=JSONL)
    assert [(error["line"], error["field"]) for error in answer.json()["errors"]] == [(3, "image"), (4, "image")]


def test_the_limit_of_waiting_jobs_holds_for_batches(api: Api, client: httpx2.Client) -> None:
    with api.store.begin() as unit:
        unit.session.execute(text("UPDATE tenant SET max_queued = 12"))
    submit(client, balls(10))
    answer = client.post("/v1/batches?task=text-to-image", content=balls(2_000), headers=JSONL)
    assert answer.status_code == 429
    assert count(api, "job") == 10
    submit(client, balls(2))


# -- once ------------------------------------------------------------------------------------------------------------


def test_the_same_key_and_body_make_one_batch_however_often_they_come_at_once(api: Api, client: httpx2.Client) -> None:
    def send(_: int) -> httpx2.Response:
        with api.client(timeout=60) as one:
            return one.post(
                "/v1/batches?task=text-to-image", content=balls(30), headers=JSONL | {"Idempotency-Key": "night"}
            )

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(send, range(20)))
    assert {answer.json()["id"] for answer in answers} == {answers[0].json()["id"]}
    assert sorted(answer.status_code for answer in answers) == [200] * 19 + [201]
    assert count(api, "job") == 30
    other = client.post(
        "/v1/batches?task=text-to-image", content=balls(31), headers=JSONL | {"Idempotency-Key": "night"}
    )
    assert other.status_code == 422
    assert other.json()["errors"][0]["field"] == "Idempotency-Key"
    # a job cannot be made by a batch's key either
    job = {"task": "text-to-image", "prompt": "x"}
    assert client.post("/v1/jobs", json=job, headers={"Idempotency-Key": "night"}).status_code == 422


def test_a_connection_cut_at_any_byte_leaves_nothing(api: Api, client: httpx2.Client) -> None:
    body = balls(2_000)
    host = urlsplit(api.url)
    assert host.hostname
    assert host.port
    choose = random.Random(7)
    for number in range(8):
        cut = choose.randrange(len(body))
        chunked = number % 2 == 0
        with socket.create_connection((host.hostname, host.port)) as raw:
            length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
            raw.sendall(
                f"POST /v1/batches?task=text-to-image HTTP/1.1\r\nHost: farm\r\nAuthorization: Bearer {api.key}\r\n"
                f"Content-Type: application/jsonl\r\nIdempotency-Key: cut\r\n{length}\r\n\r\n".encode()
            )
            raw.sendall((f"{cut:x}\r\n".encode() if chunked else b"") + body[:cut] + (b"\r\n" if chunked else b""))
    assert count(api, "batch") == 0

    def open_transactions() -> int:
        return count(
            api, "pg_stat_activity", "datname = current_database() AND query LIKE 'COPY staged%' AND state = 'active'"
        )

    wait_until(lambda: open_transactions() == 0, 20, what="the broken requests end")
    assert count(api, "batch") == count(api, "job") == count(api, "idempotency") == 0
    answer = client.post("/v1/batches?task=text-to-image", content=body, headers=JSONL | {"Idempotency-Key": "cut"})
    assert answer.status_code == 201
    assert count(api, "job") == 2_000


def test_senders_that_fall_silent_give_their_places_up(
    api: Api, client: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them than bodies are taken at once: who sends properly is served all the same."""
    monkeypatch.setattr(body_limits, "STALL_SECONDS", 1.0)
    host = urlsplit(api.url)
    assert host.hostname
    assert host.port
    with contextlib.ExitStack() as opened:
        silent = []
        for _ in range(6):
            raw = opened.enter_context(socket.create_connection((host.hostname, host.port), timeout=30))
            raw.sendall(
                f"POST /v1/batches?task=text-to-image HTTP/1.1\r\nHost: farm\r\nAuthorization: Bearer {api.key}\r\n"
                f"Content-Type: application/jsonl\r\nContent-Length: 100000\r\n\r\n".encode()
                + balls(3)
            )
            silent.append(raw)
        answer = client.post("/v1/batches?task=text-to-image", content=balls(5), headers=JSONL)
        assert answer.status_code == 201
        for raw in silent:
            assert raw.recv(4_096).startswith(b"HTTP/1.1 408 ")
    assert count(api, "job") == 5


# -- counting and ending ---------------------------------------------------------------------------------------------


def test_the_counters_are_the_rows_after_any_endings(api: Api, client: httpx2.Client) -> None:
    batches = [submit(client, balls(40))["id"] for _ in range(3)]
    hand = Hand(api)

    def check() -> None:
        for batch_id in batches:
            counts = client.get(f"/v1/batches/{batch_id}").json()["request_counts"]
            with api.store.begin() as unit:
                rows = unit.session.execute(
                    text("SELECT state, count(*) FROM job WHERE batch_id = :id GROUP BY state"),
                    {"id": ids.to_uuid(ids.BATCH, batch_id)},
                )
                real = {row[0]: row[1] for row in rows}
            assert {k: v for k, v in counts.items() if v and k != "total"} == real
            assert counts["total"] == 40

    def work(seed: int) -> None:
        choose = random.Random(seed)
        for _ in range(60):
            waiting = hand.queued()
            if not waiting:
                return
            job_id = choose.choice(waiting)
            try:
                match choose.randrange(5):
                    case 0:
                        with api.store.begin() as unit:
                            lifecycle.cancel(unit, api.tenant_id, job_id)
                    case 1:
                        job = hand.begin(job_id)
                        with api.store.begin() as unit:
                            lifecycle.fail(unit, job.id, job.epoch, JobError("x", "y"), retryable=False)
                    case 2:
                        job = hand.begin(job_id)
                        with api.store.begin() as unit:
                            lifecycle.release(unit, job.id, job.epoch, "drain")
                    case 3:
                        hand.begin(job_id)  # and its worker is never heard of again
                    case _:
                        hand.succeed(hand.begin(job_id))
            except (LeaseLost, ValueError):
                continue

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3)))
    check()
    with api.store.begin() as unit:
        unit.session.execute(text("UPDATE job SET lease_until = now() - interval '1 s' WHERE state = 'running'"))
    for _ in range(3):
        with api.store.begin() as unit:
            lifecycle.reap(unit)
    check()
    for batch_id in batches:
        assert client.post(f"/v1/batches/{batch_id}/cancel").status_code == 200
    check()
    for batch_id in batches:
        assert client.get(f"/v1/batches/{batch_id}").json()["state"] == "canceled"


def test_twenty_thousand_waiting_jobs_are_canceled_quickly_each_with_one_event(api: Api, client: httpx2.Client) -> None:
    batch = submit(client, balls(20_000))
    hand = Hand(api)
    with api.store.begin() as unit:
        waiting = [head.job_id for head in candidates(unit, 100)][:8]
    running_jobs = [hand.begin(job_id) for job_id in waiting[:3]]
    with api.store.begin() as unit:
        lifecycle.dispatch(unit, [Assignment(job_id, "other/cpu0") for job_id in waiting[3:]], 30)
    started = time.monotonic()
    answer = client.post(f"/v1/batches/{batch['id']}/cancel")
    seconds = time.monotonic() - started
    print(f"20,000 canceled in {seconds:.2f} s")
    assert answer.status_code == 200, answer.text
    assert seconds < 20
    found = answer.json()
    assert found["state"] == "canceling"
    assert (found["request_counts"]["canceled"], found["request_counts"]["running"]) == (19_997, 3)
    assert count(api, "event", "type = 'job.canceled'") == 19_997
    for job in running_jobs:
        with api.store.begin() as unit:
            lifecycle.confirm_cancel(unit, job.id, job.epoch)
    found = client.post(f"/v1/batches/{batch['id']}/cancel").json()  # again changes nothing
    assert (found["state"], found["request_counts"]["canceled"]) == ("canceled", 20_000)
    assert count(api, "event", "type = 'job.canceled'") == 20_000


def test_a_batch_is_canceled_whole_while_its_jobs_are_dispatched(api: Api, client: httpx2.Client) -> None:
    batch = submit(client, balls(3_000))
    stopping = threading.Event()
    mistakes: list[BaseException] = []

    def dispatch(number: int) -> None:
        while not stopping.is_set():
            try:
                with api.store.begin() as unit:
                    chosen = [Assignment(head.job_id, f"w{number}/cpu0") for head in candidates(unit, 200)]
                    random.shuffle(chosen)
                    lifecycle.dispatch(unit, chosen[:60], 30)
            except BaseException as error:  # noqa: BLE001
                mistakes.append(error)
                return

    threads = [threading.Thread(target=dispatch, args=[n]) for n in range(2)]
    for thread in threads:
        thread.start()
    try:
        answer = client.post(f"/v1/batches/{batch['id']}/cancel")
    finally:
        stopping.set()
        for thread in threads:
            thread.join()
    assert not mistakes
    assert answer.status_code == 200, answer.text
    assert answer.json()["request_counts"]["canceled"] == 3_000
    assert answer.json()["state"] == "canceled"


def test_what_failed_or_was_canceled_is_retried_as_a_new_batch(api: Api, client: httpx2.Client) -> None:
    batch = submit(client, balls(6))
    assert client.post(f"/v1/batches/{batch['id']}/retry").status_code == 409
    hand = Hand(api)
    for number, job_id in enumerate(hand.queued()):
        job = hand.begin(job_id)
        (hand.succeed if number < 2 else hand.fail)(job)
    over = client.get(f"/v1/batches/{batch['id']}").json()
    assert (over["state"], over["progress"], over["eta_seconds"]) == ("completed", 1, 0)
    assert client.post(f"/v1/batches/{batch['id']}/cancel").status_code == 409
    answer = client.post(f"/v1/batches/{batch['id']}/retry")
    assert answer.status_code == 201, answer.text
    assert answer.json()["retry_of"] == batch["id"]
    again = jobs_of(client, answer.json()["id"])
    failed = jobs_of(client, batch["id"], state="failed")
    assert len(again) == 4
    assert [job["retry_of"] for job in again] == [job["id"] for job in failed]
    assert [job["parameters"] for job in again] == [job["parameters"] for job in failed]
    assert [job["custom_id"] for job in again] == [job["custom_id"] for job in failed]
    assert client.get(f"/v1/batches/{batch['id']}").json()["request_counts"] == over["request_counts"]


# -- results ---------------------------------------------------------------------------------------------------------


def test_results_errors_and_archives_hold_all_that_came_of_a_batch(api: Api, client: httpx2.Client) -> None:
    body = balls(4, num_outputs=2) + jsonl({"prompt": "no name"}, {"prompt": "x", "custom_id": "../a b"})
    batch = submit(client, body, width=64, height=64)
    hand = Hand(api)
    for number, job_id in enumerate(hand.queued()):
        job = hand.begin(job_id)
        (hand.fail if number == 1 else hand.succeed)(job)
    results = [json.loads(line) for line in client.get(f"/v1/batches/{batch['id']}/results").text.splitlines()]
    assert [line["seq"] for line in results] == [1, 2, 3, 4, 5, 6]
    assert [line["state"] for line in results] == ["succeeded", "failed"] + ["succeeded"] * 4
    assert results[1]["error"] == {"code": "render_failed", "message": "it was not to be"}
    for line in results:
        for output in line["outputs"]:
            assert httpx2.get(output["url"], trust_env=False).content == png()
    errors = [json.loads(line) for line in client.get(f"/v1/batches/{batch['id']}/errors").text.splitlines()]
    assert [(error["seq"], error["error"]["code"]) for error in errors] == [(2, "render_failed")]
    names = [
        "000001-ball-0-0.png",
        "000001-ball-0-1.png",
        "000003-ball-2-0.png",
        "000003-ball-2-1.png",
        "000004-ball-3-0.png",
        "000004-ball-3-1.png",
        f"000005-{results[4]['id']}-0.png",
        "000006-_a_b-0.png",
    ]
    answer = client.get(f"/v1/batches/{batch['id']}/archive")
    assert answer.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as packed:
        assert packed.testzip() is None
        assert packed.namelist() == names
        assert {info.compress_type for info in packed.infolist()} == {zipfile.ZIP_STORED}
        assert all(packed.read(name) == png() for name in names)
    answer = client.get(f"/v1/batches/{batch['id']}/archive?format=tar")
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as tape:
        assert tape.getnames() == names
        for name in names:
            member = tape.extractfile(name)
            assert member is not None
            assert member.read() == png()


def test_another_tenant_sees_nothing_of_a_batch(api: Api, client: httpx2.Client) -> None:
    batch = submit(client, balls(2))
    with api.client(api.new_key(Scope.SUBMIT, Scope.READ, tenant_id=api.new_tenant("other"))) as stranger:
        for path in ("", "/jobs", "/results", "/errors", "/archive"):
            assert stranger.get(f"/v1/batches/{batch['id']}{path}").status_code == 404
        for path in ("/cancel", "/retry"):
            assert stranger.post(f"/v1/batches/{batch['id']}{path}").status_code == 404
        assert stranger.get("/v1/batches").json()["data"] == []


LARGE = int(os.environ.get("LARGE_BATCH", "0"))


@pytest.mark.skipif(not LARGE, reason="LARGE_BATCH asks by hand for a batch of so many lines")
@pytest.mark.timeout(1200)
def test_a_large_batch(client: httpx2.Client) -> None:
    client.timeout = 600
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    body = (
        b"".join(b'{"prompt": "ball %d", "custom_id": "b%d"}\n' % (k, k) for k in range(start, start + 1_000))
        for start in range(0, LARGE, 1_000)
    )
    batch = submit(client, body)  # type: ignore[arg-type]
    submitted = time.monotonic()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    looks = []
    for _ in range(20):
        begun = time.monotonic()
        client.get(f"/v1/batches/{batch['id']}")
        looks.append(time.monotonic() - begun)
    begun = time.monotonic()
    answer = client.post(f"/v1/batches/{batch['id']}/cancel")
    canceled = time.monotonic()
    assert answer.json()["request_counts"]["canceled"] == batch["request_counts"]["total"]
    told = sum(1 for _ in client.get(f"/v1/batches/{batch['id']}/results").iter_lines())
    assert told == batch["request_counts"]["total"]
    print(
        f"{told:,} jobs: submit {submitted - started:.1f} s and {grown} KiB, "
        f"status {sorted(looks)[10] * 1000:.1f} ms p50, cancel {canceled - begun:.1f} s, "
        f"results {told / (time.monotonic() - canceled):,.0f} jobs/s"
    )
