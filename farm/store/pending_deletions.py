"""Objects that no row names any more, until they are gone from the object storage.

A name comes in with the transaction that deletes the row which had it, so an object is never forgotten, and never
removed while a row still names it.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import ARRAY, Text, bindparam, delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from farm.store.tables import PendingDeletionRow


class PendingDeletions:
    """The names of all objects to be removed."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, keys: Collection[str]) -> None:
        """Have these objects removed; a key that ends in ``/`` means all that begin with it."""
        if keys:
            self._session.execute(
                insert(PendingDeletionRow).on_conflict_do_nothing(), [{"key": key} for key in dict.fromkeys(keys)]
            )

    def add_later(self, tenant_id: str, key: str, size: int, seconds: float) -> None:
        """Have an object of a tenant removed after so many seconds; until then its size counts as stored."""
        due = func.now() + func.make_interval(0, 0, 0, 0, 0, 0, seconds)
        values = {"key": key, "tenant_id": tenant_id, "size": size, "due_at": due}
        self._session.execute(insert(PendingDeletionRow).values(values).on_conflict_do_nothing())

    def take(self, limit: int) -> list[str]:
        """Some of those that are due, locked; those that another transaction removes are skipped."""
        return list(
            self._session.scalars(
                select(PendingDeletionRow.key)
                .where(PendingDeletionRow.due_at <= func.now())
                .order_by(PendingDeletionRow.key)
                .limit(limit)
                .with_for_update(skip_locked=True)
            )
        )

    def remove(self, keys: Collection[str]) -> None:
        """These are gone."""
        self._session.execute(
            delete(PendingDeletionRow)
            .where(PendingDeletionRow.key == func.any(bindparam("gone", list(keys), type_=ARRAY(Text))))
            .execution_options(synchronize_session=False)
        )
