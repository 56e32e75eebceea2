"""Compares two encoded outputs by what they show or sound like."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from enum import StrEnum
from itertools import zip_longest
from typing import Any


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


def difference(old: bytes, new: bytes) -> str:
    """How far apart two outputs are that `compare` found different, as a sentence."""
    if not old or not new:
        return "one of the outputs is missing"
    if any(_is_sound(data) or _is_clip(data) for data in (old, new)):
        return _difference_of_media(old, new)
    from PIL import Image, ImageChops

    first, second = (Image.open(io.BytesIO(data)).convert("RGBA") for data in (old, new))
    if first.size != second.size:
        return "the sizes differ"
    counts = [band.histogram() for band in ImageChops.difference(first, second).split()]  # of each difference, 0 to 255
    largest = max(level for count in counts for level, pixels in enumerate(count) if pixels)
    values = sum(sum(count[1:]) for count in counts[:3])
    share = 100 * values / (3 * first.width * first.height)
    return f"largest difference {largest}/255, in {share:.2g} % of the values"


def _difference_of_media(old: bytes, new: bytes) -> str:
    largest = 0.0
    for first, second in zip_longest(_arrays(old), _arrays(new)):
        if first is None or second is None or first.shape != second.shape:
            return "the sizes or lengths differ"
        scale = 255 if first.dtype.kind == "u" else 1
        largest = max(largest, float(abs(first.astype(float) - second).max(initial=0)) / scale)
    return f"largest difference {largest:.2g} of the range of values"


def _arrays(data: bytes) -> Iterator[Any]:
    """The frames of a clip, or the samples of a sound."""
    if _is_sound(data):
        import soundfile

        yield soundfile.read(io.BytesIO(data), dtype="float32")[0]
        return
    import av

    with av.open(io.BytesIO(data), "r") as container:
        for frame in container.decode(*container.streams.video, *container.streams.audio):
            assert isinstance(frame, av.VideoFrame | av.AudioFrame)  # no subtitles were asked for
            yield frame.to_ndarray()


def _is_sound(data: bytes) -> bool:
    return data.startswith((b"fLaC", b"OggS")) or (data[:4] == b"RIFF" and data[8:12] == b"WAVE")


def _is_clip(data: bytes) -> bool:
    return data[4:8] == b"ftyp" or data[:4] == b"\x1a\x45\xdf\xa3"


def _content(data: bytes) -> str:
    """A digest of a file's pixels and samples, and of their shapes."""
    if _is_sound(data):
        return _sound(data)
    if _is_clip(data):
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
