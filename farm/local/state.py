"""The state of a data directory: ports, secrets, the first key, and the supervised processes.

Two files, both mode 0600 and replaced atomically. ``farm.json`` is the farm's identity and outlives every run;
``processes.json`` is one run of the supervisor. Only the holder of the directory's lock writes either of them.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from farm.errors import SetupError


def write_private(path: Path, text: str) -> None:
    """Replace a file atomically and durably; nobody but its owner may read it."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@dataclass(frozen=True)
class Identity:
    """A process, distinguished from a later one with the same pid by its start time."""

    pid: int
    started: str  #: when it began, in a form that a change of the wall clock does not move

    @classmethod
    def of(cls, pid: int) -> Identity | None:
        """The identity of a live process, or None when there is none (a zombie counts as none)."""
        started = _start_mark(pid)
        return None if started is None else cls(pid, started)

    def alive(self) -> bool:
        """Whether this process still runs."""
        return _start_mark(self.pid) == self.started


def _start_mark(pid: int) -> str | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
        return _start_mark_elsewhere(pid)
    except ProcessLookupError:
        return None
    # The command's name stands in parentheses and may itself hold spaces and parentheses.
    rest = stat.rpartition(")")[2].split()
    if rest[0] in "ZX":
        return None
    # Ticks since boot: psutil's create_time moves when the wall clock is set.
    return f"{_boot_id()}:{rest[19]}"


def _start_mark_elsewhere(pid: int) -> str | None:
    import psutil  # noqa: PLC0415 - the base installation, which reads where a farm answers, has none

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.NoSuchProcess:
        return None


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "boot"


@dataclass(frozen=True)
class FarmIdentity:
    """The lasting identity of one data directory."""

    ports: dict[str, int] = field(default_factory=dict)  #: by part, loopback only
    secrets: dict[str, str] = field(default_factory=dict)  #: by purpose, URL-safe
    api_key: str | None = None  #: the key of the first run, shown again by later ones
    join_token: str | None = None  #: for workers of other machines, while it has not expired

    def secret(self, purpose: str) -> str:
        """A secret that ``with_secrets`` has generated."""
        return self.secrets[purpose]

    def with_secrets(self, *purposes: str) -> FarmIdentity:
        """The same farm with a secret for each purpose; those that exist stay."""
        drawn = {purpose: secrets.token_hex(24) for purpose in purposes}
        return FarmIdentity(self.ports, {**drawn, **self.secrets}, self.api_key, self.join_token)


@dataclass(frozen=True)
class Part:
    """One supervised process, as the supervisor last saw it."""

    name: str
    address: str  #: where it listens, or the device it owns; empty when it has none
    identity: Identity | None = None  #: None while it is down
    since: float = 0.0  #: seconds since 1970 when this process began
    restarts: int = 0  #: how often it was started again after it died


@dataclass(frozen=True)
class RunState:
    """One run of the supervisor."""

    supervisor: Identity
    phase: str = "starting"  #: ``starting``, ``ready``, ``stopping`` or ``failed``
    message: str = ""  #: what is being done, or why it failed
    failed_part: str = ""  #: whose log says more, when the phase is ``failed``
    parts: tuple[Part, ...] = ()
    #: where things answer, as ``farm up --json`` prints it; filled before the services start
    addresses: dict[str, Any] = field(default_factory=dict)


class DataDirectory:
    """The one directory that holds everything of one local farm."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.logs = self.path / "logs"
        self._farm = self.path / "farm.json"
        self._run = self.path / "processes.json"
        self._lock = self.path / "lock"

    def create(self) -> None:
        """Make the directory, private to its owner. Raises SetupError where that is refused."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.logs.mkdir(mode=0o700, exist_ok=True)
            ignore = self.path / ".gitignore"
            if not ignore.exists():
                ignore.write_text("*\n")
        except OSError as error:
            raise SetupError(
                f"the data directory {self.path} cannot be made ({error.strerror}): choose another with --data-dir"
            ) from error

    def log(self, part: str) -> Path:
        """The log file of one part; a worker's name may hold a colon, a file's name should not."""
        return self.logs / f"{part.replace(':', '-')}.log"

    def farm(self) -> FarmIdentity:
        """The lasting identity; an empty one before the first run."""
        found = self._read(self._farm)
        return FarmIdentity(**found) if found else FarmIdentity()

    def save_farm(self, farm: FarmIdentity) -> None:
        """Remember the lasting identity."""
        write_private(self._farm, json.dumps(asdict(farm), indent=1))

    def run(self) -> RunState | None:
        """The latest run, whether it is still running or not; None when there was none or it ended cleanly."""
        found = self._read(self._run)
        if not found:
            return None
        parts = tuple(
            Part(**{**part, "identity": Identity(**part["identity"]) if part["identity"] else None})
            for part in found.pop("parts")
        )
        return RunState(**{**found, "supervisor": Identity(**found["supervisor"]), "parts": parts})

    def save_run(self, run: RunState) -> None:
        """Remember what runs now."""
        write_private(self._run, json.dumps(asdict(run), indent=1))

    def end_run(self) -> None:
        """Forget the run: everything it started has ended."""
        self._run.unlink(missing_ok=True)

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise SetupError(
                f"{path} cannot be read ({error}): restore it, or start with another --data-dir"
            ) from error
        return found

    @contextmanager
    def locked(self, grace_seconds: float = 0.0) -> Iterator[bool]:
        """Hold the directory's lock, waiting up to ``grace_seconds``; yields False when another process holds it.

        The kernel drops the lock when its holder dies, however it dies.
        """
        descriptor = os.open(self._lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + grace_seconds
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if time.monotonic() < deadline:
                        time.sleep(0.05)
                        continue
                    yield False
                else:
                    yield True
                return
        finally:
            os.close(descriptor)
