"""Free loopback ports, chosen once per data directory and remembered there."""

from __future__ import annotations

import random
import socket
import sys
from collections.abc import Iterable, Mapping
from typing import Self

from farm.errors import SetupError

LOOPBACK = "127.0.0.1"

#: These and their companions 10,000 higher lie below Linux's ephemeral range (32768…), so that an outgoing connection
#: never sits on a remembered port.
_CHOICES = range(12_000, 22_000)

#: How far a companion lies from its port: a server that has two may require this distance.
COMPANION = 10_000


def is_free(port: int) -> bool:
    """Whether a server could listen on this loopback port now; a connection in TIME_WAIT does not count."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
            # Linux lets two sockets with SO_REUSEADDR bind one port as long as neither listens.
            probe.listen(1)
        except OSError:
            return False
    return True


def answers(port: int, timeout: float = 1.0) -> bool:
    """Whether something accepts connections on this loopback port within ``timeout`` seconds."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=timeout):
            return True
    except OSError:
        return False


class PortReservations:
    """Ports that this process has reserved, so that a farm which starts at the same moment chooses others.

    A port stays free until its server listens, seconds later. A reservation is an abstract socket name, visible to
    every process that shares these ports and released when its process ends. Systems without such names accept any.
    """

    def __init__(self) -> None:
        self._held: dict[int, socket.socket] = {}

    def take(self, port: int) -> bool:
        """Reserve a port; False when another process has it."""
        if port in self._held or sys.platform != "linux":
            return True
        name = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            name.bind(f"\0diffusion-render-farm:{port}")
        except OSError:
            name.close()
            return False
        self._held[port] = name
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def release(self) -> None:
        """Release all of them."""
        for name in self._held.values():
            name.close()
        self._held.clear()


def choose(
    *, reservations: PortReservations, preferred: int | None = None, taken: Iterable[int] = (), companion: bool = False
) -> int:
    """A free port outside ``taken``: the preferred one if it is free, else a random one.

    With ``companion`` the port 10,000 higher is free as well. Random, because two farms that start at the same moment
    must not walk the same sequence. Raises SetupError when the machine has none left.
    """
    avoid = set(taken)

    def suits(port: int) -> bool:
        pair = (port, port + COMPANION) if companion else (port,)
        return all(one not in avoid and is_free(one) and reservations.take(one) for one in pair)

    if preferred is not None and suits(preferred):
        return preferred
    for port in random.sample(_CHOICES, len(_CHOICES)):
        if suits(port):
            return port
    raise SetupError(
        f"no free loopback port between {_CHOICES.start} and {_CHOICES.stop - 1}: stop some of the servers there"
    )


def assign(
    remembered: Mapping[str, int],
    names: Iterable[str],
    *,
    reservations: PortReservations,
    preferred: Mapping[str, int],
    companions: Mapping[str, str] | None = None,
) -> dict[str, int]:
    """A port for each name: the remembered one if it is free, else another.

    ``companions`` names, for some of them, the port that lies 10,000 higher. Call it when nothing of this farm runs:
    a remembered port that is not free is then used by another program.
    """
    ports: dict[str, int] = {}
    for name in names:
        wanted = remembered.get(name, preferred.get(name))
        companion = (companions or {}).get(name)
        ports[name] = choose(
            reservations=reservations, preferred=wanted, taken=ports.values(), companion=companion is not None
        )
        if companion is not None:
            ports[companion] = ports[name] + COMPANION
    return ports
