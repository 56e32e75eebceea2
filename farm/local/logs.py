"""The parts' log files: rotated by size, read from the end, and followed onto a terminal."""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

ROTATE_BYTES = 5 * 2**20  #: a log longer than this is put aside before its part starts
CUT_BYTES = 50 * 2**20  #: a log longer than this is put aside while its part writes to it
KEPT = 3  #: older logs beside the current one


def rotate(log: Path, limit: int = ROTATE_BYTES) -> None:
    """Put a log of more than ``limit`` bytes aside as ``<log>.1``. Nobody may be writing to it."""
    if _size(log) > limit:
        _make_room(log)
        log.rename(_older(log, 1))


def mark(log: Path) -> None:
    """Note in a log that its part starts now, so that a reader can tell this run's lines from older ones."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600), "a") as stream:  # noqa: PTH123 - mode 0600
        stream.write(f"{_MARK} {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC\n")


_MARK = "--- starting"


def latest(log: Path, lines: int = 200) -> list[str]:
    """Of its last lines those that the part has written since it last started."""
    found = tail(log, lines)
    starts = [index for index, line in enumerate(found) if line.startswith(_MARK)]
    return found[starts[-1] + 1 :] if starts else found


def cut(log: Path, limit: int = CUT_BYTES) -> None:
    """The same while its part is writing: copied, then emptied. Lines written in between are lost."""
    if _size(log) > limit:
        _make_room(log)
        shutil.copyfile(log, _older(log, 1))
        _older(log, 1).chmod(0o600)
        os.truncate(log, 0)


def tail(log: Path, lines: int = 20) -> list[str]:
    """Its last lines, without colours; empty when there is no such log."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, _size(log) - 200 * lines - 4096))
            text = stream.read().decode("utf-8", "replace")
    except OSError:
        return []
    return [plain(line) for line in text.splitlines() if line.strip()][-lines:]


def plain(line: str) -> str:
    """A line without terminal control sequences."""
    return _CONTROL.sub("", line)


_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")


def _size(log: Path) -> int:
    try:
        return log.stat().st_size
    except FileNotFoundError:
        return 0


def _older(log: Path, age: int) -> Path:
    return log.with_name(f"{log.name}.{age}")


def _make_room(log: Path) -> None:
    for age in range(KEPT - 1, 0, -1):
        if _older(log, age).exists():
            _older(log, age).replace(_older(log, age + 1))


class Follower:
    """Shows what is added to a set of logs, line by line, from a thread of its own.

    The parts write to their files themselves: a slow terminal never holds a part up, and a line reaches its file even
    when nobody is left to show it.
    """

    def __init__(self, show: Callable[[str, str], None], *, every: float = 0.1) -> None:
        self._show = show  #: called with the part's name and one line
        self._every = every
        self._logs: dict[str, Path] = {}
        self._read: dict[Path, int] = {}
        self._partial: dict[Path, bytes] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="logs", daemon=True)

    def follow(self, logs: Mapping[str, Path]) -> None:
        """Show what is added to these from now on."""
        for name, log in logs.items():
            self._read.setdefault(log, _size(log))
            self._logs = {**self._logs, name: log}  # replaced whole, so that the thread reads one or the other
        if not self._thread.is_alive() and not self._stopped.is_set():
            self._thread.start()

    def stop(self) -> None:
        """Show what is left and end."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._stopped.wait(self._every):
            self._once(self._logs.items())
        self._once(self._logs.items())

    def _once(self, logs: Iterable[tuple[str, Path]]) -> None:
        for name, log in logs:
            size = _size(log)
            start = self._read[log]
            if size < start:  # rotated or cut
                start = 0
                self._partial.pop(log, None)
            if size == start:
                self._read[log] = start
                continue
            try:
                with log.open("rb") as stream:
                    stream.seek(start)
                    added = stream.read(2**20)
            except FileNotFoundError:
                continue
            self._read[log] = start + len(added)
            *whole, rest = (self._partial.get(log, b"") + added).split(b"\n")
            self._partial[log] = rest[-(2**16) :]
            for line in whole:
                self._show(name, line.decode("utf-8", "replace").rstrip("\r"))
