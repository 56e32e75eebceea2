"""Promises of the Python client, against a real server that misbehaves."""

from __future__ import annotations

import hashlib
import json
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from PIL import Image

from farm.client import (
    ApiError,
    Corrupted,
    Farm,
    FarmClientError,
    Job,
    JobFailed,
    ServerProblem,
    Unreachable,
    WaitedTooLong,
    requests,
)
from farm.errors import BadInput
from tests.unit.scripted_server import DROP, Answer, Asked, job, serving

IMAGE = b"not really an image"


@pytest.fixture(autouse=True)
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the client wanted to wait, without waiting for it."""
    waited: list[float] = []
    monkeypatch.setattr("farm.client.client.time.sleep", waited.append)
    return waited


def sse(*events: tuple[str, object, str | None]) -> bytes:
    return b"".join(
        f"event: {name}\n{f'id: {number}' + chr(10) if number else ''}data: {json.dumps(data)}\n\n".encode()
        for name, data, number in events
    )


def output(url: str, data: bytes = IMAGE) -> dict[str, object]:
    return {"url": url, "sha256": hashlib.sha256(data).hexdigest(), "seed": 3, "media_type": "image/png"}


def test_a_submit_that_fails_first_is_sent_again_under_the_same_key(slept: list[float]) -> None:
    answers = [Answer(503, {"title": "busy"}, {"Retry-After": "3"}), DROP, Answer(502, None), Answer(201, job())]
    with serving(lambda _, number: answers[number]) as server, Farm(server.url, "k") as farm:
        assert farm.submit("a red ball", seed=7).state == "queued"
    keys = {asked.headers["idempotency-key"] for asked in server.asked}
    assert len(server.asked) == 4
    assert len(keys) == 1
    assert {asked.body for asked in server.asked} == {server.asked[0].body}
    assert 3 <= slept[0] <= 3.3, "Retry-After decides"
    assert all(0 < seconds <= 2 for seconds in slept[1:])


def test_a_farm_that_is_not_ready_says_so_at_once(slept: list[float]) -> None:
    parts = {"status": "error", "database": "error", "redis": "ok", "storage": "ok"}
    with serving(lambda *_: Answer(503, parts)) as server, Farm(server.url, "k") as farm:
        assert farm.readiness() == parts
    assert len(server.asked) == 1
    assert not slept


def test_times_are_sent_in_words_and_none_is_left_out() -> None:
    with serving(lambda *_: Answer(201, job())) as server, Farm(server.url, "k") as farm:
        farm.submit("a ball", deadline=datetime(2030, 1, 2, tzinfo=UTC), seed=None)
    assert server.asked[0].json() == {
        "task": "text-to-image",
        "prompt": "a ball",
        "deadline": "2030-01-02T00:00:00+00:00",
    }


@pytest.mark.parametrize(("name", "kind"), [("jobs.csv", "text/csv"), ("jobs.jsonl", "application/jsonl")])
def test_the_ending_of_a_batch_s_file_says_what_it_is(name: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("prompt\na ball\n")
    answer = {"id": "bat_1", "state": "in_progress", "request_counts": {}}
    with serving(lambda *_: Answer(201, answer)) as server, Farm(server.url, "k") as farm:
        farm.submit_batch(tmp_path / name)
    assert server.asked[0].headers["content-type"] == kind


def test_two_submits_have_two_keys() -> None:
    with serving(lambda *_: Answer(201, job())) as server, Farm(server.url, "k") as farm:
        farm.submit("a red ball")
        farm.submit("a red ball")
        farm.submit("a red ball", idempotency_key="mine")
    keys = [asked.headers["idempotency-key"] for asked in server.asked]
    assert len(set(keys)) == 3
    assert keys[2] == "mine"


def test_what_may_not_happen_twice_is_never_sent_again_after_it_may_have_worked() -> None:
    with serving(lambda *_: DROP) as server, Farm(server.url, "k") as farm, pytest.raises(Unreachable):
        farm.remove_endpoint("wep_" + "0" * 32)
    assert len(server.asked) == 1


def test_what_makes_something_is_sent_again_under_the_same_name(slept: list[float]) -> None:
    key: dict[str, object] = {
        "id": "key_1",
        "name": "k",
        "scopes": [],
        "created_at": "2026-01-01T00:00:00Z",
        "revoked_at": None,
    }
    with serving(lambda _, number: Answer(201, key | {"key": "farm_x"}) if number == 2 else DROP) as server:
        with Farm(server.url, "k") as farm:
            assert farm.make_key("k").text == "farm_x"
        assert len({asked.headers["idempotency-key"] for asked in server.asked}) == 1
        assert len(server.asked) == 3
    assert len(slept) == 2


def test_a_wait_outlasts_a_restart_of_the_farm_and_ends_when_it_stays_away(slept: list[float]) -> None:
    batch = {"id": "batch_1", "state": "in_progress", "request_counts": {"total": 1}}

    def restarts(_: Asked, number: int) -> Answer:
        if number == 0:
            return Answer(200, batch)
        if number < 40:
            return DROP if number % 2 else Answer(503, {"title": "starting"})
        return Answer(200, batch | {"state": "completed"})

    with serving(restarts) as server, Farm(server.url, "k") as farm:
        assert farm.wait_batch("batch_1").over
        assert len(server.asked) == 41
    with serving(lambda _, number: Answer(200, batch) if number == 0 else DROP) as server:
        with Farm(server.url, "k") as farm, pytest.raises(Unreachable):
            farm.wait_batch("batch_1")
        assert 250 < sum(slept) < 3_000


def test_nobody_there_is_unreachable_after_the_retries(slept: list[float]) -> None:
    with serving(lambda *_: DROP) as server:
        pass
    with Farm(server.url, "k", retries=2) as farm, pytest.raises(Unreachable, match=f"no farm answers at {server.url}"):
        farm.models()
    assert len(slept) == 2


def test_a_problem_names_the_fields_that_it_is_about() -> None:
    problem = {
        "title": "Unprocessable",
        "detail": "one field is wrong",
        "errors": [{"field": "width", "value": 7, "message": "must be a multiple of 8"}],
    }
    with serving(lambda *_: Answer(422, problem)) as server, Farm(server.url, "k") as farm:
        with pytest.raises(ApiError, match="width: must be a multiple of 8") as caught:
            farm.submit("a", width=7)
        assert caught.value.status == 422
        assert caught.value.errors[0].value == 7
    assert len(server.asked) == 1, "what is wrong is not sent again"


@pytest.mark.parametrize("body", [b"<html>", b"", b"[]", b'"x"'])
def test_an_answer_of_a_proxy_is_an_error_too(body: bytes) -> None:
    with (
        serving(lambda *_: Answer(500, body)) as server,
        Farm(server.url, "k") as farm,
        pytest.raises(ServerProblem, match="answered 500"),
    ):
        farm.models()


def test_a_page_that_is_no_farm_is_unreachable() -> None:
    with (
        serving(lambda *_: Answer(200, b"<html>hello</html>")) as server,
        Farm(server.url, "k") as farm,
        pytest.raises(Unreachable, match="is not a farm"),
    ):
        farm.models()


def test_the_task_is_what_the_images_mean_and_images_are_uploaded() -> None:
    def script(asked: Asked, number: int) -> Answer:
        return Answer(201, {"id": f"file_{number:032x}"}) if asked.path == "/v1/files" else Answer(201, job())

    with serving(script) as server, Farm(server.url, "k") as farm:
        farm.submit("a cube", image=b"image bytes", mask=Image.new("L", (8, 8)), strength=None)
    first, second, submitted = server.asked
    assert b"image bytes" in first.body
    assert b"\x89PNG" in second.body
    assert submitted.json() == {
        "task": "inpainting",
        "prompt": "a cube",
        "image": f"file_{0:032x}",
        "mask_image": f"file_{1:032x}",
    }


@pytest.mark.parametrize("name", [f"file_{5:032x}", f"sha256:{5:064x}", "https://example.org/a.png", "data:image/png,"])
def test_a_reference_is_passed_on(name: str) -> None:
    with serving(lambda *_: Answer(201, job())) as server, Farm(server.url, "k") as farm:
        farm.submit("a cube", image=name)
    assert [asked.json()["image"] for asked in server.asked] == [name]


def test_a_job_and_an_output_are_passed_on_as_references() -> None:
    with serving(lambda *_: Answer(201, job(outputs=[output("http://127.0.0.1:9/x")] * 2))) as server:
        with Farm(server.url, "k") as farm:
            first = farm.submit("a cube")
            farm.submit("a cube", image=first)
            farm.submit("a cube", image=first.outputs[1])
            farm.submit("a cube", image=f"{first.id}/1")
            farm.retry(first.id, with_dependents=True)
        assert [asked.json()["image"] for asked in server.asked[1:4]] == [first.id, f"{first.id}/1", f"{first.id}/1"]
        assert server.asked[4].path.endswith("/retry?with_dependents=true")


def test_a_sweep_is_sent_as_lists_of_values() -> None:
    answer = Answer(201, {"id": f"bat_{1:032x}", "state": "in_progress", "request_counts": {}})
    with serving(lambda *_: answer) as server, Farm(server.url, "k") as farm:
        farm.sweep({"guidance_scale": [1, 4], "seed": range(3)}, repeats=2, name="grid", prompt="a ball", width=64)
        farm.sweep([{"prompt": ["a", "b"], "seed": [1, 2]}])
    assert "name=grid&prompt=a+ball&width=64" in server.asked[0].path
    calls = (
        requests.sweep({"guidance_scale": [1, 4], "seed": range(3)}, repeats=2),
        requests.sweep([{"prompt": ["a", "b"], "seed": [1, 2]}]),
    )
    first, second = (json.loads(b"".join(call.content())) for call in calls if call.content is not None)
    assert first == {"sweep": [{"guidance_scale": [1, 4]}, {"seed": [0, 1, 2]}], "repeats": 2}
    assert second["sweep"] == [{"prompt": ["a", "b"], "seed": [1, 2]}]


def test_an_id_cannot_reach_another_route() -> None:
    with Farm("http://127.0.0.1:9", "k") as farm, pytest.raises(BadInput, match="no job id"):
        farm.get("../keys")


def test_waiting_reports_steps_and_goes_on_after_a_cut_from_the_last_event() -> None:
    running = job("running", worker="w/cpu0")
    done = job("succeeded", outputs=[output("http://127.0.0.1:9/x")])
    streams = [
        Answer(
            200,
            sse(("job", running, None), ("job.started", {}, "17"), ("progress", {"step": 1, "steps": 4}, None)),
            {"Content-Type": "text/event-stream"},
            cut=True,
        ),
        Answer(200, sse(("progress", {"step": 3, "steps": 4}, None), ("job", done, None)),
               {"Content-Type": "text/event-stream"}),
    ]  # fmt: skip

    def script(asked: Asked, _: int) -> Answer:
        return streams.pop(0) if asked.path.endswith("/events") else Answer(200, running)

    seen: list[tuple[str, int | None]] = []
    with serving(script) as server, Farm(server.url, "k") as farm:
        over = farm.wait(
            f"job_{1:032x}",
            on_progress=lambda job: seen.append((job.state, job.progress.step if job.progress else None)),
        )
    assert over.succeeded
    assert ("running", 1) in seen
    assert ("running", 3) in seen
    assert seen[-1] == ("succeeded", None)
    followed = [asked for asked in server.asked if asked.path.endswith("/events")]
    assert followed[1].headers["last-event-id"] == "17"


def test_waiting_looks_again_and_again_where_no_events_can_be_had() -> None:
    states = ["running", "running", "failed"]

    def script(asked: Asked, _: int) -> Answer:
        if asked.path.endswith("/events"):
            return Answer(404, {"title": "no"})
        state = states.pop(0)
        return Answer(200, job(state, error={"code": "x", "message": "why"} if state == "failed" else None))

    with serving(script) as server, Farm(server.url, "k") as farm:
        assert farm.wait(f"job_{1:032x}").error is not None


def test_waiting_ends_at_its_deadline_and_leaves_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda *_: Answer(200, job("running"))) as server, Farm(server.url, "k") as farm:
        began = time.monotonic()
        with pytest.raises(WaitedTooLong, match="still running"):
            farm.wait(f"job_{1:032x}", timeout=0.3)
        assert time.monotonic() - began < 5
    assert not any("cancel" in asked.path for asked in server.asked)


def test_a_download_is_checked_and_an_expired_url_is_asked_for_again() -> None:
    def script(asked: Asked, _: int) -> Answer:
        if asked.path.startswith("/v1/"):
            return Answer(200, job("succeeded", outputs=[output(f"{server.url}/fresh")]))
        return Answer(403, b"expired") if asked.path == "/old" else Answer(200, IMAGE)

    with serving(script) as server, Farm(server.url, "secret") as farm:
        stale = Job.of(job("succeeded", outputs=[output(f"{server.url}/old")]))
        assert farm.download(stale.outputs[0]) == IMAGE
        damaged = Job.of(job("succeeded", outputs=[output(f"{server.url}/fresh", b"other bytes")]))
        with pytest.raises(Corrupted):
            farm.download(damaged.outputs[0])
    for asked in server.asked:
        assert ("authorization" in asked.headers) == asked.path.startswith("/v1/"), "the key goes to the farm alone"


def test_running_a_job_that_fails_says_why() -> None:
    failed = job("failed", error={"code": "out_of_memory", "message": "the device is too small"})
    with (
        serving(lambda *_: Answer(201, failed)) as server,
        Farm(server.url, "k") as farm,
        pytest.raises(JobFailed, match=r"the device is too small \(out_of_memory\)"),
    ):
        farm.run("a cube")


def test_listing_goes_through_the_pages_and_stops_at_the_limit() -> None:
    def script(asked: Asked, number: int) -> Answer:
        return Answer(200, {"data": [job(), job()], "next": f"c{number}" if number < 2 else None})

    with serving(script) as server, Farm(server.url, "k") as farm:
        assert len(list(farm.list(state=["queued", "running"]))) == 6
        assert len(list(farm.list(limit=2))) == 2
    assert "state=queued&state=running" in server.asked[0].path
    assert "cursor=c1" in server.asked[2].path
    assert len(server.asked) == 4


@pytest.mark.parametrize(
    ("retry_after", "low", "high"),
    [(None, 0.25, 0.5), ("0", 0, 0), ("7", 7, 7.7), ("99999", 60, 66), ("soon", 0.25, 0.5), ("", 0.25, 0.5)],
)
def test_the_delay_between_two_tries(retry_after: str | None, low: float, high: float) -> None:
    assert low <= requests.delay(1, retry_after) <= high


def test_a_retry_after_may_be_a_date() -> None:
    assert 10 <= requests.delay(0, "Thu, 01 Jan 1970 00:01:40 GMT", now=90.0) <= 11


@pytest.mark.parametrize(("url", "key"), [("ftp://x", "k"), ("no url", "k"), ("http://127.0.0.1:9", "a\nb")])
def test_an_address_or_key_that_cannot_be_one_is_refused(url: str, key: str) -> None:
    with pytest.raises(BadInput):
        Farm(url, key)


def test_without_an_address_the_client_says_what_to_set() -> None:
    with pytest.raises(BadInput, match="FARM_URL"):
        Farm()
    with pytest.raises(BadInput, match="FARM_API_KEY"):
        Farm("http://127.0.0.1:9")


def test_every_error_of_the_client_has_one_base() -> None:
    assert all(issubclass(kind, FarmClientError) for kind in (ApiError, Corrupted, JobFailed, Unreachable))
