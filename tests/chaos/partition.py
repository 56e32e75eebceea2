"""A host of its own for a worker: a network namespace, joined to this one by a virtual cable that can be unplugged."""

from __future__ import annotations

import os
import subprocess
from types import TracebackType
from typing import Self

WHY_NOT = "network namespaces cannot be made here: run as root, with CAP_NET_ADMIN and `ip` installed"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=10)


def allowed() -> bool:
    """Whether this process may make namespaces and cables."""
    try:
        with Namespace(999):
            return True
    except (OSError, subprocess.SubprocessError):
        return False


class Namespace:
    """A namespace that reaches this one at ``gateway``, and nothing else."""

    def __init__(self, number: int = 0) -> None:
        """``number``: below 1,000; those of one process must differ."""
        mark = f"{os.getpid() % 100_000}n{number}"
        self.name = f"farm{mark}"
        self._near, self._far = f"f{mark}a", f"f{mark}b"  # at most 15 characters
        # a net of its own for each pair of process and number, out of 10.128.0.0/9
        place = (os.getpid() * 1_009 + number) % 2**20
        self._net = f"10.{128 + (place >> 14)}.{(place >> 6) & 255}.{(place & 63) * 4}"
        self.gateway = self._host(1)

    def _host(self, number: int) -> str:
        front, _, last = self._net.rpartition(".")
        return f"{front}.{int(last) + number}"

    @property
    def prefix(self) -> tuple[str, ...]:
        """Before a command, to run it there."""
        return ("ip", "netns", "exec", self.name)

    def __enter__(self) -> Self:
        try:
            _ip("netns", "add", self.name)
            _ip("link", "add", self._near, "type", "veth", "peer", "name", self._far, "netns", self.name)
            _ip("addr", "add", f"{self.gateway}/30", "dev", self._near)
            _ip("link", "set", self._near, "up")
            _ip("-n", self.name, "addr", "add", f"{self._host(2)}/30", "dev", self._far)
            _ip("-n", self.name, "link", "set", self._far, "up")
            _ip("-n", self.name, "link", "set", "lo", "up")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def unplug(self) -> None:
        """Packets are lost from now on, in both directions, without an error."""
        _ip("-n", self.name, "link", "set", self._far, "down")

    def plug_in(self) -> None:
        """Packets go through again."""
        _ip("-n", self.name, "link", "set", self._far, "up")

    def close(self) -> None:
        """Remove it; the cable goes with it."""
        for command in (("link", "del", self._near), ("netns", "del", self.name)):
            subprocess.run(["ip", *command], check=False, capture_output=True, timeout=10)
