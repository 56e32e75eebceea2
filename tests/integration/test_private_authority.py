"""``FARM_CA_FILE``: one setting by which every client of the farm trusts a private certificate authority."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import SecretStr, ValidationError

from farm import tracing
from farm.cli.enroll import join
from farm.client import ApiError, AsyncFarm, Farm, Unreachable
from farm.client.models import Output
from farm.egress import guard
from farm.errors import BadInput, DatabaseUnavailable, FarmError, StorageUnavailable
from farm.objects.storage import Storage
from farm.settings import Settings
from farm.store.connection import Database
from tests.conftest import TestServers
from tests.pooler import pgbouncer
from tests.tls import Authority, terminate


@dataclass(frozen=True)
class Secured:
    """Servers of the tests behind certificates of a private authority."""

    ca_file: Path
    s3_port: int
    other_name_port: int  #: the same with a certificate of another host


@pytest.fixture(scope="module")
def secured(servers: TestServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    ours = Authority(tmp_path_factory.mktemp("authority"))
    port = urlsplit(servers.s3_endpoint_url).port
    assert port is not None
    with (
        terminate(port, ours.issue("127.0.0.1", "localhost")) as s3,
        terminate(port, ours.issue("s3.example.com")) as other,
    ):
        yield Secured(ours.ca_file, s3, other)


def of(servers: TestServers, port: int, ca_file: Path | None) -> Settings:
    return Settings(
        s3_endpoint_url=f"https://127.0.0.1:{port}",
        s3_access_key=servers.s3_access_key,
        s3_secret_key=SecretStr(servers.s3_secret_key),
        s3_bucket=servers.s3_bucket,
        ca_file=ca_file,
        webhook_allow="127.0.0.0/8",
    )


def test_s3_trusts_it_and_checks_the_host(servers: TestServers, secured: Secured) -> None:
    storage = Storage(of(servers, secured.s3_port, secured.ca_file))
    storage.check()
    storage.close()
    for port, ca_file in ((secured.s3_port, None), (secured.other_name_port, secured.ca_file)):
        stranger = Storage(of(servers, port, ca_file))
        with pytest.raises(StorageUnavailable, match="check the server's certificate"):
            stranger.check()
        stranger.close()


def test_webhooks_and_inputs_trust_it(servers: TestServers, secured: Secured) -> None:
    url = f"https://127.0.0.1:{secured.s3_port}/"
    trusting = of(servers, secured.s3_port, secured.ca_file)
    with guard.client(trusting) as client:
        assert client.get(url).status_code == 403  # S3 wants a signature

    class Closing(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            transport.close()

    async def connect(settings: Settings) -> None:
        await guard.PinnedConnector(settings).open(url, Closing, 5)
        await asyncio.sleep(0.2)  # TLS is closed, too

    anyio.run(connect, trusting)
    with pytest.raises(OSError, match="certificate verify failed"):
        anyio.run(connect, of(servers, secured.s3_port, None))


@pytest.fixture
def collector() -> Iterator[int]:
    """A collector that takes everything."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def test_traces_trust_it(collector: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    provider.get_tracer("tests").start_span("one").end()
    ours = Authority(tmp_path)
    with terminate(collector, ours.issue("127.0.0.1")) as port:
        endpoint = f"https://127.0.0.1:{port}"
        trusting = tracing.make_exporter(Settings(otel_endpoint=endpoint, ca_file=ours.ca_file))
        assert trusting.export(kept.get_finished_spans()) is SpanExportResult.SUCCESS
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
        stranger = tracing.make_exporter(Settings(otel_endpoint=endpoint))
        assert stranger.export(kept.get_finished_spans()) is SpanExportResult.FAILURE


def test_joining_trusts_it(secured: Secured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_CA_FILE", str(secured.ca_file))
    with pytest.raises(FarmError, match="answers 501"):  # S3, not a farm: it was asked
        join(f"https://127.0.0.1:{secured.s3_port}", "join_x", {})
    monkeypatch.delenv("FARM_CA_FILE")
    with pytest.raises(FarmError, match="CERTIFICATE_VERIFY_FAILED"):
        join(f"https://127.0.0.1:{secured.s3_port}", "join_x", {})


def test_the_client_trusts_it_for_the_farm_and_for_outputs(
    secured: Secured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = f"https://127.0.0.1:{secured.s3_port}"
    output = Output("job_1", 0, f"{url}/bucket/key", "image/png", 1, "0" * 64, 1, 8, 8, {})

    async def models() -> None:
        async with AsyncFarm(url, "k", retries=0) as farm:
            await farm.models()

    monkeypatch.setenv("FARM_CA_FILE", str(secured.ca_file))
    with Farm(url, "k", retries=0) as farm:
        with pytest.raises(ApiError):  # S3, not a farm: it was asked
            farm.models()
        with pytest.raises(ApiError):
            farm.download(output)
    with pytest.raises(ApiError):
        anyio.run(models)
    monkeypatch.delenv("FARM_CA_FILE")
    with Farm(url, "k", retries=0) as farm, pytest.raises(Unreachable, match=r"^no farm answers at .* FARM_CA_FILE"):
        farm.models()
    with (
        Farm("http://127.0.0.1:1", "k", retries=0) as farm,
        pytest.raises(Unreachable, match=rf"^{url} does not answer: .* FARM_CA_FILE"),
    ):
        farm.download(output)
    monkeypatch.setenv("FARM_CA_FILE", str(tmp_path / "missing.pem"))
    with pytest.raises(BadInput, match="FARM_CA_FILE: is no file of PEM certificates"):
        Farm(url, "k")


def test_postgresql_gets_it_where_the_url_requires_tls(secured: Secured) -> None:
    url = "postgresql://farm@127.0.0.1:1/farm"
    verified = Database.of(Settings(database_url=f"{url}?sslmode=verify-full", ca_file=secured.ca_file))
    assert verified.parameters["sslrootcert"] == str(secured.ca_file)
    own = f"{url}?sslmode=verify-full&sslrootcert=/other.pem"
    assert Database.of(Settings(database_url=own, ca_file=secured.ca_file)).parameters["sslrootcert"] == "/other.pem"
    # with sslmode=prefer libpq would go on without TLS where the certificate is refused
    assert "sslrootcert" not in Database.of(Settings(database_url=url, ca_file=secured.ca_file)).parameters


def test_postgresql_verifies_with_it(database_url: str, tmp_path: Path) -> None:
    """Through PgBouncer, because the bundled server is built without TLS."""
    ours, other = Authority(tmp_path), Authority(tmp_path, "other")
    pem = ours.issue("127.0.0.1")
    pem.chmod(0o644)
    lines = ("client_tls_sslmode = require", f"client_tls_key_file = {pem}", f"client_tls_cert_file = {pem}")
    with pgbouncer(database_url, tmp_path / "pgbouncer", "session", *lines) as url:
        secure = f"{url}?sslmode=verify-full"
        connection = Database.of(Settings(database_url=secure, ca_file=ours.ca_file)).session("tests")
        assert connection.info.get_parameters()["sslmode"] == "verify-full"
        connection.close()
        for refused in (
            Settings(database_url=secure, ca_file=other.ca_file),
            Settings(database_url=secure.replace("127.0.0.1", "localhost"), ca_file=ours.ca_file),
        ):
            with pytest.raises(DatabaseUnavailable, match="check the server's certificate"):
                Database.of(refused).session("tests")


def test_a_file_that_holds_no_certificates_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("nothing")
    for path in (tmp_path / "empty.pem", tmp_path / "missing.pem"):
        with pytest.raises(ValidationError, match="is no file of PEM certificates"):
            Settings(ca_file=path)
    done = subprocess.run(
        [sys.executable, "-m", "farm.cli", "doctor"],
        env={**os.environ, "FARM_CA_FILE": str(tmp_path / "missing.pem")}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "FARM_CA_FILE" in done.stdout
    assert "Traceback" not in done.stderr
