"""Server programs that are no Python packages: tests run the real ones, from the operating system's packages."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from farm.local.ports import answers
from tests.waiting import wait_until

#: The Debian packages that have them; .ci/run installs these.
PACKAGES = {"haproxy": "haproxy", "pgbouncer": "pgbouncer"}


def find(name: str) -> str:
    """The path of a program. Skips the test where it is not installed; fails it on CI, which installs all."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if found is None:
        message = f"{name} is not installed: apt-get install {PACKAGES[name]}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return found


def free_port(below: int = 2**16) -> int:
    """A loopback port that nobody listens at."""
    while True:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port: int = one.getsockname()[1]
        if port < below:
            return port


@contextmanager
def running(
    argv: Sequence[str], port: int, log: Path, *, env: dict[str, str] | None = None, user: int | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A server that listens on a loopback port, until the block ends."""
    with log.open("ab") as stream:
        process = subprocess.Popen(
            argv, stdout=stream, stderr=stream, env={**os.environ, **(env or {})}, user=user, group=user
        )
    try:
        wait_until(lambda: answers(port) or process.poll() is not None, 30, what=f"{argv[0]} listens")
        assert process.poll() is None, log.read_text()[-2000:]
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
