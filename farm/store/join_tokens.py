"""Tokens with which workers on other machines join: each has an end, and can be listed and revoked."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from farm.domain import ids
from farm.errors import NotFound, Unauthorized
from farm.store.tables import JoinTokenRow

DAY_SECONDS: Final = 24 * 3600  #: how long a token is good for unless its maker says otherwise

#: ``join_<token id's digits>_<secret>``
TEXT: Final = re.compile(r"join_([0-9a-f]{32})_([A-Za-z0-9_-]{43})", re.ASCII)


@dataclass(frozen=True)
class JoinToken:
    """A token without its secret."""

    id: str
    name: str
    created_at: datetime
    expires_at: datetime
    revoked_at: datetime | None
    last_used_at: datetime | None  #: when a worker joined with it


class JoinTokens:
    """The tokens of the farm, stored as hashes."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def create(self, name: str, seconds: float) -> tuple[JoinToken, str]:
        """A new token for so many seconds, and its text, which is shown this once and never stored."""
        secret = secrets.token_urlsafe(32)
        now = self._session.scalar(select(func.now()))
        assert now is not None
        row = JoinTokenRow(
            id=ids.new(ids.JOIN_TOKEN),
            name=name,
            secret_hash=_hash(secret),
            created_at=now,
            expires_at=now + timedelta(seconds=seconds),
        )
        self._session.add(row)
        self._session.flush()
        return _token(row), f"join_{row.id.removeprefix('jtk_')}_{secret}"

    def use(self, text: str) -> JoinToken:
        """The live token of that text, noted as used. Raises `Unauthorized`."""
        parts = TEXT.fullmatch(text)
        row = self._session.get(JoinTokenRow, f"jtk_{parts[1]}") if parts else None
        if parts is None or row is None or not hmac.compare_digest(row.secret_hash, _hash(parts[2])):
            raise Unauthorized("the join token is not known")
        now = self._session.scalar(select(func.now()))
        assert now is not None
        if row.revoked_at is not None:
            raise Unauthorized("the join token was revoked")
        if row.expires_at <= now:
            raise Unauthorized("the join token has expired: make another with `farm workers tokens create`")
        row.last_used_at = now
        self._session.flush()
        return _token(row)

    def is_live(self, text: str) -> bool:
        """Whether a worker could join with it now."""
        parts = TEXT.fullmatch(text)
        row = self._session.get(JoinTokenRow, f"jtk_{parts[1]}") if parts else None
        now = self._session.scalar(select(func.now()))
        return row is not None and row.revoked_at is None and now is not None and row.expires_at > now

    def all(self) -> list[JoinToken]:
        """All tokens, newest first."""
        return [_token(row) for row in self._session.scalars(select(JoinTokenRow).order_by(JoinTokenRow.id.desc()))]

    def revoke(self, token_id: str) -> JoinToken:
        """End a token at once; workers that joined with it go on. Raises `NotFound`."""
        row = None
        if ids.is_id(ids.JOIN_TOKEN, token_id):
            row = self._session.scalar(
                update(JoinTokenRow)
                .where(JoinTokenRow.id == token_id)
                .values(revoked_at=func.coalesce(JoinTokenRow.revoked_at, func.now()))
                .returning(JoinTokenRow)
            )
        if row is None:
            raise NotFound("join token", token_id)
        return _token(row)


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _token(row: JoinTokenRow) -> JoinToken:
    return JoinToken(row.id, row.name, row.created_at, row.expires_at, row.revoked_at, row.last_used_at)
