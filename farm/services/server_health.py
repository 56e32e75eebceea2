"""Whether the servers that the farm needs do their work: asked by writing, seldom, and remembered.

A server may answer and still take nothing: a full disk, a bucket that is gone, a replica that is read-only. Only a
write finds that. PostgreSQL decides whether this process can serve; without Redis and S3 jobs are accepted and wait.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final

import structlog
from redis.exceptions import RedisError

from farm import metrics
from farm.errors import BrokerUnavailable, FarmError
from farm.objects.storage import Storage
from farm.redis_server import RedisServer
from farm.server_errors import broker_unavailable
from farm.store.unit_of_work import Store

log = structlog.get_logger(__name__)

INTERVAL_SECONDS: Final = 10.0  #: between two checks of each server
OBJECT_SECONDS: Final = 60.0  #: between two objects while all is well: a bucket may keep every version
OBJECT: Final = b"The farm writes this object to see whether the storage takes one.\n" * 60
REDIS_KEY: Final = "farm.probe"

DATABASE, REDIS, STORAGE = SERVERS = ("database", "redis", "storage")


class ServerHealth:
    """Writes to each server from a thread of its own, so that nobody who asks waits. Safe to share between threads."""

    def __init__(self, store: Store, broker: RedisServer | None, storage: Storage) -> None:
        self._storage = storage
        self._next_object = 0.0  #: when to write one, monotonic
        self._probes: dict[str, Callable[[], object]] = {
            DATABASE: store.check_writes,
            REDIS: lambda: _write_to_redis(broker),
            STORAGE: self._write_to_storage,
        }
        self._problems: dict[str, str] = {}
        self._closing = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(name,), name=f"health of {name}", daemon=True) for name in SERVERS
        ]

    @property
    def problems(self) -> Mapping[str, str]:
        """What is wrong, by server: one sentence each. Empty when all is well."""
        return dict(self._problems)

    def start(self) -> None:
        """Begin to write."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the threads after their current write."""
        self._closing.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(5)

    def check(self, name: str) -> None:
        """Write to a server once, and remember whether it took it."""
        try:
            self._probes[name]()
        except FarmError as error:
            if self._problems.get(name) != str(error):
                log.warning("a server takes no writes", action="server_unhealthy", server=name, error=str(error))
            self._problems[name] = str(error)
        else:
            if self._problems.pop(name, None) is not None:
                log.info("a server takes writes again", action="server_healthy", server=name)
        metrics.SERVER_UP.labels(name).set(name not in self._problems)

    def _write_to_storage(self) -> None:
        self._storage.check()
        if STORAGE in self._problems or time.monotonic() >= self._next_object:
            self._storage.check_writes(f"probes/{socket.gethostname()}", OBJECT)
            self._next_object = time.monotonic() + OBJECT_SECONDS

    def _run(self, name: str) -> None:
        while True:
            try:
                self.check(name)
            except Exception:
                log.exception("cannot check a server", action="server_check_failed", server=name)
            if self._closing.wait(INTERVAL_SECONDS):
                return


def _write_to_redis(broker: RedisServer | None) -> None:
    if broker is None:
        raise BrokerUnavailable("FARM_REDIS_URL is not set")
    broker.require_usable()
    with broker.client() as client:
        try:
            client.set(REDIS_KEY, "1", ex=60)
        except (RedisError, OSError) as error:
            raise broker_unavailable(error, broker.place) from error
