"""How each part of a local farm does right now: asked from outside, by anybody who may read the data directory."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum

import psutil
import psycopg

from farm.errors import FarmError
from farm.local import services
from farm.local.servers import Servers
from farm.local.services import ServiceAddresses
from farm.local.state import DataDirectory, Part, RunState
from farm.objects.storage import Storage
from farm.redis_server import RedisServer
from farm.settings import Settings
from farm.store.connection import Database


class Condition(StrEnum):
    """How a part does."""

    HEALTHY = "healthy"
    STARTING = "starting"  #: its process runs, it does not answer yet
    RESTARTING = "restarting"  #: it died and waits to be started again
    DOWN = "down"


@dataclass(frozen=True)
class PartHealth:
    """One part of the farm, as seen now."""

    name: str
    condition: Condition
    address: str
    pid: int | None = None
    restarts: int = 0
    uptime_seconds: float | None = None
    memory_bytes: int | None = None  #: its children included, shared pages divided among those who share


def supervised(run: RunState | None) -> bool:
    """Whether the run's supervisor is alive."""
    return run is not None and run.supervisor.alive()


def parts(directory: DataDirectory, settings: Settings) -> list[PartHealth]:
    """All parts of a farm: those that its supervisor runs, and the installed servers that it leans on."""
    run = directory.run()
    farm = directory.farm()
    if not farm.ports:
        return []
    servers = Servers.of(directory, farm, settings)
    service_addresses = ServiceAddresses.of(farm, settings.api_host)
    probes: dict[str, Callable[[], bool]] = {}
    for program in servers.programs():
        probes[program.name] = program.ready
    # Only the probes matter here; which devices there are does not change them.
    for program in services.table({}, directory, servers.addresses, service_addresses, ()):
        probes[program.name] = program.ready
    known = run.parts if run else tuple(Part(name, "") for name in probes)
    alive = supervised(run)
    with ThreadPoolExecutor(max_workers=8) as pool:
        looked = list(pool.map(lambda part: _look(part, probes.get(part.name), alive), known))
        return looked + list(pool.map(_look_installed, _installed(servers, settings).items()))


def _look(part: Part, probe: Callable[[], bool] | None, supervised: bool) -> PartHealth:
    if part.identity is None or not part.identity.alive():
        condition = Condition.RESTARTING if supervised else Condition.DOWN
        return PartHealth(part.name, condition, part.address, restarts=part.restarts)
    ready = probe is None or probe()
    return PartHealth(
        part.name,
        Condition.HEALTHY if ready else Condition.STARTING,
        part.address,
        part.identity.pid,
        part.restarts,
        max(0.0, time.time() - part.since),
        _memory(part.identity.pid),
    )


def _installed(servers: Servers, given: Settings) -> Mapping[str, tuple[str, Callable[[], object]]]:
    """Where servers are that somebody else runs, and what raises unless they answer."""
    found: dict[str, tuple[str, Callable[[], object]]] = {}
    if servers.postgres is None:
        database = Database.of(given)
        found["postgres"] = (database.place, lambda: database.connect(limits=False).close())
    if servers.valkey is None:
        server = RedisServer.of(given)
        found["valkey"] = (server.place, server.require_usable)
    if servers.s3 is None:
        found["s3"] = (given.s3_endpoint_url or "", lambda: _check_storage(given))
    return found


def _check_storage(given: Settings) -> None:
    storage = Storage(given)
    try:
        storage.check()
    finally:
        storage.close()


def _own_memory(process: psutil.Process) -> int:
    # PostgreSQL's processes share their buffers: a sum of resident sizes would count them once for each.
    try:
        return int(process.memory_full_info().pss)
    except (psutil.AccessDenied, AttributeError):
        return int(process.memory_info().rss)


def _look_installed(named: tuple[str, tuple[str, Callable[[], object]]]) -> PartHealth:
    name, (place, check) = named
    try:
        check()
    except (FarmError, psycopg.Error):
        condition = Condition.DOWN
    else:
        condition = Condition.HEALTHY
    return PartHealth(name, condition, f"{place} (not ours)")


def _memory(pid: int) -> int | None:
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.Error:
        return None
    total = 0
    for member in family:
        try:
            total += _own_memory(member)
        except psutil.Error:
            continue
    return total
