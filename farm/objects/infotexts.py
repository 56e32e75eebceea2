"""Read A1111's infotext from an image: the settings that it and its relatives write beside the pixels."""

from __future__ import annotations

import io
import warnings
from typing import Final

from PIL import Image

_EXIF_IFD: Final = 0x8769
_USER_COMMENT: Final = 0x9286
_LONGEST: Final = 100_000  #: characters


def read(data: bytes) -> str | None:
    """The infotext of a PNG (text chunk ``parameters``), JPEG or WebP (EXIF UserComment); None if there is none.

    Only headers are read; no pixel is decoded.
    """
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:
            warnings.simplefilter("ignore")
            text = image.info.get("parameters")
            if not isinstance(text, str):
                text = _comment(image.getexif().get_ifd(_EXIF_IFD).get(_USER_COMMENT))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return text[:_LONGEST] if text and text.strip() else None


def _comment(value: object) -> str | None:
    if isinstance(value, str):
        return value
    if not isinstance(value, bytes):
        return None
    coding, body = value[:8], value[8:]
    if coding == b"UNICODE\0":
        return body.decode("utf-16-be" if body[:1] == b"\0" else "utf-16-le", "replace")
    return body.decode("utf-8", "replace") if coding in (b"ASCII\0\0\0", bytes(8)) else None
