"""Input files: what a tenant has stored, by id and by content."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from farm.domain import ids
from farm.domain.job_spec import InputFile
from farm.store.tables import FileRow


@dataclass(frozen=True)
class StoredFile:
    """A file that a tenant has uploaded, or that was fetched for one of its jobs."""

    id: str
    content: InputFile
    filename: str | None
    created_at: datetime


def _file(row: FileRow) -> StoredFile:
    content = InputFile(sha256=row.sha256, key=row.key, media_type=row.media_type, size=row.size, metadata=row.meta)
    return StoredFile(row.id, content, row.filename, row.created_at)


class Files:
    """The files of all tenants."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, tenant_id: str, content: InputFile, filename: str | None) -> StoredFile:
        """Record a stored file; the same content again gives the file that is there."""
        values = {
            "id": ids.new(ids.FILE),
            "tenant_id": tenant_id,
            "sha256": content.sha256,
            "key": content.key,
            "filename": filename,
            "media_type": content.media_type,
            "size": content.size,
            "meta": content.metadata,
        }
        self._session.execute(
            insert(FileRow).values(values).on_conflict_do_nothing(index_elements=["tenant_id", "sha256"])
        )
        found = self.by_content(tenant_id, content.sha256)
        assert found is not None  # inserted above, or there before
        return found

    def get(self, tenant_id: str, file_id: str) -> StoredFile | None:
        """The tenant's file of that id."""
        if not ids.is_id(ids.FILE, file_id):
            return None
        row = self._session.scalar(select(FileRow).where(FileRow.tenant_id == tenant_id, FileRow.id == file_id))
        return None if row is None else _file(row)

    def by_content(self, tenant_id: str, sha256: str) -> StoredFile | None:
        """The tenant's file of that content (hex SHA-256)."""
        row = self._session.scalar(select(FileRow).where(FileRow.tenant_id == tenant_id, FileRow.sha256 == sha256))
        return None if row is None else _file(row)
