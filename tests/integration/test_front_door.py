"""The front door of the compose file: HAProxy as it is configured there, before API processes that stop and die."""

from __future__ import annotations

import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

import httpx2
import pytest

from farm.cli.enroll import join
from farm.objects.storage import Storage
from farm.redis_server import RedisServer
from farm.settings import Settings, settings
from farm.store import worker_role
from farm.store.connection import Database
from farm.store.tenants import Scope
from farm.store.unit_of_work import Store
from tests import programs
from tests.conftest import TestServers
from tests.tls import Authority
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
CONFIGURATION = ROOT / "infra" / "front-door" / "haproxy.cfg"
JOINING = ROOT / "infra" / "front-door" / "join.cfg"
JOB = {"task": "text-to-image", "model": "starter", "prompt": "a red ball on a blue background"}
#: The one line that only works where containers have names; here each API has a port.
BY_NAME = "  server-template api 8 api.edge:8000 resolvers containers\n"


class ApiProcess:
    """One ``farm api``, as its container runs it."""

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        self.port = programs.free_port()
        self._environment = {**os.environ, **environment, "FARM_API_PORT": str(self.port)}
        self._log = log
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with self._log.open("ab") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "farm.cli", "api"], env=self._environment, stdout=stream, stderr=stream
            )
        wait_until(self.ready, 60, what="the API answers")

    def ready(self) -> bool:
        """Whether it takes requests."""
        assert self.process.poll() is None, self._log.read_text()[-2000:]
        try:
            return httpx2.get(f"http://127.0.0.1:{self.port}/readyz", trust_env=False).status_code == 200
        except httpx2.TransportError:
            return False

    def end(self, number: signal.Signals) -> None:
        """Send it a signal, and wait for its end."""
        self.process.send_signal(number)
        self.process.wait(30)


@contextmanager
def front_door(ports: list[int], directory: Path, certificate: Path | None = None, more: str = "") -> Iterator[str]:
    """HAProxy before what listens at these ports; yields its URL. ``more``: configuration of another file."""
    program = programs.find("haproxy")
    text = CONFIGURATION.read_text()
    assert BY_NAME in text
    servers = "".join(f"  server api{number} 127.0.0.1:{port}\n" for number, port in enumerate(ports))
    port, metrics = programs.free_port(), programs.free_port()
    text = text.replace(BY_NAME, servers).replace("bind :8080", f"bind 127.0.0.1:{port}")
    text = text.replace("bind :9468", f"bind 127.0.0.1:{metrics}").replace("init-addr none", "")
    files = directory / "front-door"
    files.mkdir(exist_ok=True)
    (files / "10-api.cfg").write_text(text)
    if more:
        (files / "20-join.cfg").write_text(more)
    argv = [program, "-W", "-db", "-f", str(files)]
    url = f"http://127.0.0.1:{port}"
    with programs.running(
        argv, port, directory / "haproxy.log", env={"FRONT_DOOR_CERTIFICATE": str(certificate or "")}
    ):
        wait_until(lambda: _up(metrics) >= len(ports) + more.count("  server "), 20, what="HAProxy has found every API")
        yield url


def _up(metrics: int) -> int:
    try:
        text = httpx2.get(f"http://127.0.0.1:{metrics}/metrics", trust_env=False).text
    except httpx2.TransportError:
        return 0
    return sum(line.startswith("haproxy_server_status{") and 'state="UP"} 1' in line for line in text.splitlines())


class Submitter(threading.Thread):
    """Submits a job every half second, each with a key of its own, and never twice."""

    def __init__(self, url: str, key: str) -> None:
        super().__init__(name="submitter")
        self._url = url
        self._key = key
        self._closing = threading.Event()
        self.faults: list[str] = []
        self.jobs: set[str] = set()
        self.slowest = 0.0

    def run(self) -> None:
        number = 0
        with httpx2.Client(base_url=self._url, timeout=120, trust_env=False) as client:
            while not self._closing.wait(0.5):
                number += 1
                headers = {"Authorization": f"Bearer {self._key}", "Idempotency-Key": f"job {number}"}
                begun = time.monotonic()
                try:
                    answer = client.post("/v1/jobs", json=JOB | {"seed": number}, headers=headers)
                except httpx2.TransportError as error:
                    self.faults.append(repr(error))
                    continue
                self.slowest = max(self.slowest, time.monotonic() - begun)
                if answer.status_code in (200, 201):
                    self.jobs.add(answer.json()["id"])
                else:
                    self.faults.append(f"{answer.status_code} {answer.text[:200]}")
        self.sent = number

    def close(self) -> None:
        self._closing.set()
        self.join(130)


@pytest.fixture
def key(farm_env: Mapping[str, str]) -> str:
    store = Store.connect(settings(), pool=1)
    with store.begin() as unit:
        _, text = unit.tenants.create_key(unit.tenants.create("studio").id, "all", frozenset(Scope))
    store.close()
    return text


@pytest.fixture
def apis(farm_env: Mapping[str, str], tmp_path: Path) -> Iterator[list[ApiProcess]]:
    environment = {**farm_env, "FARM_API_DRAIN_SECONDS": "2.5", "FARM_TRUSTED_PROXIES": "*"}
    found = [ApiProcess(environment, tmp_path / f"api{number}.log") for number in range(2)]
    yield found
    for api in found:
        if api.process.poll() is None:
            api.end(signal.SIGKILL)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["rolling restart", "killed"])
def test_no_submission_fails_while_each_api_is_replaced(
    apis: list[ApiProcess], key: str, tmp_path: Path, how: signal.Signals
) -> None:
    with front_door([api.port for api in apis], tmp_path) as url:
        submitter = Submitter(url, key)
        submitter.start()
        try:
            for api in apis:
                api.end(how)
                api.start()
                wait_until(lambda: submitter.jobs, 10, what="a job was submitted")
                time.sleep(1.5)  # the front door looks once a second, and a rolling restart waits for that
        finally:
            submitter.close()
        assert submitter.faults == []
        assert len(submitter.jobs) == submitter.sent > 4
        assert submitter.slowest < 1.5  # 0.03 to 0.06 on an idle machine
        # repeated requests made no second job
        listed = httpx2.get(
            f"{url}/v1/jobs", headers={"Authorization": f"Bearer {key}"}, params={"limit": 200}, trust_env=False
        ).json()["data"]
        assert {job["id"] for job in listed} == submitter.jobs


def test_an_api_that_stops_says_so_before_it_closes_its_port(apis: list[ApiProcess], key: str) -> None:
    first = apis[0]
    with httpx2.Client(base_url=f"http://127.0.0.1:{first.port}", trust_env=False) as client:
        assert client.get("/healthz").json()["status"] == "ok"
        assert "close" not in client.get("/readyz").headers.get("connection", "")
        first.process.send_signal(signal.SIGTERM)
        health = wait_until(lambda: (found := client.get("/healthz")).status_code == 503 and found, 5)
        assert health.json()["status"] == "stopping"
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (503, "stopping")
        # requests are served all the same, each on a connection of its own, also those of other services' clients
        listed = client.get("/compat/openai/v1/models", headers={"Authorization": f"Bearer {key}"})
        assert (listed.status_code, listed.headers["connection"]) == (200, "close")
        answer = client.post("/v1/jobs", json=JOB, headers={"Authorization": f"Bearer {key}"})
        assert answer.status_code == 201
        assert answer.headers["connection"] == "close"
        first.process.send_signal(signal.SIGTERM)  # a second signal ends the wait
        begun = time.monotonic()
        assert first.process.wait(10) is not None
        assert time.monotonic() - begun < 2


class Forgetful(BaseHTTPRequestHandler):
    """Closes the connection of the first request after each `forget` without an answer; answers the others."""

    protocol_version = "HTTP/1.1"
    heard: ClassVar[list[tuple[str, str]]] = []  #: method and X-Forwarded-For of what came, but for health checks
    forgetful: ClassVar[bool] = False

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path != "/healthz":
            self.heard.append((self.command, self.headers.get("X-Forwarded-For", "")))
            if Forgetful.forgetful:
                Forgetful.forgetful = False
                self.close_connection = True
                return
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST = do_DELETE = _answer  # noqa: N815 - http.server's names

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        pass


@pytest.fixture
def forgetful(tmp_path: Path) -> Iterator[str]:
    """The front door before one backend that sometimes forgets to answer."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Forgetful)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with front_door([server.server_address[1]], tmp_path) as url:
            yield url
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "times"),
    [
        ("POST", "/v1/jobs", {"Idempotency-Key": "a"}, b"{}", 2),
        ("POST", "/v1/jobs", {}, b"{}", 1),  # the first may have made a job
        ("POST", "/compat/openai/v1/images/generations", {"Idempotency-Key": "a"}, b"{}", 1),  # knows no such keys
        ("POST", "/v1/batches", {"Idempotency-Key": "a"}, b"{}" * 50_000, 1),  # too large to be kept
        ("DELETE", "/v1/batches/bat_1", {}, b"", 1),
        ("GET", "/v1/jobs", {}, b"", 2),
    ],
)
def test_only_what_may_be_repeated_is_sent_again(
    forgetful: str, method: str, path: str, headers: dict[str, str], body: bytes, times: int
) -> None:
    Forgetful.heard.clear()
    Forgetful.forgetful = True
    answer = httpx2.request(method, forgetful + path, headers=headers, content=body, trust_env=False)
    assert [one for one, _ in Forgetful.heard] == [method] * times
    assert answer.status_code == (200 if times == 2 else 502)


def test_nobody_pretends_to_be_another_client(forgetful: str) -> None:
    Forgetful.heard.clear()
    httpx2.get(f"{forgetful}/docs", headers={"X-Forwarded-For": "203.0.113.9"}, trust_env=False)
    assert Forgetful.heard == [("GET", "127.0.0.1")]


def test_with_a_certificate_the_same_port_speaks_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate = authority.issue("localhost", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Forgetful)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with front_door([server.server_address[1]], tmp_path, certificate=certificate) as url:
            secure = url.replace("http://", "https://")
            verify = ssl.create_default_context(cafile=str(authority.ca_file))
            answer = httpx2.get(f"{secure}/docs", verify=verify, trust_env=False)
            assert answer.status_code == 200
            assert answer.headers["strict-transport-security"]
            with pytest.raises(httpx2.TransportError):
                httpx2.get(f"{url}/docs", trust_env=False)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def certificate_of(folder: Path, *names: str) -> Path:
    """What ``infra/certificate.sh`` makes for these names."""
    folder.mkdir(exist_ok=True)
    command = [str(ROOT / "infra" / "certificate.sh"), *names]
    done = subprocess.run(
        command, env={**os.environ, "TLS_FOLDER": str(folder)}, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    return folder / f"{names[0]}.pem"


def test_a_worker_of_another_machine_reaches_every_server_through_tls(
    servers: TestServers, farm_env: dict[str, str], key: str, tmp_path: Path
) -> None:
    tls = tmp_path / "tls"
    certificate = certificate_of(tls, "127.0.0.1", "farm.example.com")
    assert (tls / "ca.key").stat().st_mode & 0o777 == 0o600
    ports = {name: programs.free_port() for name in ("postgres", "valkey", "s3")}
    urls = {name: urlsplit(farm_env[f"FARM_{of}"]) for name, of in (("valkey", "REDIS_URL"), ("s3", "S3_ENDPOINT_URL"))}
    database = urlsplit(farm_env["FARM_DATABASE_URL"])
    worker = f"farm_worker_{database.path[1:]}"
    joining = {
        "FARM_JOIN_DATABASE_URL": f"postgresql://{worker}:secret@127.0.0.1:{ports['postgres']}{database.path}"
        "?sslmode=verify-full&sslnegotiation=direct",
        "FARM_JOIN_REDIS_URL": f"rediss://:{urls['valkey'].password}@127.0.0.1:{ports['valkey']}{urls['valkey'].path}",
        "FARM_JOIN_S3_ENDPOINT_URL": f"https://127.0.0.1:{ports['s3']}",
    }
    text = JOINING.read_text().replace(" resolvers containers init-addr none", "")
    for name, inside, listening in (("postgres", 5432, 5433), ("valkey", 6379, 6380), ("s3", 8333, 8334)):
        port = (database if name == "postgres" else urls[name]).port
        assert f"bind :{listening} " in text
        text = text.replace(f"bind :{listening} ", f"bind 127.0.0.1:{ports[name]} ")
        text = text.replace(f"server {name} {name}:{inside}", f"server {name} 127.0.0.1:{port}")
    worker_role.ensure(Database.parse(farm_env["FARM_DATABASE_URL"]), worker, "secret")
    api = ApiProcess({**farm_env, **joining}, tmp_path / "api.log")
    try:
        with front_door([api.port], tmp_path, certificate, more=text) as url:
            store = Store.connect(settings(), pool=1)
            with store.begin() as unit:
                _, token = unit.join_tokens.create("elsewhere", 3600)
            store.close()
            given = {"FARM_JOIN_TOKEN": token, "FARM_DATA_DIR": str(tmp_path)}
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("FARM_CA_FILE", str(tls / "ca.pem"))
                join(url.replace("http://", "https://"), None, given)
                for name, value in given.items():
                    patch.setenv(name, value)
                elsewhere = Settings()
            assert elsewhere.database_url is not None
            assert elsewhere.database_url.get_secret_value() == joining["FARM_JOIN_DATABASE_URL"]
            with Database.of(elsewhere).connect() as connection:
                assert connection.execute("SELECT current_user").fetchone() == (worker,)
                assert connection.pgconn.ssl_in_use
            RedisServer.of(elsewhere).require_usable()
            storage = Storage(elsewhere)
            storage.check()
            storage.close()
    finally:
        api.end(signal.SIGKILL)
