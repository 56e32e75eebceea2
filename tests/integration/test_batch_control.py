"""Batches that tell of themselves, wait, move, go and come back in parts: over real servers."""

from __future__ import annotations

import asyncio
import io
import json
import random
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import boto3
import httpx2
import pytest
from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from PIL import Image
from sqlalchemy import text

from farm import lifecycle
from farm.client import AsyncFarm, Farm, Job, WaitedTooLong
from farm.domain import ids
from farm.domain.batch import MILESTONES, BatchState
from farm.domain.queue import Assignment
from farm.errors import BadInput
from farm.objects.presign import Credentials, Presigner
from farm.objects.storage import content_disposition
from farm.services import bulk
from farm.services.batches import PAGE
from farm.settings import Settings
from farm.store import queue
from farm.webhooks.signature import new_secret
from tests.api_server import Api, Hand, png, running
from tests.queues import candidates
from tests.waiting import wait_until

JSONL = {"Content-Type": "application/jsonl"}
HOOK = "https://example.com/told"


@pytest.fixture
def api(farm_env: dict[str, str]) -> Iterator[Api]:
    with running(Settings()) as one:
        yield one


@pytest.fixture
def client(api: Api) -> Iterator[httpx2.Client]:
    with api.client(timeout=120) as one:
        yield one


def balls(count: int, **fields: Any) -> list[dict[str, Any]]:
    size = {"task": "text-to-image", "width": 64, "height": 64}
    return [{"prompt": f"ball {n}", "custom_id": f"ball-{n}", "seed": n} | size | fields for n in range(count)]


def submit(client: httpx2.Client, jobs: list[dict[str, Any]], **query: Any) -> dict[str, Any]:
    body = b"".join(json.dumps(job).encode() + b"\n" for job in jobs)
    answer = client.post("/v1/batches", params=query, content=body, headers=JSONL)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def rows(api: Api, statement: str, **values: Any) -> list[Any]:
    with api.store.begin() as unit:
        return [tuple(row) for row in unit.session.execute(text(statement), values)]


def finish(api: Api) -> None:
    hand = Hand(api)
    while waiting := hand.queued():
        for job_id in waiting:
            hand.succeed(hand.begin(job_id))


def streamed(client: httpx2.Client, batch_id: str, last: str | None = None) -> list[httpx2.ServerSentEvent]:
    headers = {"Last-Event-ID": last} if last else {}
    with client.stream("GET", f"/v1/batches/{batch_id}/events", headers=headers) as answer:
        return list(httpx2.EventSource(answer))


# -- printing --------------------------------------------------------------------------------------------------------


def test_a_batch_tells_of_each_milestone_and_of_its_end_once_however_its_jobs_end(
    api: Api, client: httpx2.Client
) -> None:
    batch = submit(client, balls(40), webhook=HOOK)
    each = submit(client, balls(2), webhook=HOOK, webhook_jobs=True)
    hand = Hand(api)

    def end(job_id: str) -> None:
        if hash(job_id) % 3:
            hand.fail(hand.begin(job_id))
        else:
            with api.store.begin() as unit:
                lifecycle.cancel(unit, api.tenant_id, job_id)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(end, hand.queued()))
    told = rows(api, "SELECT type, step, data FROM event WHERE batch_id = :id ORDER BY id", id=uuid(batch))
    assert [(kind, step) for kind, step, _ in told] == [
        *(("batch.progress", percent) for percent in MILESTONES),
        ("batch.completed", 0),
    ]
    last = told[-1][2]
    assert (last["id"], last["state"], last["progress"]) == (batch["id"], "completed", 1)
    assert (
        last["request_counts"]["failed"] + last["request_counts"]["canceled"] == last["request_counts"]["total"] == 40
    )
    with api.store.begin() as unit:
        while unit.outbox.fan_out(new_secret):
            pass
    sent = rows(
        api,
        "SELECT event.type, count(*) FROM delivery JOIN event ON event.id = event_id "
        "WHERE batch_id = :id OR job_id IN (SELECT id FROM job WHERE batch_id = :id) GROUP BY event.type",
        id=uuid(batch),
    )
    # forty jobs are not forty requests
    assert dict(sent) == {"batch.progress": len(MILESTONES), "batch.completed": 1}
    of_jobs = "SELECT count(*) FROM delivery JOIN event ON event.id = event_id JOIN job ON job.id = job_id"
    assert rows(api, f"{of_jobs} WHERE job.batch_id = :id", id=uuid(each)) == [(2,)]


def test_the_events_of_a_batch_are_replayed_from_where_one_was(api: Api, client: httpx2.Client) -> None:
    batch = submit(client, balls(8))
    heard: list[httpx2.ServerSentEvent] = []
    listener = threading.Thread(target=lambda: heard.extend(streamed(client, batch["id"])))
    listener.start()
    finish(api)
    listener.join(30)
    live = [event for event in heard if event.event != "batch"]
    assert [event.event for event in live] == ["batch.progress"] * 4 + ["batch.completed"]
    assert json.loads(heard[-1].data)["state"] == "completed"
    for place in (0, 2, 4):
        again = [one for one in streamed(client, batch["id"], live[place].id) if one.event != "batch"]
        assert [(event.id, event.data) for event in again] == [(event.id, event.data) for event in live[place + 1 :]]


# -- steering --------------------------------------------------------------------------------------------------------


def test_a_paused_batch_waits_and_takes_its_old_place_when_it_goes_on(api: Api, client: httpx2.Client) -> None:
    first, second = submit(client, balls(6)), submit(client, balls(3))
    hand = Hand(api)
    order = hand.queued()
    begun = hand.begin(order[0])
    assert client.post(f"/v1/batches/{first['id']}/pause").json()["state"] == "paused"
    assert hand.queued() == order[6:]
    with api.store.begin() as unit:  # a job given back meanwhile waits with the others
        lifecycle.release(unit, begun.id, begun.epoch, "drained")
    assert hand.queued() == order[6:]
    with api.store.begin() as unit:  # nor is a job dispatched that was chosen just before
        assert lifecycle.dispatch(unit, [Assignment(order[1], "test/cpu0")], 30) == []
    found = client.get(f"/v1/batches/{first['id']}").json()
    assert (found["state"], found["request_counts"]["queued"], found["eta_seconds"]) == ("paused", 6, None)
    assert client.post(f"/v1/batches/{first['id']}/resume").json()["state"] == "in_progress"
    assert sorted(hand.queued()) == sorted(order)
    assert hand.queued()[1:] == order[1:]
    changed = client.patch(f"/v1/batches/{second['id']}", json={"priority": "interactive", "name": "soon"}).json()
    assert (changed["priority"], changed["name"]) == ("interactive", "soon")
    assert hand.queued()[:3] == order[6:]
    assert {job["priority"] for job in client.get(f"/v1/batches/{second['id']}/jobs").json()["data"]} == {"interactive"}
    assert client.post(f"/v1/batches/{first['id']}/pause").status_code == 200
    assert client.post(f"/v1/batches/{first['id']}/cancel").json()["state"] == "canceled"  # also while it is paused
    assert client.post(f"/v1/batches/{first['id']}/pause").status_code == 409
    assert client.patch(f"/v1/batches/{second['id']}", json={"colour": "red"}).status_code == 422


def test_nothing_of_a_canceled_batch_begins_however_long_its_rows_take(
    api: Api, client: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, other = submit(client, balls(9)), submit(client, balls(2))
    hand = Hand(api)
    order = hand.queued()
    begun = hand.begin(order[0])
    monkeypatch.setattr("farm.store.bulk_actions.CANCEL_CHUNK", 3)
    with api.store.begin() as unit:  # the request ends here, and its process with it
        assert lifecycle.cancel_batch(unit, api.tenant_id, batch["id"]).state is BatchState.CANCELING
    with api.store.begin() as unit:
        assert lifecycle.dispatch(unit, [Assignment(job_id, "test/cpu0") for job_id in order[1:4]], 30) == []
        sent = lifecycle.dispatch(unit, [Assignment(order[9], "test/cpu0")], 30)
    assert [one.job_id for one in sent] == [order[9]]
    assert client.post(f"/v1/batches/{batch['id']}/pause").status_code == 409
    with api.store.begin() as unit:  # and three at a time
        assert not lifecycle.propagate_batch(unit, batch["id"])
    found = client.get(f"/v1/batches/{batch['id']}").json()
    assert (found["state"], found["propagating"], found["request_counts"]["canceled"]) == ("canceling", True, 3)
    services = api.server.config.app.state.context  # type: ignore[union-attr]
    services.cleanup.wake()
    wait_until(lambda: not client.get(f"/v1/batches/{batch['id']}").json()["propagating"], 20, what="all follow")
    with api.store.begin() as unit:
        lifecycle.confirm_cancel(unit, begun.id, begun.epoch)
    found = client.get(f"/v1/batches/{batch['id']}").json()
    assert (found["state"], found["request_counts"]["canceled"]) == ("canceled", 9)
    told = "SELECT count(*) FROM event JOIN job ON job.id = job_id WHERE job.batch_id = :id AND type = 'job.canceled'"
    assert rows(api, told, id=uuid(batch)) == [(9,)]
    assert client.get(f"/v1/batches/{other['id']}").json()["request_counts"]["canceled"] == 0


def test_a_cancel_that_comes_while_jobs_follow_a_pause_is_not_forgotten(
    api: Api, client: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = submit(client, balls(3))
    client.post(f"/v1/batches/{batch['id']}/pause")

    with api.store.begin() as unit:

        def cancel(batch_id: str) -> int:
            """Somebody cancels between the unit's first look and its last."""
            with api.store.begin() as other:
                lifecycle.cancel_batch(other, api.tenant_id, batch_id)
            return 0

        monkeypatch.setattr(unit.batches, "propagate", cancel)
        assert not lifecycle.propagate_batch(unit, batch["id"])
    with api.store.begin() as unit:
        assert (batch["id"], False) in unit.batches.pending_changes()


def test_a_finished_batch_is_deleted_with_its_images(api: Api, client: httpx2.Client) -> None:
    batch, other = submit(client, balls(3, num_outputs=2)), submit(client, balls(1))
    key = {"Idempotency-Key": "gone"}
    named = client.post("/v1/batches", json={"jobs": balls(1)}, headers=key).json()
    assert client.delete(f"/v1/batches/{batch['id']}").status_code == 409
    finish(api)
    # a lost attempt left something that no row names
    (job_id,) = rows(
        api, "UPDATE job SET epoch = 2 WHERE batch_id = :id AND batch_seq = 1 RETURNING id", id=uuid(batch)
    )[0]
    stray = f"outputs/{api.tenant_id}/{ids.from_uuid(ids.JOB, job_id)}/2/0.png"
    api.storage.put(stray, png(), "image/png")
    would = client.delete(f"/v1/batches/{batch['id']}?dry_run=true").json()
    assert would == {"id": batch["id"], "dry_run": True, "jobs": 3, "outputs": 6, "bytes": 6 * len(png())}
    assert client.get(f"/v1/batches/{batch['id']}").status_code == 200
    assert client.delete(f"/v1/batches/{batch['id']}").json() == would | {"dry_run": False}
    assert client.get(f"/v1/batches/{batch['id']}").status_code == 404
    assert client.delete(f"/v1/batches/{named['id']}").status_code == 200
    wait_until(
        lambda: rows(api, "SELECT (SELECT count(*) FROM batch), (SELECT count(*) FROM pending_deletion)") == [(1, 0)],
        30,
        what="the rows and the objects are gone",
    )
    left = [one.key for one in api.storage.list(f"outputs/{api.tenant_id}/")]
    assert left == [row[0] for row in rows(api, "SELECT key FROM output")]
    assert len(client.get(f"/v1/batches/{other['id']}/jobs").json()["data"]) == 1
    again = client.post("/v1/batches", json={"jobs": balls(1)}, headers=key)
    assert again.status_code == 422
    assert "was deleted" in again.text


# -- results ---------------------------------------------------------------------------------------------------------


def test_an_archive_that_broke_anywhere_goes_on_to_the_same_bytes(
    api: Api, client: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farm.services.batch_archive.PAGE", 4)
    assert PAGE > 4
    batch = submit(client, [*balls(7, num_outputs=2), *balls(1, custom_id="ä" * 60, width=128)])
    path = f"/v1/batches/{batch['id']}/archive?format=tar"
    assert client.head(path).headers["accept-ranges"] == "none"  # it grows
    finish(api)
    whole = client.get(path)
    with tarfile.open(fileobj=io.BytesIO(whole.content)) as tape:
        assert len(tape.getnames()) == 15
    about = client.head(path).headers
    assert (about["content-length"], about["accept-ranges"]) == (str(len(whole.content)), "bytes")
    total, draw = len(whole.content), random.Random(3)
    places = [0, 1, 511, 512, total - 1_025, total - 1_024, total - 1, *(draw.randrange(total) for _ in range(12))]
    for start in places:
        part = client.get(path, headers={"Range": f"bytes={start}-", "If-Range": whole.headers["etag"]})
        assert part.status_code == 206
        assert part.headers["content-range"] == f"bytes {start}-{total - 1}/{total}"
        assert part.content == whole.content[start:]
    assert client.get(path, headers={"Range": "bytes=700-1300"}).content == whole.content[700:1301]
    assert client.get(path, headers={"Range": "bytes=-9"}).content == whole.content[-9:]
    assert client.get(path, headers={"Range": f"bytes={total}-"}).status_code == 416
    assert client.get(path, headers={"Range": "bytes=5-", "If-Range": '"other"'}).content == whole.content


@pytest.mark.parametrize("form", ["zip", "tar"])
def test_the_parts_of_an_archive_hold_each_image_once(api: Api, client: httpx2.Client, form: str) -> None:
    batch = submit(client, balls(7, num_outputs=2))
    finish(api)
    path = f"/v1/batches/{batch['id']}/archive?format={form}"

    def names(query: str) -> list[str]:
        answer = client.get(path + query)
        assert answer.status_code == 200, answer.text
        file = io.BytesIO(answer.content)
        if form == "tar":
            with tarfile.open(fileobj=file) as tape:
                return tape.getnames()
        with zipfile.ZipFile(file) as packed:
            assert packed.testzip() is None
            return packed.namelist()

    whole = names("")
    assert len(whole) == 14
    parts = [names(f"&first={first}&last={first + 2}") for first in (1, 4, 7)]
    assert [len(part) for part in parts] == [6, 6, 2]
    assert [*parts[0], *parts[1], *parts[2]] == whole
    assert names("&first=6") == whole[10:]
    assert names("&first=8") == []
    assert client.get(f"{path}&first=3&last=2").status_code == 422
    if form == "tar":
        middle = f"{path}&first=3&last=5"
        about, all_of_it = client.head(middle).headers, client.get(middle).content
        assert about["content-length"] == str(len(all_of_it))
        assert about["etag"] != client.head(path).headers["etag"]
        for start in (1, 700, len(all_of_it) // 2, len(all_of_it) - 5):
            assert client.get(middle, headers={"Range": f"bytes={start}-"}).content == all_of_it[start:]


def test_a_contact_sheet_shows_a_sweep_as_a_grid(api: Api, client: httpx2.Client) -> None:
    sweep = {
        "defaults": {"task": "text-to-image", "width": 64, "height": 64, "seed": 1},
        "sweep": [{"prompt": ["a red ball", "a blue cube"]}, {"guidance_scale": [3, 5, 7]}],
    }
    batch = client.post("/v1/batches", json=sweep).json()
    finish(api)
    path = f"/v1/batches/{batch['id']}/contact-sheet"
    for form in ("png", "jpeg"):
        answer = client.get(path, params={"format": form, "tile": 64})
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == f"image/{form}"
        with Image.open(io.BytesIO(answer.content)) as page:
            page.load()
            # three columns and two rows of red images, and paper below and beside them
            shown = page.convert("RGB")
            colours = [
                shown.getpixel((x, y)) for x in range(190 + 32, page.width, 72) for y in range(64 + 32, page.height, 72)
            ]
            assert all(isinstance(one, tuple) and one[0] > 200 > one[1] + 100 for one in colours)
            assert len(colours) == 6
            assert (page.width, page.height) == (190 + 3 * 72 + 8, 64 + 2 * 72 + 8)
    wrong = client.get(path, params={"columns": "colour"})
    assert wrong.status_code == 422
    assert wrong.json()["errors"][0]["field"] == "columns"


def test_urls_are_signed_as_the_sdk_signs_them(api: Api, servers: Any) -> None:
    key, name = "outputs/a b/ü~/0.png", 'a "b" ü.png'
    api.storage.put(key, png(), "image/png")
    answer = httpx2.get(api.storage.presign_get(key, 60, name), trust_env=False)
    assert answer.content == png()
    assert answer.headers["content-disposition"] == content_disposition(name)
    credentials = boto3.session.Session("key", "secret", "to/ken").get_credentials()
    assert credentials is not None
    asked = AWSRequest(
        "GET",
        "https://s3.example.com:9000/farm/a/b%20c~%C3%A9.png",
        params={"response-content-disposition": "inline"},
    )
    S3SigV4QueryAuth(credentials, "s3", "eu-west-3", expires=77).add_auth(asked)
    theirs = dict(httpx2.URL(str(asked.url)).params)
    now = datetime.strptime(theirs["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    presigner = Presigner(
        "https://s3.example.com:9000", "farm", "eu-west-3", lambda: Credentials("key", "secret", "to/ken")
    )
    assert dict(httpx2.URL(presigner.get("a/b c~é.png", 77, "inline", now=now)).params) == theirs


# -- many lines ------------------------------------------------------------------------------------------------------


def test_of_a_hundred_thousand_lines_the_one_bad_line_is_named_and_can_be_skipped(
    api: Api, client: httpx2.Client
) -> None:
    lines = [b"prompt,seed\n", *(b"ball %d,%d\n" % (n, n) for n in range(100_000))]
    lines[70_000] = b"ball,x\n"
    body = b"".join(lines)
    path, headers = "/v1/batches?task=text-to-image", {"Content-Type": "text/csv"}
    refused = client.post(path, content=body, headers=headers)
    assert refused.status_code == 422
    (error,) = refused.json()["errors"]
    assert (error["line"], error["field"], error["value"]) == (70_001, "seed", "x")
    assert rows(api, "SELECT count(*) FROM job") == [(0,)]
    taken = client.post(f"{path}&on_error=skip", content=body, headers=headers).json()
    assert (taken["request_counts"]["total"], taken["skipped"]) == (99_999, 1)


def test_lines_that_are_alike_come_to_what_each_alone_would(api: Api) -> None:
    services = api.server.config.app.state.context  # type: ignore[union-attr]
    common = {"task": "text-to-image", "width": 64, "height": 64, "priority": "bulk", "num_inference_steps": 7}
    checker = bulk.LineValidator(services, api.tenant_id, common | {"negative_prompt": "unless said"})
    assert checker.job({"prompt": "the first of its kind"})[1] is None
    for own in (
        {"prompt": 'a\\b\t"c"\nd é', "seed": 5, "custom_id": "x\ty\\z", "metadata": {"k": "\\t\n"}},
        {"prompt": "b", "negative_prompt": "nothing\\", "seed": 2**40},
    ):
        job, mine = checker.job(own)
        assert mine is not None
        alone, _ = bulk.LineValidator(services, api.tenant_id, {}).job(
            common | {"negative_prompt": "unless said"} | own
        )
        texts = {"common": {**job.spec.common, **mine.common}, "seed": mine.seed}
        assert job.spec.model_copy(update=texts) == alone.spec
        assert (mine.custom_id, tuple(mine.metadata.items())) == (alone.custom_id, alone.metadata)
    for wrong in ({"prompt": "a", "seed": -1}, {"prompt": "a", "width": 64.0, "seed": True}, {"prompt": "\0"}):
        with pytest.raises(BadInput):
            checker.job(wrong)
    unguided = bulk.LineValidator(services, api.tenant_id, common | {"guidance_scale": 1.0})
    assert unguided.job({"prompt": "a", "negative_prompt": ""})[1] is None
    with pytest.raises(BadInput, match="would be ignored"):  # an empty one is not of its kind
        unguided.job({"prompt": "b", "negative_prompt": "blue"})
    with Farm(api.url, api.key) as farm:
        body = [common | {"prompt": f'a\\b\t"{n}"\né', "seed": n, "custom_id": f"x\ty\\{n}"} for n in range(3)]
        batch = farm.submit_batch([one | {"metadata": {"k": f"\\t\n{n}"}} for n, one in enumerate(body)])
    stored = rows(
        api,
        "SELECT spec->'common'->>'prompt', custom_id, metadata->>'k' FROM job WHERE batch_id = :id ORDER BY batch_seq",
        id=ids.to_uuid(ids.BATCH, batch.id),
    )
    assert stored == [(f'a\\b\t"{n}"\né', f"x\ty\\{n}", f"\\t\n{n}") for n in range(3)]


# -- the clients -----------------------------------------------------------------------------------------------------


def test_the_async_client_does_what_the_other_does(api: Api) -> None:
    stopping = threading.Event()
    rendering = threading.Thread(target=Hand(api).run_all, args=[stopping])

    async def talk() -> None:
        async with AsyncFarm(api.url, api.key) as farm:
            waiting: Job = await farm.submit("a red ball", width=64, height=64)
            with pytest.raises(WaitedTooLong):
                await farm.wait(waiting, timeout=0.3)
            many = await farm.submit_many(balls(7), name="many", webhook=HOOK)
            assert (await farm.batch(many.batch.id)).total == 7
            assert (await farm.pause_batch(many.batch.id)).state == "paused"
            assert (await farm.resume_batch(many.batch.id)).state == "in_progress"
            rendering.start()
            done, told = await asyncio.gather(_all(many.as_completed(timeout=60)), _all(farm.events(many.batch.id)))
            assert sorted(one.seq for one in done) == list(range(1, 8))
            assert [event.type for event in told if event.type != "batch"][-1] == "batch.completed"
            over = await farm.wait(waiting)
            assert over.over
            results = [one async for one in farm.results(many.batch.id)]
            assert [one.state for one in results] == [one.state for one in sorted(done, key=lambda one: one.seq)]
            for one in results:
                for output in one.outputs:
                    assert await farm.download(output) == png()
            assert [batch.id async for batch in farm.batches(limit=5)] == [many.batch.id]
            assert len([job.id async for job in farm.list(limit=3)]) == 3
            assert (await farm.delete_batch(many.batch.id, dry_run=True)).jobs == 7

    try:
        asyncio.run(talk())
    finally:
        stopping.set()
        if rendering.is_alive():
            rendering.join()
    with Farm(api.url, api.key) as farm:
        (batch,) = farm.batches()
        assert [one.seq for one in farm.results(batch.id)] == list(range(1, 8))
        assert [event.type for event in farm.events(batch.id)][-1] == "batch"


async def _all(values: Any) -> list[Any]:
    return [one async for one in values]


def uuid(batch: dict[str, Any]) -> Any:
    return ids.to_uuid(ids.BATCH, batch["id"])


def _scans(node: dict[str, Any]) -> list[dict[str, Any]]:
    """The scans of the job table in a plan."""
    own = [node] if node.get("Relation Name") == "job" else []
    return own + [scan for child in node.get("Plans", ()) for scan in _scans(child)]


def test_reading_the_queues_touches_no_paused_job(api: Api, client: httpx2.Client) -> None:
    batch = submit(client, balls(2_000))
    other = submit(client, balls(3))
    assert client.post(f"/v1/batches/{batch['id']}/pause").status_code == 200
    wait_until(lambda: not client.get(f"/v1/batches/{batch['id']}").json()["propagating"], 10, what="paused rows")
    values = {"limit": 10, "min": 8, "tenants": [], "priorities": [], "models": [], "pins": [], "times": [], "free": []}
    with api.store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ANALYZE job")
        (plan,) = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {queue.READ}", values).scalar_one()
    scans = _scans(plan["Plan"])
    assert {scan.get("Index Name") for scan in scans} == {"job_queue"}
    assert sum(scan.get("Rows Removed by Filter", 0) for scan in scans) == 0
    with api.store.begin() as unit:
        assert {job.job_id for job in candidates(unit, 10)} == {
            job.id for job in unit.jobs.of_batch(other["id"], (), 0, 10)
        }
        assert unit.dashboard_queries.queues(api.tenant_id)[0].later  # the paused ones
