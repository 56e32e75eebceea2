"""Who may do what: API keys as bearer tokens, and the scope that each operation needs.

The key is looked up for every request, so that a revoked one is refused from that moment on.
"""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from farm.api.dependencies import AppContext
from farm.errors import ScopeMissing, Unauthorized
from farm.store.tenants import Key, Scope
from farm.store.unit_of_work import Store

#: For the OpenAPI document; `authenticate` reads the header itself.
BEARER: Final = HTTPBearer(
    scheme_name="key", bearerFormat="farm_…", description="An API key: `Authorization: Bearer farm_…`", auto_error=False
)


def authenticate(store: Store, header: str | None) -> Key:
    """The live key that an ``Authorization`` header carries. Raises `Unauthorized`."""
    if header is None:
        raise Unauthorized("send an API key: `Authorization: Bearer farm_…`")
    scheme, _, text = header.strip().partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthorized("send the API key as a bearer token: `Authorization: Bearer farm_…`")
    with store.look() as unit:
        return unit.tenants.authenticate(text.strip())


def count(context: AppContext, key: Key, request: Request) -> None:
    """Count the request against its tenant's rate; the answer's headers tell. Raises `QuotaExceeded`."""
    if context.rate_limiter is not None:
        request.state.rate = state = context.rate_limiter.take(key.tenant_id)
        state.admit()


class RequireScope:
    """A dependency that lets in only keys with one of the scopes, and gives the key to the endpoint."""

    def __init__(self, *scopes: Scope) -> None:
        self.scopes = scopes

    def admit(self, request: Request) -> Key:
        """The request's key, if it has such a scope. Raises `Unauthorized`, `QuotaExceeded` or `Forbidden`."""
        context: AppContext = request.app.state.context
        key = authenticate(context.store, request.headers.get("authorization"))
        count(context, key, request)
        if key.scopes.isdisjoint(self.scopes):
            raise ScopeMissing(*self.scopes)
        request.state.key = key
        return key

    async def __call__(
        self, request: Request, _: Annotated[HTTPAuthorizationCredentials | None, Security(BEARER)] = None
    ) -> Key:
        """The key of a request that `farm.api.route.AuthenticatedRoute` has admitted."""
        key: Key = request.state.key
        return key


Submitter = Annotated[Key, Depends(RequireScope(Scope.SUBMIT))]
Reader = Annotated[Key, Depends(RequireScope(Scope.READ))]
Operator = Annotated[Key, Depends(RequireScope(Scope.OPERATE))]
Admin = Annotated[Key, Depends(RequireScope(Scope.ADMIN))]
SecretReader = Annotated[Key, Depends(RequireScope(Scope.SUBMIT, Scope.ADMIN))]
