"""API keys of a tenant: made, rotated and revoked by those who run the farm."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Form, Query, Request, Response
from pydantic import ValidationError

from farm.api.dependencies import Context
from farm.api.keys import KeyCreate
from farm.dashboard.rendering import HOME, CurrentUser, Link, PageRoute, render, see
from farm.errors import BadInput
from farm.store.tenants import Scope, Tenant

PATH: Final = f"{HOME}/keys"
LINK: Final = Link("Settings", "API keys", PATH, 10, (Scope.ADMIN,))
router: Final = APIRouter(prefix=PATH, include_in_schema=False, route_class=PageRoute)

TenantId = Annotated[str, Query(max_length=60)]
OfTenant = Annotated[str, Form(alias="tenant", max_length=60)]

#: What the scopes allow, for the form.
MEANING: Final = {
    Scope.SUBMIT: "send jobs and files, cancel and retry its own",
    Scope.READ: "see its tenant's jobs, images and usage",
    Scope.OPERATE: "steer the whole farm: pause, drain, everybody's jobs",
    Scope.ADMIN: "tenants, their keys and limits",
}


@router.get("")
def keys(request: Request, context: Context, user: CurrentUser, tenant: TenantId = "") -> Response:
    """A tenant's keys, those that live first."""
    user.require(Scope.ADMIN)
    with context.store.begin() as unit:
        of = unit.tenants.existing(tenant or user.key.tenant_id)
        found = unit.tenants.keys(of.id)
        tenants = unit.tenants.page(None, 200)
    found.sort(key=lambda one: one.revoked_at is not None)
    return render(request, "keys.html", of=of, keys=found, tenants=tenants, meaning=MEANING)


@router.post("")
def make(
    request: Request,
    context: Context,
    user: CurrentUser,
    name: Annotated[str, Form(max_length=200)] = "",
    scope: Annotated[list[Scope], Form()] = [],  # noqa: B006
    tenant: OfTenant = "",
) -> Response:
    """A new key, whose text is shown this once."""
    user.require(Scope.ADMIN)
    try:
        new = KeyCreate(name=name.strip(), scopes=scope)
    except ValidationError as error:
        raise BadInput.of("name", name, "a key needs a name and at least one scope") from error
    with context.store.begin() as unit:
        of = unit.tenants.existing(tenant or user.key.tenant_id)
        key, text = unit.tenants.create_key(of.id, new.name, frozenset(new.scopes))
    return _shown(request, of, text, f"the key {key.name!r}")


@router.post("/{key_id}/rotate")
def rotate(request: Request, context: Context, user: CurrentUser, key_id: str, tenant: OfTenant = "") -> Response:
    """A second key with the same name and scopes."""
    user.require(Scope.ADMIN)
    with context.store.begin() as unit:
        of = unit.tenants.existing(tenant or user.key.tenant_id)
        key, text = unit.tenants.rotate(of.id, key_id)
    return _shown(request, of, text, f"the second key {key.name!r}, which replaces the first when you revoke that one,")


@router.post("/{key_id}/revoke")
def revoke(context: Context, user: CurrentUser, key_id: str, tenant: OfTenant = "") -> Response:
    """End a key at once."""
    user.require(Scope.ADMIN)
    with context.store.begin() as unit:
        of = unit.tenants.existing(tenant or user.key.tenant_id)
        gone = unit.tenants.revoke(of.id, key_id)
    return see(f"{PATH}?tenant={of.id}", f"The key {gone.name!r} is revoked.")


def _shown(request: Request, of: Tenant, secret: str, what: str) -> Response:
    back = f"{PATH}?tenant={of.id}"
    return render(request, "secret.html", title="API key", secret=secret, what=f"is {what} of {of.name}", back=back)
