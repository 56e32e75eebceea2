"""Secrets that the farm must be able to read again (webhooks' signing secrets), encrypted at rest.

The key comes from ``FARM_SECRET_KEY``, which is outside the database: a backup or a replica alone reveals nothing. It
may hold several keys with commas between; the first encrypts, and all decrypt, so a key is replaced by writing the new
one before it.
"""

from __future__ import annotations

import base64
import secrets
from functools import cache
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from farm.errors import SetupError
from farm.settings import settings

PREFIX: Final = "sealed:"
MIN_CHARACTERS: Final = 32  #: of a key
_NONCE: Final = 12  #: bytes


def require_key() -> None:
    """Raise `SetupError` unless this process has a key."""
    _ciphers()


def seal(text: str) -> str:
    """A secret as the database keeps it. Raises `SetupError` without a key."""
    nonce = secrets.token_bytes(_NONCE)
    sealed = _ciphers()[0].encrypt(nonce, text.encode(), None)
    return PREFIX + base64.b64encode(nonce + sealed).decode()


def unseal(text: str) -> str:
    """The secret itself. Raises `SetupError` where no key of this process fits."""
    raw = base64.b64decode(text.removeprefix(PREFIX))
    for cipher in _ciphers():
        try:
            return cipher.decrypt(raw[:_NONCE], raw[_NONCE:], None).decode()
        except InvalidTag:
            continue
    raise SetupError("a secret in the database was encrypted with another FARM_SECRET_KEY: add that key after a comma")


def _ciphers() -> tuple[AESGCM, ...]:
    given = settings().secret_key
    keys = () if given is None else tuple(key.strip() for key in given.get_secret_value().split(",") if key.strip())
    if not keys:
        raise SetupError(
            "FARM_SECRET_KEY is not set: webhooks' secrets are encrypted with it; draw one with `openssl rand -hex 32` "
            "and give it to every API and deliverer"
        )
    if any(len(key) < MIN_CHARACTERS for key in keys):
        raise SetupError(f"FARM_SECRET_KEY is too short: a key has at least {MIN_CHARACTERS} characters")
    return tuple(map(_cipher, keys))


@cache
def _cipher(key: str) -> AESGCM:
    derived = HKDF(hashes.SHA256(), 32, salt=None, info=b"farm secrets at rest").derive(key.encode())
    return AESGCM(derived)
