"""Requests whose clients wait for a job: so that a client which sends its request again waits for the same job.

Kept among the idempotency keys, under keys that no client can give: theirs do not begin with a space.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import delete, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from farm.store.tables import IdempotencyRow

_WAITING: Final = b"waiting"  #: a client waits for the answer
_ABANDONED: Final = b"abandoned"  #: its wait ended without one


class Unanswered:
    """The requests of all tenants."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, tenant_id: str, request: str, job_id: str) -> None:
        """Note that the client of a request waits for a job."""
        values = {"tenant_id": tenant_id, "key": _key(request), "request_hash": _WAITING, "job_id": job_id}
        self._session.execute(
            insert(IdempotencyRow)
            .values(values)
            .on_conflict_do_update(
                index_elements=["tenant_id", "key"], set_={"request_hash": _WAITING, "job_id": job_id}
            )
        )

    def take(self, tenant_id: str, request: str, *, waiting: bool) -> str | None:
        """The job of an equal request that got no answer; one that still waits for its own only if asked for."""
        found = delete(IdempotencyRow).where(*_this(tenant_id, request)).returning(IdempotencyRow.job_id)
        if not waiting:
            found = found.where(IdempotencyRow.request_hash == _ABANDONED)
        return self._session.scalar(found)

    def abandon(self, tenant_id: str, request: str, job_id: str) -> None:
        """Note that the client's wait ended without an answer."""
        self._session.execute(
            update(IdempotencyRow)
            .where(*_this(tenant_id, request), IdempotencyRow.job_id == job_id)
            .values(request_hash=_ABANDONED)
        )

    def remove(self, tenant_id: str, request: str, job_id: str) -> bool:
        """The request is answered, or nobody will ask for the answer; returns whether it was there still."""
        gone: Any = self._session.execute(
            delete(IdempotencyRow).where(*_this(tenant_id, request), IdempotencyRow.job_id == job_id)
        )
        return bool(gone.rowcount)


def _key(request: str) -> str:
    return f" wait {request}"


def _this(tenant_id: str, request: str) -> tuple[Any, Any]:
    return IdempotencyRow.tenant_id == tenant_id, IdempotencyRow.key == _key(request)
