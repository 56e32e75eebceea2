"""Read the recipe back from an image that the farm made. The standard library is enough: no pixel is decoded.

`workers/encoders.py` writes it: a PNG has it in a text chunk ``farm``, a JPEG in comment segments, a WebP in the EXIF
field ImageDescription.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Final

IMAGE_DESCRIPTION: Final = 0x010E  #: EXIF tag
COMMENT_MARK: Final = b"farm:"  #: what a JPEG comment begins with that holds a part of the recipe

_KEYWORD: Final = b"farm"  #: of a PNG's text chunk
_LONGEST: Final = 2**20  #: bytes of a recipe; the longest prompts give fewer than 300,000
_ASCII: Final = 2  #: type of an EXIF field


def read(data: bytes) -> str | None:
    """The ``farm`` JSON inside a PNG, WebP or JPEG file; None if it is not there, or the file is no such image."""
    try:
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            found = _from_png(data)
        elif data.startswith(b"\xff\xd8"):
            found = b"".join(_comments(data))
        elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            found = _from_webp(data)
        else:
            return None
    except (IndexError, struct.error, zlib.error):  # the file ends early or lies about its lengths
        return None
    return found.decode("utf-8", "replace") or None if found else None


def _from_png(data: bytes) -> bytes | None:
    offset = 8
    while offset + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, offset)
        kind, content = data[offset + 4 : offset + 8], data[offset + 8 : offset + 8 + length]
        offset += 12 + length
        keyword, _, rest = content.partition(b"\0")
        if keyword != _KEYWORD or kind not in (b"tEXt", b"zTXt", b"iTXt"):
            continue
        if kind == b"tEXt":
            return rest
        if kind == b"zTXt":  # compression method, text
            return _inflated(rest[1:])
        compressed = rest[0]  # compression flag and method, language, translated keyword, text
        text = rest[2:].split(b"\0", 2)[2]
        return _inflated(text) if compressed else text
    return None


def _comments(data: bytes) -> Iterator[bytes]:
    """The parts of a recipe in a JPEG's segments, up to its first scan."""
    offset = 2
    while data[offset] == 0xFF and data[offset + 1] != 0xDA:
        (length,) = struct.unpack_from(">H", data, offset + 2)
        content = data[offset + 4 : offset + 2 + length]
        if data[offset + 1] == 0xFE and content.startswith(COMMENT_MARK):
            yield content[len(COMMENT_MARK) :]
        offset += 2 + length


def _from_webp(data: bytes) -> bytes | None:
    offset = 12
    while offset + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, offset)
        if kind == b"EXIF":
            return _description(data[offset + 8 : offset + 8 + length].removeprefix(b"Exif\0\0"))
        offset += 8 + length + length % 2
    return None


def _description(exif: bytes) -> bytes | None:
    """The ImageDescription of an EXIF block's first directory."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return None
    (directory,) = struct.unpack_from(f"{order}I", exif, 4)
    (entries,) = struct.unpack_from(f"{order}H", exif, directory)
    for number in range(entries):
        tag, kind, count, value = struct.unpack_from(f"{order}HHII", exif, directory + 2 + 12 * number)
        if (tag, kind) == (IMAGE_DESCRIPTION, _ASCII):
            # a value of up to four bytes lies in the entry itself; no recipe is so short
            return exif[value : value + count].rstrip(b"\0") if count > 4 else None
    return None


def _inflated(data: bytes) -> bytes:
    return zlib.decompressobj().decompress(data, _LONGEST)
