"""Many files as one, written while they are read: zip without compression, or tar. Nothing touches a disk.

An image is compressed already, so its bytes go in as they are. Each file's size and checksum are known before its
header is written, so no reader has to look at the end first.
"""

from __future__ import annotations

import re
import struct
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

_UTF8: Final = 0x0800  #: the flag that names are UTF-8
_ZIP64: Final = 45  #: the version needed to read large archives
_PLAIN: Final = 20
_MOST: Final = 0xFFFF_FFFF
_OLDEST: Final = 1980  #: the first year that the format knows
_RANGE: Final = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})", re.ASCII)

BLOCK: Final = tarfile.BLOCKSIZE  #: bytes: the unit of a tar
TAR_END: Final = bytes(2 * BLOCK)


@dataclass(frozen=True)
class Member:
    """One file of an archive."""

    name: str
    data: bytes
    modified: datetime


def write_zip(members: Iterable[Member]) -> Iterator[bytes]:
    """A zip file (APPNOTE 6.3), with the 64-bit fields where it needs them; about 100 bytes are kept per member."""
    directory = bytearray()
    offset, count = 0, 0
    for member in members:
        name = member.name.encode()
        when = member.modified
        date = max(0, when.year - _OLDEST) << 9 | when.month << 5 | when.day
        time = when.hour << 11 | when.minute << 5 | when.second // 2
        checksum, size = zlib.crc32(member.data), len(member.data)
        common = struct.pack("<HHHHIII", _UTF8, 0, time, date, checksum, size, size)
        local = struct.pack("<4sH", b"PK\x03\x04", _PLAIN) + common + struct.pack("<HH", len(name), 0) + name
        yield local
        yield member.data
        extra = struct.pack("<HHQ", 1, 8, offset) if offset >= _MOST else b""
        directory += struct.pack("<4sHH", b"PK\x01\x02", _ZIP64, _ZIP64 if extra else _PLAIN) + common
        directory += struct.pack("<HHHHHII", len(name), len(extra), 0, 0, 0, 0o100644 << 16 & _MOST, min(offset, _MOST))
        directory += name + extra
        offset += len(local) + size
        count += 1
    yield bytes(directory)
    if count >= 0xFFFF or offset >= _MOST or len(directory) >= _MOST:
        end = offset + len(directory)
        yield struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, _ZIP64, _ZIP64, 0, 0, count, count, len(directory), offset)
        yield struct.pack("<4sIQI", b"PK\x06\x07", 0, end, 1)
    yield struct.pack(
        "<4sHHHHIIH",
        b"PK\x05\x06",
        0,
        0,
        min(count, 0xFFFF),
        min(count, 0xFFFF),
        min(len(directory), _MOST),
        min(offset, _MOST),
        0,
    )


def tar_header(name: str, size: int, modified: datetime) -> bytes:
    """A file's header in a tar (POSIX.1-1988, names in UTF-8): always one block, so that sizes alone tell the layout.

    ``name`` has at most 100 bytes and ``size`` is less than 8 GiB.
    """
    about = tarfile.TarInfo(name)
    about.size = size
    about.mtime = int(modified.timestamp())
    return about.tobuf(tarfile.USTAR_FORMAT, "utf-8", "surrogateescape")


def write_tar(members: Iterable[Member]) -> Iterator[bytes]:
    """A tar file; nothing is kept, however many members there are."""
    for member in members:
        yield tar_header(member.name, len(member.data), member.modified)
        yield member.data
        yield bytes(-len(member.data) % BLOCK)
    yield TAR_END


def cut(chunks: Iterable[bytes], skip: int, length: int | None) -> Iterator[bytes]:
    """What is left of a stream behind its first ``skip`` bytes, at most ``length`` bytes (None: all)."""
    for chunk in chunks:
        part = chunk[skip:] if skip else chunk
        skip = max(0, skip - len(chunk))
        if length is not None:
            part = part[:length]
            length -= len(part)
        if part:
            yield part
        if length == 0:
            return


def parse_range(header: str | None, total: int) -> tuple[int, int] | None:
    """The bytes (first, end) that a ``Range`` asks for (RFC 9110); None: all, as for what is not understood.

    Raises `ValueError` for a range that is outside.
    """
    found = _RANGE.fullmatch(header or "")
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:
        first, end = max(0, total - int(found[2])), total
    else:
        first, end = int(found[1]), min(total, int(found[2]) + 1 if found[2] else total)
        if found[2] and int(found[2]) < first:
            return None
    if first >= end:
        raise ValueError(f"the file has {total} bytes")
    return first, end
