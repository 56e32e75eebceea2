"""The bucket, on a real S3 server."""

from __future__ import annotations

import base64
import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from botocore.exceptions import ClientError
from pydantic import SecretStr

from farm.errors import NotFound, StorageUnavailable
from farm.objects.storage import Storage
from farm.settings import Settings

if TYPE_CHECKING:
    from tests.conftest import TestServers


def of(servers: TestServers, **changes: object) -> Settings:
    return Settings(
        s3_endpoint_url=servers.s3_endpoint_url,
        s3_access_key=servers.s3_access_key,
        s3_secret_key=SecretStr(servers.s3_secret_key),
        s3_bucket=servers.s3_bucket,
    ).model_copy(update=changes)


@pytest.fixture(scope="module")
def storage(servers: TestServers) -> Iterator[Storage]:
    found = Storage(of(servers))
    yield found
    found.close()


@pytest.fixture
def prefix() -> str:
    """A corner of the bucket that no other test writes to."""
    return f"tests/{uuid4().hex}/"


def fetch(url: str) -> tuple[int, bytes, str | None]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read(), answer.headers["Content-Disposition"]
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), None


def test_what_was_put_comes_back(storage: Storage, prefix: str) -> None:
    body = os.urandom(700_000)  # several chunks
    put = storage.put(prefix + "a.png", body, "image/png", {"seed": "7"})
    assert put.sha256 == hashlib.sha256(body).hexdigest()
    assert storage.get(put.key) == body
    head = storage.head(put.key)
    assert (head.bytes, head.content_type, head.sha256, head.metadata) == (
        len(body),
        "image/png",
        put.sha256,
        {"seed": "7"},
    )
    assert head.modified is not None
    with storage.open(put.key) as opened:
        assert opened.about.sha256 == put.sha256
        chunks = list(opened)
    assert b"".join(chunks) == body
    assert len(chunks) > 1


def test_an_empty_object_is_an_object(storage: Storage, prefix: str) -> None:
    storage.put(prefix + "empty", b"", "application/json")
    assert storage.get(prefix + "empty") == b""


def test_a_file_is_put_from_disk(storage: Storage, prefix: str, tmp_path: Path) -> None:
    path = tmp_path / "image.webp"
    path.write_bytes(os.urandom(3_000_000))
    put = storage.put_file(prefix + "f.webp", path, "image/webp")
    assert put.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert storage.get(put.key) == path.read_bytes()


def test_a_body_damaged_on_the_way_is_not_stored(storage: Storage, prefix: str) -> None:
    wrong = hashlib.sha256(b"something else").digest()
    with pytest.raises(StorageUnavailable, match="BadDigest") as failed:
        storage._put(prefix + "bad", b"body", 4, wrong, "image/png", None)
    assert isinstance(failed.value.__cause__, ClientError)
    assert not storage.exists(prefix + "bad")


def test_an_object_that_is_not_there_is_not_found(storage: Storage, prefix: str) -> None:
    for read in (storage.get, storage.head, storage.open):
        with pytest.raises(NotFound, match="nothing"):
            read(prefix + "nothing")
    assert not storage.exists(prefix + "nothing")
    storage.delete(prefix + "nothing")


def test_a_deleted_object_is_gone(storage: Storage, prefix: str) -> None:
    storage.put(prefix + "a", b"1", "image/png")
    assert storage.exists(prefix + "a")
    storage.delete(prefix + "a")
    assert not storage.exists(prefix + "a")


def test_a_listing_holds_the_prefix_and_nothing_else(storage: Storage, prefix: str) -> None:
    for name in ("b/2", "b/1", "a", "ba"):
        storage.put(prefix + name, b"123", "image/png")
    listed = list(storage.list(prefix + "b/"))
    assert [entry.key for entry in listed] == [prefix + "b/1", prefix + "b/2"]
    assert {entry.bytes for entry in listed} == {3}
    assert list(storage.list(prefix + "z")) == []


def test_a_listing_goes_on_after_its_first_page(storage: Storage, prefix: str) -> None:
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda n: storage.put(f"{prefix}{n:04}", b"", "image/png"), range(1005)))
    assert [entry.key for entry in storage.list(prefix)] == [f"{prefix}{n:04}" for n in range(1005)]


def test_one_storage_serves_many_threads(storage: Storage, prefix: str) -> None:
    bodies = {f"{prefix}{n}": os.urandom(10_000) for n in range(40)}
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda item: storage.put(item[0], item[1], "image/png"), bodies.items()))
        assert list(threads.map(storage.get, bodies)) == list(bodies.values())


def test_a_presigned_url_lets_anyone_read_for_a_while(storage: Storage, prefix: str) -> None:
    storage.put(prefix + "a.png", b"image", "image/png")
    url = storage.presign_get(prefix + "a.png", 60, 'Straße "1"/2.png')
    status, body, disposition = fetch(url)
    assert (status, body) == (200, b"image")
    assert disposition == "inline; filename=\"Stra_e _1__2.png\"; filename*=UTF-8''Stra%C3%9Fe%20%221%22_2.png"
    assert fetch(url.split("?")[0])[0] == 403, "without the signature nobody reads"
    assert fetch(url.replace("a.png?", "b.png?"))[0] == 403, "the signature is for one object"


def test_a_presigned_url_gives_parts_to_a_player(storage: Storage, prefix: str) -> None:
    storage.put(prefix + "a.mp4", bytes(range(100)), "video/mp4")
    asked = urllib.request.Request(storage.presign_get(prefix + "a.mp4", 60, "a.mp4"), headers={"Range": "bytes=10-19"})
    with urllib.request.urlopen(asked, timeout=10) as answer:
        assert (answer.status, answer.read()) == (206, bytes(range(10, 20)))
        assert answer.headers["Content-Range"] == "bytes 10-19/100"


def test_a_presigned_url_is_for_the_host_that_clients_reach(servers: TestServers, prefix: str) -> None:
    port = urlsplit(servers.s3_endpoint_url).port
    public = Storage(of(servers, s3_public_url=f"http://localhost:{port}"))
    public.put(prefix + "a.png", b"image", "image/png")
    url = public.presign_get(prefix + "a.png", 60)
    assert url.startswith(f"http://localhost:{port}/{servers.s3_bucket}/{prefix}a.png?")
    assert fetch(url)[:2] == (200, b"image")
    public.close()


def test_the_bucket_is_made_once(servers: TestServers) -> None:
    fresh = Storage(of(servers, s3_bucket=f"made-{uuid4().hex[:12]}"))
    with pytest.raises(StorageUnavailable, match="no bucket"):
        fresh.check()
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: fresh.ensure_bucket(), range(8)))
    fresh.check()
    fresh.put("a", b"1", "image/png")
    assert fresh.get("a") == b"1"
    fresh.close()


def test_a_wrong_key_is_an_unavailable_storage(servers: TestServers) -> None:
    stranger = Storage(of(servers, s3_secret_key=SecretStr("wrong")))
    with pytest.raises(StorageUnavailable, match=r"403|SignatureDoesNotMatch|AccessDenied") as failed:
        stranger.check()
    assert "wrong" not in str(failed.value)
    with pytest.raises(StorageUnavailable):
        stranger.get("a")
    stranger.close()


def test_a_storage_that_does_not_answer_is_unavailable_and_not_empty(servers: TestServers) -> None:
    # Port 9 of loopback: nobody listens there.
    gone = Storage(of(servers, s3_endpoint_url="http://127.0.0.1:9"))
    with pytest.raises(StorageUnavailable):
        gone.check()
    gone.close()


def test_the_stored_checksum_is_the_content_s(storage: Storage, prefix: str) -> None:
    put = storage.put(prefix + "a", b"abc", "image/png")
    assert put.sha256 is not None
    raw = storage._client.head_object(Bucket=storage.bucket, Key=put.key, ChecksumMode="ENABLED")
    assert raw["ChecksumSHA256"] == base64.b64encode(bytes.fromhex(put.sha256)).decode()
