"""Every way to name a Redis server, what is said when it refuses, and its failover, with real Valkey servers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from farm.dispatch import broker
from farm.domain.queue import DispatchedJob
from farm.domain.states import JobState
from farm.errors import BrokerUnavailable, SetupError
from farm.redis_server import RedisServer
from farm.settings import Settings
from tests import programs
from tests.conftest import TestServers
from tests.integration.worker_process import Farm, NoiseWorker, spec
from tests.tls import Authority, terminate
from tests.valkey_servers import PASSWORD, Group, group, valkey
from tests.waiting import wait_until

WORKER = "host/cpu0"


def use(url: str, ca_file: Path | None = None) -> None:
    """Do all that the farm does with a server: by Celery's connections and by its own."""
    app = broker.make_app(Settings(redis_url=url, ca_file=ca_file))
    try:
        broker.check(app)
        broker.purge(app, WORKER)
        broker.send(app, [DispatchedJob("job_1", 1, WORKER)])
        broker.publish_sent_events(app, [DispatchedJob("job_1", 1, WORKER)])
        assert broker.queue_lengths(app, [WORKER]) == {WORKER: 1}
        assert broker.purge(app, WORKER) == 1
    finally:
        app.close()


def test_a_password_of_any_characters_and_a_socket(tmp_path: Path) -> None:
    port, path = programs.free_port(), tmp_path / "v.sock"
    with valkey(tmp_path, port, f'requirepass "{PASSWORD}"', f"unixsocket {path}"):
        use(f"redis://:{quote(PASSWORD, safe='')}@127.0.0.1:{port}/4")
        use(f"redis://default:{quote(PASSWORD, safe='')}@127.0.0.1:{port}")
        use(f"unix://:{quote(PASSWORD, safe='')}@{path}?db=4")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://h", "must begin with redis://"),
        ("redis+cluster://h:1", "names a Redis Cluster"),
        ("redis://h1:1,h2:2/0", "it names several hosts"),
        ("redis://h1:1;h2:2/0", "it names several hosts"),
        ("redis://:s3c@ret/x@h/0", "cannot be separated from its host"),
        ("redis://h:x/0", "its port is not a number"),
        ("redis://h/x", "the number of its database is not a number"),
        ("sentinel://h:1;h:2/0", "needs ?master_name="),
        ("redis://h/0?timeout=3", "timeout is no option"),
        ("rediss://h/0?ssl_cert_reqs=maybe", "ssl_cert_reqs must be one of"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_its_password(url: str, reason: str) -> None:
    with pytest.raises(SetupError, match="FARM_REDIS_URL") as refused:
        broker.make_app(Settings(redis_url=url))
    assert reason in str(refused.value)
    assert "s3c" not in str(refused.value)


def test_what_redis_says_is_said_with_what_to_check(tmp_path: Path) -> None:
    port = programs.free_port()
    with valkey(tmp_path, port, "requirepass right", "maxmemory 1", "user reader on >right ~* +ping +info"):
        for url, reason in {
            f"redis://:wrong@127.0.0.1:{port}/0": "check user and password in FARM_REDIS_URL",
            f"redis://127.0.0.1:{port}/0": "the server wants a password",
            f"redis://:right@127.0.0.1:{port}/99": "the server has fewer databases",
            f"redis://:right@127.0.0.1:{port}/0": "the server's memory is full",
            f"redis://reader:right@127.0.0.1:{port}/0": "the server's ACL must allow it",
            "redis://127.0.0.1:1/0": "nothing listens there",
            "redis://no-such-host.invalid/0": "check the host name",
        }.items():
            with pytest.raises(BrokerUnavailable) as raised:
                use(url)
            assert reason in str(raised.value), (url, str(raised.value))
            assert RedisServer.parse(url).place in str(raised.value)
            assert "\n" not in str(raised.value)


def test_a_cluster_is_refused_in_one_sentence(tmp_path: Path, servers: TestServers, database_url: str) -> None:
    cluster_bus = 10_000  # above its port
    port = programs.free_port(below=2**16 - cluster_bus)
    with valkey(tmp_path, port, "cluster-enabled yes"):
        with pytest.raises(SetupError, match="part of a Redis Cluster, which cannot be used"):
            use(f"redis://127.0.0.1:{port}/0")
        env = servers.env(database_url=database_url, redis_url=f"redis://127.0.0.1:{port}/0")
        done = subprocess.run(
            [sys.executable, "-m", "farm.cli", "dispatcher"], env={**os.environ, **env}, capture_output=True,
            text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 2, done.stderr
        assert "part of a Redis Cluster" in done.stderr
        assert "Traceback" not in done.stderr


def test_tls_is_verified_by_default_by_every_client(tmp_path: Path) -> None:
    ours, theirs = Authority(tmp_path, "ours"), Authority(tmp_path, "theirs")
    port = programs.free_port()
    with ExitStack() as stack:
        stack.enter_context(valkey(tmp_path, port))
        good = stack.enter_context(terminate(port, ours.issue("127.0.0.1", "localhost")))
        other_name = stack.enter_context(terminate(port, ours.issue("redis.example.com")))
        stranger = stack.enter_context(terminate(port, theirs.issue("127.0.0.1")))
        use(f"rediss://127.0.0.1:{good}/0", ours.ca_file)
        use(f"rediss://127.0.0.1:{stranger}/0?ssl_cert_reqs=none")
        for bad, ca_file in ((good, None), (other_name, ours.ca_file), (stranger, ours.ca_file)):
            # another number: kombu keeps connections by URL, for the whole process
            server = Settings(redis_url=f"rediss://127.0.0.1:{bad}/1", ca_file=ca_file)
            app = broker.make_app(server)
            for action in (
                lambda app=app: broker.check(app),
                lambda app=app: broker.queue_lengths(app, [WORKER]),
                lambda app=app: broker.purge(app, WORKER),
            ):
                with pytest.raises(BrokerUnavailable, match="check the server's certificate"):
                    action()
            app.close()


# -- Sentinel ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sentinels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    with group(tmp_path_factory.mktemp("sentinels")) as found:
        yield found


def test_a_sentinel_url_works_in_both_spellings(sentinels: Group) -> None:
    use(sentinels.url)
    parts = urlsplit(sentinels.url)
    login = parts.netloc.split("@")[0]
    repeated = ";".join(f"sentinel://{login}@127.0.0.1:{port}/3" for port in sentinels.sentinels)
    use(f"{repeated}?{parts.query}")
    with pytest.raises(BrokerUnavailable, match="check the Sentinels and master_name"):
        use(sentinels.url.replace("master_name=renders", "master_name=other"))


def test_a_failover_ends_no_worker_and_no_dispatcher(
    sentinels: Group, servers: TestServers, database_url: str, tmp_path: Path
) -> None:
    env = servers.env(database_url=database_url, redis_url=sentinels.url)
    env |= {"FARM_HEARTBEAT_SECONDS": "0.5", "FARM_RUN_LEASE_SECONDS": "8", "FARM_DISPATCH_LEASE_SECONDS": "3"}
    farm = Farm(env, tmp_path)
    worker = NoiseWorker(farm, device="cpu0")
    dispatcher = subprocess.Popen([sys.executable, "-m", "farm.cli", "dispatcher"], env={**os.environ, **env})
    try:
        worker.start().wait_online()
        farm.wait(farm.submit(spec()), JobState.SUCCEEDED)
        for fail_over in (sentinels.demote, sentinels.fail_over):
            fail_over()
            job = farm.submit(spec())
            farm.wait(job, JobState.SUCCEEDED, timeout=100)
            assert worker.running.poll() is None, worker.log()
            assert dispatcher.poll() is None
        found = farm.worker(worker.name)
        assert found is not None
        assert found.info.pid == worker.running.pid
    finally:
        worker.kill()
        dispatcher.terminate()
        dispatcher.wait(20)
        farm.close()
    wait_until(lambda: worker.running.poll() is not None)
