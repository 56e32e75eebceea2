"""Which of several dispatchers acts: the one that holds an advisory lock for as long as its connection lives."""

from __future__ import annotations

from typing import Final

import psycopg

from farm.store.connection import Connection, Database, unavailable

LOCK: Final = 7_214_012


class Leadership:
    """The right to dispatch. Postgres takes it back when the connection ends, however the process did."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: Connection | None = None

    def hold(self) -> bool:
        """Take the lead, or check that it is still ours; False if another dispatcher has it.

        Raises `DatabaseUnavailable`; the lead is then given up. Raises `SetupError` where a pooler keeps no session.
        """
        # a connection of its own, outside the pool, that nothing resets: the lock lives exactly as long as it
        connection = self._connection or self._database.session("farm dispatcher")
        try:
            if self._connection is not None:
                connection.execute("SELECT 1")
                return True
            row = connection.execute("SELECT pg_try_advisory_lock(%s)", (LOCK,)).fetchone()
        except psycopg.Error as error:
            connection.close()
            self._connection = None
            raise unavailable(error, self._database) from error
        if row is None or not row[0]:
            connection.close()
            return False
        self._connection = connection
        return True

    def give_up(self) -> None:
        """Let another dispatcher lead."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
