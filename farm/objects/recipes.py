"""Read the recipe back from a file that the farm made. The standard library is enough: nothing is decoded.

`workers/media/` writes it: a PNG has it in a text chunk ``farm``, a JPEG in comment segments, a WebP in the EXIF field
ImageDescription. All others have it in their container's comment, which begins with `COMMENT_MARK`.

Only headers are read, and of each file at most a few megabytes, however large it is.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Final

IMAGE_DESCRIPTION: Final = 0x010E  #: EXIF tag
COMMENT_MARK: Final = b"farm:"  #: what a comment begins with that holds a recipe or a part of one

_KEYWORD: Final = b"farm"  #: of a PNG's text chunk
_LONGEST: Final = 2**20  #: bytes of a recipe; the longest prompts give fewer than 300,000
_PARTS: Final = 65_536  #: chunks, boxes, pages or segments that are looked at
_ASCII: Final = 2  #: type of an EXIF field


class _Damaged(Exception):
    """The file ends early or contradicts itself."""


def read(file: BinaryIO) -> str | None:
    """The ``farm`` JSON inside a file of any output format; None if it is not there, or the file has no such format.

    Args:
        file: can be sought in.
    """
    source = _Source(file)
    try:
        found = _find(source)
    except (_Damaged, struct.error, zlib.error, IndexError):
        return None
    return found.decode("utf-8", "replace") or None if found else None


class _Source:
    """A file that is read by offsets, as often and as much as a small header needs."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._reads = 0

    def at(self, offset: int, length: int) -> bytes:
        """Exactly so many bytes. Raises `_Damaged`."""
        data = self.some(offset, length)
        if len(data) < length:
            raise _Damaged
        return data

    def some(self, offset: int, length: int) -> bytes:
        """So many bytes, or as many as there are. Raises `_Damaged`."""
        self._reads += 1
        if not 0 <= length <= 2 * _LONGEST or self._reads > 4 * _PARTS:
            raise _Damaged
        try:
            self._file.seek(offset)
            return self._file.read(length)
        except (OSError, OverflowError, ValueError) as error:
            raise _Damaged from error


def _find(source: _Source) -> bytes | None:
    head = source.some(0, 12)
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return _from_png(source)
    if head.startswith(b"\xff\xd8"):
        return b"".join(_jpeg_comments(source))
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return _from_webp(source)
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        return _marked(_wav_comment(source))
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return _marked(_gif_comment(source))
    if head[4:8] == b"ftyp":
        return _marked(_mp4_comment(source))
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return _marked(_webm_comment(source))
    if head[:4] == b"fLaC":
        return _marked(_flac_comment(source))
    if head[:4] == b"OggS":
        return _marked(_ogg_comment(source))
    return None


def _marked(comment: bytes | None) -> bytes | None:
    """The recipe in a comment; None for other programs' comments."""
    if comment is None or not comment.startswith(COMMENT_MARK):
        return None
    return comment[len(COMMENT_MARK) :].rstrip(b"\0")


# -- images ----------------------------------------------------------------------------------------------------------


def _from_png(source: _Source) -> bytes | None:
    offset = 8
    for _ in range(_PARTS):
        length, kind = struct.unpack(">I4s", source.at(offset, 8))
        if kind == b"IEND":
            return None
        if kind in (b"tEXt", b"zTXt", b"iTXt"):
            keyword, _, rest = source.at(offset + 8, length).partition(b"\0")
            if keyword == _KEYWORD:
                return _png_text(kind, rest)
        offset += 12 + length
    return None


def _png_text(kind: bytes, rest: bytes) -> bytes:
    if kind == b"tEXt":
        return rest
    if kind == b"zTXt":  # compression method, text
        return _inflated(rest[1:])
    compressed = rest[0]  # compression flag and method, language, translated keyword, text
    text = rest[2:].split(b"\0", 2)[2]
    return _inflated(text) if compressed else text


def _inflated(data: bytes) -> bytes:
    return zlib.decompressobj().decompress(data, _LONGEST)


def _jpeg_comments(source: _Source) -> Iterator[bytes]:
    """The parts of a recipe in a JPEG's segments, up to its first scan."""
    offset, left = 2, _LONGEST
    for _ in range(_PARTS):
        mark, kind = source.some(offset, 2).ljust(2, b"\0")
        if mark != 0xFF or kind == 0xDA or left < 0:
            return
        (length,) = struct.unpack(">H", source.at(offset + 2, 2))
        if kind == 0xFE and length >= 2:
            content = source.at(offset + 4, length - 2)
            if content.startswith(COMMENT_MARK):
                left -= len(content)
                yield content[len(COMMENT_MARK) :]
        offset += 2 + length


def _from_webp(source: _Source) -> bytes | None:
    for kind, offset, length in _riff_chunks(source):
        if kind == b"EXIF":
            return _description(source.at(offset, length).removeprefix(b"Exif\0\0"))
    return None


def _riff_chunks(source: _Source, offset: int = 12, end: int | None = None) -> Iterator[tuple[bytes, int, int]]:
    """Kind, offset and length of each chunk's content."""
    for _ in range(_PARTS):
        header = source.some(offset, 8)
        if len(header) < 8 or (end is not None and offset + 8 > end):
            return
        kind, length = struct.unpack("<4sI", header)
        yield kind, offset + 8, length
        offset += 8 + length + length % 2


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


def _gif_comment(source: _Source) -> bytes | None:
    """The first comment extension (GIF89a, section 24)."""
    flags = source.at(10, 1)[0]
    offset = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    for _ in range(_PARTS):
        kind = source.at(offset, 1)[0]
        if kind == 0x21:
            label = source.at(offset + 1, 1)[0]
            content, offset = _gif_blocks(source, offset + 2, keep=label == 0xFE)
            if label == 0xFE and content.startswith(COMMENT_MARK):
                return content
        elif kind == 0x2C:
            flags = source.at(offset + 9, 1)[0]
            offset += 11 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)  # its colours, and the size of a code
            _, offset = _gif_blocks(source, offset, keep=False)
        else:
            return None
    return None


def _gif_blocks(source: _Source, offset: int, *, keep: bool) -> tuple[bytes, int]:
    """The content of data blocks, and where they end."""
    parts: list[bytes] = []
    size = 0
    for _ in range(_PARTS):
        length = source.at(offset, 1)[0]
        if length == 0:
            return b"".join(parts), offset + 1
        size += length
        if keep and size <= _LONGEST:
            parts.append(source.at(offset + 1, length))
        offset += 1 + length
    raise _Damaged


# -- videos ----------------------------------------------------------------------------------------------------------


def _mp4_comment(source: _Source) -> bytes | None:
    """iTunes' comment: ``moov/udta/meta/ilst/©cmt/data`` (ISO/IEC 14496-12 and QuickTime's file format)."""
    start, end = 0, None
    for name in (b"moov", b"udta", b"meta", b"ilst", b"\xa9cmt", b"data"):
        box = next((one for one in _boxes(source, start, end) if one[0] == name), None)
        if box is None:
            return None
        _, start, end = box
        if name == b"meta":
            start += 4  # version and flags
    assert end is not None
    return source.at(start + 8, end - start - 8)  # after the kind of text and the language


def _boxes(source: _Source, offset: int, end: int | None) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and end of each box's content."""
    for _ in range(_PARTS):
        header = source.some(offset, 8)
        if len(header) < 8 or (end is not None and offset + 8 > end):
            return
        size, name = struct.unpack(">I4s", header)
        start = offset + 8
        if size == 1:
            (size,) = struct.unpack(">Q", source.at(start, 8))
            start += 8
        if size < start - offset:  # 0: to the end of the file, where the index of a written file is not
            return
        offset += size
        yield name, start, offset


_SEGMENT, _TAGS, _TAG, _SIMPLE_TAG = 0x18538067, 0x1254C367, 0x7373, 0x67C8
_TAG_NAME, _TAG_STRING = 0x45A3, 0x4487


def _webm_comment(source: _Source) -> bytes | None:
    """The tag ``COMMENT``: ``Segment/Tags/Tag/SimpleTag`` (RFC 8794, RFC 9559)."""
    segment = next((one for one in _elements(source, 0, None) if one[0] == _SEGMENT), None)
    if segment is None:
        return None
    for tags in _elements(source, *segment[1:]):
        if tags[0] != _TAGS:
            continue
        for tag in _elements(source, *tags[1:]):
            for simple in _elements(source, *tag[1:]):
                if tag[0] != _TAG or simple[0] != _SIMPLE_TAG or simple[2] is None:
                    continue
                values = {
                    kind: source.at(start, end - start)
                    for kind, start, end in _elements(source, *simple[1:])
                    if kind in (_TAG_NAME, _TAG_STRING) and end is not None
                }
                if values.get(_TAG_NAME) == b"COMMENT" and values.get(_TAG_STRING, b"").startswith(COMMENT_MARK):
                    return values[_TAG_STRING]
    return None


def _elements(source: _Source, offset: int, end: int | None) -> Iterator[tuple[int, int, int | None]]:
    """Number, start and end of each EBML element's content; no end: its length is not known."""
    for _ in range(_PARTS):
        if end is not None and offset >= end:
            return
        header = source.some(offset, 12)
        if len(header) < 2:
            return
        number, used = _vint(header, marked=True)
        length, more = _vint(header[used:], marked=False)
        start = offset + used + more
        if length == (1 << 7 * more) - 1:
            yield number, start, None
            return
        offset = start + length
        yield number, start, offset


def _vint(data: bytes, *, marked: bool) -> tuple[int, int]:
    """An EBML number and its length in bytes; with its length marker or without."""
    if not data or data[0] == 0:
        raise _Damaged
    length = 9 - data[0].bit_length()
    if len(data) < length:
        raise _Damaged
    value = int.from_bytes(data[:length])
    return (value if marked else value & (1 << 7 * length) - 1), length


# -- audio -----------------------------------------------------------------------------------------------------------


def _wav_comment(source: _Source) -> bytes | None:
    """``ICMT`` of a ``LIST`` of ``INFO`` (Multimedia Programming Interface and Data Specifications 1.0)."""
    for kind, offset, length in _riff_chunks(source):
        if kind == b"LIST" and source.some(offset, 4) == b"INFO":
            for name, start, size in _riff_chunks(source, offset + 4, offset + length):
                if name == b"ICMT":
                    return source.at(start, size)
    return None


def _flac_comment(source: _Source) -> bytes | None:
    offset = 4
    for _ in range(_PARTS):
        kind, *length = source.at(offset, 4)
        size = int.from_bytes(bytes(length))
        if kind & 0x7F == 4:
            return _vorbis_comment(source.at(offset + 4, size))
        if kind & 0x80:
            return None
        offset += 4 + size
    return None


def _ogg_comment(source: _Source) -> bytes | None:
    """The comment of an Ogg's second packet (RFC 3533; Vorbis I, section 5; RFC 7845)."""
    packets: list[bytes] = []
    packet, size, offset = [b""], 0, 0
    for _ in range(_PARTS):
        header = source.at(offset, 27)
        if header[:4] != b"OggS":
            raise _Damaged
        sizes = source.at(offset + 27, header[26])
        offset += 27 + len(sizes)
        for length in sizes:
            packet.append(source.at(offset, length))
            offset, size = offset + length, size + length
            if size > 2 * _LONGEST:
                raise _Damaged
            if length < 255:
                packets.append(b"".join(packet))
                packet = []
            if len(packets) == 2:
                for mark in (b"\x03vorbis", b"OpusTags"):
                    if packets[1].startswith(mark):
                        return _vorbis_comment(packets[1][len(mark) :])
                return None
    return None


def _vorbis_comment(data: bytes) -> bytes | None:
    (vendor,) = struct.unpack_from("<I", data)
    (count,) = struct.unpack_from("<I", data, 4 + vendor)
    offset = 8 + vendor
    for _ in range(min(count, _PARTS)):
        (length,) = struct.unpack_from("<I", data, offset)
        name, _, value = data[offset + 4 : offset + 4 + length].partition(b"=")
        if name.upper() == b"COMMENT" and value.startswith(COMMENT_MARK):
            return value
        offset += 4 + length
    return None
