"""API keys of the tenant."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from farm.api.auth import Admin
from farm.api.problems import ALWAYS, responses
from farm.api.route import Guarded
from farm.api.services import Farm
from farm.api.shapes import KeyList, KeyShape, NewKeyShape
from farm.domain import ids
from farm.domain.tasks import NoNul, Storable
from farm.store.tenants import Scope

router: Final = APIRouter(prefix="/v1/keys", tags=["keys"], route_class=Guarded)

KeyId = Annotated[str, Path(description="The key's id.", json_schema_extra={"pattern": ids.pattern(ids.KEY)})]


class KeyRequest(BaseModel):
    """A key to make."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, StringConstraints(min_length=1, max_length=100), Storable, NoNul] = Field(
        description="What it is for."
    )
    scopes: list[Scope] = Field(
        [Scope.SUBMIT, Scope.READ], min_length=1, max_length=len(Scope), description="What it may do."
    )


@router.get("", summary="List keys", responses=responses(*ALWAYS))
def list_keys(farm: Farm, admin: Admin) -> KeyList:
    """The tenant's keys, newest first, without their secrets."""
    with farm.store.begin() as unit:
        return KeyList(data=[KeyShape.of(key) for key in unit.tenants.keys(admin.tenant_id)])


@router.post("", status_code=201, summary="Make a key", responses=responses(*ALWAYS, 413, 415))
def make_key(farm: Farm, admin: Admin, request: KeyRequest) -> NewKeyShape:
    """A new key of the same tenant. Its text is in this answer and nowhere else."""
    with farm.store.begin() as unit:
        key, text = unit.tenants.create_key(admin.tenant_id, request.name, frozenset(request.scopes))
    return NewKeyShape(**KeyShape.of(key).model_dump(), key=text)


@router.delete("/{key_id}", summary="Revoke a key", responses=responses(*ALWAYS, 404))
def revoke_key(farm: Farm, admin: Admin, key_id: KeyId) -> KeyShape:
    """End a key at once. Revoking it again changes nothing."""
    with farm.store.begin() as unit:
        return KeyShape.of(unit.tenants.revoke(admin.tenant_id, key_id))
