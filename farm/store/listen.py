"""Hearing of changes as they commit (LISTEN/NOTIFY), without asking again and again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import psycopg
from psycopg import sql

from farm.store.connection import Connection, Database, unavailable


@dataclass(frozen=True)
class Notice:
    """A notification that arrived."""

    channel: str
    payload: str


class Listener:
    """One connection that listens; used by one thread at a time.

    A notification is a hint, never the news itself: after a lost connection some are missing, so a listener looks at
    the tables whenever ``wait`` returns, and now and then without a notification.
    """

    def __init__(self, database: Database, channels: Iterable[str]) -> None:
        self._database = database
        self._channels = tuple(channels)
        self._connection: Connection | None = None

    def connect(self) -> bool:
        """Open the connection if it is not open; returns True if it opened one, so that earlier notices are missing.

        Raises `DatabaseUnavailable`, or `SetupError` where a pooler cannot keep a session.
        """
        if self._connection is not None and not self._connection.closed:
            return False
        connection = self._database.session("farm listener")
        try:
            for channel in self._channels:
                connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
        except psycopg.Error as error:
            connection.close()
            raise unavailable(error, self._database) from error
        self._connection = connection
        return True

    def wait(self, timeout: float) -> list[Notice]:
        """Notices that arrive within ``timeout`` seconds: returns at the first batch, or empty at the end.

        Raises `DatabaseUnavailable` when the connection is lost; the next call opens another.
        """
        self.connect()
        assert self._connection is not None
        try:
            return [
                Notice(notify.channel, notify.payload)
                for notify in self._connection.notifies(timeout=timeout, stop_after=1)
            ]
        except psycopg.Error as error:
            self.close()
            raise unavailable(error, self._database) from error

    def drop(self) -> None:
        """Forget the notices that have arrived, before a look that sees all that they could tell.

        Raises `DatabaseUnavailable`.
        """
        while self.wait(0):
            pass

    def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
