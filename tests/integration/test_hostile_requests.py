"""Requests that are large, slow or many: they are refused with a reason, and other tenants' requests are served."""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import httpx2
import pytest
from backports import zstd
from fastapi.routing import APIRoute, iter_route_contexts
from sqlalchemy import text

from farm import lifecycle
from farm.api import body_limits, connections
from farm.api.body_limits import Budget, TooManyBodies
from farm.api.tenant_threads import TenantThreads
from farm.errors import QuotaExceeded
from farm.objects import keys
from farm.services import bulk
from farm.settings import Settings
from farm.store.tenants import Scope
from tests.api_server import Api, png, running
from tests.waiting import wait_until

JSONL = {"Content-Type": "application/jsonl"}
CSV = {"Content-Type": "text/csv"}
JSON = {"Content-Type": "application/json"}
LINE = b'{"task":"text-to-image","prompt":"a red ball","width":64,"height":64,"num_inference_steps":4}\n'


@pytest.fixture
def api(farm_env: dict[str, str]) -> Iterator[Api]:
    with running(Settings()) as one:
        yield one


@pytest.fixture
def client(api: Api) -> Iterator[httpx2.Client]:
    with api.client(timeout=60) as one:
        yield one


@pytest.fixture
def other(api: Api) -> Iterator[httpx2.Client]:
    """Another tenant."""
    with api.client(api.new_key(Scope.SUBMIT, Scope.READ, tenant_id=api.new_tenant("other"))) as one:
        yield one


def connect(api: Api) -> socket.socket:
    host = urlsplit(api.url)
    assert host.hostname
    assert host.port
    return socket.create_connection((host.hostname, host.port), timeout=30)


def head(api: Api, path: str, *more: str, key: str | None = None) -> bytes:
    lines = (f"POST {path} HTTP/1.1", "Host: farm", f"Authorization: Bearer {key or api.key}", *more, "", "")
    return "\r\n".join(lines).encode()


# -- size ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/v1/jobs", "/sdapi/v1/txt2img", "/compat/openai/v1/images/generations", "/v1/batches"]
)
def test_json_of_millions_of_values_is_refused_while_it_arrives_and_delays_nobody(api: Api, path: str) -> None:
    body = b'{"prompt":[' + b"[]," * 13_000_000 + b"[]]}"
    answers: list[int] = []

    def send() -> None:
        with api.client(timeout=60) as client:
            answers.append(client.post(path, content=body, headers=JSON).status_code)

    thread = threading.Thread(target=send)
    slowest = 0.0
    with api.client(None) as client:
        client.get("/healthz")
        thread.start()
        while thread.is_alive():
            begun = time.monotonic()
            client.get("/healthz")
            slowest = max(slowest, time.monotonic() - begun)
        thread.join()
    assert answers == [413]
    assert slowest < 2


def test_a_large_image_is_no_structure_and_deep_nesting_is_refused(client: httpx2.Client) -> None:
    image = "data:image/png;base64," + "iVBORw0KGgo" * 1_000_000
    answer = client.post("/v1/jobs", json={"task": "image-to-image", "prompt": "x", "image": image})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "image"  # it was read to its end
    nested = b'{"prompt":' + b"[" * 65 + b"]" * 65 + b"}"
    answer = client.post("/v1/jobs", content=nested, headers=JSON)
    assert (answer.status_code, "64 levels" in answer.json()["detail"]) == (422, True)


def test_a_refusal_is_short_however_long_the_request_was(client: httpx2.Client) -> None:
    answer = client.post("/v1/jobs", json={"prompt": "x", "a" * 1_000_000: [[1] * 10_000]})
    assert answer.status_code == 422
    assert len(answer.content) < 4_000
    lines = b"".join(json.dumps({"prompt": "x", f"{n}{'a' * 100_000}": 1}).encode() + b"\n" for n in range(50))
    answer = client.post("/v1/batches", content=lines, headers=JSONL)
    assert answer.json()["errors"][49]["line"] == 50
    assert len(answer.content) < 50_000


def test_a_table_of_one_endless_row_or_of_too_many_columns_is_refused_in_one_sentence(client: httpx2.Client) -> None:
    rows = b"prompt\n" + (b'"' + b"x\n" * 50_000 + b'",') * 40
    for body in (rows, ",".join(f"c{n}" for n in range(100_000)).encode(), b"a," * 600 + b"b"):
        answer = client.post("/v1/batches", content=body, headers=CSV)
        assert answer.status_code == 422
        assert "at most" in answer.json()["detail"]
        assert len(answer.content) < 4_000


# -- encodings ---------------------------------------------------------------------------------------------------------


def test_compressed_bodies_are_decoded_within_the_limits(client: httpx2.Client) -> None:
    three = LINE * 3
    split = gzip.compress(LINE) + gzip.compress(LINE * 2)  # of several members, as `cat a.gz b.gz` makes
    for encoding, body in (("gzip", gzip.compress(three)), ("gzip", split), ("zstd", zstd.compress(three))):
        answer = client.post("/v1/batches", content=body, headers=JSONL | {"Content-Encoding": encoding})
        assert answer.status_code == 201, answer.text
        assert answer.json()["request_counts"]["total"] == 3
    job = gzip.compress(json.dumps({"task": "text-to-image", "prompt": "x"}).encode())
    assert client.post("/v1/jobs", content=job, headers=JSON | {"Content-Encoding": "gzip"}).status_code == 201


def test_what_a_compressed_body_may_not_be(client: httpx2.Client) -> None:
    def send(encoding: str, body: bytes, path: str = "/v1/jobs") -> httpx2.Response:
        return client.post(path, content=body, headers=JSON | {"Content-Encoding": encoding})

    answer = send("br", b"x")
    assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "gzip, zstd")
    packed = gzip.compress(json.dumps({"prompt": "x" * 1_000}).encode())
    for broken in (packed[:-9], b"{}", packed[:20] + b"\0" * 20):
        answer = send("gzip", broken)
        assert (answer.status_code, "gzip" in answer.json()["detail"]) == (422, True)
    assert send("gzip", gzip.compress(b"x" * 200_000_000)).status_code == 413
    assert send("zstd", zstd.compress(b"x" * 200_000_000)).status_code == 413

    plain = client.post("/v1/batches", content=gzip.compress(LINE), headers=JSONL)
    assert "Content-Encoding: gzip" in plain.json()["errors"][0]["message"]


# -- speed -------------------------------------------------------------------------------------------------------------


def test_slow_bodies_end_hold_no_transaction_and_keep_nobody_from_submitting(
    api: Api, other: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_limits, "GRACE_SECONDS", 2.0)
    begun = time.monotonic()
    with contextlib.ExitStack() as opened:
        slow = []
        for path, media_type in (("/v1/batches", "application/jsonl"),) * 8 + (("/v1/jobs", "application/json"),) * 4:
            raw = opened.enter_context(connect(api))
            raw.sendall(head(api, path, f"Content-Type: {media_type}", "Content-Length: 100000") + b"{")
            slow.append(raw)
        assert other.post("/v1/batches", content=LINE, headers=JSONL).status_code == 201
        with api.store.begin() as unit:
            held = (
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                "AND (state LIKE 'idle in transaction%' OR query LIKE 'COPY%')"
            )
            assert unit.session.execute(text(held)).scalar_one() == 0
        ended = 0
        while ended < len(slow) and time.monotonic() < begun + 20:
            for raw in slow:
                with contextlib.suppress(OSError):
                    raw.send(b"x")
            time.sleep(0.2)
            for raw in slow:
                raw.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    ended += raw.recv(4_096).startswith(b"HTTP/1.1 408 ")
        assert ended == len(slow)


def test_one_tenant_has_a_share_of_the_bodies_on_their_way(
    api: Api, client: httpx2.Client, other: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body_limits, "TENANT_BODIES", 2)
    with contextlib.ExitStack() as opened:

        def begin() -> socket.socket:
            raw = opened.enter_context(connect(api))
            raw.sendall(head(api, "/v1/batches", "Content-Type: application/jsonl", "Content-Length: 99") + b"{")
            raw.setblocking(False)
            return raw

        def is_answered(raw: socket.socket) -> bool:
            with contextlib.suppress(BlockingIOError):
                return bool(raw.recv(1, socket.MSG_PEEK))
            return False

        unfinished = [begin(), begin()]

        def send(sender: httpx2.Client) -> httpx2.Response:
            def pieces() -> Iterator[bytes]:
                yield LINE
                time.sleep(0.3)
                yield LINE

            return sender.post("/v1/batches", content=pieces(), headers=JSONL)

        def refused() -> httpx2.Response | None:
            for place, raw in enumerate(unfinished):  # another request may have been counted before one of them
                if is_answered(raw):
                    unfinished[place] = begin()
            answer = send(client)
            return answer if answer.status_code == 429 else None

        answer = wait_until(refused, 10)
        assert int(answer.headers["retry-after"]) > 0
        assert send(other).status_code == 201
    wait_until(lambda: send(client).status_code == 201, 10, what="the places are free again")


def test_a_budget_is_shared_by_tenants_and_one_request_alone_may_have_it_all() -> None:
    async def use() -> None:
        budget = Budget(100, "holds too much")
        await budget.take("a", 0, 150, wait=0)
        with pytest.raises(TooManyBodies) as refused:
            await budget.take("b", 0, 10, wait=0.01)
        assert refused.value.status_code == HTTPStatus.SERVICE_UNAVAILABLE
        await budget.give("a", 150)
        await budget.take("b", 0, 10, wait=0)
        await budget.take("a", 0, 40, wait=0)
        with pytest.raises(TooManyBodies) as refused:
            await budget.take("a", 20, 20, wait=0.01)  # a second request of the same tenant
        assert refused.value.status_code == HTTPStatus.TOO_MANY_REQUESTS
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: budget.take("a", 20, 20, wait=5))
            await anyio.sleep(0.01)
            await budget.give("a", 20)
        assert budget.used == 50

    anyio.run(use)


def test_a_tenant_with_slow_work_leaves_threads_to_the_others() -> None:
    async def use() -> None:
        threads = TenantThreads("wait", total=3, per_tenant=2, max_waiting=2)
        done = threading.Event()
        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(threads.run, "a", done.wait)
            await anyio.sleep(0.05)
            with pytest.raises(QuotaExceeded):
                await threads.run("a", lambda: None)
            with anyio.fail_after(5):
                assert await threads.run("b", lambda: 7) == 7
            done.set()

    anyio.run(use)


# -- connections -------------------------------------------------------------------------------------------------------


def test_connections_without_a_whole_request_are_closed(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.5)
    monkeypatch.setattr(connections, "MAX_WITHOUT_REQUEST", 5)
    with contextlib.ExitStack() as opened:
        made = [opened.enter_context(connect(api)) for _ in range(8)]
        begun = time.monotonic()
        for raw in made[4:]:
            with contextlib.suppress(OSError):
                raw.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n")
        answers = []
        for raw in made:
            answers.append(raw.recv(100)[:12])
        assert time.monotonic() < begun + 5
        assert answers[:3] == [b""] * 3  # the oldest of more than may wait
        assert answers[4:] == [b"HTTP/1.1 408"] * 4
    # what comes after an answer is no request either
    with connect(api) as raw:
        raw.sendall(b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        assert raw.recv(4_096).startswith(b"HTTP/1.1 404")
        begun = time.monotonic()
        with contextlib.suppress(OSError):
            while raw.send(b"x") and time.monotonic() < begun + 10:
                time.sleep(0.1)
        assert time.monotonic() < begun + 5
    with api.client(None) as client:
        assert client.get("/healthz").status_code == 200


def test_a_body_of_tiny_chunks_is_refused(api: Api) -> None:
    with connect(api) as raw:
        raw.sendall(head(api, "/v1/batches", "Content-Type: application/jsonl", "Transfer-Encoding: chunked"))
        with contextlib.suppress(OSError):
            for _ in range(100):
                raw.sendall(b"1\r\nx\r\n" * 1_000)
                time.sleep(0.01)
        answer = raw.recv(4_096)
    assert answer.startswith(b"HTTP/1.1 400 ")


# -- error reports and disks -------------------------------------------------------------------------------------------


def test_error_reports_are_bounded_count_as_stored_and_go_with_their_url(
    api: Api, client: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "MAX_REPORT_BYTES", 100_000)
    monkeypatch.setattr(bulk, "MAX_BAD_LINES", 5_000)
    with api.store.begin() as unit:
        unit.tenants.change(api.tenant_id, storage_bytes=10**9)
    answer = client.post("/v1/batches", content=b"{}\n" * 4_000, headers=JSONL)
    problem = answer.json()
    assert (answer.status_code, len(problem["errors"]), problem["error_count"]) == (422, 1_000, 4_000)
    report = httpx2.get(problem["error_file"], trust_env=False).content
    assert len(report) < 101_000
    last = json.loads(report.splitlines()[-1])
    assert last["errors"][0]["message"].startswith(f"{4_000 - len(report.splitlines()) + 1:,} more lines")
    with api.store.begin() as unit:
        unit.usage.measure_storage()
        tenant = unit.tenants.get(api.tenant_id)
        assert tenant is not None
        assert tenant.stored_bytes == len(report)
        assert unit.pending_deletions.take(10) == []  # not before its URL has expired
        unit.session.execute(text("UPDATE pending_deletion SET due_at = now()"))
    api.server.config.app.state.context.cleanup.run_once()  # type: ignore[union-attr]
    assert list(api.storage.list(f"{keys.REPORTS}{api.tenant_id}/")) == []
    endless = client.post("/v1/batches", content=b"{}\n" * 50_000, headers=JSONL).json()
    assert endless["error_count"] == 5_001  # it was not read to its end
    kept = client.post("/v1/batches?on_error=skip", content=LINE + b"{}\n" * 6_000, headers=JSONL).json()
    assert kept["skipped"] == 6_000
    with api.store.begin() as unit:
        unit.usage.measure_storage()
        tenant = unit.tenants.get(api.tenant_id)
        assert tenant is not None
        assert 100_000 < tenant.stored_bytes < 300_000


def test_a_full_disk_is_507_and_not_500(client: httpx2.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: Path("/dev/full").open("r+b", buffering=0))  # noqa: SIM115
    answer = client.post("/v1/batches", content=LINE, headers=JSONL)
    assert (answer.status_code, answer.json()["type"]) == (507, "urn:farm:problem:insufficient-storage")
    assert int(answer.headers["retry-after"]) > 0


def test_no_queue_room_is_said_before_the_lines_are_checked(api: Api, client: httpx2.Client) -> None:
    with api.store.begin() as unit:
        unit.tenants.change(api.tenant_id, max_queued=2)
        assert lifecycle.queue_room(unit, api.tenant_id) == 2
    assert client.post("/v1/batches", content=LINE * 3, headers=JSONL).status_code == 429


# -- names that nobody knows -------------------------------------------------------------------------------------------


def test_every_route_refuses_query_parameters_that_it_does_not_have(api: Api) -> None:
    app = api.server.config.app
    routes = [context for context in iter_route_contexts(app.routes) if isinstance(context.route, APIRoute)]  # type: ignore[union-attr]
    assert len(routes) > 100
    with api.client(timeout=60) as client:
        signed_in = client.post("/farm/login", data={"api_key": api.key}, headers={"Origin": api.url})
        assert signed_in.status_code == 303
        for one in routes:
            path = re.sub(r"{\w+(:\w+)?}", "x", one.path or "")
            for method in one.methods or ():
                headers = {"Origin": api.url} if path.startswith("/farm") else {}
                content: dict[str, object] = {"json": {}} if method != "GET" and not path.startswith("/farm") else {}
                answer = client.request(method, f"{path}?limt=1", headers=headers, **content)  # type: ignore[arg-type]
                expected = {422} if path != "/v1/join" else {404, 422}
                assert answer.status_code in expected, f"{method} {path}: {answer.status_code} {answer.text[:300]}"
                said = "is not a query parameter" in answer.text
                assert method == "HEAD" or said or path == "/v1/join", f"{method} {path}: {answer.text[:300]}"


def test_a_misspelled_parameter_deletes_nothing_and_the_remedy_is_named(api: Api, client: httpx2.Client) -> None:
    batch_id = client.post("/v1/batches", content=LINE, headers=JSONL).json()["id"]
    client.post(f"/v1/batches/{batch_id}/cancel")
    answer = client.delete(f"/v1/batches/{batch_id}?dryrun=true")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["message"] == "is not a query parameter here; did you mean dry_run?"
    assert client.get(f"/v1/batches/{batch_id}").status_code == 200
    assert client.get("/v1/jobs?stat=failed").json()["errors"][0]["field"] == "stat"
    assert client.post("/v1/keys?tenant_id=x", json={"name": "k"}).status_code == 422
    assert client.post("/v1/keys", json={"name": "k"}).json()["tenant_id"] == api.tenant_id
    for path in ("/sdapi/v1/progress", "/compat/openai/v1/files", "/compat/replicate/v1/predictions"):
        assert client.get(f"{path}?limt=1").status_code in (400, 422)
        assert client.get(path).status_code == 200


def test_a_null_that_would_change_nothing_is_refused(api: Api, client: httpx2.Client) -> None:
    batch_id = client.post("/v1/batches?name=first", content=LINE, headers=JSONL).json()["id"]
    answer = client.patch(f"/v1/batches/{batch_id}", json={"name": None})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "name")
    assert client.patch(f"/v1/tenants/{api.tenant_id}", json={"weight": None}).status_code == 422
    changed = client.patch(f"/v1/tenants/{api.tenant_id}", json={"max_queued": None})
    assert (changed.status_code, changed.json()["max_queued"]) == (200, None)


# -- what is stored ---------------------------------------------------------------------------------------------------


def test_uploads_and_files_of_requests_count_as_stored(api: Api, client: httpx2.Client) -> None:
    image = png()
    with api.store.begin() as unit:
        unit.tenants.change(api.tenant_id, storage_bytes=len(image) + 2 * len(LINE))
    assert client.post("/v1/files", content=image, headers={"Content-Type": "image/png"}).status_code == 201
    assert (
        client.post("/v1/files", content=png(256, 256, "blue"), headers={"Content-Type": "image/png"}).status_code
        == 429
    )

    def upload() -> httpx2.Response:
        return client.post("/compat/openai/v1/files", data={"purpose": "batch"}, files={"file": ("r.jsonl", LINE)})

    first = upload()
    assert first.status_code == 200
    assert [upload().status_code for _ in range(2)] == [200, 429]
    with api.store.begin() as unit:
        unit.usage.measure_storage()
        tenant = unit.tenants.get(api.tenant_id)
        assert tenant is not None
        assert tenant.stored_bytes == len(image) + 2 * len(LINE)
    assert client.delete(f"/compat/openai/v1/files/{first.json()['id']}").status_code == 200
    wait_until(
        lambda: len(list(api.storage.list(f"{keys.LINES}{api.tenant_id}/"))) == 1,
        10,
        what="the deleted file is removed",
    )
    with api.store.begin() as unit:
        unit.usage.measure_storage()
        unit.tenants.change(api.tenant_id, retention_days=1)
        unit.session.execute(text("UPDATE request_file SET created_at = now() - interval '2 days'"))
        lifecycle.delete_expired(unit)
        assert unit.request_files.page(api.tenant_id, None, 10, newest_first=True) == []
    api.server.config.app.state.context.cleanup.run_once()  # type: ignore[union-attr]
    assert list(api.storage.list(f"{keys.LINES}{api.tenant_id}/")) == []


def test_webhook_urls_of_jobs_are_limited(farm_env: dict[str, str]) -> None:
    with running(Settings(max_webhook_urls=2)) as api, api.client() as client:

        def submit(*hosts: str) -> int:
            lines = [
                {"task": "text-to-image", "prompt": "x", "webhook": f"https://{host}.example.com/"} for host in hosts
            ]
            body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
            return client.post("/v1/batches", content=body, headers=JSONL).status_code

        job = {"task": "text-to-image", "prompt": "x", "webhook": "https://a.example.com/"}
        assert client.post("/v1/jobs", json=job).status_code == 201
        assert submit("a", "b", "c") == 429
        assert submit("a", "b") == 201
        assert client.post("/v1/jobs", json=job | {"webhook": "https://d.example.com/"}).status_code == 429
        assert client.post("/v1/jobs", json=job).status_code == 201
