"""Who looks at a page: an API key, remembered by a signed cookie that its key alone can sign.

The cookie names the key and a time, and carries an HMAC under a secret that is derived from the key's stored hash. So
every API process can check it, there is no secret to configure, and it ends with its key: the key is looked up for
every page. The text of the key itself is never kept.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from dataclasses import dataclass
from typing import Final

from fastapi import Request, Response

from farm.errors import Forbidden, ScopeMissing, Unauthorized
from farm.store.tenants import Key, Scope
from farm.store.unit_of_work import Store

COOKIE: Final = "farm_session"
SECONDS: Final = 7 * 24 * 3600  #: how long a session lasts
_FORM: Final = re.compile(r"(key_[0-9a-f]{32})\.([0-9]{1,12})\.([0-9a-f]{64})", re.ASCII)


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


def begin(response: Response, key: Key, secret_hash: bytes, *, secure: bool) -> None:
    """Remember the key in a cookie that no script can read and no other site can send."""
    until = int(time.time()) + SECONDS
    text = f"{key.id}.{until}"
    response.set_cookie(
        COOKIE,
        f"{text}.{_mac(secret_hash, text)}",
        max_age=SECONDS,
        path="/farm",
        httponly=True,
        samesite="lax",
        secure=secure,
    )


def end(response: Response) -> None:
    """Forget the key."""
    response.delete_cookie(COOKIE, path="/farm", httponly=True, samesite="lax")


def current_user(store: Store, request: Request) -> User:
    """Whoever the request's cookie names. Raises `Unauthorized`: no cookie, an old one, or a key that was revoked."""
    found = _FORM.fullmatch(request.cookies.get(COOKIE, ""))
    if found is None:
        raise Unauthorized("sign in with an API key")
    key_id, until, mac = found.groups()
    with store.begin() as unit:
        key, secret_hash = unit.tenants.live_key(key_id)
    if not hmac.compare_digest(mac, _mac(secret_hash, f"{key_id}.{until}")):
        raise Unauthorized("sign in with an API key")
    if int(until) < time.time():
        raise Unauthorized("the session has expired; sign in again")
    return User(key)


def _mac(secret_hash: bytes, text: str) -> str:
    own = hmac.digest(secret_hash, b"farm dashboard session", hashlib.sha256)
    return hmac.digest(own, text.encode(), hashlib.sha256).hex()


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
