"""Many lines on their way in, where something in the way is hostile or dies: images by URL, and a killed API."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2
import pytest
from sqlalchemy import text

from farm.settings import Settings
from farm.store.tenants import Scope
from farm.store.unit_of_work import Store
from tests.api_server import Api, png, running
from tests.waiting import wait_until

JSONL = {"Content-Type": "application/jsonl"}
Count = Callable[[str], int]


# -- images by URL -------------------------------------------------------------------------------------------------


class Images:
    """A host of images on 127.0.0.1, which the farm may fetch from, and a listener beside it, which it may not."""

    def __init__(self) -> None:
        self.fetched: Counter[str] = Counter()
        images = self

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                images.fetched[self.path] += 1
                if self.path.startswith("/gone"):
                    self.send_error(404)
                    return
                data = png(colour="red" if self.path == "/red.png" else "blue")
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.private = socket.create_server(("127.0.0.2", 0))
        self.private.settimeout(0)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self._server.server_port}{path}"

    @property
    def inside(self) -> str:
        return f"http://127.0.0.2:{self.private.getsockname()[1]}/secret.png"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self.private.close()


@pytest.fixture
def images() -> Iterator[Images]:
    made = Images()
    yield made
    made.close()


@pytest.fixture
def api(farm_env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.setenv("FARM_WEBHOOK_ALLOW", "127.0.0.1/32")
    monkeypatch.setenv("FARM_WEBHOOK_ALLOW_HTTP", "true")
    with running(Settings()) as one:
        yield one


def body(images: list[str]) -> bytes:
    jobs = [{"task": "image-to-image", "prompt": f"ball {n}", "image": image} for n, image in enumerate(images)]
    return b"".join(json.dumps(job).encode() + b"\n" for job in jobs)


def test_images_of_lines_are_fetched_once_each_and_never_from_inside(api: Api, images: Images) -> None:
    red, blue = images.url("/red.png"), images.url("/blue.png")
    inside = ["http://169.254.169.254/latest/meta-data", images.inside, "http://[::ffff:127.0.0.2]/x.png"]
    lines = [red, blue] * 20 + inside + [images.url("/gone.png")] * 3
    with api.client(timeout=60) as client:
        refused = client.post("/v1/batches", content=body(lines), headers=JSONL)
        assert refused.status_code == 422
        wrong = {error["line"]: (error["field"], error["message"]) for error in refused.json()["errors"]}
        assert sorted(wrong) == [41, 42, 43, 44, 45, 46]
        assert {field for field, _ in wrong.values()} == {"image"}
        assert all("404" in message for line, (_, message) in wrong.items() if line > 43)
        # what is refused is not asked for again, however many lines name it
        assert images.fetched == {"/red.png": 1, "/blue.png": 1, "/gone.png": 1}
        taken = client.post("/v1/batches?on_error=skip", content=body(lines), headers=JSONL).json()
        assert (taken["request_counts"]["total"], taken["skipped"]) == (40, 6)
        jobs = client.get(f"/v1/batches/{taken['id']}/jobs?limit=100").json()["data"]
        assert len({job["parameters"]["image"] for job in jobs}) == 2
    with pytest.raises(BlockingIOError):
        images.private.accept()  # nobody came


def test_a_body_with_too_many_urls_is_refused_before_more_are_fetched(
    api: Api, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farm.services.bulk.MAX_FETCHED", 3)
    with api.client(timeout=60) as client:
        answer = client.post(
            "/v1/batches", content=body([images.url(f"/{n}.png") for n in range(5)] * 2), headers=JSONL
        )
    assert answer.status_code == 422
    errors = answer.json()["errors"]
    assert [error["line"] for error in errors] == [4, 5, 9, 10]
    assert all("too many" in error["message"] and "POST /v1/files" in error["message"] for error in errors)
    assert sum(images.fetched.values()) == 3


# -- the API is killed -----------------------------------------------------------------------------------------------


@pytest.fixture
def count(farm_env: dict[str, str]) -> Iterator[Count]:
    store = Store.connect(Settings(), pool=2)

    def rows(of: str) -> int:
        with store.begin() as unit:
            return int(unit.session.scalar(text(f"SELECT count(*) FROM {of}")) or 0)

    yield rows
    store.close()


@contextlib.contextmanager
def process(port: int) -> Iterator[subprocess.Popen[bytes]]:
    """The API as it is run in production, on a port of loopback."""
    words = [sys.executable, "-P", "-m", "farm.cli", "api", "--port", str(port)]
    child = subprocess.Popen(words, env=os.environ | {"FARM_METRICS_API_PORT": "0"})
    try:

        def answers() -> bool:
            with contextlib.suppress(httpx2.TransportError):
                return httpx2.get(f"http://127.0.0.1:{port}/readyz", trust_env=False).status_code == 200
            return False

        wait_until(answers, 60, what="the API answers")
        yield child
    finally:
        child.kill()
        child.wait()


def test_an_api_killed_while_a_body_comes_in_leaves_nothing_and_the_same_request_is_taken_once(
    farm_env: dict[str, str], count: Count
) -> None:
    store = Store.connect(Settings(), pool=1)
    with store.begin() as unit:
        tenant = unit.tenants.create("killed")
        _, key = unit.tenants.create_key(tenant.id, "all", frozenset(Scope))
    store.close()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    jobs = b"".join(b'{"prompt":"ball %d","custom_id":"ball-%d"}\n' % (n, n) for n in range(20_000))
    path = "/v1/batches?task=text-to-image&width=64&height=64"
    headers = JSONL | {"Idempotency-Key": "night", "Authorization": f"Bearer {key}"}
    staging = "pg_stat_activity WHERE datname = current_database() AND query LIKE 'COPY staged%'"
    choose = random.Random(5)

    def sent_in_part(at: int, then: Callable[[], Any]) -> Iterator[bytes]:
        """The body up to a byte, and the rest only after something happened."""
        yield jobs[:at]
        then()
        yield jobs[at:]

    for while_received in (True, False):
        with process(port) as server:

            def kill(server: subprocess.Popen[bytes] = server) -> None:
                server.send_signal(signal.SIGKILL)
                server.wait()

            def kill_while_lines_are_staged(kill: Callable[[], None] = kill) -> None:
                wait_until(lambda: count(staging) == 1, 20, every=0.005, what="lines are copied into the database")
                kill()

            cut = choose.randrange(len(jobs) // 4, len(jobs))
            address = f"http://127.0.0.1:{port}"
            killer = threading.Thread(target=(lambda: None) if while_received else kill_while_lines_are_staged)
            killer.start()
            with (
                httpx2.Client(base_url=address, timeout=60, trust_env=False) as client,
                pytest.raises(httpx2.TransportError),
            ):
                client.post(path, content=sent_in_part(cut, kill) if while_received else jobs, headers=headers)
            killer.join()
        # the database notices by itself that nobody is at the other end
        wait_until(lambda: count(staging) == 0, 20, what="the broken transaction ends")
        assert [count(table) for table in ("job", "batch", "idempotency", "event")] == [0, 0, 0, 0]
    with process(port), httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
        first = client.post(path, content=jobs, headers=headers)
        again = client.post(path, content=jobs, headers=headers)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["id"] == again.json()["id"]
    assert (count("job"), count("batch")) == (20_000, 1)
