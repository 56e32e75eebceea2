"""Which of several dispatchers acts: the one that holds an advisory lock for as long as its connection lives."""

from __future__ import annotations

from typing import Final

from sqlalchemy import text
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from farm.errors import DatabaseUnavailable

LOCK: Final = 7_214_012


class Leadership:
    """The right to dispatch. Postgres takes it back when the connection ends, however the process did."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._connection: Connection | None = None

    def hold(self) -> bool:
        """Take the lead, or check that it is still ours; False if another dispatcher has it.

        Raises `DatabaseUnavailable`; the lead is then given up.
        """
        try:
            if self._connection is None:
                # a connection of its own, outside the pool, that nothing resets: the lock lives exactly as long as it
                connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
                connection.detach()
                if not connection.scalar(text("SELECT pg_try_advisory_lock(:lock)"), {"lock": LOCK}):
                    connection.close()
                    return False
                self._connection = connection
            else:
                self._connection.execute(text("SELECT 1"))
        except (OperationalError, InterfaceError, DBAPIError) as error:
            self.give_up()
            raise DatabaseUnavailable("PostgreSQL does not answer") from error
        return True

    def give_up(self) -> None:
        """Let another dispatcher lead."""
        if self._connection is not None:
            self._connection.invalidate()
            self._connection.close()
            self._connection = None
