"""Connections to PostgreSQL: one place makes their arguments, for pool, listener, leader lock and migrations.

A URL may be libpq's (``postgresql://…``, several hosts, any option that libpq has) or SQLAlchemy's
(``postgresql+psycopg://…``, several ``host`` parameters). It is read once into libpq's parameters, so whatever one
connection of the farm accepts, all accept; what none accepts is refused at the start.

Behind a pooler (PgBouncer) nothing may depend on the session: another transaction may get another server process.
A pooler is detected by the process id, which it makes up for its clients. Then statements are not prepared and limits
are set for each transaction. What needs a session (LISTEN, advisory locks) goes to ``FARM_DATABASE_DIRECT_URL``.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from farm.errors import DatabaseUnavailable, SetupError
from farm.server_errors import database_unavailable
from farm.settings import Settings

VARIABLE: Final = "FARM_DATABASE_URL"
DIRECT_VARIABLE: Final = "FARM_DATABASE_DIRECT_URL"

#: What the URL does not say. A server that vanished (a pulled cable) is noticed in seconds, not in the kernel's hours.
_DEFAULTS: Final[Mapping[str, str]] = {
    "connect_timeout": "5",
    "application_name": "farm",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",  # milliseconds
}

#: Set for each session, or for each transaction behind a pooler, unless the URL or the role has set them.
_LIMITS: Final[Mapping[str, str]] = {"statement_timeout": "30s", "idle_in_transaction_session_timeout": "60s"}

#: For connections to a pooler: `LIMITS` of one transaction.
LOCAL_LIMITS: Final = "SELECT " + ", ".join(
    f"CASE WHEN current_setting('{name}') = '0' THEN set_config('{name}', '{value}', true) END"
    for name, value in _LIMITS.items()
)

#: One round trip: whether the server process is the one that answered the connection, and the limits if it is.
_BEGIN_SESSION: Final = "SELECT pg_backend_pid() = %(pid)s, " + ", ".join(
    f"CASE WHEN pg_backend_pid() = %(pid)s AND current_setting('{name}') = '0' "
    f"THEN set_config('{name}', '{value}', false) END"
    for name, value in _LIMITS.items()
)

_PROBE_SECONDS: Final = 2.0  #: for a notification to arrive through a pooler that keeps sessions
_TLS_REQUIRED: Final = frozenset({"require", "verify-ca", "verify-full"})

ENCODE: Final = "characters such as / @ : ? # % and spaces in user or password must be percent-encoded"


class Connection(psycopg.Connection[Any]):
    """A connection that knows whether a pooler stands between it and the server."""

    pooled: bool = False


@dataclass(frozen=True)
class Database:
    """Where a database is, and how to connect."""

    parameters: Mapping[str, str]  #: libpq's

    @classmethod
    def parse(cls, url: str, *, variable: str = VARIABLE, ca_file: Path | None = None) -> Self:
        """Read a URL. Raises `SetupError` for one that PostgreSQL's client library cannot use."""
        found = _read(url, variable)
        if ca_file is not None and found.get("sslmode") in _TLS_REQUIRED:
            found.setdefault("sslrootcert", str(ca_file))
        return cls({**_DEFAULTS, **found})

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The database of the settings. Raises `SetupError` without ``FARM_DATABASE_URL``."""
        if settings.database_url is None:
            raise SetupError(
                f"{VARIABLE} is not set: point it at a PostgreSQL database, or start the farm with `farm up`"
            )
        return cls.parse(settings.database_url.get_secret_value(), ca_file=settings.ca_file)

    @classmethod
    def direct(cls, settings: Settings) -> Self:
        """The same database without a pooler: ``FARM_DATABASE_DIRECT_URL``, else ``FARM_DATABASE_URL``."""
        if settings.database_direct_url is None:
            return cls.of(settings)
        url = settings.database_direct_url.get_secret_value()
        return cls.parse(url, variable=DIRECT_VARIABLE, ca_file=settings.ca_file)

    @property
    def place(self) -> str:
        """``host:port/database`` without user and password, for messages."""
        hosts = (self.parameters.get("host") or self.parameters.get("hostaddr") or "localhost").split(",")
        ports = (self.parameters.get("port") or "5432").split(",")
        ports = ports * len(hosts) if len(ports) == 1 else ports
        where = ",".join(f"{host}:{port or 5432}" for host, port in zip(hosts, ports, strict=False))
        return f"{where}/{self.parameters.get('dbname') or self.parameters.get('user') or ''}"

    def connect(self, *, autocommit: bool = False, limits: bool = True, **more: str) -> Connection:
        """Connect; ``limits`` bounds how long a statement or an idle transaction may take.

        Raises:
            psycopg.Error: as the driver does; `session` and the store raise `DatabaseUnavailable` instead.
        """
        parameters: dict[str, Any] = {**self.parameters, **more}
        connection = Connection.connect(**parameters, autocommit=True)
        try:
            if limits:
                row = connection.execute(_BEGIN_SESSION, {"pid": connection.info.backend_pid}, prepare=False).fetchone()
            else:
                row = connection.execute(
                    "SELECT pg_backend_pid() = %s", (connection.info.backend_pid,), prepare=False
                ).fetchone()
            assert row is not None
            connection.pooled = not row[0]
            if connection.pooled:
                connection.prepare_threshold = None
            connection.autocommit = autocommit
        except BaseException:
            connection.close()
            raise
        return connection

    def session(self, application_name: str) -> Connection:
        """A connection in autocommit that stays with one server process, for LISTEN and advisory locks.

        Raises:
            DatabaseUnavailable: it cannot be opened.
            SetupError: a pooler hands the server process to others between transactions.
        """
        try:
            connection = self.connect(autocommit=True, limits=False, application_name=application_name)
        except psycopg.Error as error:
            raise database_unavailable(error, self.place) from error
        try:
            kept = not connection.pooled or self._keeps_session(connection)
        except psycopg.Error as error:
            connection.close()
            raise database_unavailable(error, self.place) from error
        if kept:
            return connection
        connection.close()
        raise SetupError(
            f"PostgreSQL at {self.place} is a pooler in transaction mode, which loses LISTEN and advisory locks: set "
            f"{DIRECT_VARIABLE} to the server's own URL"
        )

    def _keeps_session(self, connection: Connection) -> bool:
        """Whether a pooled connection receives a notification while it is idle: only in a pooler's session mode."""
        channel = f"farm_probe_{secrets.token_hex(8)}"
        connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
        with self.connect(autocommit=True, limits=False) as other:
            other.execute("SELECT pg_notify(%s, '')", (channel,))
        heard = any(connection.notifies(timeout=_PROBE_SECONDS, stop_after=1))
        if heard:
            connection.execute(sql.SQL("UNLISTEN {}").format(sql.Identifier(channel)))
        return heard


def unavailable(error: BaseException, database: Database) -> DatabaseUnavailable:
    """What to raise for a driver's error on that database."""
    return database_unavailable(error, database.place)


def _read(url: str, variable: str) -> dict[str, str]:
    """libpq's parameters of a URL, by libpq's rules; by SQLAlchemy's where it names a driver or libpq cannot."""
    scheme, separator, _ = url.partition("://")
    name, _, driver = scheme.partition("+")
    if not separator or name not in ("postgresql", "postgres"):
        raise SetupError(f"{variable} must be a URL that begins with postgresql://")
    tries = [_read_sqlalchemy] if driver or len(re.findall(r"[?&]host=", url)) > 1 else [_read_libpq, _read_sqlalchemy]
    reason = ""
    for read in tries:
        try:
            found = read(url)
            reason = reason or _fault(found)
            if not _fault(found):
                make_conninfo("", **found)  # refuses what is no option of libpq
                return found
        except (psycopg.Error, ArgumentError, ValueError) as error:
            # libpq quotes the piece that it cannot read, which may be of a password
            reason = reason or re.sub(r'"[^"]*"', "…", str(error).splitlines()[0]).strip()
            option = re.search(r'invalid connection option "(\w+)"', str(error))
            if option:
                reason = f"{option[1]!r} is not an option of libpq"
                break
    raise SetupError(f"{variable} cannot be used: {reason}; {ENCODE}")


def _read_libpq(url: str) -> dict[str, str]:
    return {name: str(value) for name, value in conninfo_to_dict(url).items()}


def _read_sqlalchemy(url: str) -> dict[str, str]:
    _, _, rest = url.partition("://")
    parsed = make_url(f"postgresql+psycopg://{rest}")
    dialect: Any = PGDialect_psycopg
    _, found = dialect().create_connect_args(parsed)
    for name, value in found.items():
        if isinstance(value, tuple):
            raise ValueError(f"{name} is given {len(value)} times")  # noqa: TRY004 - a value of the URL, not a type
    return {name: str(value) for name, value in found.items()}


def _fault(found: Mapping[str, str]) -> str:
    """What is wrong with parameters, or an empty text; never quotes them, because they may be pieces of a password."""
    if any(port and not (port.isascii() and port.isdigit()) for port in found.get("port", "").split(",")):
        return "its port is not a number"
    if "@" in found.get("dbname", "") or "@" in found.get("host", ""):
        return "its user and password cannot be separated from its host"
    return ""
