"""What is done to a farm. Each fault is a generator: it does harm, yields to whom and how long, and mends it."""

from __future__ import annotations

import contextlib
import io
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from random import Random
from urllib.parse import urlsplit

import httpx2
import psutil
import psycopg
import redis
from PIL import Image

from tests.chaos.farm import LEASE, POISON, ChaosFarm
from tests.chaos.proxy import Mode
from workers.failpoints import POINTS

#: Yields first its name with its victim, then seconds; what follows is the mending.
Fault = Callable[[ChaosFarm, Random], Iterator[tuple[str, float]]]


def kill(kind: str) -> Fault:
    def fault(farm: ChaosFarm, chance: Random) -> Iterator[tuple[str, float]]:
        victim = chance.choice(farm.named(kind))
        if farm.signal(victim, signal.SIGKILL):
            yield victim, 0.0

    return fault


def freeze(kind: str) -> Fault:
    """SIGSTOP for longer than a lease; it goes on in the belief that no time has passed."""

    def fault(farm: ChaosFarm, chance: Random) -> Iterator[tuple[str, float]]:
        victim = chance.choice(farm.named(kind))
        if farm.signal(victim, signal.SIGSTOP):
            yield victim, LEASE * chance.uniform(1.2, 2.0)
            farm.signal(victim, signal.SIGCONT)

    return fault


def kill_engine(farm: ChaosFarm, chance: Random) -> Iterator[tuple[str, float]]:
    """The process that owns a worker's device ends, and the worker does not."""
    victim = chance.choice(farm.named("worker"))
    if (engine := farm.engine_of(victim)) is not None:
        with contextlib.suppress(psutil.NoSuchProcess):
            engine.kill()
            yield victim, 0.0


def drain(farm: ChaosFarm, chance: Random) -> Iterator[tuple[str, float]]:
    victim = chance.choice(farm.named("worker"))
    if farm.signal(victim, signal.SIGTERM):
        yield victim, 0.0


def drain_mid_job(farm: ChaosFarm, chance: Random) -> Iterator[tuple[str, float]]:
    """A worker is asked to end while its device is in the middle of a job that would outlast the drain."""
    holders = _start_long_jobs(farm, chance)
    if holders and farm.signal(victim := chance.choice(holders), signal.SIGTERM):
        yield victim, 0.0


def preempt(farm: ChaosFarm, chance: Random) -> Iterator[tuple[str, float]]:
    """Interactive jobs while long bulk jobs have the devices."""
    if not _start_long_jobs(farm, chance):
        return
    for _ in range(chance.randint(1, 6)):
        _submit(farm, chance, priority="interactive", num_inference_steps=3)
    yield "bulk jobs", 1.0


def _start_long_jobs(farm: ChaosFarm, chance: Random) -> list[str]:
    """Submit bulk jobs of several seconds; returns the workers that have begun with one."""
    for _ in range(4):
        _submit(farm, chance, priority="bulk", num_inference_steps=150, num_outputs=2)
    for _ in range(20):
        with contextlib.suppress(psycopg.Error), farm.connect() as connection:
            rows = connection.execute(
                "SELECT DISTINCT worker FROM job WHERE state = 'running' AND steps >= 300 AND step > 0"
            ).fetchall()
            names = [f"worker-{row[0].rpartition('/cpu')[2]}" for row in rows]
            if names:
                return names
        time.sleep(0.2)
    return []


def _submit(farm: ChaosFarm, chance: Random, **fields: object) -> None:
    body = {"task": "text-to-image", "model": "starter", "prompt": "a red ball", "width": 64, "height": 64} | fields
    headers = {"Authorization": f"Bearer {chance.choice(list(farm.keys.values()))}"}
    with contextlib.suppress(httpx2.HTTPError):
        httpx2.post(f"{farm.url}/v1/jobs", json=body, headers=headers, timeout=5, trust_env=False)


def restart_with(variables: Callable[[Random], tuple[str, dict[str, str]]]) -> Fault:
    """The worker's next process has other variables, once."""

    def fault(farm: ChaosFarm, chance: Random) -> Iterator[tuple[str, float]]:
        victim = chance.choice(farm.named("worker"))
        what, more = variables(chance)
        farm.all[victim].once = more
        if farm.signal(victim, signal.SIGKILL):
            yield f"{victim}, {what}", 0.0

    return fault


def _crash_point(chance: Random) -> tuple[str, dict[str, str]]:
    point = chance.choice(POINTS)
    return point, {"FARM_CRASH_AT": point if point == "mid_denoise" else f"mid_denoise={POISON},{point}"}


def _wrong_clock(chance: Random) -> tuple[str, dict[str, str]]:
    ahead = chance.choice((3_600, -3_600, 240, -240))  # a worker refuses to join with the first two
    return f"{ahead:+d} s", {"FARM_CHAOS_CLOCK": str(ahead)}


def kill_server(name: str) -> Fault:
    def fault(farm: ChaosFarm, _: Random) -> Iterator[tuple[str, float]]:
        if farm.signal(name, signal.SIGKILL):
            yield name, 0.0

    return fault


def freeze_server(name: str) -> Fault:
    def fault(farm: ChaosFarm, chance: Random) -> Iterator[tuple[str, float]]:
        if farm.signal(name, signal.SIGSTOP):
            yield name, chance.uniform(1.0, LEASE * 1.5)
            farm.signal(name, signal.SIGCONT)

    return fault


def wipe(farm: ChaosFarm, _: Random) -> Iterator[tuple[str, float]]:
    with contextlib.suppress(redis.RedisError), farm.redis() as client:
        client.flushall()
        yield "valkey", 0.0


def no_memory(farm: ChaosFarm, chance: Random) -> Iterator[tuple[str, float]]:
    with contextlib.suppress(redis.RedisError), farm.redis() as client:
        client.config_set("maxmemory", 1)
        yield "valkey", chance.uniform(2.0, 8.0)
        client.config_set("maxmemory", 0)


def disturb(mode: Mode) -> Fault:
    """One service's way to one server, or everybody's way to it."""

    def fault(farm: ChaosFarm, chance: Random) -> Iterator[tuple[str, float]]:
        way = chance.choice(("database", "redis", "storage"))
        victims = list(farm.all) if chance.random() < 0.25 else [chance.choice(list(farm.all))]
        for victim in victims:
            farm.all[victim].ways[way].set(mode)
        yield f"{way} of {victims[0] if len(victims) == 1 else 'all'}", chance.uniform(1.0, LEASE * 2)
        for victim in victims:
            farm.all[victim].ways[way].set(Mode.OPEN)

    return fault


def tamper(how: str) -> Fault:
    """Messages that wait for a worker, which is stopped meanwhile: doubled, dropped or reordered."""

    def fault(farm: ChaosFarm, chance: Random) -> Iterator[tuple[str, float]]:
        victim = chance.choice(farm.named("worker"))
        queue = farm.queue(victim)
        if not farm.signal(victim, signal.SIGSTOP):
            return
        farm.tampered.add(queue)
        yield victim, 1.5
        with contextlib.suppress(redis.RedisError), farm.redis() as client:
            messages = client.lrange(queue, 0, -1)
            client.delete(queue)
            if how == "reorder":
                chance.shuffle(messages)
            if how == "duplicate":
                messages = [*messages, *messages]
                chance.shuffle(messages)
                # and some to a worker that they were not for
                other = chance.choice(farm.named("worker"))
                farm.tampered.add(farm.queue(other))
                if messages:
                    client.rpush(farm.queue(other), *messages[:3])
            if messages and how != "drop":
                client.rpush(queue, *messages)
        farm.signal(victim, signal.SIGCONT)

    return fault


def full_disk(farm: ChaosFarm, chance: Random) -> Iterator[tuple[str, float]]:
    """PostgreSQL's file system has no byte left."""
    if farm.small_disk is None:
        return
    ballast = farm.small_disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb") as file:
        while True:
            file.write(b"\0" * 65536)
            file.flush()
    yield "postgres", chance.uniform(2.0, 6.0)
    ballast.unlink(missing_ok=True)


def full_log_disk(farm: ChaosFarm, chance: Random) -> Iterator[tuple[str, float]]:
    """A worker's files, its log among them, cannot grow."""
    victim = chance.choice(farm.named("worker"))
    farm.limit_files(victim, 0)
    yield victim, chance.uniform(2.0, 6.0)
    farm.limit_files(victim, -1)


def unplug(farm: ChaosFarm, chance: Random) -> Iterator[tuple[str, float]]:
    """The cable of a worker's host, for longer than its lease."""
    for service in farm.all.values():
        if service.host is not None:
            service.host.unplug()
            yield service.name, LEASE * chance.uniform(1.2, 2.5)
            service.host.plug_in()


def far_worker(farm: ChaosFarm, chance: Random) -> Iterator[tuple[str, float]]:
    """All servers of a worker are 80 ms away."""
    victim = chance.choice(farm.named("worker"))
    for way in farm.all[victim].ways.values():
        way.set(Mode.FAR)
    yield victim, chance.uniform(LEASE, LEASE * 3)
    for way in farm.all[victim].ways.values():
        way.set(Mode.OPEN)


def nap(farm: ChaosFarm, chance: Random) -> Iterator[tuple[str, float]]:
    """The whole machine sleeps for longer than a lease: every service, and every server."""
    sleeping = [name for name in (*farm.all, "postgres", "valkey", "s3") if farm.signal(name, signal.SIGSTOP)]
    time.sleep(LEASE * chance.uniform(1.2, 2.0))  # the driver would ask the servers meanwhile, and wait
    for name in reversed(sleeping):
        farm.signal(name, signal.SIGCONT)
    yield "all", 0.0


def power_cut(farm: ChaosFarm, _: Random) -> Iterator[tuple[str, float]]:
    """The storage's machine loses its power: what was not synced to its disk is gone."""
    if farm.cut_power_of_storage():
        yield "s3", 0.0


def lose_bucket(farm: ChaosFarm, chance: Random) -> Iterator[tuple[str, float]]:
    """The bucket is deleted with all that is in it; at the end of the run its objects are repaired."""
    if farm.lose_bucket():
        yield "s3", chance.uniform(1.0, 4.0)
        farm.make_bucket()


def read_only_storage(farm: ChaosFarm, chance: Random) -> Iterator[tuple[str, float]]:
    """The storage answers and takes nothing, as one whose disk is full."""
    if farm.s3.configure_bucket(read_only=True):
        yield "s3", chance.uniform(2.0, 8.0)
        farm.s3.configure_bucket()


def slow_sender(farm: ChaosFarm, chance: Random) -> Iterator[tuple[str, float]]:
    """Request bodies that hardly arrive, and connections without a request."""
    host = urlsplit(farm.url)
    key = chance.choice(list(farm.keys.values()))
    head = (
        f"POST /v1/batches HTTP/1.1\r\nHost: farm\r\nAuthorization: Bearer {key}\r\n"
        "Content-Type: application/jsonl\r\nContent-Length: 1000000\r\n\r\n{"
    )
    with contextlib.ExitStack() as opened:
        for number in range(40):
            with contextlib.suppress(OSError):
                made = opened.enter_context(socket.create_connection((host.hostname, host.port), timeout=1))
                made.sendall(head.encode() if number % 2 else b"GET /v1/jobs HTTP/1.1\r\nHost: ")
        yield "api", chance.uniform(2.0, LEASE)


def decode_bomb(farm: ChaosFarm, chance: Random) -> Iterator[tuple[str, float]]:
    """Uploads of images that are small as files and as large as the API allows in memory, several at once."""
    out = io.BytesIO()
    Image.new("L", (4096, 4096), chance.randrange(256)).save(out, "PNG")
    key = chance.choice(list(farm.keys.values()))
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "image/png"}

    def upload() -> None:
        with contextlib.suppress(httpx2.HTTPError):
            httpx2.post(f"{farm.url}/v1/files", content=out.getvalue(), headers=headers, timeout=60, trust_env=False)

    for _ in range(8):
        threading.Thread(target=upload, daemon=True).start()
    yield "api", 1.0


#: By kind: how often beside the others, and what.
FAULTS: dict[str, tuple[int, Fault]] = {
    "kill worker": (4, kill("worker")),
    "freeze worker": (3, freeze("worker")),
    "kill engine": (3, kill_engine),
    "drain worker": (2, drain),
    "drain mid job": (2, drain_mid_job),
    "preempt": (3, preempt),
    "crash point": (6, restart_with(_crash_point)),
    "wrong clock": (1, restart_with(_wrong_clock)),
    "kill dispatcher": (2, kill("dispatcher")),
    "freeze dispatcher": (2, freeze("dispatcher")),
    "kill deliverer": (2, kill("deliverer")),
    "freeze deliverer": (1, freeze("deliverer")),
    "kill api": (1, kill("api")),
    "kill redis": (2, kill_server("valkey")),
    "freeze redis": (1, freeze_server("valkey")),
    "wipe redis": (3, wipe),
    "redis out of memory": (2, no_memory),
    "kill postgres": (2, kill_server("postgres")),
    "freeze postgres": (1, freeze_server("postgres")),
    "full disk of postgres": (1, full_disk),
    "kill storage": (1, kill_server("s3")),
    "freeze storage": (1, freeze_server("s3")),
    "power cut of storage": (1, power_cut),
    "lost bucket": (1, lose_bucket),
    "read-only storage": (1, read_only_storage),
    "slow way": (2, disturb(Mode.SLOW)),
    "cut way": (2, disturb(Mode.CUT)),
    "half-open way": (2, disturb(Mode.HALF_OPEN)),
    "black hole": (2, disturb(Mode.BLACK_HOLE)),
    "duplicate messages": (2, tamper("duplicate")),
    "drop messages": (1, tamper("drop")),
    "reorder messages": (1, tamper("reorder")),
    "full disk of worker": (1, full_log_disk),
    "unplugged host": (2, unplug),
    "far worker": (2, far_worker),
    "nap of the farm": (1, nap),
    "slow sender": (2, slow_sender),
    "decode bomb": (1, decode_bomb),
}
