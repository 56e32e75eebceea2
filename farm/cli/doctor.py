"""``farm doctor``: what is wrong with the farm on this machine, and what to do about it."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from farm import model_registry
from farm.cli.screen import open_console
from farm.cli.up import DataDir
from farm.errors import FarmError, SetupError
from farm.local import bundled_servers, compilers, devices, health, logs, ports
from farm.local.health import Condition
from farm.local.postgres import nobody_opens_directories, root_is_renamed
from farm.local.servers import Servers, read_settings
from farm.local.services import ServiceAddresses
from farm.local.state import DataDirectory, FarmIdentity, RunState
from farm.redis_server import RedisServer
from farm.settings import Settings
from farm.store.connection import Database
from farm.store.unit_of_work import MAX_SKEW_SECONDS


class CheckStatus(StrEnum):
    """What a check found."""

    OK = "ok"
    WARN = "warn"
    BAD = "bad"


@dataclass(frozen=True)
class Check:
    """The result of one check."""

    name: str
    status: CheckStatus
    found: str
    advice: str = ""  #: what to do, one sentence; empty when all is well


_COLOURS = {CheckStatus.OK: "green", CheckStatus.WARN: "yellow", CheckStatus.BAD: "red"}

_WARN_FREE_BYTES = 10 * 2**30
_BAD_FREE_BYTES = 1 * 2**30
_SKEW_SECONDS = 2.0


def doctor(
    data_dir: DataDir = Path(".farm"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check the farm on this machine and say what to do. Exits with 1 when something is bad."""
    checks = list(_examine(DataDirectory(data_dir)))
    bad = any(check.status is CheckStatus.BAD for check in checks)
    if as_json:
        print(json.dumps({"ok": not bad, "checks": [asdict(check) for check in checks]}))
    else:
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        for check in checks:
            found = Text(check.found)
            if check.advice:
                found.append(f"\n→ {check.advice}", style="bold")
            found.overflow = "fold"
            table.add_row(Text(check.status.upper(), style=_COLOURS[check.status]), check.name, found)
        open_console().print(table)
    if bad:
        raise typer.Exit(1)


def _examine(directory: DataDirectory) -> Iterator[Check]:
    yield _python()
    try:
        given = read_settings()
    except SetupError as error:
        yield Check("settings", CheckStatus.BAD, str(error), "correct the FARM_* variable named there")
        return
    yield from _wheels(given)
    yield from _models(given)
    yield from _named(given)
    yield _account(given)
    yield _disk(directory)
    yield _devices()
    yield from _compiler(given)
    try:
        run, farm = directory.run(), directory.farm()
    except FarmError as error:
        yield Check("data directory", CheckStatus.BAD, str(error), "restore the file, or start with another --data-dir")
        return
    if not health.supervised(run) or run is None:
        yield from _at_rest(directory, run, farm)
    else:
        yield from _running(directory, run, farm, given)
    yield from _last_errors(directory, run)


def _models(given: Settings) -> Iterator[Check]:
    try:
        registry = model_registry.load(given.models_file)
    except SetupError as error:
        yield Check("models", CheckStatus.BAD, str(error), "correct the file that FARM_MODELS_FILE names")
        return
    yield Check("models", CheckStatus.OK, ", ".join(model.id for model in registry.models) or "none")
    for problem in registry.problems:
        found = f"{problem.origin}: model {problem.entry}: {problem.key}: {problem.message}"
        yield Check("models", CheckStatus.WARN, found, problem.remedy)


def _python() -> Check:
    # An older Python cannot install the package or parse its source.
    return Check("python", CheckStatus.OK, f"{platform.python_version()} at {sys.executable}")


def _wheels(given: Settings) -> Iterator[Check]:
    wanted: tuple[tuple[str, object, Callable[[], Path]], ...] = (
        ("PostgreSQL", given.database_url, bundled_servers.postgres_programs),
        ("Valkey", given.redis_url, bundled_servers.valkey_server),
        ("S3 server", given.s3_endpoint_url, bundled_servers.seaweed),
    )
    for name, installed, find in wanted:
        if installed is not None:  # `_named` asks it
            continue
        try:
            yield Check(name, CheckStatus.OK, str(find()))
        except SetupError as error:
            yield Check(name, CheckStatus.BAD, str(error), "pip install 'diffusion-render-farm[local]'")


def _account(given: Settings) -> Check:
    name = "account"
    if os.geteuid() != 0:
        return Check(name, CheckStatus.OK, f"uid {os.geteuid()}")
    if given.database_url is not None:
        return Check(name, CheckStatus.OK, "root, and PostgreSQL is an installed one")
    if root_is_renamed():
        return Check(name, CheckStatus.OK, "root; PostgreSQL runs in a user namespace")
    if nobody_opens_directories():
        return Check(name, CheckStatus.OK, "root, and user namespaces are not allowed: PostgreSQL runs as user nobody")
    return Check(
        name,
        CheckStatus.WARN,
        "root, and user namespaces and capabilities are not allowed: PostgreSQL runs as user nobody",
        "keep the installation and the data under directories that all users may enter, or use an ordinary account",
    )


def _disk(directory: DataDirectory) -> Check:
    place = next(path for path in (directory.path, *directory.path.parents) if path.exists())
    free = shutil.disk_usage(place).free
    found = f"{free / 2**30:.1f} GiB free at {place}"
    if free < _BAD_FREE_BYTES:
        return Check("disk", CheckStatus.BAD, found, "free some space: PostgreSQL stops when it cannot write")
    if free < _WARN_FREE_BYTES:
        return Check("disk", CheckStatus.WARN, found, "free some space, or move the farm with --data-dir")
    return Check("disk", CheckStatus.OK, found)


def _devices() -> Check:
    found = devices.visible()
    return Check("devices", CheckStatus.OK, ", ".join(found) if found else "no accelerator: the CPU renders")


def _compiler(given: Settings) -> Iterator[Check]:
    """What ``torch.compile`` lacks here, where it is asked for."""
    if given.compile:
        kind = "cuda" if any(device.startswith("cuda") for device in devices.visible()) else "cpu"
        found = compilers.missing(kind, given.data_dir / "compiled")
        if found is None:
            yield Check("compiler", CheckStatus.OK, "torch.compile has what it needs")
        else:
            yield Check("compiler", CheckStatus.WARN, found, "until then FARM_COMPILE has no effect")


def _at_rest(directory: DataDirectory, run: RunState | None, farm: FarmIdentity) -> Iterator[Check]:
    if run is None:
        yield Check("farm", CheckStatus.WARN, f"no farm is running in {directory.path}", "start it with `farm up`")
    elif run.phase == "failed":
        yield Check("farm", CheckStatus.BAD, f"it did not start: {run.message}", "fix that, then run `farm up` again")
    else:
        left = [part.name for part in run.parts if part.identity is not None and part.identity.alive()]
        found = "its supervisor was killed" + (f", and left {', '.join(left)} running" if left else "")
        yield Check("farm", CheckStatus.BAD, found, "start it again with `farm up`: it cleans up and loses nothing")
        if left:
            return
    taken = [f"{name} ({port})" for name, port in farm.ports.items() if not ports.is_free(port)]
    if taken:
        yield Check(
            "ports",
            CheckStatus.WARN,
            f"taken by other programs: {', '.join(taken)}",
            "nothing: `farm up` chooses others",
        )
    elif farm.ports:
        yield Check("ports", CheckStatus.OK, f"{len(farm.ports)} remembered ports are free")


def _running(directory: DataDirectory, run: RunState, farm: FarmIdentity, given: Settings) -> Iterator[Check]:
    for part in health.parts(directory, given):
        again = f", restarted {part.restarts}×" if part.restarts else ""
        found = f"{part.condition} at {part.address or 'pid ' + str(part.pid)}{again}"
        log = directory.log(part.name)
        if part.condition is Condition.HEALTHY:
            status, advice = (CheckStatus.WARN, f"see why it ended in {log}") if part.restarts else (CheckStatus.OK, "")
        elif part.condition is Condition.STARTING:
            status, advice = CheckStatus.WARN, f"wait a minute; if it stays so, read {log}"
        else:
            status, advice = CheckStatus.BAD, f"read {log}"
        yield Check(part.name, status, found, advice)
    servers = Servers.of(directory, farm, given)
    if servers.postgres is not None:
        yield from _database(Database.parse(servers.addresses.database_url))
    if servers.s3 is not None:
        yield _storage(servers.s3.settings(given))
    if any(part.name == "api" for part in run.parts):
        yield from _api(ServiceAddresses.of(farm, given.api_host), farm)


def _named(given: Settings) -> Iterator[Check]:
    """The servers that the environment names, asked as every service asks them."""
    if given.database_url is not None:
        try:
            database, direct = Database.of(given), Database.direct(given)
        except FarmError as error:
            yield Check("database", CheckStatus.BAD, str(error), "correct the variable")
        else:
            yield from _database(database, direct)
    if given.redis_url is not None:
        try:
            server = RedisServer.of(given)
            server.require_usable()
        except FarmError as error:
            yield Check("redis", CheckStatus.BAD, str(error), "correct that, or FARM_REDIS_URL")
        else:
            yield Check("redis", CheckStatus.OK, f"{server.place} answers")
    if given.s3_endpoint_url is not None:
        yield _storage(given)


def _database(database: Database, direct: Database | None = None) -> Iterator[Check]:
    """The database, its schema and its clock; ``direct`` is how sessions reach it where that differs."""
    # Only this check needs them, and they take half a second to import.
    from farm.store.migrate import current, head
    from farm.store.unit_of_work import Store, make_engine

    store = Store(make_engine(database, pool=1))
    try:
        with store.look() as unit:
            skew = unit.clock_skew()
            revision, wanted = current(unit.session.connection()), head()
        (direct or database).session("farm doctor").close()
    except FarmError as error:
        yield Check("database", CheckStatus.BAD, str(error), "correct that, or the variable that names it")
        return
    finally:
        store.close()
    yield Check("database", CheckStatus.OK, f"{database.place} answers")
    if revision == wanted:
        yield Check("migrations", CheckStatus.OK, f"at {revision}")
    else:
        yield Check(
            "migrations",
            CheckStatus.BAD,
            f"at {revision or 'nothing'}, this release needs {wanted}",
            "run `farm migrate`, or `farm init` for a new farm",
        )
    if abs(skew) < _SKEW_SECONDS:
        yield Check("clock", CheckStatus.OK, f"{abs(skew) * 1000:.0f} ms from the database's")
    else:
        yield Check(
            "clock",
            CheckStatus.WARN if abs(skew) < MAX_SKEW_SECONDS else CheckStatus.BAD,
            f"{abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} the database's",
            "switch on NTP on both machines; leases use the database's clock, signatures and links use this one",
        )


def _storage(given: Settings) -> Check:
    from farm.objects.storage import Storage

    storage = Storage(given)
    try:
        storage.check()
    except FarmError as error:
        return Check("storage", CheckStatus.BAD, str(error), "correct that, or the FARM_S3_* variables")
    finally:
        storage.close()
    return Check("storage", CheckStatus.OK, f"bucket {given.s3_bucket!r} answers")


def _api(service_addresses: ServiceAddresses, farm: FarmIdentity) -> Iterator[Check]:
    import http.client

    if not service_addresses.api_ready():
        yield Check(
            "api ready", CheckStatus.BAD, f"{service_addresses.url}/readyz does not answer 200", "read the API's log"
        )
        return
    degraded = [name for name, part in service_addresses.readiness().items() if part == "error"]
    if degraded:
        yield Check(
            "api ready",
            CheckStatus.BAD,
            f"{' and '.join(degraded)} of this farm takes no writes: jobs are accepted and wait",
            "read the API's log for `server_unhealthy`",
        )
    else:
        yield Check("api ready", CheckStatus.OK, f"{service_addresses.url}/readyz")
    connection = http.client.HTTPConnection("127.0.0.1", service_addresses.api_port, timeout=5)
    try:
        connection.request("GET", "/v1/workers", headers={"Authorization": f"Bearer {farm.api_key}"})
        answer = connection.getresponse()
        body: Any = json.loads(answer.read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        yield Check("workers", CheckStatus.BAD, f"the API gave no answer: {error}", "read the API's log")
        return
    finally:
        connection.close()
    if answer.status != http.client.OK:
        yield Check("workers", CheckStatus.BAD, f"the API answered {answer.status}", "read the API's log")
        return
    found: Any = body.get("data", body.get("workers", [])) if isinstance(body, dict) else body
    alive = [worker for worker in found if _is_alive(worker)]
    names = ", ".join(str(worker.get("name") or worker.get("id")) for worker in alive)
    if alive:
        yield Check("workers", CheckStatus.OK, f"{len(alive)} alive: {names}")
    else:
        yield Check(
            "workers",
            CheckStatus.BAD,
            "no worker is online",
            "read the workers' logs; the first start loads torch for about 10 s",
        )


def _is_alive(worker: dict[str, Any]) -> bool:
    if "alive" in worker:
        return bool(worker["alive"])
    return str(worker.get("state", worker.get("status", ""))).lower() not in {"", "dead", "lost", "gone", "offline"}


#: A level at or above "error" in the words of our own services, Celery, PostgreSQL and SeaweedFS.
_ERROR = re.compile(r"\b(ERROR|CRITICAL|FATAL|PANIC|Traceback)\b|\[(error|critical)\s*\]|^[EF]\d{4} ")


def _last_errors(directory: DataDirectory, run: RunState | None) -> Iterator[Check]:
    for part in run.parts if run else ():
        log = directory.log(part.name)
        line = _last_error(logs.latest(log))
        if line is not None:
            yield Check(f"log of {part.name}", CheckStatus.WARN, line[:300], f"read {log} if this is recent")


def _last_error(lines: list[str]) -> str | None:
    for index in range(len(lines) - 1, -1, -1):
        if lines[index].startswith("Traceback"):
            # What was raised stands at the end of a traceback, the first line that is not indented again.
            return next((line for line in lines[index + 1 :] if not line.startswith((" ", "Traceback"))), lines[index])
        if _ERROR.search(lines[index]):
            return lines[index]
    return None
