"""The database role of workers that join over HTTP: what a worker does with jobs, and nothing else.

It is no superuser, owns nothing, and reads no API key, session, join token or webhook secret.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import psycopg
from psycopg import errors as pg
from psycopg import sql

from farm.errors import SetupError
from farm.server_errors import database_unavailable
from farm.store.connection import Database

#: What the role may do with each table, or with some of its columns; with all others nothing.
GRANTS: Final[Mapping[str, tuple[str, ...]]] = {
    "alembic_version": ("SELECT",),
    "batch": ("SELECT", "UPDATE"),
    "checkpoint": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "endpoint": ("SELECT (tenant_id, events, one_off, disabled_at)",),  # whether anybody waits for an event
    "event": ("SELECT", "INSERT"),
    "file": ("SELECT",),
    "job": ("SELECT", "UPDATE"),
    "job_dependency": ("SELECT",),
    "job_failure": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "model": ("SELECT", "UPDATE"),
    "numerics": ("SELECT", "INSERT", "UPDATE"),
    "output": ("SELECT", "INSERT", "DELETE"),
    "pause": ("SELECT",),
    "pending_deletion": ("SELECT", "INSERT"),
    "propagation": ("SELECT", "INSERT"),
    "queue_state": ("SELECT", "INSERT", "UPDATE"),
    "tenant": ("SELECT", "UPDATE"),
    "usage": ("SELECT", "INSERT", "UPDATE"),
    "worker": ("SELECT", "INSERT", "UPDATE"),
}


def ensure(database: Database, role: str, password: str) -> None:
    """Make the role with that password unless it exists, and give it exactly `GRANTS`.

    Raises `SetupError` where the owner of the schema may not create roles, or `DatabaseUnavailable`.
    """
    name = sql.Identifier(role)
    try:
        with database.connect(limits=False) as connection:
            if connection.execute("SELECT FROM pg_roles WHERE rolname = %s", (role,)).fetchone() is None:
                connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(name, sql.Literal(password)))
            connection.execute(sql.SQL("REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {}").format(name))
            connection.execute(sql.SQL("GRANT USAGE ON SCHEMA public TO {}").format(name))
            connection.execute(sql.SQL("GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {}").format(name))
            for table, rights in GRANTS.items():
                what = sql.SQL(", ").join(map(sql.SQL, rights))
                connection.execute(sql.SQL("GRANT {} ON {} TO {}").format(what, sql.Identifier(table), name))
    except pg.InsufficientPrivilege as error:
        raise SetupError(
            f"the role {role!r} of FARM_JOIN_DATABASE_URL cannot be set up ({str(error).splitlines()[0]}): create it "
            "with a password, then run `farm init` again as the owner of the tables"
        ) from error
    except psycopg.Error as error:
        raise database_unavailable(error, database.place) from error
