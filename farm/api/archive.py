"""Many files as one, written while they are read: zip without compression, or tar. Nothing touches a disk.

A picture is compressed already, so its bytes go in as they are. Each file's size and checksum are known before its
header is written, so no reader has to look at the end first.
"""

from __future__ import annotations

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


@dataclass(frozen=True)
class Member:
    """One file of an archive."""

    name: str
    data: bytes
    modified: datetime


def zipped(members: Iterable[Member]) -> Iterator[bytes]:
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


def tarred(members: Iterable[Member]) -> Iterator[bytes]:
    """A tar file (POSIX.1-2001); nothing is kept, however many members there are."""
    for member in members:
        about = tarfile.TarInfo(member.name)
        about.size = len(member.data)
        about.mtime = int(member.modified.timestamp())
        yield about.tobuf(tarfile.PAX_FORMAT)
        yield member.data
        yield bytes(-len(member.data) % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)
