"""Webhooks: deliveries a second beside a Celery task per event, the way from commit to arrival, and failing endpoints.

``python -m tests.bench.webhooks [--events N] [--celery-events N] [--seconds N]`` starts servers of its own in a
temporary directory, one deliverer, and a receiver in a process of its own on loopback.

* ``deliveries_per_s``: N events, committed at once for 20 endpoints, until the last one has arrived.
* ``celery_…_deliveries_per_s``: what one would write first: a Celery task per event that signs the same body and posts
  it with ``requests``, over the same Valkey; with one process, as the deliverer has, and with Celery's default, one per
  core. The messages wait when the worker begins, and its time runs from the first arrival.
* ``commit_to_arrival``: 100 events a second for 100 endpoints, first with all of them healthy, then with ten that
  accept and never answer and ten that answer after two seconds; by turns, twice.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar
from urllib.request import urlopen

import psycopg

from farm.domain.job import Job, NewJob
from farm.domain.states import EventType
from farm.local import servers as local
from farm.local.ports import PortReservations
from farm.local.process_manager import ProcessManager
from farm.local.state import DataDirectory
from farm.settings import Settings
from farm.store.migrate import upgrade
from farm.store.unit_of_work import Store, make_engine
from farm.webhooks import signature
from farm.webhooks.payload import job_payload
from tests.integration.conftest import spec
from tests.waiting import wait_until

OUT = Path("bench-out")
SLOW_SECONDS = 2.0
PACED_ENDPOINTS = 100
PACED_PER_SECOND = 100


# -- the receiver ------------------------------------------------------------------------------------------------------


class Receiving(asyncio.Protocol):
    """The cheapest receiver that there is: notes when which job's event came, and says 200."""

    arrived: ClassVar[list[tuple[float, str, str]]] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end]
            found = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
            length = int(found[1]) if found else 0
            if len(self.buffer) < end + 4 + length:
                return
            content = self.buffer[end + 4 : end + 4 + length]
            self.buffer = self.buffer[end + 4 + length :]
            path = head.split(b" ", 2)[1].decode()
            if path == "/arrived":
                self.say(json.dumps(self.arrived).encode())
                continue
            if path == "/count":
                self.say(str(len(self.arrived)).encode())
                continue
            job = re.search(rb'"id": ?"(job_[0-9a-f]+)"', content)
            self.arrived.append((time.time(), path, job[1].decode() if job else ""))
            if path.startswith("/slow"):
                asyncio.get_running_loop().call_later(SLOW_SECONDS, self.say, b"ok")
            elif not path.startswith("/dead"):
                self.say(b"ok")

    def say(self, content: bytes) -> None:
        assert isinstance(self.transport, asyncio.Transport)
        self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(content), content))


async def receive() -> None:
    server = await asyncio.get_running_loop().create_server(Receiving, "127.0.0.1", 0, backlog=512)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextmanager
def child(*words: str, **more: str) -> Iterator[subprocess.Popen[str]]:
    """A process of ours: this Python with those arguments."""
    started = subprocess.Popen(
        [sys.executable, *words], env=os.environ | more, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        yield started
    finally:
        started.send_signal(signal.SIGTERM)
        try:
            started.wait(15)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()
        assert started.stdout is not None
        started.stdout.close()


@dataclass(frozen=True)
class Receiver:
    """The receiver's side, from here."""

    port: int

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def count(self) -> int:
        with urlopen(self.url("/count")) as answer:
            return int(answer.read())

    def arrived(self) -> list[tuple[float, str, str]]:
        with urlopen(self.url("/arrived")) as answer:
            return [(at, path, job) for at, path, job in json.load(answer)]


@contextmanager
def receiver() -> Iterator[Receiver]:
    with child("-m", "tests.bench.webhooks", "--receive") as process:
        assert process.stdout is not None
        yield Receiver(int(process.stdout.readline()))


# -- the farm ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Farm:
    """A database with finished jobs whose events were not delivered, and the variables of a process over it."""

    store: Store
    database_url: str
    env: dict[str, str]

    def jobs(self, number: int, urls: Sequence[str]) -> list[Job]:
        """Succeeded jobs with one output each, in turn of as many tenants as there are URLs, one endpoint each."""
        tenants: list[str] = []
        with self.store.begin() as unit:
            for url in urls:
                tenant = unit.tenants.create(f"{url} {time.time_ns()}").id
                unit.webhooks.create_endpoint(tenant, url, signature.new_secret())
                tenants.append(tenant)
        made: list[str] = []
        for index, tenant in enumerate(tenants):
            with self.store.begin() as unit:
                made += unit.jobs.insert(tenant, [NewJob(spec(seed=n)) for n in range(index, number, len(tenants))])
        with self.store.begin() as unit:
            cursor = unit.session.connection().connection.cursor()
            keys = [job_id.removeprefix("job_") for job_id in made]
            cursor.execute(
                "UPDATE job SET state = 'succeeded', epoch = 1, attempts = 1, worker = 'host/cuda0',"
                " finished_at = now() WHERE id = ANY(%s::uuid[])",
                [keys],
            )
            cursor.execute(
                "INSERT INTO output (job_id, index, epoch, key, media_type, size, sha256, seed, metadata)"
                " SELECT id, 0, 1, 'outputs/' || id || '/1/0.png', 'image/png', 5120, repeat('ab', 32), 1,"
                ' \'{"width": 64, "height": 64}\''
                " FROM unnest(%s::uuid[]) AS id",
                [keys],
            )
        with self.store.begin() as unit:
            found = unit.jobs.many(made)
        return [found[job_id] for job_id in sorted(made, key=lambda one: (found[one].spec.seed, one))]


@contextmanager
def farm_servers(directory: Path) -> Iterator[tuple[Farm, str]]:
    """A migrated farm over servers of its own, and the Valkey of those."""
    data = DataDirectory(directory)
    data.create()
    reservations = PortReservations()
    group = local.Servers.of(data, local.prepare(data, reservations), Settings())
    manager = ProcessManager(group.programs(), data)
    try:
        manager.start()
        manager.wait_ready()
        assert group.postgres is not None
        assert group.valkey is not None
        group.postgres.create_database("bench")
        url = group.postgres.url("bench")
        upgrade(url)
        more = {"FARM_DATABASE_URL": url, "FARM_WEBHOOK_ALLOW": "127.0.0.0/8", "FARM_WEBHOOK_ALLOW_HTTP": "true"}
        store = Store(make_engine(url, pool=4))
        os.environ["FARM_SECRET_KEY"] = group.addresses.secret_key  # of the endpoints that this process makes
        yield Farm(store, url, group.addresses.environment() | more), group.valkey.url(7)
        store.close()
    finally:
        manager.stop()
        reservations.release()


TELL = (
    "INSERT INTO event (tenant_id, job_id, epoch, type, data) SELECT tenant_id, id, 1, 'job.succeeded', '{}'"
    " FROM job WHERE id = ANY(%s::uuid[]) ORDER BY id"
)


def tell(connection: psycopg.Connection[Any], jobs: Sequence[Job]) -> float:
    """Write the events of those jobs' ends; returns when they were committed."""
    with connection.transaction():
        connection.execute(TELL, [[job.id.removeprefix("job_") for job in jobs]])
        connection.execute("SELECT pg_notify('farm_event', '')")
    return time.time()


@contextmanager
def deliverer(farm: Farm) -> Iterator[int]:
    """One deliverer, ready; gives its process id."""
    with (
        child("-m", "farm.cli", "deliverer", **farm.env) as process,
        psycopg.connect(farm.database_url, autocommit=True) as asking,
    ):
        ready = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'farm listener'"
        wait_until(lambda: asking.execute(ready).fetchone(), 20, what="the deliverer listens")
        yield process.pid


def processor_seconds(pid: int) -> float:
    """What a process used of a core so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# -- what is measured --------------------------------------------------------------------------------------------------


def throughput(farm: Farm, events: int) -> dict[str, float]:
    """Deliveries a second of one deliverer with a backlog."""
    with receiver() as hooks, psycopg.connect(farm.database_url) as connection:
        jobs = farm.jobs(events, [hooks.url(f"/ok/{number}") for number in range(20)])
        with deliverer(farm) as pid:
            before = processor_seconds(pid)
            committed = tell(connection, jobs)
            wait_until(lambda: hooks.count() >= events, 300, every=0.2, what="all arrived")
            used = processor_seconds(pid) - before
        arrived = hooks.arrived()
        assert {job for _, _, job in arrived} == {job.id for job in jobs}
        took = max(at for at, _, _ in arrived) - committed
    return {
        "events": events,
        "deliveries_per_s": events / took,
        "deliverer_cpu_ms_per_delivery": used / events * 1e3,
        "duplicates": len(arrived) - events,
    }


def celery(farm: Farm, redis_url: str, events: int, *options: str) -> float:
    """The same with a task per event."""
    from tests.bench.celery_webhooks import app, deliver

    app.conf.broker_url = redis_url
    secret = signature.new_secret()
    with receiver() as hooks:
        jobs = farm.jobs(events, [hooks.url("/none")])
        now = datetime.now(UTC)
        for job in jobs:
            content = job_payload(EventType.SUCCEEDED, now, 1, job, lambda key: "https://bucket.example/" + key, now)
            deliver.delay(hooks.url("/celery"), secret, job.id.replace("job_", "msg_"), content.decode())
        module = "tests.bench.celery_webhooks"
        with child("-m", "celery", "--app", module, "worker", "--loglevel=ERROR", *options, BENCH_BROKER=redis_url):
            wait_until(lambda: hooks.count() >= events, 300, every=0.2, what="all arrived")
        times = [at for at, _, _ in hooks.arrived()]
    return (len(times) - 1) / (max(times) - min(times))


def paced(farm: Farm, seconds: int, *, bad: bool) -> list[float]:
    """Seconds from commit to arrival at the healthy endpoints."""
    paths = [f"/ok/{number}" for number in range(PACED_ENDPOINTS)]
    if bad:
        paths[::10] = [f"/dead/{number}" for number in range(PACED_ENDPOINTS // 10)]
        paths[5::10] = [f"/slow/{number}" for number in range(PACED_ENDPOINTS // 10)]
    with receiver() as hooks, psycopg.connect(farm.database_url) as connection:
        jobs = farm.jobs(PACED_PER_SECOND * seconds, [hooks.url(path) for path in paths])
        committed: dict[str, float] = {}
        with deliverer(farm):
            begun = time.time()
            for number, job in enumerate(jobs):
                time.sleep(max(0.0, begun + number / PACED_PER_SECOND - time.time()))
                committed[job.id] = tell(connection, [job])
            healthy = {job.id for number, job in enumerate(jobs) if paths[number % PACED_ENDPOINTS].startswith("/ok")}
            wait_until(
                lambda: len(healthy - {job for _, _, job in hooks.arrived()}) == 0, 60, every=0.2, what="healthy ones"
            )
        first: dict[str, float] = {}
        for at, path, job_id in hooks.arrived():
            if path.startswith("/ok"):
                first.setdefault(job_id, at)
    forget(farm)
    # the first second is the connections'
    return [max(0.0, first[job.id] - committed[job.id]) for job in jobs[PACED_ENDPOINTS:] if job.id in first]


def forget(farm: Farm) -> None:
    """Leave nothing of a round for the next one."""
    with farm.store.begin() as unit:
        cursor = unit.session.connection().connection.cursor()
        cursor.execute("TRUNCATE delivery_attempt, delivery, event, output, endpoint, job CASCADE")


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def measure(events: int, celery_events: int, seconds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory, farm_servers(Path(directory) / "data") as (farm, redis_url):
        found: dict[str, Any] = dict(throughput(farm, events))
        forget(farm)
        found["celery_events"] = celery_events
        for name, options in (("celery_one_process", ["--concurrency=1"]), ("celery_process_per_core", [])):
            found[f"{name}_deliveries_per_s"] = celery(farm, redis_url, celery_events, *options)
            forget(farm)
            found[f"deliveries_over_{name}"] = found["deliveries_per_s"] / found[f"{name}_deliveries_per_s"]
        rounds: dict[bool, list[list[float]]] = {False: [], True: []}
        for bad in (False, True, False, True) if seconds else ():
            rounds[bad].append(paced(farm, seconds, bad=bad))
    if seconds:
        for name, bad in (("healthy", False), ("with_bad_neighbours", True)):
            for share in (50, 99):
                of_rounds = [percentile(one, share / 100) for one in rounds[bad]]
                found[f"commit_to_arrival_{name}_p{share}_ms"] = statistics.mean(of_rounds) * 1e3
        found["p99_with_bad_neighbours_over_healthy"] = (
            found["commit_to_arrival_with_bad_neighbours_p99_ms"] / found["commit_to_arrival_healthy_p99_ms"]
        )
    return found


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--celery-events", type=int, default=3_000)
    parser.add_argument("--seconds", type=int, default=12, help="of each round at 100 events a second; 0: none")
    parser.add_argument("--receive", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.receive:
        asyncio.run(receive())
        return
    found = measure(given.events, given.celery_events, given.seconds)
    OUT.mkdir(exist_ok=True)
    (OUT / "webhooks.json").write_text(json.dumps(found, indent=2) + "\n")
    for name, value in found.items():
        print(f"{name:46} {value:12,.3f}")


if __name__ == "__main__":
    main()
