"""The embedded servers under a supervisor: they keep what they were given, from whom they should, and end with it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import psutil
import psycopg
import pytest
import redis
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from redis.backoff import NoBackoff
from redis.retry import Retry

from farm.local import ports, postgres
from farm.local.process_manager import ProcessManager
from farm.local.servers import prepare
from farm.local.state import DataDirectory, Identity
from tests.conftest import TestServers
from tests.waiting import wait_until

#: Our own commands, with no variable of the test session's servers in their way.
FARM = (sys.executable, "-m", "farm.cli")


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("FARM_")}


def farm(
    *arguments: str | Path, check: bool = True, env: Mapping[str, str] | None = None, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run one command; ``env`` and ``more`` are further variables for it."""
    done = subprocess.run(
        [*FARM, *map(str, arguments)],
        env={**environment(), **(env or {}), **more},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


@dataclass
class Farm:
    """A farm of servers alone, and its three doors."""

    path: Path
    told: dict[str, Any]

    @property
    def directory(self) -> DataDirectory:
        return DataDirectory(self.path)

    def pids(self) -> dict[str, int]:
        run = self.directory.run()
        assert run is not None
        return {part.name: part.identity.pid for part in run.parts if part.identity is not None}

    def s3(self, **other: str) -> Any:
        s3 = self.told["s3"]
        return boto3.session.Session().client(
            "s3",
            endpoint_url=s3["endpoint_url"],
            aws_access_key_id=other.get("access_key", s3["access_key"]),
            aws_secret_access_key=other.get("secret_key", s3["secret_key"]),
            region_name="us-east-1",
            # a server whose volumes are not grown yet keeps the first PUT waiting for a beat of its own (5 s) or two
            config=Config(
                retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}, connect_timeout=2, read_timeout=30
            ),
        )

    def write(self, value: str) -> None:
        with psycopg.connect(self.told["database_url"]) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS managed (value text)")
            connection.execute("INSERT INTO managed VALUES (%s)", (value,))
        with redis.Redis.from_url(self.told["redis_url"]) as client:
            client.sadd("kept", value)
            client.execute_command("WAITAOF", 1, 0, 2000)  # Valkey promises a second, not an instant
        self.s3().put_object(Bucket="farm", Key=f"kept/{value}", Body=value.encode() * 100_000)

    def holds(self, value: str) -> bool:
        """Whether all three have it; False too while one of them is not back yet."""
        try:
            with psycopg.connect(self.told["database_url"], connect_timeout=2) as connection:
                row = connection.execute("SELECT count(*) FROM managed WHERE value = %s", (value,)).fetchone()
            with redis.Redis.from_url(self.told["redis_url"]) as client:
                member = client.sismember("kept", value)
            body = self.s3().get_object(Bucket="farm", Key=f"kept/{value}")["Body"].read()
        except (psycopg.OperationalError, redis.RedisError, BotoCoreError, ClientError):
            return False
        return row == (1,) and bool(member) and body == value.encode() * 100_000


def up(path: Path) -> Farm:
    return Farm(path, json.loads(farm("up", "--servers-only", "--detach", "--json", "--data-dir", path).stdout))


def strays(path: Path) -> list[str]:
    """Processes that still have to do with a data directory: by their arguments or by where they stand."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            at_home = Path(process.cwd()).is_relative_to(path)
            if process.status() != psutil.STATUS_ZOMBIE and (
                at_home or any(str(path) in argument for argument in process.cmdline())
            ):
                found.append(" ".join(process.cmdline())[:200])
    return found


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    path = tmp_path_factory.mktemp("farm") / "data"
    try:
        yield up(path)
    finally:
        farm("down", "--data-dir", path)
        assert strays(path) == []


def test_up_tells_all_addresses_in_one_object(running: Farm) -> None:
    assert set(running.told) == {
        "url", "external_url", "join_token", "api_key", "flower_url", "database_url", "redis_url", "s3", "data_dir",
    }  # fmt: skip
    assert running.told["join_token"] is None  # nobody joins unless asked for
    assert set(running.told["s3"]) == {"endpoint_url", "access_key", "secret_key", "bucket"}
    with psycopg.connect(running.told["database_url"]) as connection:
        assert connection.execute("SELECT name FROM tenant").fetchall() == [("default",)]


def test_a_second_up_says_that_it_runs_and_prints_the_same(running: Farm) -> None:
    for more in (["--detach"], []):
        arguments = ["up", "--servers-only", "--json", "--data-dir", str(running.path)]
        again = farm(*arguments, *more)
        assert json.loads(again.stdout) == running.told
        assert again.stderr.count("already running") == 1


def test_every_port_is_on_loopback(running: Farm) -> None:
    for name, pid in running.pids().items():
        listening = [c.laddr.ip for c in psutil.Process(pid).net_connections() if c.status == psutil.CONN_LISTEN]
        assert listening, name
        assert set(listening) == {"127.0.0.1"}, name


def test_no_secret_stands_in_a_command_line(running: Farm) -> None:
    secrets = running.directory.farm().secrets.values()
    for name, pid in running.pids().items():
        assert not any(secret in " ".join(psutil.Process(pid).cmdline()) for secret in secrets), name


def test_no_server_opens_without_its_password(running: Farm) -> None:
    state = running.directory.farm()
    for password in ("", "wrong"):
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(f"postgresql://farm:{password}@127.0.0.1:{state.ports['postgres']}/farm")
    once = Retry(NoBackoff(), 0)
    with redis.Redis(port=state.ports["valkey"], retry=once) as client, pytest.raises(redis.AuthenticationError):
        client.ping()
    for wrong in ({"secret_key": "wrong"}, {"access_key": "stranger", "secret_key": "wrong"}):
        with pytest.raises(ClientError) as caught:
            running.s3(**wrong).list_buckets()
        assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403


def test_no_port_of_the_s3_server_serves_or_takes_objects_without_a_key(running: Farm) -> None:
    secret = b"only for those who have the key"
    running.s3().put_object(Bucket="farm", Key="private", Body=secret * 1000)
    state = running.directory.farm()
    requests = [
        *(("GET", path) for path in ("/farm/private", "/buckets/farm/private", "/buckets/farm/", "/farm?list-type=2")),
        *(("GET", path) for path in ("/buckets/?pretty=y", "/buckets/farm/private?metadata=true", "/")),
        *(("GET", f"/{volume},01") for volume in range(1, 8)),
        *((method, "/buckets/farm/private") for method in ("PUT", "POST", "DELETE")),
        *((method, "/farm/private") for method in ("PUT", "POST", "DELETE")),
        ("PUT", "/buckets/farm/planted"),
        ("POST", "/submit?collection=farm"),
        ("GET", "/dir/assign?collection=farm"),
        ("POST", "/.tus/buckets/farm/planted"),
        ("DELETE", "/buckets/farm?recursive=true"),
        # Last: the master's own way to drop everything that a bucket holds.
        ("GET", "/col/delete?collection=farm"),
        ("POST", "/col/delete?collection=farm"),
        ("GET", "/vol/vacuum?garbageThreshold=0.0"),
    ]
    for part in ("s3", "filer", "volume", "master", "admin"):
        for method, path in requests:
            body = b"planted" if method in {"PUT", "POST"} else None
            request = urllib.request.Request(f"http://127.0.0.1:{state.ports[part]}{path}", data=body, method=method)
            try:
                with urllib.request.urlopen(request, timeout=5) as answer:
                    status, said = answer.status, answer.read()
            except urllib.error.HTTPError as error:
                with error:
                    status, said = error.code, error.read()
            assert secret not in said, (part, method, path)
            # A page of its own (a status page, a login) is no object; taking or dropping one is never allowed.
            assert status >= 400 or (method == "GET" and path == "/"), (part, method, path, status, said[:200])
    keys = [entry["Key"] for entry in running.s3().list_objects_v2(Bucket="farm")["Contents"]]
    assert "planted" not in keys
    assert running.s3().get_object(Bucket="farm", Key="private")["Body"].read() == secret * 1000


def test_each_server_keeps_its_data_through_kill_9_and_comes_back(running: Farm) -> None:
    running.write("before")
    before = running.pids()
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: running.holds("before"), 30, what="all three are back with their data")
    after = running.pids()
    assert after.keys() == before.keys()
    assert not set(after.values()) & set(before.values())
    status = json.loads(farm("status", "--json", "--data-dir", running.path).stdout)
    assert [(part["condition"], part["restarts"]) for part in status["parts"]] == [("healthy", 1)] * 3


def test_two_farms_run_side_by_side(running: Farm, tmp_path: Path) -> None:
    other = up(tmp_path / "other")
    try:
        # All of them: also those whose services do not run here, as they may any moment.
        assert not set(other.directory.farm().ports.values()) & set(running.directory.farm().ports.values())
        other.write("theirs")
        running.write("ours")
        assert other.holds("theirs")
        assert not other.holds("ours")
    finally:
        farm("down", "--data-dir", other.path)
    assert strays(other.path) == []
    assert running.holds("ours")


def test_up_after_kill_9_of_the_supervisor_loses_nothing_and_leaves_no_stray(running: Farm) -> None:
    running.write("kept")
    before = running.pids()
    run = running.directory.run()
    assert run is not None
    os.kill(run.supervisor.pid, signal.SIGKILL)
    again = up(running.path)
    assert again.told == running.told
    wait_until(lambda: again.holds("kept"), 20, what="the data is there")
    after = again.pids()
    assert not set(after.values()) & set(before.values())
    own = {Identity.of(pid) for pid in before.values()}
    assert own == {None}
    assert len([line for line in strays(running.path) if "farm.local.supervisor" in line]) == 1


def test_down_after_kill_9_of_the_supervisor_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "farm"
    # of other farms that were killed, perhaps under the port that another part of this one gets
    before = set(Path("/tmp").glob("seaweedfs-*.sock"))
    killed = up(path)
    run = killed.directory.run()
    assert run is not None
    os.kill(run.supervisor.pid, signal.SIGKILL)
    farm("down", "--data-dir", path)
    assert strays(path) == []
    taken = [port for name, port in killed.directory.farm().ports.items() if name not in {"api", "flower"}]
    assert all(ports.is_free(port) for port in taken)
    assert {left for port in taken for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock")} <= before
    assert killed.directory.run() is None


def test_ctrl_c_stops_a_farm_in_the_foreground(tmp_path: Path) -> None:
    path = tmp_path / "front"
    with subprocess.Popen(
        [*FARM, "up", "--servers-only", "--json", "--data-dir", str(path)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["data_dir"] == str(path)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "postgres" in said  # its log lines were shown under its name
    assert strays(path) == []
    assert DataDirectory(path).run() is None
    assert farm("status", "--data-dir", path, check=False).returncode == 1


def test_a_remembered_port_that_a_stranger_took_is_replaced(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path / "farm")
    directory.create()
    with ports.PortReservations() as reservations:
        first = prepare(directory, reservations)
        assert prepare(directory, reservations) == first
        with socket.create_server(("127.0.0.1", first.ports["postgres"])):
            second = prepare(directory, reservations)
    assert second.ports["postgres"] != first.ports["postgres"]
    assert {**second.ports, "postgres": 0} == {**first.ports, "postgres": 0}
    assert second.secrets == first.secrets
    assert second.ports["admin.grpc"] == second.ports["admin"] + ports.COMPANION


def test_installed_servers_are_used_where_the_environment_names_them(
    tmp_path: Path, servers: TestServers, database_url: str, redis_url: str
) -> None:
    path = tmp_path / "farm"
    named = servers.env(database_url=database_url, redis_url=redis_url)
    told = json.loads(farm("up", "--servers-only", "--detach", "--json", "--data-dir", path, env=named).stdout)
    try:
        assert (told["database_url"], told["redis_url"]) == (database_url, redis_url)
        assert told["s3"]["endpoint_url"] == servers.s3_endpoint_url
        assert sorted(child.name for child in path.iterdir() if child.is_dir()) == ["logs"]
        status = json.loads(farm("status", "--json", "--data-dir", path, env=named).stdout)
        assert {part["name"]: part["condition"] for part in status["parts"]} == dict.fromkeys(
            ("postgres", "valkey", "s3"), "healthy"
        )
        with psycopg.connect(database_url) as connection:
            assert connection.execute("SELECT name FROM tenant").fetchall() == [("default",)]
    finally:
        farm("down", "--data-dir", path, env=named)
    assert strays(path) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become somebody else")
@pytest.mark.parametrize("refused", ["nothing", "namespaces"])
def test_postgres_runs_for_root_also_in_a_closed_directory(
    tmp_path: Path, refused: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if refused == "namespaces":
        monkeypatch.setattr(postgres, "_RENAME_ROOT", ("false",))
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    directory = DataDirectory(closed / "farm")
    directory.create()
    with ports.PortReservations() as reservations:
        server = postgres.EmbeddedPostgres(
            directory.path / "postgres", ports.choose(reservations=reservations), "secret", (("fsync", "off"),)
        )
        manager = ProcessManager([server.program()], directory)
        try:
            manager.start()
            manager.wait_ready()
        finally:
            assert manager.stop() == []
    assert server.data.stat().st_uid == (0 if refused == "nothing" else postgres.NOBODY)


def test_a_farm_that_starts_at_the_same_moment_chooses_other_ports(tmp_path: Path) -> None:
    one, other = DataDirectory(tmp_path / "one"), DataDirectory(tmp_path / "other")
    one.create()
    other.create()
    with ports.PortReservations() as first, ports.PortReservations() as second:
        theirs, ours = prepare(one, first), prepare(other, second)  # neither has a server that listens yet
    assert not set(theirs.ports.values()) & set(ours.ports.values())
