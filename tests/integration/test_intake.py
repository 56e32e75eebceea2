"""Input images on their way into the bucket: as bytes, as a data URL, by URL."""

from __future__ import annotations

import base64
import hashlib
import io
import ipaddress
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING
from urllib.parse import quote
from uuid import uuid4

import pytest
from PIL import Image
from pydantic import SecretStr

from farm.domain.job_spec import InputFile
from farm.egress import guard
from farm.errors import InputRefused
from farm.objects.intake import Intake
from farm.objects.storage import Storage
from farm.settings import Settings
from tests.unit.test_media_encoders import clip, tone
from workers.media import audio, video

if TYPE_CHECKING:
    from tests.conftest import TestServers

LIMIT = 100_000  # bytes


def image(seed: int = 0, kind: str = "PNG", size: tuple[int, int] = (40, 24)) -> bytes:
    out = io.BytesIO()
    Image.effect_noise(size, 50 + seed).convert("RGB").save(out, kind)
    return out.getvalue()


@pytest.fixture(scope="module")
def settings(servers: TestServers) -> Settings:
    return Settings(
        s3_endpoint_url=servers.s3_endpoint_url,
        s3_access_key=servers.s3_access_key,
        s3_secret_key=SecretStr(servers.s3_secret_key),
        s3_bucket=servers.s3_bucket,
        max_input_bytes=LIMIT,
        webhook_allow=(ipaddress.ip_network("127.0.0.1/32"),),
        webhook_allow_http=True,
    )


@pytest.fixture(scope="module")
def storage(settings: Settings) -> Iterator[Storage]:
    found = Storage(settings)
    yield found
    found.close()


@pytest.fixture
def intake(storage: Storage, settings: Settings) -> Intake:
    return Intake(storage, settings)


@pytest.fixture
def tenant() -> str:
    return f"ten_{uuid4().hex}"


def message(refused: pytest.ExceptionInfo[InputRefused]) -> str:
    (problem,) = refused.value.problems
    assert problem.field == "inputs.image"
    return problem.message


# -------------------------------------------------------------------------------------------------------- bytes


def test_bytes_are_stored_under_their_hash(intake: Intake, storage: Storage, tenant: str) -> None:
    data = image(kind="JPEG")
    sha256 = hashlib.sha256(data).hexdigest()
    stored = intake.from_bytes(tenant, data, "cat.png")
    assert stored == InputFile(
        sha256=sha256,
        key=f"inputs/{tenant}/{sha256}.jpg",
        media_type="image/jpeg",
        size=len(data),
        metadata={"width": 40, "height": 24},
    )
    assert storage.get(stored.key) == data
    assert storage.head(stored.key).content_type == "image/jpeg", "the content decides, not the file's name"


def test_the_same_image_has_one_place_in_each_tenant(intake: Intake, storage: Storage, tenant: str) -> None:
    data = image()
    first, second = intake.from_bytes(tenant, data), intake.from_bytes(tenant, data)
    other = intake.from_bytes(f"ten_{uuid4().hex}", data)
    assert first == second
    assert other.key != first.key, "tenants share nothing"
    assert [one.key for one in storage.list(f"inputs/{tenant}/")] == [first.key]


def test_a_second_upload_replaces_damaged_bytes(intake: Intake, storage: Storage, tenant: str) -> None:
    data = image()
    stored = intake.from_bytes(tenant, data)
    storage.put(stored.key, bytes(len(data)), "image/png")
    assert intake.from_bytes(tenant, data) == stored
    assert storage.get(stored.key) == data


def test_what_follows_the_image_is_not_stored(intake: Intake, storage: Storage, tenant: str) -> None:
    data = image(kind="JPEG")
    stored = intake.from_bytes(tenant, data + b"a motion photo's clip")
    assert storage.get(stored.key) == data
    assert stored == intake.from_bytes(tenant, data)


def test_parallel_decodes_wait_for_each_other() -> None:
    """16 times a 4096² image of few bytes: each takes over 100 MiB while it is decoded."""
    out = io.BytesIO()
    Image.new("RGB", (4096, 4096), (10, 200, 20)).save(out, "WEBP", lossless=True, method=0)
    bomb = out.getvalue()
    assert len(bomb) < 10_000
    alone = _peak_of(bomb, 1)
    together = _peak_of(bomb, 16)
    assert together < alone * 1.3, f"{alone >> 20} and {together >> 20} MiB"


_MEASURE = """
import resource, sys
from concurrent.futures import ThreadPoolExecutor
from farm.memory_tuning import return_large_blocks
from farm.objects import images
from farm.settings import Settings
return_large_blocks()
data = sys.stdin.buffer.read()
with ThreadPoolExecutor(16) as pool:
    list(pool.map(lambda _: images.inspect(data, Settings(decode_wait_seconds=120)), range(int(sys.argv[1]))))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def _peak_of(data: bytes, count: int) -> int:
    """The most memory that a process has that checks the image so many times in parallel, in bytes."""
    command = [sys.executable, "-c", _MEASURE, str(count)]
    return int(subprocess.run(command, input=data, capture_output=True, check=True, timeout=120).stdout)


@pytest.mark.parametrize(
    ("media_type", "extension"),
    [("video/mp4", "mp4"), ("image/gif", "gif"), ("audio/flac", "flac"), ("audio/ogg", "ogg")],
)
def test_clips_and_sounds_are_stored_with_what_they_hold(
    storage: Storage, settings: Settings, tenant: str, media_type: str, extension: str
) -> None:
    intake = Intake(storage, settings.model_copy(update={"max_input_bytes": 2**20}))
    if media_type.startswith("audio/"):
        data, metadata = audio.encode(tone(), extension, "{}")
    else:
        data, metadata = video.encode(clip(fps=10), extension, "{}")
    stored = intake.from_data_url(tenant, "data:;base64," + base64.b64encode(data).decode(), field="video")
    assert stored.key.endswith(f"{hashlib.sha256(data).hexdigest()}.{extension}")
    assert (stored.media_type, stored.size, stored.metadata) == (media_type, len(data), metadata)
    assert storage.get(stored.key) == data
    assert storage.get_range(stored.key, 10, 20) == data[10:30]


def test_a_refused_image_is_not_stored_and_names_its_file(intake: Intake, storage: Storage, tenant: str) -> None:
    with pytest.raises(InputRefused) as refused:
        intake.from_bytes(tenant, b"<svg/>", "cat.svg", field="inputs.image")
    assert "'cat.svg': the file is an SVG" in message(refused)
    assert list(storage.list(f"inputs/{tenant}/")) == []


# ----------------------------------------------------------------------------------------------------- data URLs


@pytest.mark.parametrize(
    "head",
    ["data:image/png;base64,", "DATA:;BASE64,", "data:image/svg+xml;base64,", "data:image/png;charset=utf-8;base64,"],
)
def test_a_data_url_is_taken_by_its_content(intake: Intake, storage: Storage, tenant: str, head: str) -> None:
    data = image(1)
    text = base64.b64encode(data).decode()
    stored = intake.from_data_url(tenant, head + text)
    assert stored.media_type == "image/png"
    assert storage.get(stored.key) == data
    assert intake.from_data_url(tenant, head + text.rstrip("=")) == stored, "padding may be left out"
    assert intake.from_data_url(tenant, head + quote(text, safe="")) == stored, "and escapes are undone"
    lines = "\r\n".join(text[start : start + 76] for start in range(0, len(text), 76))
    assert intake.from_data_url(tenant, head + lines) == stored, "and it may be wrapped in lines"


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("data:image/png,%89PNG", "base64"),
        ("data:image/png;base64", "form"),
        ("data:", "form"),
        ("image/png;base64,AAAA", "form"),
        ("data:image/png;base64,A", "not valid base64"),
        ("data:image/png;base64,AA*AA", "not valid base64"),
        ("data:image/png;base64,AAAA\u00e4", "not valid base64"),
        ("data:image/png;base64,", "empty"),
        ("data:" + "a" * 300 + ";base64,AAAA", "form"),
        ("data:image/png;base64," + base64.b64encode(b"GIF89a").decode(), "GIF"),
    ],
)
def test_other_data_urls_are_refused(intake: Intake, tenant: str, url: str, why: str) -> None:
    with pytest.raises(InputRefused) as refused:
        intake.from_data_url(tenant, url, field="inputs.image")
    assert why in message(refused)


def test_a_large_data_url_is_refused_before_it_is_decoded(
    intake: Intake, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(*_: object, **__: object) -> bytes:
        raise AssertionError("decoded")

    monkeypatch.setattr(base64, "b64decode", decode)
    for data in ("A" * (LIMIT // 3 * 4 + 8), "%41" * (LIMIT // 3 * 4 + 8)):
        with pytest.raises(InputRefused) as refused:
            intake.from_data_url(tenant, "data:image/png;base64," + data, field="inputs.image")
        assert "at most 100,000 bytes" in message(refused)


# ---------------------------------------------------------------------------------------------------------- URLs


class Host:
    """Answers every connection on loopback by a function of the test's, raw: well-behaved servers prove nothing."""

    def __init__(self, answer: Callable[[socket.socket], None]) -> None:
        self.connections = 0
        self._answer = answer
        self._stop = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._serve)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}/cat.png"

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            thread = threading.Thread(target=self._one, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _one(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(10)
            try:
                while not connection.recv(65536).endswith(b"\r\n\r\n"):
                    pass
                self._answer(connection)
            except OSError:  # the client has heard enough
                pass

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def host() -> Iterator[Callable[[Callable[[socket.socket], None]], Host]]:
    made: list[Host] = []

    def make(answer: Callable[[socket.socket], None]) -> Host:
        made.append(Host(answer))
        return made[-1]

    yield make
    for one in made:
        one.close()


Hosts = Callable[[Callable[[socket.socket], None]], Host]


def answering(status: str, *headers: str, body: bytes = b"") -> Callable[[socket.socket], None]:
    head = "\r\n".join((f"HTTP/1.1 {status}", *headers, "", ""))
    return lambda connection: connection.sendall(head.encode() + body)


def test_an_image_is_fetched(intake: Intake, storage: Storage, tenant: str, host: Hosts) -> None:
    data = image(2)
    # The declared type is a lie, and there is no length: the content decides.
    stored = intake.from_url(tenant, host(answering("200 OK", "Content-Type: text/html", body=data)).url)
    assert (stored.media_type, stored.size) == ("image/png", len(data))
    assert storage.get(stored.key) == data


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (answering("302 Found", "Location: http://169.254.169.254/", "Content-Length: 0"), "redirect"),
        (answering("404 Not Found", "Content-Length: 0"), "answered 404"),
        (answering("206 Partial Content", "Content-Length: 0"), "answered 206"),
        (answering("200 OK", "Content-Length: 0"), "empty"),
        (answering("200 OK", "Content-Length: 6", body=b"<svg/>"), "SVG"),
        (answering("200 OK", "Content-Length: 100001", body=image(3)), "at most 100,000"),
        (answering("200 OK", "Content-Length: " + "9" * 5000, body=image(3)), "could not be fetched"),
        (answering("200 OK", body=bytes(LIMIT + 1)), "at most 100,000"),
        (answering("200 OK", "Content-Encoding: gzip", body=b"\x1f\x8b"), "compressed"),
        (answering("200 OK", "Content-Length: 5000", body=image(4)[:100]), "could not be fetched"),
        (answering("what", "is: this"), "could not be fetched"),
        (answering("200 OK", "X: " + "x" * 300_000), "could not be fetched"),
        (lambda _: None, "could not be fetched"),
    ],
    ids=[
        "redirect", "404", "206", "empty", "svg", "long", "absurd", "longer-than-said", "gzip", "short", "rubbish",
        "header", "silence",
    ],
)  # fmt: skip
def test_other_answers_are_refused(
    intake: Intake,
    storage: Storage,
    tenant: str,
    host: Hosts,
    answer: Callable[[socket.socket], None],
    why: str,
) -> None:
    with pytest.raises(InputRefused) as refused:
        intake.from_url(tenant, host(answer).url, field="inputs.image")
    assert why in message(refused)
    assert list(storage.list(f"inputs/{tenant}/")) == []


def drip(first: bytes) -> Callable[[socket.socket], None]:
    def answer(connection: socket.socket) -> None:
        connection.sendall(first)
        end = time.monotonic() + 10
        while time.monotonic() < end:  # each byte comes long before any read would time out
            connection.sendall(b"x")
            time.sleep(0.02)

    return answer


@pytest.mark.parametrize("first", [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\n\r\n"], ids=["headers", "body"])
def test_a_host_that_drips_is_left_at_the_deadline(
    storage: Storage, settings: Settings, tenant: str, host: Hosts, first: bytes
) -> None:
    hasty = Intake(storage, settings, fetch_seconds=0.5)
    began = time.monotonic()
    with pytest.raises(InputRefused) as refused:
        hasty.from_url(tenant, host(drip(first)).url, field="inputs.image")
    assert "within 0.5 seconds" in message(refused)
    assert time.monotonic() - began < 5


def test_an_endless_body_is_left_at_the_limit(intake: Intake, tenant: str, host: Hosts) -> None:
    sent = 0

    def answer(connection: socket.socket) -> None:
        nonlocal sent
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while sent < 200 * LIMIT:
            sent += connection.send(bytes(65536))

    with pytest.raises(InputRefused) as refused:
        intake.from_url(tenant, host(answer).url, field="inputs.image")
    assert "at most 100,000" in message(refused)
    assert sent < 200 * LIMIT


def test_a_url_inside_is_refused_and_opens_no_connection(storage: Storage, tenant: str, host: Hosts) -> None:
    listening = host(answering("200 OK"))
    closed = Intake(storage, Settings(webhook_allow_http=True))
    with pytest.raises(guard.TargetRefused) as refused:
        closed.from_url(tenant, listening.url, field="inputs.image")
    assert refused.value.problems[0].field == "inputs.image"
    inside = Intake(storage, Settings(webhook_allow_http=True), resolver=lambda _host, _port: ["127.0.0.1"])
    with pytest.raises(guard.TargetRefused, match="not on the public internet") as refused:
        inside.from_url(tenant, "http://cats.example.com/cat.png", field="inputs.image")
    assert refused.value.problems[0].field == "inputs.image"
    assert listening.connections == 0
