"""The storage on S3 servers that differ: SeaweedFS, moto and rclone, and what a server or a proxy may refuse."""

from __future__ import annotations

import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from pydantic import SecretStr

from farm.errors import NotFound
from farm.objects.presign import Credentials, Presigner
from farm.objects.storage import Storage
from farm.settings import Settings
from tests import programs
from tests.conftest import TestServers

KEYS = ("AKIAIOSFODNN7EXAMPLE", "a secret key of the tests")


@pytest.fixture(scope="module", params=["seaweedfs", "moto", "rclone"])
def server(
    request: pytest.FixtureRequest, servers: TestServers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Settings]:
    """The settings of a running server."""
    directory = tmp_path_factory.mktemp("s3")
    access, secret = KEYS
    if request.param == "seaweedfs":
        yield of(servers.s3_endpoint_url, servers.s3_access_key, servers.s3_secret_key, servers.s3_bucket)
        return
    port = programs.free_port()
    bin_ = Path(sys.executable).parent
    if request.param == "moto":
        argv: tuple[str, ...] = (sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port))
    else:
        argv = (
            str(bin_ / "rclone"), "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", f"{access},{secret}",
            str(directory),
        )  # fmt: skip
    with programs.running(argv, port, directory / "log"):
        yield of(f"http://127.0.0.1:{port}", access, secret, f"bucket-{uuid4().hex[:8]}")


def of(endpoint: str, access: str, secret: str, bucket: str) -> Settings:
    return Settings(s3_endpoint_url=endpoint, s3_access_key=access, s3_secret_key=SecretStr(secret), s3_bucket=bucket)


@pytest.mark.parametrize("checksums", [True, False])
def test_what_the_farm_does_with_a_bucket(server: Settings, checksums: bool, request: pytest.FixtureRequest) -> None:
    keeps_metadata = request.node.callspec.params["server"] != "rclone"  # it has no place for them, nor for checksums
    storage = Storage(server.model_copy(update={"s3_checksums": checksums}))
    prefix = f"tests/{uuid4().hex}/"
    storage.ensure_bucket()
    storage.ensure_bucket()
    storage.check()
    put = storage.put(f"{prefix}a b+é.png", b"image", "image/png", {"farm-recipe": "x" * 1000})
    assert put.sha256 is not None
    assert storage.get(put.key) == b"image"
    head = storage.head(put.key)
    assert (head.bytes, head.content_type) == (5, "image/png")
    if keeps_metadata:
        assert head.metadata["farm-recipe"] == "x" * 1000
        assert checksums or head.sha256 == put.sha256
    url = storage.presign_get(put.key, 60, "a b.png")
    with urllib.request.urlopen(url, timeout=10) as answer:
        assert answer.read() == b"image"
    keys = [f"{prefix}{number}" for number in range(20)]
    for key in keys:
        storage.put(key, b"x", "text/plain")
    assert {one.key for one in storage.list(prefix)} == {put.key, *keys}
    storage.delete_many([*keys, f"{prefix}never-there"])
    assert [one.key for one in storage.list(prefix)] == [put.key]
    storage.delete(put.key)
    with pytest.raises(NotFound):
        storage.head(put.key)
    storage.close()


def test_a_bulk_delete_carries_its_md5_and_a_put_no_checksum_of_the_sdk(server: Settings) -> None:
    storage = Storage(server.model_copy(update={"s3_checksums": False}))
    storage.ensure_bucket()
    sent: list[dict[str, str]] = []
    storage._client.meta.events.register("before-send.s3", lambda request, **_: sent.append(dict(request.headers)))
    storage.put("a", b"1", "text/plain")
    storage.delete_many(["a"])
    storage.close()
    put, delete = sent
    assert not any(name.lower().startswith("x-amz-checksum") for name in put)
    assert any(name.lower() == "content-md5" for name in delete)


def test_a_proxy_of_the_environment_is_not_asked_for_a_server_on_this_machine(
    servers: TestServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    storage = Storage(of(servers.s3_endpoint_url, servers.s3_access_key, servers.s3_secret_key, servers.s3_bucket))
    storage.check()
    storage.close()


@pytest.mark.parametrize(
    ("endpoint", "virtual", "url"),
    [
        ("https://s3.example.com:443", False, "https://s3.example.com/farm/k?"),
        ("http://s3.example.com:80", False, "http://s3.example.com/farm/k?"),
        ("http://s3.example.com:443", False, "http://s3.example.com:443/farm/k?"),
        ("https://s3.example.com:8443/prefix/", False, "https://s3.example.com:8443/prefix/farm/k?"),
        ("https://s3.example.com", True, "https://farm.s3.example.com/k?"),
    ],
)
def test_the_signed_host_is_the_one_that_clients_send(endpoint: str, virtual: bool, url: str) -> None:
    made = Presigner(endpoint, "farm", "us-east-1", lambda: Credentials(*KEYS, None), virtual=virtual)
    assert made.get("k", 60).startswith(url)
    assert made._host == url.split("/")[2]
