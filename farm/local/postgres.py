"""PostgreSQL 18 as a child process: one database, loopback only, password required."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import psutil
import psycopg
from psycopg import sql

from farm.errors import DatabaseUnavailable, SetupError
from farm.local import bundled_servers
from farm.local.ports import LOOPBACK
from farm.local.process import Program

ROLE = "farm"
DATABASE = "farm"

#: Who PostgreSQL becomes when root runs it and user namespaces are refused: nobody.
NOBODY = 65534

#: Sized for a laptop; everything that keeps data safe stays as PostgreSQL has it.
_SETTINGS = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",  # a data directory's path may be longer than a socket's may be
    "max_connections": "150",
    "shared_buffers": "256MB",
    # how much may be written between two checkpoints: after each, the first change of a page writes it whole, which is
    # most of what a million jobs in one request cost. It is disk that comes and goes with the load.
    "max_wal_size": "2GB",
    "checkpoint_timeout": "15min",
    "max_parallel_workers_per_gather": "0",
    "io_method": "sync",  # the default keeps three more processes for reads that fit in memory here
    "jit": "off",
    "password_encryption": "scram-sha-256",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] ",
    "logging_collector": "off",
}


@dataclass(frozen=True)
class EmbeddedPostgres:
    """One PostgreSQL server over one data directory."""

    directory: Path  #: holds the cluster in ``data/``
    port: int
    password: str
    options: tuple[tuple[str, str], ...] = ()  #: further server settings, e.g. ``("fsync", "off")`` for tests

    @property
    def data(self) -> Path:
        """The cluster itself."""
        return self.directory / "data"

    def url(self, database: str = DATABASE, *, role: str = ROLE, password: str | None = None) -> str:
        """``postgresql://…`` of one of its databases, password included; by default of the server's owner."""
        return f"postgresql://{role}:{password or self.password}@{LOOPBACK}:{self.port}/{database}"

    def initialise(self) -> None:
        """Make the cluster unless it exists (about 3 s, once). Raises SetupError with what PostgreSQL said."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._account.admit(self.directory)
        if not (self.data / "PG_VERSION").exists():
            self._initdb()
        self._drop_stale_pid_file()

    def _initdb(self) -> None:
        # Into a directory beside it, then renamed: an initdb that was interrupted leaves nothing that looks whole.
        fresh = self.directory / f".initdb-{secrets.token_hex(4)}"
        for abandoned in self.directory.glob(".initdb-*"):
            shutil.rmtree(abandoned, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        password_file = self.directory / f".password-{secrets.token_hex(4)}"
        descriptor = os.open(password_file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        os.write(descriptor, self.password.encode() + b"\n")
        os.close(descriptor)
        self._account.admit(fresh)
        self._account.admit(password_file)
        argv = [
            *self._account.prefix,
            str(bundled_servers.postgres_programs() / "initdb"),
            f"--pgdata={fresh}",
            f"--username={ROLE}",
            f"--pwfile={password_file}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C",
            "--locale-provider=builtin",  # Unicode rules that do not change with the machine's C library
            "--builtin-locale=C.UTF-8",
        ]
        if ("fsync", "off") in self.options:
            argv.append("--no-sync")
        try:
            done = subprocess.run(
                argv,
                cwd="/",
                env=_environment(),
                user=self._account.user,
                group=self._account.user,
                extra_groups=[] if self._account.user is not None else None,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
        finally:
            password_file.unlink(missing_ok=True)
        if done.returncode != 0:
            shutil.rmtree(fresh, ignore_errors=True)
            raise SetupError(f"PostgreSQL could not make its data directory {self.data}: {_last_line(done.stdout)}")
        fresh.rename(self.data)

    def _drop_stale_pid_file(self) -> None:
        # After a crash or a reboot the recorded pid may belong to anybody. PostgreSQL refuses to start while *any*
        # process has it, so look closer than it does: is it a server, or a child of one, at home in this directory?
        pid_file = self.data / "postmaster.pid"
        try:
            pid = int(pid_file.read_text().split("\n", 1)[0])
        except (FileNotFoundError, ValueError):
            return
        if psutil.pid_exists(pid) and not self._processes():
            pid_file.unlink(missing_ok=True)

    def _processes(self) -> list[int]:
        """Processes of any server over this data directory: each has it as its working directory."""
        home = self.data.resolve()
        found = []
        for process in psutil.process_iter():
            try:
                if Path(process.cwd()) == home:
                    found.append(process.pid)
            except psutil.Error:
                continue
        return found

    def program(self) -> Program:
        """How to run the server."""
        settings = {**_SETTINGS, **dict(self.options), "port": str(self.port)}
        arguments = [argument for name, value in settings.items() for argument in ("-c", f"{name}={value}")]
        return Program(
            name="postgres",
            argv=(
                *self._account.prefix,
                str(bundled_servers.postgres_programs() / "postgres"),
                "-D",
                str(self.data),
                *arguments,
            ),
            environment=_environment(),
            directory=Path("/"),
            user=self._account.user,
            address=f"{LOOPBACK}:{self.port}",
            prepare=self.initialise,
            ready=self.ready,
            start_seconds=60.0,  # recovery after a crash replays the log first
            stop_signal=signal.SIGINT,  # fast: roll back what is open, write a checkpoint, end
            stop_seconds=20.0,
            orphan_signal=signal.SIGINT,
        )

    def ready(self) -> bool:
        """Whether it answers a query."""
        try:
            with psycopg.connect(self.url("postgres"), connect_timeout=2) as connection:
                connection.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def create_database(self, name: str = DATABASE, *, template: str | None = None) -> None:
        """Make a database unless it exists. Raises DatabaseUnavailable."""
        try:
            with psycopg.connect(self.url("postgres"), autocommit=True, connect_timeout=5) as connection:
                if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone():
                    return
                create = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
                if template is not None:
                    create = sql.SQL("{} TEMPLATE {}").format(create, sql.Identifier(template))
                connection.execute(create)
        except psycopg.OperationalError as error:
            raise DatabaseUnavailable(f"PostgreSQL on port {self.port} does not answer: {error}") from error

    def drop_database(self, name: str) -> None:
        """Drop a database together with the connections to it."""
        with psycopg.connect(self.url("postgres"), autocommit=True, connect_timeout=5) as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    @cached_property
    def _account(self) -> _Account:
        return _Account.choose(self.directory)


@dataclass(frozen=True)
class _Account:
    """Which account runs PostgreSQL, which refuses to run as root."""

    prefix: tuple[str, ...] = ()  #: a program in front of it
    user: int | None = None  #: a uid to change to before that program
    owner: int | None = None  #: whom its files must belong to, when not us

    @classmethod
    def choose(cls, directory: Path) -> _Account:
        if os.geteuid() != 0:
            return cls()
        # In a user namespace root looks like uid 1000 to PostgreSQL while its files still belong to root.
        if not _belongs_to_nobody(directory / "data"):
            if root_is_renamed():
                return cls(prefix=_RENAME_ROOT)
            if (directory / "data" / "PG_VERSION").exists():
                raise SetupError(
                    f"the database in {directory} was made where user namespaces were allowed and they no longer are: "
                    f"give it to uid {NOBODY} with: chown -R {NOBODY}:{NOBODY} {directory}"
                )
        # Containers refuse namespaces, and their root's home and temporary directories are closed to nobody: let
        # nobody keep the one capability that opens directories.
        if nobody_opens_directories():
            return cls(prefix=_BECOME_NOBODY, owner=NOBODY)
        for place in (bundled_servers.postgres_programs(), *directory.absolute().parents):
            _require_passage(place)
        return cls(user=NOBODY, owner=NOBODY)

    def admit(self, path: Path) -> None:
        """Give a file or directory to the account."""
        if self.owner is not None:
            os.chown(path, self.owner, self.owner)


_RENAME_ROOT = ("unshare", "--user", "--map-user=1000", "--map-group=1000")

_BECOME_NOBODY = (
    "setpriv",
    f"--reuid={NOBODY}",
    f"--regid={NOBODY}",
    "--clear-groups",
    "--inh-caps=-all,+dac_override",
    "--ambient-caps=-all,+dac_override",
    "--pdeathsig=INT",  # ours is forgotten when the uid changes
)


def root_is_renamed() -> bool:
    """Whether this machine lets root run a program in a user namespace under another number."""
    return _works(_RENAME_ROOT, 1000)


def nobody_opens_directories() -> bool:
    """Whether this machine lets root run a program as nobody with the one capability that opens directories."""
    return _works(_BECOME_NOBODY, NOBODY)


def _works(prefix: tuple[str, ...], uid: int) -> bool:
    try:
        probe = subprocess.run(
            [*prefix, "id", "-u"], stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return probe.returncode == 0 and probe.stdout.strip() == str(uid).encode()


def _belongs_to_nobody(path: Path) -> bool:
    try:
        return path.stat().st_uid == NOBODY
    except FileNotFoundError:
        return False


def _require_passage(place: Path) -> None:
    """Refuse a path that another account cannot walk through; making it passable is the owner's decision."""
    for directory in (place, *place.parents):
        if directory.exists() and not directory.stat().st_mode & 0o001:
            raise SetupError(
                f"PostgreSQL does not run as root, and uid {NOBODY}, which would run it, may not enter {directory}: "
                "run the farm as an ordinary user, or keep it and its data under directories that all users may enter"
            )


def _environment() -> Mapping[str, str]:
    # PG* variables of the user's own would change initdb and the server behind our back.
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
    return {**kept, "LC_ALL": "C"}


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing"
