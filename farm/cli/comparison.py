"""Compares two encoded outputs by what they show or sound like."""

from __future__ import annotations

import hashlib
import io
from enum import StrEnum


class Comparison(StrEnum):
    """How an output that was rendered again compares to the first one."""

    IDENTICAL = "identical"  #: the files are the same, byte for byte
    CONTENT = "content"  #: the pixels or samples are the same, what the file says of them is not
    DIFFERENT = "different"
    UNKNOWN = "unknown"  #: the files differ, and the package that decodes them is not installed

    @property
    def sentence(self) -> str:
        """The sentence that the command prints."""
        return {
            Comparison.IDENTICAL: "bit-identical",
            Comparison.CONTENT: "same content; the metadata differs",
            Comparison.DIFFERENT: "the content differs",
            Comparison.UNKNOWN: "the files differ; to compare their content: pip install pillow av soundfile",
        }[self]


def compare(old: bytes, new: bytes) -> Comparison:
    """Compare two files, of which only the second one can be trusted to decode."""
    if hashlib.sha256(old).digest() == hashlib.sha256(new).digest():
        return Comparison.IDENTICAL
    try:
        wanted = _content(new)
        found = _content(old)
    except ModuleNotFoundError:
        return Comparison.UNKNOWN
    except Exception:  # noqa: BLE001  decoders raise what they like on a damaged file
        return Comparison.DIFFERENT
    return Comparison.CONTENT if found == wanted else Comparison.DIFFERENT


def _content(data: bytes) -> str:
    """A digest of a file's pixels and samples, and of their shapes."""
    if data.startswith((b"fLaC", b"OggS")) or (data[:4] == b"RIFF" and data[8:12] == b"WAVE"):
        return _sound(data)
    if data[4:8] == b"ftyp" or data[:4] == b"\x1a\x45\xdf\xa3":
        return _clip(data)
    return _images(data)


def _images(data: bytes) -> str:
    from PIL import Image, ImageSequence

    digest = hashlib.sha256()
    with Image.open(io.BytesIO(data)) as image:
        for frame in ImageSequence.Iterator(image):
            shown = frame.convert("RGBA")
            digest.update(f"{shown.size} {frame.info.get('duration')}".encode() + shown.tobytes())
    return digest.hexdigest()


def _clip(data: bytes) -> str:
    import av

    digest = hashlib.sha256()
    with av.open(io.BytesIO(data), "r") as container:
        for stream in container.streams:
            digest.update(f"{stream.type} {stream.time_base}".encode())
        for frame in container.decode(*container.streams.video, *container.streams.audio):
            assert isinstance(frame, av.VideoFrame | av.AudioFrame)  # no subtitles were asked for
            digest.update(f"{type(frame).__name__} {frame.pts}".encode() + frame.to_ndarray().tobytes())
    return digest.hexdigest()


def _sound(data: bytes) -> str:
    import soundfile

    digest = hashlib.sha256()
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        digest.update(f"{file.samplerate} {file.channels}".encode())
        for block in file.blocks(65_536, dtype="float32"):
            digest.update(block.tobytes())
    return digest.hexdigest()
