"""Real servers for every test that asks for them: started once per session, on free ports, in a temporary directory."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from xdist.scheduler import LoadFileScheduling

from farm.local import servers as local
from farm.local.ports import PortReservations
from farm.local.postgres import EmbeddedPostgres
from farm.local.process_manager import ProcessManager
from farm.local.state import DataDirectory
from farm.local.valkey import EmbeddedValkey
from farm.settings import Settings, settings
from tests.transitions import refuse_other_transitions
from workers.torchvision_operators import declare_missing_operators

declare_missing_operators()  # tests import pipelines by themselves, too

#: Files whose tests share one farm: the same process runs them, or each process would start a farm of its own.
_ONE_FARM = "tests/acceptance/"


class _FilesTogether(LoadFileScheduling):  # type: ignore[misc]  # xdist has no types
    """Gives each file to one process, and all that share a farm to the same one."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return _ONE_FARM if file.startswith(_ONE_FARM) else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _FilesTogether:
    return _FilesTogether(config, log)


#: A variable of the developer's own shell must not steer the tests to a farm that is in use.
for _name in [name for name in os.environ if name.startswith("FARM_")]:
    del os.environ[_name]

os.environ["FARM_SECRET_KEY"] = "a key of the tests which protects nothing at all"

# A shell that starts the tests in the background has them ignore interrupts, and what they start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

#: Each test that asks for Redis has a database of its own among Valkey's 16; they are emptied before use.
_REDIS_DATABASES = 16


@dataclass(frozen=True)
class TestServers:
    """The servers of this test session."""

    __test__ = False

    directory: Path  #: the data directory
    addresses: local.Addresses
    postgres: EmbeddedPostgres
    valkey: EmbeddedValkey

    @property
    def database_url(self) -> str:
        """The server's own database, which nothing migrates; most tests want the fixture ``database_url`` instead."""
        return self.postgres.url("postgres")

    @property
    def redis_url(self) -> str:
        return self.addresses.redis_url

    @property
    def s3_endpoint_url(self) -> str:
        assert self.addresses.s3_endpoint_url is not None
        return self.addresses.s3_endpoint_url

    @property
    def s3_access_key(self) -> str:
        assert self.addresses.s3_access_key is not None
        return self.addresses.s3_access_key

    @property
    def s3_secret_key(self) -> str:
        assert self.addresses.s3_secret_key is not None
        return self.addresses.s3_secret_key

    @property
    def s3_bucket(self) -> str:
        return self.addresses.s3_bucket

    def env(self, *, database_url: str | None = None, redis_url: str | None = None) -> dict[str, str]:
        """``FARM_*`` variables of these servers, for a subprocess; with a test's own databases where given."""
        values = self.addresses.environment()
        values["FARM_SECRET_KEY"] = os.environ["FARM_SECRET_KEY"]
        values["FARM_DATABASE_URL"] = database_url or self.database_url
        # two of these processes at once, on one machine, cannot both have the usual ports
        values |= {f"FARM_METRICS_{name}_PORT": "0" for name in ("API", "DISPATCHER", "DELIVERER", "WORKER")}
        if redis_url is not None:
            values["FARM_REDIS_URL"] = redis_url
        return values


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestServers]:
    """PostgreSQL, Valkey and S3 (with its bucket), real ones, for the whole session."""
    from farm.local.bootstrap import prepare_storage
    from farm.objects.storage import Storage

    directory = DataDirectory(tmp_path_factory.mktemp("servers"))
    directory.create()
    reservations = PortReservations()
    farm = local.prepare(directory, reservations)
    # Nothing here must outlive the session, so PostgreSQL need not wait for the disk.
    fast = (("fsync", "off"), ("synchronous_commit", "off"), ("full_page_writes", "off"))
    group = local.Servers.of(directory, farm, Settings(), postgres_options=fast)
    assert group.postgres is not None
    assert group.valkey is not None
    manager = ProcessManager(group.programs(), directory)
    try:
        manager.start()
        manager.wait_ready()
        found = TestServers(directory.path, group.addresses, group.postgres, group.valkey)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in found.env().items():
                patch.setenv(name, value)
            storage = Storage(Settings())
        prepare_storage(storage)
        storage.close()
        yield found
    finally:
        manager.stop()
        reservations.release()


@pytest.fixture(scope="session")
def migrated_template(servers: TestServers) -> str:
    """The name of a database that the tests' own are copied from: this release's schema, and jobs keep to `EDGES`."""
    from farm.store.migrate import upgrade

    servers.postgres.create_database("migrated_template")
    upgrade(servers.postgres.url("migrated_template"))
    refuse_other_transitions(servers.postgres.url("migrated_template"))
    return "migrated_template"


_numbers = itertools.count(1)


@pytest.fixture
def database_url(servers: TestServers, migrated_template: str) -> Iterator[str]:
    """A database of the test's own, migrated and empty; dropped after it."""
    name = f"test_{next(_numbers)}"
    servers.postgres.create_database(name, template=migrated_template)
    yield servers.postgres.url(name)
    servers.postgres.drop_database(name)


@pytest.fixture
def redis_url(servers: TestServers) -> str:
    """A Redis database of the test's own, empty."""
    url = servers.valkey.url(next(_numbers) % (_REDIS_DATABASES - 1) + 1)
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return url


@pytest.fixture
def farm_env(
    servers: TestServers, database_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, str]]:
    """This process's ``FARM_*`` variables set to the test's own databases, and the same as a dict for subprocesses."""
    values = servers.env(database_url=database_url, redis_url=redis_url)
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    settings.cache_clear()
    yield values
    settings.cache_clear()
