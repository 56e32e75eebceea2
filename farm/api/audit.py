"""The audit log: who changed what."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final, Self

from fastapi import APIRouter, Query
from pydantic import Field

from farm.api.auth import Operator
from farm.api.dependencies import Context
from farm.api.problems import ALWAYS, responses
from farm.api.route import AuthenticatedRoute
from farm.api.schemas import Schema
from farm.store.audit import AuditEntry

router: Final = APIRouter(prefix="/v1/audit", tags=["audit"], route_class=AuthenticatedRoute)


class AuditSchema(Schema):
    """A change that somebody made."""

    at: datetime
    key_id: str
    key_name: str = Field(description="As it was then.")
    tenant_id: str = Field(description="Whose key it is.")
    action: str = Field(description="Method and path: `PUT /v1/pauses/farm`.")
    target: str = Field(description="What was named: ids and names, of the first few things.")
    request_id: str

    @classmethod
    def of(cls, one: AuditEntry) -> Self:
        """The entry."""
        return cls(
            at=one.at,
            key_id=one.key_id,
            key_name=one.key_name,
            tenant_id=one.tenant_id,
            action=one.action,
            target=one.target,
            request_id=one.request_id,
        )


class AuditPage(Schema):
    """Some of the changes, newest first."""

    data: list[AuditSchema]
    next: str | None = Field(description="The `cursor` of the next page; null on the last one.")


@router.get("", summary="List changes", responses=responses(*ALWAYS))
def list_changes(
    context: Context,
    _: Operator,
    key: Annotated[str | None, Query(max_length=200, description="Only of this key: its id or its name.")] = None,
    q: Annotated[str | None, Query(max_length=200, description="Only where action or target contain this.")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[
        str | None,
        Query(
            max_length=100,
            description="The `next` of the page before.",
            json_schema_extra={"pattern": "^[A-Za-z0-9_-]{10}[AEIMQUYcgkosw048]$"},
        ),
    ] = None,
) -> AuditPage:
    """Changes by the API and the dashboard, newest first. What is submitted and uploaded is not among them."""
    with context.store.begin() as unit:
        found, following = unit.audit.page(_storable(key), _storable(q), cursor, limit)
    return AuditPage(data=[AuditSchema.of(one) for one in found], next=following)


def _storable(text: str | None) -> str | None:
    """The text without what the database cannot hold, which no entry contains."""
    return None if text is None else text.replace("\0", "").encode("utf-8", "replace").decode()
