"""The audit log: which key changed what, and when. Rows are only added, and deleted when they are old."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import delete, func, insert, or_, select
from sqlalchemy.orm import Session

from farm.domain import ids
from farm.store import cursor as cursors
from farm.store.tables import AuditRow

KEEP_DAYS: Final = 400  #: how long rows are kept
_PLACE: Final = struct.Struct(">q")


@dataclass(frozen=True)
class AuditEntry:
    """A change that somebody made."""

    id: int
    at: datetime
    key_id: str
    key_name: str
    tenant_id: str
    action: str  #: method and path template
    target: str
    request_id: str


class Audit:
    """All changes of all keys."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, key_id: str, key_name: str, tenant_id: str, action: str, target: str, request_id: str) -> None:
        """Record a change."""
        self._session.execute(
            insert(AuditRow).values(
                key_id=key_id, key_name=key_name, tenant_id=tenant_id, action=action, target=target,
                request_id=request_id,
            )
        )  # fmt: skip

    def page(
        self, key: str | None, words: str | None, cursor: str | None, limit: int
    ) -> tuple[list[AuditEntry], str | None]:
        """A page of changes, newest first, and the cursor of the next one.

        Args:
            key: id or name of a key; None: any.
            words: a part of the action or of the target; None: any.
            cursor: the next page's, of the page before.
            limit: entries.

        Raises:
            BadInput: the cursor is none.
        """
        statement = select(AuditRow).order_by(AuditRow.id.desc()).limit(limit + 1)
        if key:
            by_id = ids.is_id(ids.KEY, key)
            statement = statement.where(AuditRow.key_id == key if by_id else AuditRow.key_name == key)
        if words:
            found = [column.icontains(words, autoescape=True) for column in (AuditRow.action, AuditRow.target)]
            statement = statement.where(or_(*found))
        if cursor is not None:
            statement = statement.where(AuditRow.id < _PLACE.unpack(cursors.decode(cursor, _PLACE.size))[0])
        rows = list(self._session.scalars(statement))
        following = cursors.encode(_PLACE.pack(rows[limit - 1].id)) if len(rows) > limit else None
        return [
            AuditEntry(
                row.id, row.at, row.key_id, row.key_name, row.tenant_id, row.action, row.target, row.request_id
            )
            for row in rows[:limit]
        ], following  # fmt: skip

    def delete_expired(self, limit: int) -> int:
        """Delete some of what is older than `KEEP_DAYS`; returns how many."""
        oldest = select(AuditRow.id).order_by(AuditRow.id).limit(limit)
        gone = self._session.scalars(
            delete(AuditRow)
            .where(AuditRow.id.in_(oldest), AuditRow.at < func.now() - func.make_interval(0, 0, 0, KEEP_DAYS))
            .returning(AuditRow.id)
            .execution_options(synchronize_session=False)
        )
        return len(list(gone))
