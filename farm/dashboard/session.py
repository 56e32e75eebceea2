"""Who looks at a page: an API key, remembered by a session, whose random text the cookie carries.

A session is a row that holds only a hash of that text, so nobody signs in with what a backup has. Every API process
looks it up for every page: a logout ends it everywhere, and so does a revoked key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fastapi import Request, Response

from farm.errors import Forbidden, ScopeMissing
from farm.store.tenants import Key, Scope
from farm.store.unit_of_work import UnitOfWork

COOKIE: Final = "farm_session"
SECONDS: Final = 7 * 24 * 3600  #: how long a session lasts


@dataclass(frozen=True)
class User:
    """Whoever looks, and what may be shown and done."""

    key: Key

    @property
    def is_operator(self) -> bool:
        """Whether the whole farm is shown, and may be steered: else only what is the key's tenant's."""
        return self.has_scope(Scope.OPERATE, Scope.ADMIN)

    @property
    def tenant(self) -> str | None:
        """The tenant whose things are shown; None: everybody's."""
        return None if self.is_operator else self.key.tenant_id

    def image_tenant(self) -> str | None:
        """The tenant whose images are shown, as the API shows them; None: everybody's. Raises `ScopeMissing`."""
        if self.has_scope(Scope.ADMIN):
            return None
        self.require(Scope.READ)
        return self.key.tenant_id

    def sees_images(self, tenant_id: str) -> bool:
        """Whether that tenant's images are shown: templates leave out what `image_tenant` refuses."""
        return self.has_scope(Scope.ADMIN) or (tenant_id == self.key.tenant_id and self.has_scope(Scope.READ))

    def has_scope(self, *scopes: Scope | str) -> bool:
        """Whether the key has one of the scopes: templates hide what this denies, and `require` refuses it."""
        return not self.key.scopes.isdisjoint({Scope(scope) for scope in scopes})

    def require(self, *scopes: Scope) -> None:
        """Raise `ScopeMissing` unless the key has one of the scopes."""
        if not self.has_scope(*scopes):
            raise ScopeMissing(*scopes)

    def can_change(self, tenant_id: str) -> bool:
        """Whether the key may change that tenant's jobs and batches: templates hide what this denies."""
        return self.is_operator or (tenant_id == self.key.tenant_id and self.has_scope(Scope.SUBMIT))

    def require_change(self, tenant_id: str) -> str:
        """The tenant whose job or batch is about to be changed, if this key may. Raises `Forbidden`."""
        if not self.can_change(tenant_id):
            own = tenant_id == self.key.tenant_id
            self.require(*(Scope.SUBMIT,) if own else (), Scope.OPERATE, Scope.ADMIN)
        return tenant_id


def begin(response: Response, text: str, *, secure: bool) -> None:
    """Remember a session in a cookie that no script can read and no other site can send."""
    response.set_cookie(
        COOKIE, text, max_age=SECONDS, path="/farm", httponly=True, samesite="lax", secure=secure
    )  # fmt: skip


def end(response: Response) -> None:
    """Forget the session."""
    response.delete_cookie(COOKIE, path="/farm", httponly=True, samesite="lax")


def current_user(unit: UnitOfWork, request: Request) -> User:
    """Whoever the request's cookie names. Raises `Unauthorized`: no cookie, an old one, or a key that was revoked."""
    return User(unit.sessions.key(request.cookies.get(COOKIE, "")))


def same_site(request: Request) -> None:
    """Raise `Forbidden` for a change that another site's page asks for.

    Browsers say where a request comes from: ``Sec-Fetch-Site`` on HTTPS and on this machine, ``Origin`` everywhere.
    """
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        own = site == "same-origin"
    else:
        origin = request.headers.get("origin", "")
        own = origin.partition("://")[2] == request.headers.get("host") != ""
    if not own:
        raise Forbidden("the request was not sent by a page of this farm")
