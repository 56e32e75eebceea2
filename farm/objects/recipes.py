"""Reading the recipe back from an image that the farm made. Pillow only: no pixel is decoded, nothing is rendered."""

from __future__ import annotations

import io
from typing import Any, Final

from PIL import Image

IMAGE_DESCRIPTION: Final = 0x010E  #: EXIF tag
EXIF_IFD: Final = 0x8769  #: EXIF tag: where the directory of the camera's fields lies
USER_COMMENT: Final = 0x9286  #: EXIF tag, in that directory
UNICODE_MARK: Final = b"UNICODE\x00"  #: the character code that a UserComment begins with
COMMENT_MARK: Final = b"farm:"  #: what a JPEG comment begins with that holds a part of the recipe


def read(data: bytes) -> str | None:
    """The ``farm`` JSON inside a PNG, WebP or JPEG file; None if it is not there, or the file is no such image."""
    image = _opened(data)
    if image is None:
        return None
    if image.format == "PNG":
        return _text(image.info.get("farm"))
    if image.format == "JPEG":
        comments = [part for marker, part in getattr(image, "applist", ()) if marker == "COM"]
        parts = [part[len(COMMENT_MARK) :] for part in comments if part.startswith(COMMENT_MARK)]
        return b"".join(parts).decode("ascii", "replace") or None
    return _text(_exif(image).get(IMAGE_DESCRIPTION))


def read_parameters(data: bytes) -> str | None:
    """The ``parameters`` text, which other image tools read too."""
    image = _opened(data)
    if image is None:
        return None
    if image.format == "PNG":
        return _text(image.info.get("parameters"))
    comment = _exif(image).get_ifd(EXIF_IFD).get(USER_COMMENT)
    if not isinstance(comment, bytes) or not comment.startswith(UNICODE_MARK):
        return None
    return comment[len(UNICODE_MARK) :].decode("utf-16-be", "replace")


def _opened(data: bytes) -> Image.Image | None:
    try:
        return Image.open(io.BytesIO(data), formats=["PNG", "WEBP", "JPEG"])
    except Exception:  # noqa: BLE001 - Pillow's parsers raise a dozen kinds on files that are no images
        return None


def _exif(image: Image.Image) -> Any:
    try:
        return image.getexif()
    except Exception:  # noqa: BLE001 - as above
        return Image.Exif()


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
