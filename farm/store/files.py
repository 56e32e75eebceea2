"""Input images: what a tenant has stored, by id and by content."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from farm.domain import ids
from farm.domain.tasks import InputImage
from farm.store.tables import FileRow


@dataclass(frozen=True)
class File:
    """A stored input image."""

    id: str
    image: InputImage
    filename: str | None
    size: int  #: bytes
    created_at: datetime


def _file(row: FileRow) -> File:
    image = InputImage(
        sha256=row.sha256, key=row.key, content_type=row.content_type, width=row.width, height=row.height
    )
    return File(row.id, image, row.filename, row.size, row.created_at)


class Files:
    """The files of all tenants."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, tenant_id: str, image: InputImage, size: int, filename: str | None) -> File:
        """Record a stored image; the same content again gives the file that is there. ``size`` in bytes."""
        values = {
            "id": ids.new(ids.FILE),
            "tenant_id": tenant_id,
            "sha256": image.sha256,
            "key": image.key,
            "filename": filename,
            "content_type": image.content_type,
            "size": size,
            "width": image.width,
            "height": image.height,
        }
        self._session.execute(
            insert(FileRow).values(values).on_conflict_do_nothing(index_elements=["tenant_id", "sha256"])
        )
        found = self.by_content(tenant_id, image.sha256)
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
