"""What one key can do to the others: hostile requests against the API, and how it answers meanwhile.

``python -m tests.bench.hostile [ATTACK …]`` starts the servers and one API process in a temporary directory. For each
attack it prints the API's answers, the health check's latency meanwhile, and what the process's memory grew by.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from farm.local import servers as local
from farm.local.bootstrap import prepare_storage
from farm.local.ports import PortReservations
from farm.local.process_manager import ProcessManager
from farm.local.state import DataDirectory
from farm.objects.storage import Storage
from farm.settings import Settings
from farm.store.migrate import upgrade
from farm.store.tenants import Scope
from farm.store.unit_of_work import Store
from tests.bench.bulk import Memory
from tests.waiting import wait_until

PAUSE = 0.02  #: between two health checks
SLOW = 15.0  #: seconds that slow senders are watched


@dataclass
class Target:
    """The API under attack."""

    port: int
    key: str
    other_key: str
    pid: int
    statuses: list[str] = field(default_factory=list)

    def send(self, path: str, media_type: str, body: bytes, timeout: float = 120) -> None:
        """One POST; notes the status of its answer, and the error's first words."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        head = {"Authorization": f"Bearer {self.key}", "Content-Type": media_type}
        try:
            connection.request("POST", path, body, head)
            answer = connection.getresponse()
            answer.read()
            self.statuses.append(str(answer.status))
        except (OSError, http.client.HTTPException) as error:
            self.statuses.append(type(error).__name__)
        finally:
            connection.close()

    def open(self, head: str) -> socket.socket:
        """A connection on which that much of a request was sent."""
        made = socket.create_connection(("127.0.0.1", self.port))
        made.sendall(head.encode())
        return made


def deep_json(target: Target) -> None:
    target.send("/v1/jobs", "application/json", b'{"prompt":[' + b"[]," * (40 * 2**20 // 3) + b"[]]}")


def deep_json_compat(target: Target) -> None:
    target.send("/sdapi/v1/txt2img", "application/json", b'{"prompt":[' + b"[]," * (40 * 2**20 // 3) + b"[]]}")


def csv_header(target: Target) -> None:
    target.send("/v1/batches", "text/csv", ",".join(f"c{n}" for n in range(100_000)).encode() + b"\n")


def csv_row(target: Target) -> None:
    cell = b'"' + b"x\n" * 50_000 + b'",'
    target.send("/v1/batches", "text/csv", b"prompt\n" + cell * 600)


def bad_lines(target: Target) -> None:
    target.send("/v1/batches", "application/jsonl", b"{}\n" * (16 * 2**20 // 3))


def slow_lines(target: Target) -> None:
    """Four bodies of JSON lines at a byte every second, while another tenant submits one."""
    head = (
        f"POST /v1/batches HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {target.key}\r\n"
        "Content-Type: application/jsonl\r\nContent-Length: 100000\r\n\r\n"
    )
    senders = [target.open(head) for _ in range(4)]
    until = time.monotonic() + SLOW
    other = Target(target.port, target.other_key, "", target.pid)
    thread = threading.Thread(
        target=other.send, args=("/v1/batches?dry_run=true", "application/jsonl", b'{"prompt":"x"}\n', SLOW)
    )
    time.sleep(1)
    thread.start()
    while time.monotonic() < until:
        for one in senders:
            with contextlib.suppress(OSError):
                one.send(b"{")
        time.sleep(1)
    thread.join()
    for one in senders:
        one.settimeout(0.1)
        try:
            target.statuses.append(one.recv(100).split(b" ")[1].decode())
        except (OSError, IndexError):
            target.statuses.append("still open")
        one.close()
    target.statuses.append(f"another tenant: {other.statuses}")


def half_open(target: Target) -> None:
    made = [target.open("GET / HTTP/1.1\r\nHost: x\r\n") for _ in range(800)]
    time.sleep(SLOW)
    left = 0
    for one in made:
        one.setblocking(False)
        try:
            one.recv(100)
        except BlockingIOError:
            left += 1
        except OSError:
            pass
        one.close()
    target.statuses.append(f"{left} of {len(made)} connections are open after {SLOW:g} s")


ATTACKS: dict[str, Callable[[Target], None]] = {
    one.__name__: one for one in (deep_json, deep_json_compat, csv_header, csv_row, bad_lines, slow_lines, half_open)
}


def look(port: int, done: threading.Event, found: list[float]) -> None:
    """Ask for the API's health until the attack is over."""
    while not done.is_set():
        begun = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        with contextlib.suppress(OSError):
            connection.request("GET", "/healthz")
            connection.getresponse().read()
        connection.close()
        found.append(time.perf_counter() - begun)
        time.sleep(PAUSE)


def attack(target: Target, name: str) -> None:
    memory = Memory(target.pid)
    seconds: list[float] = []
    done = threading.Event()
    thread = threading.Thread(target=look, args=(target.port, done, seconds))
    thread.start()
    target.statuses = []
    begun = time.perf_counter()
    try:
        ATTACKS[name](target)
    finally:
        took = time.perf_counter() - begun
        done.set()
        thread.join()
    seconds.sort()
    p99 = seconds[min(len(seconds) - 1, int(len(seconds) * 0.99))]
    print(
        f"{name:18} {took:6.1f} s   healthz p50 {seconds[len(seconds) // 2] * 1000:7.1f} p99 {p99 * 1000:8.1f} "
        f"max {seconds[-1] * 1000:8.1f} ms   memory +{memory.grown():7.1f} MB   {', '.join(target.statuses)}",
        flush=True,
    )


@contextlib.contextmanager
def running(directory: DataDirectory) -> Iterator[Target]:
    """The servers and an API process."""
    directory.create()
    reservations = PortReservations()
    farm = local.prepare(directory, reservations)
    group = local.Servers.of(directory, farm, Settings())
    manager = ProcessManager(group.programs(), directory)
    process = None
    try:
        manager.start()
        manager.wait_ready()
        assert group.postgres is not None
        group.postgres.create_database()
        upgrade(group.postgres.url())
        environment = group.addresses.environment() | {"FARM_DATABASE_URL": group.postgres.url()}
        os.environ.update(environment)
        storage = Storage(Settings())
        prepare_storage(storage)
        storage.close()
        store = Store.connect(Settings(), pool=1)
        with store.begin() as unit:
            keys = [
                unit.tenants.create_key(unit.tenants.create(name).id, "bench", frozenset({Scope.SUBMIT}))[1]
                for name in ("attacker", "other")
            ]
        store.close()
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        process = subprocess.Popen(
            [sys.executable, "-m", "farm.cli", "api", "--port", str(port)],
            env=os.environ | {"FARM_METRICS_API_PORT": "0"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

        def up() -> bool:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                return True
            return False

        wait_until(up, 60, what="the API listens")
        yield Target(port, keys[0], keys[1], process.pid)
    finally:
        if process is not None:
            process.terminate()
            process.wait()
        manager.stop()
        reservations.release()


def main(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as scratch, running(DataDirectory(Path(scratch) / "data")) as target:
        for name in names or ATTACKS:
            attack(target, name)


if __name__ == "__main__":
    main(sys.argv[1:])
