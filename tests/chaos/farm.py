"""A whole farm under the driver's hands: real servers, every service a process of its own, a proxy on every way."""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Any

import psutil
import psycopg
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from farm.client import Farm
from farm.dispatch import broker
from farm.errors import NotFound, StorageUnavailable
from farm.local import servers as local
from farm.local.bootstrap import prepare_storage
from farm.local.ports import PortReservations
from farm.local.process import Program
from farm.local.process_manager import ProcessManager, RestartBackoff
from farm.local.services import WEBHOOKS_TO_LOOPBACK, ServiceAddresses
from farm.local.state import DataDirectory
from farm.objects.storage import Storage
from farm.settings import Settings
from farm.store.migrate import upgrade
from farm.store.tenants import Scope
from farm.store.unit_of_work import Store
from farm.webhooks import signature
from tests import power_cut
from tests.chaos.history import Post, about
from tests.chaos.partition import Namespace
from tests.chaos.proxy import Mode, Proxies, Proxy
from tests.integration.worker_process import ROOT, worker_command
from tests.transitions import refuse_other_transitions
from tests.waiting import wait_until

ENGINE = "tests.noise_device"  #: what a worker's engine runs
POISON = "poison"  #: a prompt with this word kills the process that denoises it
LEASE = 6.0  #: seconds, of a run
DISPATCH_LEASE = 6.0
SLOTS, PREFETCH, MAX_PREFETCH = 4, 2, 8
WAYS = {"database": "FARM_DATABASE_URL", "redis": "FARM_REDIS_URL", "storage": "FARM_S3_ENDPOINT_URL"}
CAPS = {"free": None, "capped": 3, "heavy": None}  #: by tenant


@dataclass
class Service:
    """One process of the farm, with its ways to the servers."""

    name: str
    program: Program
    environment: dict[str, str]
    ways: dict[str, Proxy]
    once: dict[str, str] = field(default_factory=dict)  #: more variables, for its next start alone
    host: Namespace | None = None


class Receiver:
    """A webhook receiver with a log; mostly it says 200."""

    def __init__(self, chance: Random) -> None:
        self.posts: list[Post] = []
        self.endpoints: dict[str, str] = {}  #: by path: the endpoint's id
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                body = self.rfile.read(length)
                if len(body) < length:
                    return
                with outer._lock:
                    mood = chance.random()
                    acknowledged = mood >= 0.08
                    endpoint = outer.endpoints[self.path]
                    identity = uuid_of(self.headers["webhook-id"])
                    outer.posts.append(Post(endpoint, identity, about(body), acknowledged))
                if mood < 0.03:
                    self.close_connection = True  # it has it, and does not say so
                    return
                self.send_response(200 if acknowledged else 500)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

            def handle_error(self, *_: object) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}{path}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class ChaosFarm:
    """The farm. Made, used and closed by the main thread, which is the parent of every process."""

    def __init__(self, directory: Path, chance: Random, workers: int, *, unpluggable: bool) -> None:
        self.directory = DataDirectory(directory)
        self.directory.create()
        self.chance = chance
        self.receiver = Receiver(Random(chance.random()))
        self.proxies = Proxies()
        self.keys: dict[str, str] = {}  #: by tenant name
        self.tampered: set[str] = set()  #: lists in Redis that hold the driver's own messages, until they are empty
        self._closing = contextlib.ExitStack()
        self._closing.callback(self.proxies.close)
        self._closing.callback(self.receiver.close)
        self._ports = PortReservations()
        self._closing.callback(self._ports.release)
        try:
            self._start(workers, unpluggable=unpluggable)
        except BaseException:
            self._closing.close()
            raise

    def _start(self, workers: int, *, unpluggable: bool) -> None:
        identity = local.prepare(self.directory, self._ports)
        self.small_disk = self._mount_small_disk()
        found = local.Servers.of(self.directory, identity, Settings())
        assert found.postgres is not None
        assert found.valkey is not None
        assert found.s3 is not None
        self.postgres, self.valkey, self.s3 = found.postgres, found.valkey, found.s3
        self.storage_disk = self._make_storage_disk()
        self.bucket_was_lost = False
        quick = RestartBackoff(first=0.3, most=1.0)
        self.servers = ProcessManager(found.programs(), self.directory, backoff=quick)
        self._closing.callback(self.servers.stop)
        self.servers.start()
        self.servers.wait_ready()
        found.create_database()
        self.addresses = found.addresses.environment()
        self.database_url = found.addresses.database_url
        upgrade(self.database_url)
        refuse_other_transitions(self.database_url)
        with environment(self.addresses):
            self.storage = Storage(Settings())
        self._closing.callback(self.storage.close)
        prepare_storage(self.storage)
        self._make_tenants()
        service_addresses = ServiceAddresses.of(identity, "127.0.0.1", {})
        self.url = service_addresses.url
        self.all = self._services(service_addresses, workers, unpluggable=unpluggable)
        self.services = ProcessManager([one.program for one in self.all.values()], self.directory, backoff=quick)
        self._closing.callback(self.services.stop)
        self.services.start()
        self.services.wait_ready()

    def _mount_small_disk(self) -> Path | None:
        """PostgreSQL's directory on a file system that can be filled, where that is allowed."""
        place = self.directory.path / "postgres"
        place.mkdir(mode=0o700)
        if os.geteuid() != 0:
            return None
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=400m,mode=0700", "tmpfs", str(place)], check=False, capture_output=True
        )
        if done.returncode:
            return None
        self._closing.callback(subprocess.run, ["umount", "-l", str(place)], check=False)
        return place

    def _make_storage_disk(self) -> power_cut.Disk | None:
        """The storage's directory on a disk whose power can be cut, where that is allowed."""
        if not power_cut.allowed(self.directory.path):
            return None
        disk = power_cut.Disk(self.directory.path / "storage.img", self.directory.path / "s3")
        self._closing.callback(disk.close)
        return disk

    def _make_tenants(self) -> None:
        with environment(self.addresses):
            store = Store.connect(Settings(), pool=1)
        with store.begin() as unit:
            for name in CAPS:
                tenant = unit.tenants.create(name)
                _, self.keys[name] = unit.tenants.create_key(tenant.id, "chaos", frozenset(Scope))
                made = unit.webhooks.create_endpoint(tenant.id, self.receiver.url(f"/{name}"), signature.new_secret())
                self.receiver.endpoints[f"/{name}"] = uuid_of(made.id)
        store.close()
        with self.connect() as connection:
            for name, cap in CAPS.items():
                connection.execute("UPDATE tenant SET max_running = %s WHERE name = %s", (cap, name))

    def _services(self, service_addresses: ServiceAddresses, workers: int, *, unpluggable: bool) -> dict[str, Service]:
        base = {
            **os.environ,
            **WEBHOOKS_TO_LOOPBACK,
            **self.addresses,
            "FARM_DATA_DIR": str(self.directory.path),
            "FARM_API_PORT": str(service_addresses.api_port),
            "FARM_HEARTBEAT_SECONDS": "1",
            "FARM_RUN_LEASE_SECONDS": str(LEASE),
            "FARM_DISPATCH_LEASE_SECONDS": str(DISPATCH_LEASE),
            "FARM_STORAGE_RETRY_SECONDS": "15",
            "FARM_DRAIN_SECONDS": "3",
            "FARM_CHECKPOINT_SECONDS": "0.5",
            "FARM_BATCHING": "on",
            "FARM_PREFETCH": str(PREFETCH),
            "FARM_MAX_PREFETCH": str(MAX_PREFETCH),
            "FARM_WORKER_HOST": "chaos",
            "FARM_CRASH_AT": f"mid_denoise={POISON}",
            "PYTHONUNBUFFERED": "1",
        }
        farm = (sys.executable, "-P", "-m", "farm.cli")
        made = {
            "api": self._service("api", (*farm, "api"), base, ready=service_addresses.api_ready),
            "dispatcher-1": self._service("dispatcher-1", (*farm, "dispatcher"), base),
            "dispatcher-2": self._service("dispatcher-2", (*farm, "dispatcher"), base),
            "deliverer": self._service("deliverer", (sys.executable, "-m", "tests.chaos.deliverer"), base),
        }
        for number in range(1, workers + 1):
            host = self._closing.enter_context(Namespace(number)) if unpluggable and number == workers else None
            name = f"worker-{number}"
            made[name] = self._service(
                name, worker_command("tests.noise_engine"), {**base, "FARM_DEVICE": f"cpu{number}"}, host=host
            )
        return made

    def _service(
        self, name: str, command: tuple[str, ...], base: dict[str, str], host: Namespace | None = None, **more: Any
    ) -> Service:
        ways = {
            way: self.proxies.to(self.addresses[variable], host.gateway if host else "127.0.0.1")
            for way, variable in WAYS.items()
        }
        mine = base | {WAYS[way]: proxy.url(self.addresses[WAYS[way]]) for way, proxy in ways.items()}
        if name == "api":  # what it signs is read through no proxy
            mine["FARM_S3_PUBLIC_URL"] = self.addresses["FARM_S3_ENDPOINT_URL"]
        live = dict(mine)

        def prepare() -> None:
            live.clear()
            live.update(mine | service.once)
            service.once = {}

        argv = (*host.prefix, *command) if host else command
        program = Program(name, argv, live, directory=ROOT, prepare=prepare, start_seconds=90.0, **more)
        service = Service(name, program, live, ways, host=host)
        return service

    # -- hands --------------------------------------------------------------------------------------------------------

    def connect(self) -> psycopg.Connection[Any]:
        """A connection of the driver's own, past every proxy."""
        return psycopg.connect(self.database_url, autocommit=True, connect_timeout=3)

    def redis(self) -> redis.Redis:
        """A client of the driver's own, past every proxy."""
        return redis.Redis.from_url(self.valkey.url(), socket_timeout=3, retry=Retry(NoBackoff(), 0))

    def pid(self, name: str) -> int | None:
        """The process of a service or a server, if it lives."""
        for part in (*self.servers.parts(), *self.services.parts()):
            if part.name == name and part.identity is not None and part.identity.alive():
                return part.identity.pid
        return None

    def engine_of(self, name: str) -> psutil.Process | None:
        """The process in which a worker's engine lives, if it lives."""
        pid = self.pid(name)
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(pid).children(recursive=True) if pid else ():
                if ENGINE in child.cmdline():
                    return child
        return None

    def signal(self, name: str, number: signal.Signals) -> bool:
        """Signal a process and what it started; False if it does not live."""
        pid = self.pid(name)
        if pid is None:
            return False
        # PostgreSQL's backends lead groups of their own; a killed postmaster's end by themselves, unless stopped
        told = signal.SIGCONT if number == signal.SIGKILL else number
        try:
            family = psutil.Process(pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, number)
        for child in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.send_signal(told)
        return True

    def cut_power_of_storage(self) -> bool:
        """Drop what the storage did not sync, and end it; False if this machine does not allow that."""
        if self.storage_disk is None or self.pid("s3") is None:
            return False
        self.storage_disk.cut_power()
        self.signal("s3", signal.SIGKILL)
        wait_until(lambda: self.pid("s3") is None, 10, what="the storage has ended")
        self.storage_disk.restore()
        return True

    def lose_bucket(self) -> bool:
        """Delete the bucket with all that is in it; False if the storage does not answer."""
        with contextlib.suppress(Exception):
            self.storage._client.delete_bucket(Bucket=self.storage.bucket)
            self.bucket_was_lost = True
            return True
        return False

    def make_bucket(self) -> None:
        """Make it again, empty."""
        with contextlib.suppress(StorageUnavailable):
            self.storage.ensure_bucket()

    def repair(self) -> dict[str, str]:
        """Have every lost output rendered again; returns the jobs that were not repaired, and why."""
        run = uuid.uuid4().hex
        with Farm(self.url, next(iter(self.keys.values()))) as farm:
            lost, cursor = set[str](), None
            while True:
                page = farm.check_outputs(cursor=cursor)
                lost |= {one.job_id for one in page.damaged}
                cursor = page.next_cursor
                if cursor is None:
                    break
            waiting, impossible = sorted(lost), dict[str, str]()
            while waiting:
                self.watch()
                repairs = farm.repair_outputs(run, waiting[:100])
                impossible |= {one.job_id: str(one.reason) for one in repairs if one.state == "impossible"}
                ended = {one.job_id for one in repairs if one.state != "rendering"}
                waiting = [one for one in waiting if one not in ended]
                time.sleep(0.5)
        return impossible

    def limit_files(self, name: str, size: int) -> None:
        """No file of that process may grow beyond that many bytes."""
        pid = self.pid(name)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def named(self, kind: str) -> list[str]:
        """The services whose name begins so."""
        return [name for name in self.all if name.startswith(kind)]

    def queue(self, worker: str) -> str:
        """A worker's list in Redis."""
        return str(broker.queue_of(f"chaos/cpu{worker.partition('-')[2]}").name)

    def watch(self) -> None:
        """Start again what died."""
        self.servers.watch()
        self.services.watch()

    def heal(self) -> None:
        """Undo whatever may still be wrong."""
        for service in self.all.values():
            service.once = {}
            for way in service.ways.values():
                way.set(Mode.OPEN)
            if service.host is not None:
                service.host.plug_in()
            self.signal(service.name, signal.SIGCONT)
            self.limit_files(service.name, resource.RLIM_INFINITY)
        with contextlib.suppress(redis.RedisError), self.redis() as client:
            client.config_set("maxmemory", 0)
        wait_until(self._storage_takes_objects, 60, what="the storage takes objects")

    def _storage_takes_objects(self) -> bool:
        self.watch()
        if not self.s3.configure_bucket():
            return False
        with contextlib.suppress(StorageUnavailable):
            self.storage.ensure_bucket()
            return True
        return False

    def sha256_of(self, key: str) -> str | None:
        """Of an object's bytes, read back."""
        try:
            return hashlib.sha256(self.storage.get(key)).hexdigest()
        except NotFound:
            return None

    def close(self) -> None:
        """Stop everything; the services at once, for nobody asks any more what they do."""
        for name in self.all:
            self.signal(name, signal.SIGKILL)
        self._closing.close()


@contextlib.contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """This process's variables, for the time of the block."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def uuid_of(public_id: str) -> str:
    """The UUID of a prefixed id, as PostgreSQL writes it."""
    digits = public_id.rpartition("_")[2]
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
