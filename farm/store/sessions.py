"""Sessions of the dashboard: rows that a logout, a revoked key or the clock ends."""

from __future__ import annotations

import hashlib
import re
import secrets
from datetime import timedelta
from typing import Final

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from farm.errors import Unauthorized
from farm.store.tables import KeyRow, SessionRow
from farm.store.tenants import Key, key_of

_TEXT: Final = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)


class Sessions:
    """Who is signed in. The database keeps a hash of each session's text, so nobody signs in with what it holds."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def begin(self, key_id: str, seconds: float) -> str:
        """A new session of a key, for so long; returns its text, which is shown this once."""
        text = secrets.token_urlsafe(32)
        now = self._session.scalar(select(func.now()))
        assert now is not None
        self._session.execute(
            delete(SessionRow)
            .where(SessionRow.key_id == key_id, SessionRow.expires_at < now)
            .execution_options(synchronize_session=False)
        )
        self._session.add(SessionRow(id=_hash(text), key_id=key_id, expires_at=now + timedelta(seconds=seconds)))
        self._session.flush()
        return text

    def key(self, text: str) -> Key:
        """The live key of a session. Raises `Unauthorized`: unknown, ended, expired, or its key was revoked."""
        row = None
        if _TEXT.fullmatch(text):
            row = self._session.execute(
                select(KeyRow, SessionRow.expires_at < func.now())
                .join(SessionRow, SessionRow.key_id == KeyRow.id)
                .where(SessionRow.id == _hash(text))
            ).one_or_none()
        if row is None:
            raise Unauthorized("sign in with an API key")
        key, expired = row
        if expired:
            raise Unauthorized("the session has expired; sign in again")
        if key.revoked_at is not None:
            raise Unauthorized("the API key was revoked")
        return key_of(key)

    def end(self, text: str) -> None:
        """End a session; one that is not there counts as ended."""
        self._session.execute(
            delete(SessionRow).where(SessionRow.id == _hash(text)).execution_options(synchronize_session=False)
        )


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
