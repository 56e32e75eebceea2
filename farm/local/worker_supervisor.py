"""``farm worker --device all``: one worker process for each device of a machine, for systemd and for containers.

A worker that ends is started again, one that is frozen is replaced. A signal goes to all of them: the first SIGTERM
drains, the second releases all jobs, as for a single worker. Their output is this process's output.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Final

import structlog

from farm.errors import SetupError
from farm.local import devices
from farm.local.process import Program
from farm.local.process_manager import ProcessManager, RestartBackoff
from farm.local.services import MAX_WORKERS, METRICS_WORKER_PORT, torch_threads, worker_name
from farm.local.state import DataDirectory

log = structlog.stdlib.get_logger()

ALL: Final = "all"
GIVE_UP_AFTER: Final = 3  #: deaths in a row of every worker: what is wrong is not a worker's
KILL_AFTER_SECONDS: Final = 30.0  #: beyond ``FARM_DRAIN_SECONDS``, when a worker does not end
_LOOK_SECONDS: Final = 0.2  #: between two looks at the workers


def chosen(device: str | None, environment: Mapping[str, str] = os.environ) -> tuple[str, ...] | None:
    """The devices of several workers that ``--device`` names: ``all``, or a list as in ``0,2``; None: it names one.

    ``all`` is each GPU that this process may use, or the processor where there is none. Raises `SetupError` for a list
    that has an entry twice, or too many.
    """
    if device is None or (device.strip().lower() != ALL and "," not in device):
        return None
    if device.strip().lower() == ALL:
        found = devices.for_workers(devices.visible(environment), None)
    else:
        parts = (part.strip() for part in device.split(",") if part.strip())
        found = tuple({"cpu": "cpu0"}.get(part, f"cuda:{part}" if part.isdigit() else part) for part in parts)
    if len(set(found)) < len(found):
        raise SetupError(f"--device {device} names a device twice; a device has one worker")
    if not 0 < len(found) <= MAX_WORKERS:
        raise SetupError(f"--device {device} names {len(found)} devices; 1 to {MAX_WORKERS} are allowed")
    return found


def programs(
    found: Sequence[str], celery_options: Sequence[str], environment: Mapping[str, str], directory: DataDirectory
) -> tuple[Program, ...]:
    """A worker for each device, with metrics ports that follow each other."""
    first_port = int(environment.get("FARM_METRICS_WORKER_PORT") or METRICS_WORKER_PORT)
    drain = float(environment.get("FARM_DRAIN_SECONDS") or 25)
    made = []
    for index, device in enumerate(found):
        name = worker_name(device)
        alive = directory.path / f"{name}.alive"
        variables = {
            **torch_threads(tuple(found)),
            **environment,
            "FARM_DEVICE": device,
            "FARM_METRICS_WORKER_PORT": str(first_port + index if first_port else 0),
            "FARM_WORKER_ALIVE_FILE": str(alive),
        }
        argv = (sys.executable, "-P", "-m", "farm.cli", "worker")
        made.append(
            Program(
                name,
                argv + (("--", *celery_options) if celery_options else ()),
                variables,
                address=device,
                alive_file=alive,
                own_log=False,
                stop_seconds=drain + KILL_AFTER_SECONDS,
            )
        )
    return tuple(made)


class WorkerSupervisor:
    """The workers of one machine. Use it from the main thread of a process: it owns the process's signals."""

    def __init__(
        self,
        workers: Sequence[Program],
        directory: DataDirectory,
        alive_file: Path | None = None,
        backoff: RestartBackoff | None = None,
    ) -> None:
        """``alive_file``: touched as long as this process looks after its workers, for liveness probes."""
        self._alive_file = alive_file
        self._wake = threading.Event()
        self._signals = 0
        self._stop_seconds = max(one.stop_seconds for one in workers)
        self._manager = ProcessManager(workers, directory, backoff=backoff, report=self._report)

    def run(self) -> None:
        """Keep the workers running until a signal, then until they have ended.

        Raises `SetupError` when none of them can be started, again and again.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        try:
            self._manager.start()
            while not self._signals:
                self._manager.watch()
                if self._alive_file is not None:
                    self._alive_file.touch()
                if self._manager.all_crash_looping(GIVE_UP_AFTER):
                    raise SetupError(f"no worker of this machine starts: each ended {GIVE_UP_AFTER} times; see above")
                self._wake.wait(_LOOK_SECONDS)
            self._drain()
        finally:
            killed = self._manager.stop(hurry=lambda: True)
            if killed:
                log.warning("had to kill workers", action="workers_killed", workers=killed)

    def _drain(self) -> None:
        deadline = time.monotonic() + self._stop_seconds
        forwarded = 0
        while time.monotonic() < deadline:
            if forwarded < self._signals:
                forwarded += 1
                self._manager.send(signal.SIGTERM)
            if not self._manager.running():
                return
            if self._alive_file is not None:
                self._alive_file.touch()
            self._wake.clear()
            if forwarded == self._signals:
                self._wake.wait(_LOOK_SECONDS)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._signals += 1
        self._wake.set()

    def _report(self, message: str) -> None:
        log.warning(message, action="worker_restarted")


def supervise(found: Sequence[str], celery_options: Sequence[str]) -> None:
    """Run a worker for each of these devices until a signal. Raises `SetupError`."""
    from farm.log import configure  # noqa: PLC0415 - only for this command
    from farm.settings import settings  # noqa: PLC0415

    configure(settings(), "worker")
    directory = DataDirectory(settings().data_dir.absolute())
    directory.path.mkdir(mode=0o700, parents=True, exist_ok=True)
    workers = programs(found, celery_options, os.environ, directory)
    log.info("starting workers", action="workers_starting", devices=list(found))
    WorkerSupervisor(workers, directory, settings().worker_alive_file).run()
