"""Valkey servers of a test's own: single ones with any configuration, and a group behind Sentinels."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from farm.local import bundled_servers
from tests import programs
from tests.waiting import wait_until

GROUP = "renders"
PASSWORD = "p@ss:w/rd;?"  #: of the servers of a group: characters that a URL must encode
QUORUM = 2


@contextmanager
def valkey(directory: Path, port: int, *lines: str, sentinel: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    """One server with these lines of configuration."""
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / f"{port}.conf"
    file.write_text("\n".join(["bind 127.0.0.1", f"port {port}", f"dir {directory}", 'save ""', *lines]) + "\n")
    argv = [str(bundled_servers.valkey_server()), str(file), *(["--sentinel"] if sentinel else [])]
    with programs.running(argv, port, directory / f"{port}.log") as process:
        yield process


@dataclass(frozen=True)
class Group:
    """Two servers, one of which is the primary, and three Sentinels."""

    servers: Mapping[int, subprocess.Popen[bytes]]
    sentinels: tuple[int, ...]

    @property
    def url(self) -> str:
        from urllib.parse import quote

        hosts = ";".join(f"127.0.0.1:{port}" for port in self.sentinels)
        return f"sentinel://:{quote(PASSWORD, safe='')}@{hosts}/3?master_name={GROUP}"

    def primary(self) -> int:
        """The primary's port, by the Sentinels."""
        with redis.Redis(port=self.sentinels[0]) as client:
            address = client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", GROUP)
        return int(address[1])

    def fail_over(self) -> None:
        """Kill the primary, and wait for the other server to be promoted."""
        before = self.primary()
        self.servers[before].kill()
        wait_until(lambda: self.primary() != before, 60, what="the Sentinels promote the other server")
        other = self.primary()

        def writable() -> bool:
            with redis.Redis(port=other, password=PASSWORD) as client:
                return bool(client.info("replication")["role"] == "master")

        wait_until(writable, 30)

    def demote(self) -> None:
        """Ask the Sentinels for an orderly failover, after which the old primary answers as a replica."""
        before = self.primary()

        def failed_over() -> bool:
            with redis.Redis(port=self.sentinels[0]) as client:
                try:
                    client.execute_command("SENTINEL", "FAILOVER", GROUP)
                except redis.ResponseError:
                    return False
            return True

        wait_until(failed_over, 60, every=0.5, what="a Sentinel knows a good replica")
        wait_until(lambda: self.primary() != before, 60, what="the Sentinels promote the other server")


@contextmanager
def group(directory: Path) -> Iterator[Group]:
    """Run a group until the block ends."""
    with ExitStack() as stack:
        first, second = programs.free_port(), programs.free_port()
        login = (f'requirepass "{PASSWORD}"', f'masterauth "{PASSWORD}"')
        servers = {first: stack.enter_context(valkey(directory, first, *login))}
        servers[second] = stack.enter_context(valkey(directory, second, *login, f"replicaof 127.0.0.1 {first}"))
        sentinels = tuple(programs.free_port() for _ in range(3))
        for port in sentinels:
            lines = (
                f"sentinel monitor {GROUP} 127.0.0.1 {first} {QUORUM}",
                f'sentinel auth-pass {GROUP} "{PASSWORD}"',
                f"sentinel down-after-milliseconds {GROUP} 1000",
                f"sentinel failover-timeout {GROUP} 6000",
                f"sentinel parallel-syncs {GROUP} 1",
            )
            stack.enter_context(valkey(directory / str(port), port, *lines, sentinel=True))
        found = Group(servers, sentinels)

        def complete() -> bool:
            with redis.Redis(port=sentinels[0]) as client:
                state = client.sentinel_master(GROUP)
                return bool(state["num-slaves"] == 1 and state["num-other-sentinels"] == len(sentinels) - 1)

        wait_until(complete, 30, what="the Sentinels know the group")
        yield found
