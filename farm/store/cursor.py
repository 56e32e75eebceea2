"""Cursors of pages: a place in an order, as short text that means nothing to the client."""

from __future__ import annotations

import base64

from farm.errors import BadInput


def encode(place: bytes) -> str:
    """The text of a place."""
    return base64.urlsafe_b64encode(place).decode().rstrip("=")


def decode(text: str, size: int) -> bytes:
    """The place of ``size`` bytes that a text names. Raises `BadInput` for what :func:`encode` did not give."""
    try:
        place = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        place = b""
    if len(place) != size or encode(place) != text:
        raise BadInput.of("cursor", text, "is not a cursor: use the `next` of the previous page")
    return place
