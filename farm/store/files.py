"""Input pictures: what a tenant has stored, by id and by content."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from farm.domain import ids
from farm.domain.tasks import InputPicture
from farm.store.tables import FileRow


@dataclass(frozen=True)
class File:
    """A stored input picture."""

    id: str
    picture: InputPicture
    filename: str | None
    size: int  #: bytes
    created_at: datetime


def _file(row: FileRow) -> File:
    picture = InputPicture(
        sha256=row.sha256, key=row.key, content_type=row.content_type, width=row.width, height=row.height
    )
    return File(row.id, picture, row.filename, row.size, row.created_at)


class Files:
    """The files of all tenants."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, tenant_id: str, picture: InputPicture, size: int, filename: str | None) -> File:
        """Record a stored picture; the same content again gives the file that is there. ``size`` in bytes."""
        values = {
            "id": ids.new(ids.FILE),
            "tenant_id": tenant_id,
            "sha256": picture.sha256,
            "key": picture.key,
            "filename": filename,
            "content_type": picture.content_type,
            "size": size,
            "width": picture.width,
            "height": picture.height,
        }
        self._session.execute(
            insert(FileRow).values(values).on_conflict_do_nothing(index_elements=["tenant_id", "sha256"])
        )
        found = self.by_content(tenant_id, picture.sha256)
        assert found is not None  # inserted above, or there before
        return found

    def get(self, tenant_id: str, file_id: str) -> File | None:
        """The tenant's file of that id."""
        if not ids.is_id(ids.FILE, file_id):
            return None
        row = self._session.scalar(select(FileRow).where(FileRow.tenant_id == tenant_id, FileRow.id == file_id))
        return None if row is None else _file(row)

    def by_content(self, tenant_id: str, sha256: str) -> File | None:
        """The tenant's file of that content (hex SHA-256)."""
        row = self._session.scalar(select(FileRow).where(FileRow.tenant_id == tenant_id, FileRow.sha256 == sha256))
        return None if row is None else _file(row)
