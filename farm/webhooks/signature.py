"""Signatures of webhooks, as Standard Webhooks 1.0.0 says (https://www.standardwebhooks.com).

What is signed is ``{webhook-id}.{webhook-timestamp}.{body}``, with HMAC-SHA256 and the bytes behind ``whsec_``. The
header ``webhook-signature`` holds one ``v1,<base64>`` for each live secret, so a receiver that still has the old one
accepts during a rotation.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets as random
import time
from collections.abc import Mapping, Sequence
from typing import Final

from farm.errors import BadInput, FieldProblem

PREFIX: Final = "whsec_"
ID: Final = "webhook-id"
TIMESTAMP: Final = "webhook-timestamp"
SIGNATURE: Final = "webhook-signature"
TOLERANCE: Final = 300  #: seconds that a timestamp may lie in the past or the future
_MIN_BYTES, _MAX_BYTES = 24, 64


class SignatureRefused(BadInput):
    """A webhook that was not signed with our secret, or not lately."""


def new_secret() -> str:
    """A fresh secret of 32 random bytes, as ``whsec_<base64>``."""
    return PREFIX + base64.b64encode(random.token_bytes(32)).decode()


def sign(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """The signature of one message under one secret: ``v1,<base64>``.

    Args:
        secret: ``whsec_`` and the base64 of 24 to 64 bytes.
        message_id: the same for every try of a delivery.
        timestamp: seconds since 1970, new for every try.
        body: the very bytes that are sent.

    Raises:
        BadInput: the secret is not of this form.
        ValueError: the id holds a dot, which would let a part of it pass for the timestamp.
    """
    if not message_id or "." in message_id:
        raise ValueError(f"a webhook's id is not empty and holds no dot: {message_id!r}")
    digest = hmac.new(_key(secret), f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


def header(secrets: Sequence[str], message_id: str, timestamp: int, body: bytes) -> str:
    """The value of ``webhook-signature``: one signature for each live secret, the newest first.

    Raises:
        BadInput: a secret is not of the form that :func:`sign` takes.
        ValueError: there is no secret.
    """
    if not secrets:
        raise ValueError("a webhook is signed with at least one secret")
    return " ".join(sign(secret, message_id, timestamp, body) for secret in secrets)


def headers(secrets: Sequence[str], message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The three headers of one try."""
    return {ID: message_id, TIMESTAMP: str(timestamp), SIGNATURE: header(secrets, message_id, timestamp, body)}


def verify(
    secret: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    now: float | None = None,
    tolerance: float = TOLERANCE,
) -> None:
    """Accept a received webhook, or raise.

    Args:
        secret: the receiver's.
        headers: of the request; the names in any case.
        body: the very bytes that were received.
        now: seconds since 1970; None: this machine's clock.
        tolerance: seconds that the timestamp may lie off, against replays.

    Raises:
        SignatureRefused: a header is missing or malformed, the timestamp is too far off, or no signature fits.
        BadInput: the secret is not of the form that :func:`sign` takes.
    """
    given = {name.lower(): value for name, value in headers.items()}
    message_id, stamp, signatures = (_present(given, name) for name in (ID, TIMESTAMP, SIGNATURE))
    if not (stamp.isascii() and stamp.isdigit() and len(stamp) <= 12):
        raise _refused(TIMESTAMP, stamp, "it is not a number of seconds since 1970")
    off = abs((time.time() if now is None else now) - int(stamp))
    if off > tolerance:
        raise _refused(TIMESTAMP, stamp, f"it lies {off:.0f} seconds off; at most {tolerance:.0f} are allowed")
    try:
        expected = sign(secret, message_id, int(stamp), body)
    except ValueError as error:
        raise _refused(ID, message_id, str(error)) from error
    # Signatures of other versions simply do not fit.
    if not any(hmac.compare_digest(expected.encode(), one.encode()) for one in signatures.split(" ")):
        raise _refused(SIGNATURE, signatures, "no signature fits this body and secret")


def _key(secret: str) -> bytes:
    problem = f"a secret is {PREFIX!r} and the base64 of {_MIN_BYTES} to {_MAX_BYTES} bytes"
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError) as error:
        # The secret itself stays out of the message, which may be logged.
        raise BadInput.of("secret", PREFIX + "…", problem) from error
    if not (secret.startswith(PREFIX) and _MIN_BYTES <= len(key) <= _MAX_BYTES):
        raise BadInput.of("secret", PREFIX + "…", problem)
    return key


def _present(headers: Mapping[str, str], name: str) -> str:
    value = headers.get(name)
    if not value:
        raise _refused(name, None, "the header is missing")
    return value


def _refused(name: str, value: str | None, message: str) -> SignatureRefused:
    return SignatureRefused(FieldProblem(name, value and value[:200], message))
