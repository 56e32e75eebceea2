"""Files of requests that tenants have uploaded for batches."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import delete, select, text
from sqlalchemy.orm import Session

from farm.domain import ids
from farm.store.tables import RequestFileRow

_EXPIRED: Final = text("""
    DELETE FROM request_file WHERE id = ANY(ARRAY(
        SELECT request_file.id FROM request_file JOIN tenant ON tenant.id = request_file.tenant_id
        WHERE request_file.created_at < now() - make_interval(days => tenant.retention_days)
        ORDER BY request_file.id LIMIT :limit FOR UPDATE OF request_file SKIP LOCKED
    )) RETURNING tenant_id, id
""")


@dataclass(frozen=True)
class RequestFile:
    """One uploaded file."""

    id: str
    filename: str
    size: int  #: bytes
    created_at: datetime


def _file(row: RequestFileRow) -> RequestFile:
    return RequestFile(row.id, row.filename, row.size, row.created_at)


class RequestFiles:
    """The files of all tenants."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, tenant_id: str, file_id: str, filename: str, size: int) -> RequestFile:
        """Record a stored file."""
        row = RequestFileRow(id=file_id, tenant_id=tenant_id, filename=filename, size=size)
        self._session.add(row)
        self._session.flush()
        return _file(row)

    def get(self, tenant_id: str, file_id: str) -> RequestFile | None:
        """The tenant's file of that id."""
        if not ids.is_id(ids.FILE, file_id):
            return None
        found = select(RequestFileRow).where(RequestFileRow.tenant_id == tenant_id, RequestFileRow.id == file_id)
        row = self._session.scalar(found)
        return None if row is None else _file(row)

    def page(self, tenant_id: str, after: str | None, limit: int, *, newest_first: bool) -> list[RequestFile]:
        """Some of the tenant's files behind that one, in the order of their ids, which is the order of their times."""
        order = RequestFileRow.id.desc() if newest_first else RequestFileRow.id
        found: Any = select(RequestFileRow).where(RequestFileRow.tenant_id == tenant_id).order_by(order).limit(limit)
        if after is not None:
            found = found.where(RequestFileRow.id < after if newest_first else RequestFileRow.id > after)
        return [_file(row) for row in self._session.scalars(found)]

    def remove(self, tenant_id: str, file_id: str) -> bool:
        """Forget a file; returns whether it was there."""
        gone: Any = self._session.execute(
            delete(RequestFileRow).where(RequestFileRow.tenant_id == tenant_id, RequestFileRow.id == file_id)
        )
        return bool(gone.rowcount)

    def delete_expired(self, limit: int) -> list[tuple[str, str]]:
        """Delete files beyond their tenant's retention; returns them with their tenants."""
        rows = self._session.execute(_EXPIRED, {"limit": limit})
        return [(ids.from_uuid(ids.TENANT, row[0]), ids.from_uuid(ids.FILE, row[1])) for row in rows]
