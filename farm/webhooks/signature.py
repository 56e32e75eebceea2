"""Signatures of webhooks, as Standard Webhooks 1.0.0 says (https://www.standardwebhooks.com).

What is signed is ``{webhook-id}.{webhook-timestamp}.{body}``, with HMAC-SHA256 and the bytes behind ``whsec_``. The
header ``webhook-signature`` holds one ``v1,<base64>`` for each live secret, so a receiver that still has the old one
accepts during a rotation. An endpoint may have a key pair as well: then a ``v1a,<base64>`` (ed25519) stands beside it
for each live key, and the receiver checks it with ``whpk_…``, which is no secret.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets as random
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from farm.errors import BadInput, FieldProblem, MissingExtra

if TYPE_CHECKING:
    from types import ModuleType

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PREFIX: Final = "whsec_"
PRIVATE: Final = "whsk_"  #: and the base64 of an ed25519 seed, 32 bytes; never shown
PUBLIC: Final = "whpk_"  #: and the base64 of an ed25519 public key, 32 bytes
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


def new_key() -> str:
    """A fresh private key, as ``whsk_<base64>``."""
    return PRIVATE + base64.b64encode(_ed25519().Ed25519PrivateKey.generate().private_bytes_raw()).decode()


def public_key(key: str) -> str:
    """What a receiver checks a private key's signatures with: ``whpk_<base64>``."""
    return PUBLIC + base64.b64encode(_private(key).public_key().public_bytes_raw()).decode()


class Signer:
    """What signs for one endpoint: keys are read once, and each message costs its hash."""

    def __init__(self, secrets: Sequence[str], keys: Sequence[str] = ()) -> None:
        """``secrets`` (``whsec_…``) and private ``keys`` (``whsk_…``) that are live, the newest first.

        Raises:
            BadInput: one is not of that form.
            ValueError: there is no secret.
        """
        if not secrets:
            raise ValueError("a webhook is signed with at least one secret")
        self._hashes = [hmac.new(_key(secret), digestmod=hashlib.sha256) for secret in secrets]
        self._keys = [_private(key) for key in keys]

    def header(self, message_id: str, timestamp: int, body: bytes) -> str:
        """The value of ``webhook-signature``: ``v1`` for each secret, then ``v1a`` for each key.

        Raises:
            ValueError: the id holds a dot, which would let a part of it pass for the timestamp.
        """
        signed = _signed(message_id, timestamp, body)
        found: list[bytes] = []
        for prepared in self._hashes:
            one = prepared.copy()
            one.update(signed)
            found.append(b"v1," + base64.b64encode(one.digest()))
        found += [b"v1a," + base64.b64encode(key.sign(signed)) for key in self._keys]
        return b" ".join(found).decode()

    def headers(self, message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
        """The three headers of one try."""
        return {ID: message_id, TIMESTAMP: str(timestamp), SIGNATURE: self.header(message_id, timestamp, body)}


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
    return Signer([secret]).header(message_id, timestamp, body)


def headers(secrets: Sequence[str], message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The three headers of one try, signed with each live secret."""
    return Signer(secrets).headers(message_id, timestamp, body)


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
        secret: the receiver's: the shared secret (``whsec_…``), or the endpoint's public key (``whpk_…``).
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
        raise _refused(TIMESTAMP, stamp, f"it differs by {off:.0f} seconds; at most {tolerance:.0f} are allowed")
    try:
        signed = _signed(message_id, int(stamp), body)
    except ValueError as error:
        raise _refused(ID, message_id, str(error)) from error
    # Signatures of other versions simply do not fit.
    fits = _fits_key if secret.startswith(PUBLIC) else _fits_secret
    if not fits(secret, signatures.split(" "), signed):
        raise _refused(SIGNATURE, signatures, "no signature fits this body and secret")


def _signed(message_id: str, timestamp: int, body: bytes) -> bytes:
    if not message_id or "." in message_id:
        raise ValueError(f"a webhook's id is not empty and holds no dot: {message_id!r}")
    return f"{message_id}.{timestamp}.".encode() + body


def _fits_secret(text: str, signatures: Sequence[str], signed: bytes) -> bool:
    expected = b"v1," + base64.b64encode(hmac.digest(_key(text), signed, hashlib.sha256))
    return any(hmac.compare_digest(expected, one.encode()) for one in signatures)


def _fits_key(text: str, signatures: Sequence[str], signed: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - see _ed25519

    key = _ed25519().Ed25519PublicKey.from_public_bytes(_seed(text, PUBLIC))
    for one in signatures:
        version, _, encoded = one.partition(",")
        try:
            if version == "v1a":
                key.verify(base64.b64decode(encoded, validate=True), signed)
                return True
        except (InvalidSignature, ValueError):
            continue
    return False


def _private(text: str) -> Ed25519PrivateKey:
    key: Ed25519PrivateKey = _ed25519().Ed25519PrivateKey.from_private_bytes(_seed(text, PRIVATE))
    return key


def _ed25519() -> ModuleType:
    """The library of key pairs, which the client's base installation lacks: shared secrets need none."""
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise MissingExtra("an ed25519 signature (v1a)", "cryptography", "server") from error
    return ed25519


def _seed(text: str, prefix: str) -> bytes:
    try:
        seed = base64.b64decode(text.removeprefix(prefix), validate=True)
    except ValueError:
        seed = b""
    if not (text.startswith(prefix) and len(seed) == 32):
        # the key itself stays out of the message, which may be logged
        raise BadInput.of("key", prefix + "…", f"a key is {prefix!r} and the base64 of 32 bytes")
    return seed


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
