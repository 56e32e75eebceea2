"""Encodes sounds as files that contain their recipe.

| format | samples                | recipe                          |
|--------|------------------------|---------------------------------|
| WAV    | 16-bit PCM             | ``LIST`` chunk, ``INFO`` ``ICMT`` |
| FLAC   | 24-bit, lossless       | Vorbis comment ``COMMENT``      |
| Ogg    | Vorbis, about 224 kbit/s of stereo | Vorbis comment ``COMMENT`` |

libsndfile numbers an Ogg stream at random and limits the comments of WAV and FLAC to some 100 kB, which a recipe with
long prompts exceeds. So this module writes the comment into WAV and FLAC, and a number into Ogg.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import Final

import numpy as np
import soundfile

from farm.domain.media import MediaMetadata
from farm.objects.recipes import COMMENT_MARK
from workers.media.artifacts import Sound

_SUBTYPES: Final = {"wav": "PCM_16", "flac": "PCM_24", "ogg": "VORBIS"}
_OGG_COMPRESSION: Final = 0.3  #: libsndfile's scale from 0 (best) to 1
_OGG_SERIAL: Final = 1  #: the number of the one stream
_BLOCK: Final = 65_536  #: samples that libsndfile gets at once: Vorbis takes its buffers from the stack
_VENDOR: Final = b"farm"
_VORBIS_COMMENT: Final = 4  #: type of a FLAC metadata block
_REVERSED: Final = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def encode(sound: Sound, form: str, recipe: str) -> tuple[bytes, MediaMetadata]:
    """The file, and what it holds.

    Args:
        sound: at least one sample.
        form: an output format of audio.
        recipe: JSON, in ASCII.
    """
    samples = np.clip(np.asarray(sound.samples, np.float32), -1, 1)
    count, channels = samples.shape
    comment = COMMENT_MARK + recipe.encode("ascii")
    out = io.BytesIO()
    options = {"compression_level": _OGG_COMPRESSION} if form == "ogg" else {}
    with soundfile.SoundFile(
        out, "w", sound.sample_rate, channels, _SUBTYPES[form], format=form.upper(), **options
    ) as file:
        if form == "ogg":
            file.comment = comment.decode("ascii")
        for start in range(0, count, _BLOCK):
            file.write(samples[start : start + _BLOCK])
    finish = {"wav": _wav_with_comment, "flac": _flac_with_comment, "ogg": _ogg_with_serial}[form]
    metadata: MediaMetadata = {
        "seconds": round(count / sound.sample_rate, 6),
        "sample_rate": sound.sample_rate,
        "channels": channels,
    }
    return finish(out.getvalue(), comment), metadata


def _wav_with_comment(data: bytes, comment: bytes) -> bytes:
    text = comment + b"\0"  # INFO texts end with one
    info = b"INFO" + b"ICMT" + struct.pack("<I", len(text)) + text + bytes(len(text) % 2)
    chunk = b"LIST" + struct.pack("<I", len(info)) + info
    padded = data + bytes(len(data) % 2)
    return padded[:4] + struct.pack("<I", len(padded) + len(chunk) - 8) + padded[8:] + chunk


def _flac_with_comment(data: bytes, comment: bytes) -> bytes:
    """The file with one comment in the place of libFLAC's, which names its version."""
    blocks: list[tuple[int, bytes]] = []
    at, last = 4, False
    while not last:
        kind, last = data[at] & 0x7F, bool(data[at] & 0x80)
        length = int.from_bytes(data[at + 1 : at + 4])
        blocks.append((kind, data[at + 4 : at + 4 + length]))
        at += 4 + length
    entry = b"COMMENT=" + comment
    content = struct.pack("<I", len(_VENDOR)) + _VENDOR + struct.pack("<II", 1, len(entry)) + entry
    kept = [(kind, body) for kind, body in blocks if kind != _VORBIS_COMMENT] + [(_VORBIS_COMMENT, content)]
    headers = [
        bytes([kind | (0x80 if number == len(kept) - 1 else 0)]) + len(body).to_bytes(3) + body
        for number, (kind, body) in enumerate(kept)
    ]
    return data[:4] + b"".join(headers) + data[at:]


def _ogg_with_serial(data: bytes, _comment: bytes) -> bytes:
    """The file with one number for its stream, and the pages' checksums for it (RFC 3533)."""
    pages = []
    at = 0
    while at < len(data):
        segments = data[at + 26]
        end = at + 27 + segments + sum(data[at + 27 : at + 27 + segments])
        page = bytearray(data[at:end])
        page[14:18] = struct.pack("<I", _OGG_SERIAL)
        page[22:26] = bytes(4)
        page[22:26] = struct.pack("<I", _ogg_checksum(page))
        pages.append(bytes(page))
        at = end
    return b"".join(pages)


def _ogg_checksum(page: bytes | bytearray) -> int:
    """The CRC of Ogg: zlib's polynomial with the highest bit first, inverted neither at the start nor at the end."""
    reflected = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{reflected:032b}"[::-1], 2)
