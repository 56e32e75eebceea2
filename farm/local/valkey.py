"""Valkey 9 as a child process: the broker's Redis, loopback only, password required."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from farm.local import bundled_servers
from farm.local.ports import LOOPBACK
from farm.local.process import Program
from farm.local.state import write_private
from farm.redis_server import WORKER_ACL


@dataclass(frozen=True)
class EmbeddedValkey:
    """One Valkey server over one directory, which holds its append-only file."""

    directory: Path
    port: int
    password: str
    worker_password: str  #: of the user ``worker``, who may do what a worker does

    def worker_url(self) -> str:
        """The URL of that user."""
        return f"redis://worker:{self.worker_password}@{LOOPBACK}:{self.port}/0"

    def url(self, database: int = 0) -> str:
        """``redis://…`` of one of its 16 databases, password included."""
        return f"redis://:{self.password}@{LOOPBACK}:{self.port}/{database}"

    def initialise(self) -> None:
        """Write its configuration: in a private file, since arguments are for every user of the machine to see."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lines = [
            f"bind {LOOPBACK}",
            f"port {self.port}",
            f"requirepass {self.password}",
            f"user worker on >{self.worker_password} {WORKER_ACL}",
            "daemonize no",
            # A queue that drops entries under memory pressure, or forgets a second's work, would still be repaired
            # from the database; it would cost time, so let it do neither.
            "maxmemory-policy noeviction",
            "appendonly yes",
            "appendfsync everysec",
            'save ""',
            'logfile ""',
        ]
        write_private(self.directory / "valkey.conf", "\n".join(lines) + "\n")

    def program(self) -> Program:
        """How to run the server."""
        return Program(
            name="valkey",
            argv=(str(bundled_servers.valkey_server()), "valkey.conf"),
            environment=dict(os.environ),
            directory=self.directory,
            address=f"{LOOPBACK}:{self.port}",
            prepare=self.initialise,
            ready=self.ready,
            stop_seconds=10.0,
            orphan_signal=signal.SIGTERM,
        )

    def ready(self) -> bool:
        """Whether it answers; False too while it loads its data."""
        once = Retry(NoBackoff(), 0)  # the client's own default tries again for seconds
        try:
            with redis.Redis(
                host=LOOPBACK,
                port=self.port,
                password=self.password,
                socket_timeout=2,
                socket_connect_timeout=2,
                retry=once,
            ) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False
