"""Bring a database to the schema of this release. The baseline migration says which steps a later one may take."""

from __future__ import annotations

import threading
import time
from functools import cache
from typing import Any, Final

import structlog
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import OperationalError

from farm.errors import DatabaseUnavailable, SchemaOutdated
from farm.settings import Settings
from farm.store.connection import Database, unavailable
from farm.store.tables import Base
from farm.store.unit_of_work import Store

log = structlog.stdlib.get_logger()

WAIT_SECONDS: Final = 1.0  #: between two tries of a service that starts
ASK_SECONDS: Final = 0.1  #: between two tries to have the lock
LOCK: Final = 7_214_011  #: advisory lock: two processes that start together do not migrate at once


def config() -> Config:
    """Alembic's configuration, without a file."""
    made = Config()
    made.set_main_option("script_location", "farm.store:migrations")
    made.set_main_option("path_separator", "os")
    return made


def upgrade(database: Database | str) -> str:
    """Apply what is missing; returns the revision reached. Takes a database, or a URL of one.

    Raises `DatabaseUnavailable`, or `SetupError` where a pooler keeps no session.
    """
    where = Database.parse(database) if isinstance(database, str) else database
    where.session("farm migrate").close()  # the lock needs one
    engine = create_engine("postgresql+psycopg://", creator=lambda: where.connect(limits=False), pool_size=1)
    try:
        with engine.connect() as connection:
            # polled: a session that waits inside a statement blocks CREATE INDEX CONCURRENTLY
            while not connection.scalar(text("SELECT pg_try_advisory_lock(:lock)"), {"lock": LOCK}):
                connection.commit()
                time.sleep(ASK_SECONDS)
            connection.commit()
            try:
                made = config()
                made.attributes["connection"] = connection
                command.upgrade(made, "head")
                connection.commit()
            finally:
                connection.execute(text("SELECT pg_advisory_unlock(:lock)"), {"lock": LOCK})
                connection.commit()
            return current(connection) or ""
    except OperationalError as error:
        raise unavailable(error, where) from error
    finally:
        engine.dispose()


def current(connection: Connection) -> str | None:
    """The database's revision."""
    return MigrationContext.configure(connection).get_current_revision()


def require_schema(store: Store) -> None:
    """Refuse a database whose schema is older than this release's; a newer one is what a rolling upgrade has.

    Raises `SchemaOutdated`, or `DatabaseUnavailable`.
    """
    with store.look() as unit:
        found = current(unit.session.connection())
    if found == head() or (found is not None and found not in _known()):
        return
    raise SchemaOutdated(
        f"the database's schema is {'empty' if found is None else f'at revision {found}'}, and this release needs "
        f"{head()}: run `farm migrate`"
    )


def require_schema_if_available(settings: Settings) -> None:
    """`require_schema` for a service that also starts while the database is unavailable. Raises `SchemaOutdated`."""
    store = Store.connect(settings, pool=1)
    try:
        require_schema(store)
    except DatabaseUnavailable as error:
        log.warning("starting without the database", action="database_unavailable", error=str(error))
    finally:
        store.close()


def wait_for_schema(store: Store, stopping: threading.Event) -> None:
    """Wait for a database that is unavailable, then `require_schema`; returns when it is time to stop, too."""
    while not stopping.is_set():
        try:
            require_schema(store)
        except DatabaseUnavailable as error:
            log.warning("waiting for the database", action="database_unavailable", error=str(error))
            stopping.wait(WAIT_SECONDS)
        else:
            return


@cache
def _known() -> frozenset[str]:
    """The revisions of this release."""
    return frozenset(one.revision for one in ScriptDirectory.from_config(config()).walk_revisions())


@cache
def head() -> str:
    """The revision that this release wants."""
    return ScriptDirectory.from_config(config()).get_current_head() or ""


def differences(connection: Connection) -> list[Any]:
    """What the database's schema and the tables of this release differ in."""
    context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
    return list(compare_metadata(context, Base.metadata))
