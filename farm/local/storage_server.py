"""The S3 server of a farm in containers: the one of ``farm up``, of which only the S3 port is reachable.

SeaweedFS listens on loopback, where its other servers need no password; a TCP proxy carries the S3 port alone to the
network. Both end with this process.
"""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from typing import Final

import structlog

from farm.errors import SetupError
from farm.local.ports import PortReservations, assign
from farm.local.process import Program
from farm.local.process_manager import ProcessManager
from farm.local.s3 import PORT_NAMES, EmbeddedS3, IndexDatabase
from farm.local.state import DataDirectory, FarmIdentity
from farm.settings import Settings
from farm.store.connection import Database

log = structlog.stdlib.get_logger()

_LOOK_SECONDS: Final = 0.2  #: between two looks at the processes


class StorageServer:
    """One S3 server over one directory. Use it from the main thread of a process: it owns the process' signals."""

    def __init__(self, settings: Settings, directory: Path, host: str, port: int) -> None:
        """Raises SetupError without the database or the keys."""
        if settings.database_url is None:
            raise SetupError("FARM_DATABASE_URL is not set: the S3 server keeps its index in that PostgreSQL server")
        if settings.s3_access_key is None or settings.s3_secret_key is None:
            raise SetupError("FARM_S3_ACCESS_KEY or FARM_S3_SECRET_KEY is not set: the S3 server asks clients for them")
        self._directory = DataDirectory(directory)
        self._settings = settings
        self._address = (host, port)
        self._stopping = threading.Event()

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT. Raises SetupError when it cannot start."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stopping.set())
        self._directory.create()
        with self._directory.locked(grace_seconds=5.0) as ours, PortReservations() as reservations:
            if not ours:
                raise SetupError(f"another S3 server uses {self._directory.path}")
            manager = ProcessManager(self._programs(reservations), self._directory, report=log.warning)
            try:
                manager.start()
                manager.wait_ready(canceled=self._stopping.is_set)
                if not self._stopping.is_set():
                    host, port = self._address
                    log.info("the storage is ready", action="storage_ready", host=host, port=port)
                while not self._stopping.wait(_LOOK_SECONDS):
                    manager.watch()
            finally:
                manager.stop()

    def _programs(self, reservations: PortReservations) -> tuple[Program, ...]:
        known = self._directory.farm()
        names = [name for name in PORT_NAMES if name != "admin.grpc"]
        ports = assign(known.ports, names, reservations=reservations, preferred={}, companions={"admin": "admin.grpc"})
        identity = FarmIdentity(ports, known.secrets, None).with_secrets("s3.signing")
        self._directory.save_farm(identity)
        given = self._settings
        assert given.database_url is not None
        assert given.s3_access_key is not None
        assert given.s3_secret_key is not None
        server = EmbeddedS3(
            self._directory.path,
            ports,
            access_key=given.s3_access_key,
            secret_key=given.s3_secret_key.get_secret_value(),
            signing_key=identity.secret("s3.signing"),
            index=IndexDatabase.beside(Database.direct(given)),
        )
        host, port = self._address
        proxy = (sys.executable, "-P", "-m", "farm.local.tcp_proxy", host, f"{port}:{ports['s3']}")
        served = server.program()
        return served, Program("proxy", proxy, {"PATH": served.environment["PATH"]}, address=f"{host}:{port}")
