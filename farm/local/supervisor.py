"""The supervisor behind ``farm up``: starts servers, bootstrap and services in this order, and stops them all.

Everything it starts is its child, in its own session, and gets a signal from the kernel when the supervisor dies.
Where the kernel cannot do that, the next ``farm up`` finds left-over processes by pid and start time and ends them
before it starts anything. Servers and services survive a SIGKILL without loss.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from farm.errors import FarmError
from farm.local import devices, logs, services, tcp_proxy
from farm.local.ports import PortReservations
from farm.local.process import Program, clean_up
from farm.local.process_manager import ProcessManager, RestartBackoff, StartFailed
from farm.local.servers import Addresses, Servers, prepare, read_settings
from farm.local.services import ServiceAddresses
from farm.local.state import DataDirectory, FarmIdentity, Identity, RunState
from farm.settings import Settings

log = logging.getLogger("farm.supervisor")

#: The exit code of a supervisor that found another one running.
ALREADY_RUNNING = 3

_GIVE_UP_AFTER = 2  #: deaths in a row of the API while the farm starts; later it is restarted without a limit

_LOOK_EVERY = 0.2  #: seconds between two looks at the children
_CUT_EVERY = 60.0  #: seconds between two looks at the length of the logs


@dataclass(frozen=True)
class Options:
    """What the user asked ``farm up`` for."""

    directory: Path
    api_port: int | None = None
    workers: int | None = None  #: None: one per device
    servers_only: bool = False
    listen: str | None = None  #: an address of this machine, at which other machines may join

    def arguments(self) -> list[str]:
        """The same for the command line of this module."""
        found = ["--data-dir", str(self.directory)]
        if self.api_port is not None:
            found += ["--port", str(self.api_port)]
        if self.workers is not None:
            found += ["--workers", str(self.workers)]
        if self.servers_only:
            found.append("--servers-only")
        if self.listen is not None:
            found += ["--listen", self.listen]
        return found


class AlreadyRunning(FarmError):
    """Another supervisor holds this data directory."""

    def __init__(self, directory: DataDirectory, run: RunState | None) -> None:
        self.run = run
        where = f" (pid {run.supervisor.pid})" if run else ""
        super().__init__(f"the farm in {directory.path} is already running{where}: see it with `farm status`")


#: Builds the table of services; another one in tests.
Table = Callable[[Mapping[str, str], DataDirectory, Addresses, ServiceAddresses, tuple[str, ...]], tuple[Program, ...]]


class Supervisor:
    """One run of one data directory. Use it from the main thread of a process: it owns the process' signals."""

    def __init__(
        self,
        options: Options,
        *,
        given: Settings | None = None,
        table: Table = services.table,
        backoff: RestartBackoff | None = None,
        on_ready: Callable[[RunState], None] = lambda _: None,
        show: Callable[[str, str], None] | None = None,
    ) -> None:
        self.directory = DataDirectory(options.directory)
        self._options = options
        self._settings = given or read_settings()
        self._table = table
        self._backoff = backoff
        self._on_ready = on_ready
        self._follower = logs.Follower(show) if show is not None else None
        self._ports = PortReservations()
        self._signals = 0
        self._wake = threading.Event()
        self._servers = ProcessManager((), self.directory)
        self._services = ProcessManager((), self.directory)
        identity = Identity.of(os.getpid())
        assert identity is not None  # we are alive
        self._run = RunState(identity)

    def run(self) -> None:
        """Start everything, keep it running until a signal, stop everything.

        Raises AlreadyRunning, and SetupError when it cannot start; nothing is left running then.
        """
        self.directory.create()
        # A predecessor that was killed needs a moment until the kernel has let go of its lock.
        with self.directory.locked(grace_seconds=0.5) as ours:
            if not ours:
                raise AlreadyRunning(self.directory, self.directory.run())
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, self._on_signal)
            self._supervise()

    def _supervise(self) -> None:
        failure: FarmError | None = None
        try:
            self._clean_up()
            self._start()
            self._watch()
        except FarmError as error:
            failure = error
        finally:
            self._stop(failure)
        if failure is not None:
            raise failure

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._signals += 1
        self._wake.set()

    def _stopping(self) -> bool:
        return self._signals > 0

    def _hurry(self) -> bool:
        return self._signals > 1

    def _clean_up(self) -> None:
        left = self.directory.run()
        if left is None:
            return
        found = clean_up(part.identity for part in left.parts if part.identity is not None)
        if found:
            log.warning("ended what a supervisor that died had left running: pids %s", ", ".join(map(str, found)))

    def _start(self) -> None:
        chosen = devices.for_workers(devices.visible(), self._options.workers)
        farm = prepare(self.directory, self._ports, api_port=self._options.api_port)
        servers = Servers.of(self.directory, farm, self._settings)
        programs = servers.programs()
        listen = None if self._options.listen is None else tcp_proxy.check(self._options.listen)
        service_addresses = ServiceAddresses.of(farm, self._settings.api_host, listen=listen)
        self._report(f"starting {_listed(program.name for program in programs) or 'without servers of its own'}")
        self._follow(programs)
        self._servers = ProcessManager(programs, self.directory, backoff=self._backoff, report=log.warning)
        self._servers.start()
        self._save_run()
        self._servers.wait_ready(canceled=self._stopping)
        if self._stopping():
            return
        servers.create_database()
        self._report("migrating the database and preparing the storage")
        own = dict(os.environ)
        if listen is not None:
            own |= servers.join_environment(farm)
        table = services.environment(own, self.directory, servers.addresses, service_addresses)
        farm = self._bootstrap(farm, table)
        if self._stopping():
            return
        self.directory.save_farm(farm)
        self._run = replace(
            self._run, addresses=connection_details(self.directory, farm, servers.addresses, service_addresses)
        )
        if not self._options.servers_only:
            programs = self._table(own, self.directory, servers.addresses, service_addresses, chosen)
            self._report(f"starting {_listed(program.name for program in programs)}")
            self._follow(programs)
            self._services = ProcessManager(programs, self.directory, backoff=self._backoff, report=log.warning)
            self._services.start()
        self._save_run()

    def _bootstrap(self, farm: FarmIdentity, environment: Mapping[str, str]) -> FarmIdentity:
        prepared = subprocess.Popen(
            [sys.executable, "-P", "-m", "farm.local.bootstrap"],
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        given: str | None = json.dumps({"api_key": farm.api_key, "join_token": farm.join_token})
        while True:
            try:
                out, said = prepared.communicate(given, timeout=_LOOK_EVERY)
                break
            except subprocess.TimeoutExpired:
                given = None
                if self._stopping():
                    prepared.kill()
                    prepared.communicate()
                    return farm
        if prepared.returncode != 0:
            self.directory.log("bootstrap").write_text(said)
            last = said.strip().splitlines()[-1:] or ["it printed nothing"]
            raise StartFailed("bootstrap", f"could not prepare the database and the storage: {last[0]}")
        return replace(farm, **json.loads(out))

    def _watch(self) -> None:
        cut_at = time.monotonic() + _CUT_EVERY
        while not self._stopping():
            if self._run.phase == "starting" and self._services.essentials_ready():
                self._run = replace(self._run, phase="ready", message="")
                self._save_run()
                self._on_ready(self._run)
                log.info("ready: %s", self._run.addresses.get("url"))
            crash_looping = self._services.crash_looping(_GIVE_UP_AFTER) if self._run.phase == "starting" else None
            if crash_looping is not None:
                raise StartFailed(
                    crash_looping,
                    f"ended {_GIVE_UP_AFTER} times while it started; its log is {self.directory.log(crash_looping)}",
                )
            # Not `or`: both must look.
            if self._servers.watch() | self._services.watch():
                self._save_run()
            if time.monotonic() > cut_at:
                cut_at = time.monotonic() + _CUT_EVERY
                for part in self._run.parts:
                    logs.cut(self.directory.log(part.name))
            self._wake.wait(_LOOK_EVERY)

    def _stop(self, failure: FarmError | None) -> None:
        if failure is None:
            self._report("stopping")
        else:
            # What `farm up` and `farm status` show of it after we are gone.
            part = failure.part if isinstance(failure, StartFailed) else ""
            self._run = replace(self._run, phase="failed", message=str(failure), failed_part=part)
            self._save_run()
        for manager in (self._services, self._servers):
            killed = manager.stop(hurry=self._hurry)
            if killed:
                log.warning("had to kill %s", _listed(killed))
        self._ports.release()
        if self._follower is not None:
            self._follower.stop()
        if failure is None:
            self.directory.end_run()
            log.info("stopped")
        else:
            self._save_run()

    def _follow(self, programs: tuple[Program, ...]) -> None:
        if self._follower is not None:
            self._follower.follow({program.name: self.directory.log(program.name) for program in programs})

    def _report(self, message: str) -> None:
        log.info(message)
        phase = "stopping" if self._stopping() else self._run.phase
        self._run = replace(self._run, phase=phase, message=message)
        self._save_run()

    def _save_run(self) -> None:
        self._run = replace(self._run, parts=self._servers.parts() + self._services.parts())
        self.directory.save_run(self._run)


def connection_details(
    directory: DataDirectory, farm: FarmIdentity, addresses: Addresses, service_addresses: ServiceAddresses
) -> dict[str, Any]:
    """What ``farm up --json`` prints."""
    return {
        "url": service_addresses.url,
        "api_key": farm.api_key,
        "external_url": service_addresses.external_url,
        "join_token": farm.join_token if service_addresses.listen else None,
        "flower_url": service_addresses.flower_url,
        "database_url": addresses.database_url,
        "redis_url": addresses.redis_url,
        "s3": {
            "endpoint_url": addresses.s3_endpoint_url,
            "access_key": addresses.s3_access_key,
            "secret_key": addresses.s3_secret_key,
            "bucket": addresses.s3_bucket,
        },
        "data_dir": str(directory.path),
    }


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def main(arguments: list[str] | None = None) -> int:
    """The detached supervisor: no terminal, it logs to ``supervisor.log``."""
    parser = argparse.ArgumentParser(prog="farm.local.supervisor")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--port", type=int)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--servers-only", action="store_true")
    parser.add_argument("--listen")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        Supervisor(Options(given.data_dir, given.port, given.workers, given.servers_only, given.listen)).run()
    except AlreadyRunning as error:
        log.warning("%s", error)
        return ALREADY_RUNNING
    except FarmError as error:
        log.error("%s", error)  # noqa: TRY400 - a stack trace would hide the sentence that helps
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
