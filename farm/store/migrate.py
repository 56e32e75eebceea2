"""Bring a database to the schema of this release. The baseline migration says which steps a later one may take."""

from __future__ import annotations

import time
from typing import Any, Final

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import OperationalError

from farm.errors import DatabaseUnavailable
from farm.store.tables import Base
from farm.store.unit_of_work import sqlalchemy_url

ASK_SECONDS: Final = 0.1  #: between two tries to have the lock
LOCK: Final = 7_214_011  #: advisory lock: two processes that start together do not migrate at once


def config() -> Config:
    """Alembic's configuration, without a file."""
    made = Config()
    made.set_main_option("script_location", "farm.store:migrations")
    made.set_main_option("path_separator", "os")
    return made


def upgrade(database_url: str) -> str:
    """Apply what is missing; returns the revision reached. Raises `DatabaseUnavailable`."""
    engine = create_engine(sqlalchemy_url(database_url))
    try:
        with engine.connect() as connection:
            # asked again and again: whoever waits inside a statement keeps an index from being made beside the work
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
        raise DatabaseUnavailable("PostgreSQL does not answer") from error
    finally:
        engine.dispose()


def current(connection: Connection) -> str | None:
    """The database's revision."""
    return MigrationContext.configure(connection).get_current_revision()


def head() -> str:
    """The revision that this release wants."""
    return ScriptDirectory.from_config(config()).get_current_head() or ""


def differences(connection: Connection) -> list[Any]:
    """What the database's schema and the tables of this release differ in."""
    context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
    return list(compare_metadata(context, Base.metadata))
