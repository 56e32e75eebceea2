"""Measures and decodes input sounds: WAV, FLAC, Ogg and MP3, by libsndfile."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

from farm.domain.media import MediaFormat, MediaMetadata
from farm.errors import FieldProblem, InputRefused
from farm.objects.limits import Limits

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_CHANNELS: Final = 8
SAMPLE_RATES: Final = range(4_000, 192_001)
_MAJOR: Final = {"wav": ("WAV", "WAVEX", "RF64"), "flac": ("FLAC",), "ogg": ("OGG",), "mp3": ("MP3", "MPEG")}
_BLOCK: Final = 65_536  #: samples of each channel that are decoded at once
_PEAK: Final = 64  #: samples of which one peak is kept


@dataclass(frozen=True, slots=True)
class DecodedSound:
    """A sound as pipelines take it."""

    samples: NDArray[np.float32]  #: (samples, channels), -1 to 1
    sample_rate: int


def measure(data: bytes, form: MediaFormat, limits: Limits, field: str) -> MediaMetadata:
    """What a sound holds, found by decoding all of it, a block at a time.

    Raises:
        InputRefused: it does not decode, or is longer or larger than the limits.
    """
    count, rate, channels = 0, 0, 0
    for block, found in _blocks(data, form, limits, field):
        count += len(block)
        rate, channels = found, block.shape[1]
    return {"seconds": round(count / rate, 6), "sample_rate": rate, "channels": channels}


def load(data: bytes, form: MediaFormat, limits: Limits, field: str) -> DecodedSound:
    """All samples, in memory.

    Raises:
        InputRefused: as :func:`measure`.
    """
    import numpy as np  # noqa: PLC0415  see _blocks

    parts, rate = [], 0
    for block, found in _blocks(data, form, limits, field):
        parts.append(block)
        rate = found
    return DecodedSound(np.concatenate(parts), rate)


def peaks(data: bytes, form: MediaFormat, limits: Limits, count: int) -> list[float]:
    """The largest deflection in each of ``count`` stretches of equal length, from 0 to 1; fewer for a short sound.

    Raises:
        InputRefused: as :func:`measure`.
    """
    import numpy as np  # noqa: PLC0415  see _blocks

    found = [
        np.abs(block[start : start + _PEAK]).max()
        for block, _ in _blocks(data, form, limits, "sound")
        for start in range(0, len(block), _PEAK)
    ]
    return [float(part.max()) for part in np.array_split(np.asarray(found), min(count, len(found)))]


def _blocks(data: bytes, form: MediaFormat, limits: Limits, field: str) -> Iterator[tuple[NDArray[np.float32], int]]:
    """Samples and their rate; at least one block."""
    import numpy as np  # noqa: PLC0415  few requests need it and libsndfile
    import soundfile  # noqa: PLC0415

    count = 0
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            _check_header(file, form, field)
            while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
                count += len(block)
                if count / file.samplerate > limits.seconds:
                    _refuse(field, "a long sound", f"the sound has more than {limits.seconds:g} seconds")
                if count * file.channels > limits.samples:
                    message = f"the sound has more than {limits.samples:,} samples over its {file.channels} channels"
                    _refuse(field, "a long sound", message)
                if not np.isfinite(block).all():
                    _refuse(field, "not a number", "the sound has samples that are infinite or not a number")
                yield block, file.samplerate
    except (InputRefused, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001  libsndfile's errors, and what its callbacks raise
        _damaged(field, f"it does not decode ({error})", error)
    if count == 0:
        _damaged(field, "it has no samples")


def _check_header(file: Any, form: MediaFormat, field: str) -> None:
    if file.format not in _MAJOR[form.name]:
        _damaged(field, f"its content is {file.format}, its first bytes are those of {form.title}")
    if file.channels > MAX_CHANNELS:
        message = f"the sound has {file.channels} channels; at most {MAX_CHANNELS} are allowed"
        _refuse(field, f"{file.channels} channels", message)
    if file.samplerate not in SAMPLE_RATES:
        message = f"its sample rate is {file.samplerate}; {SAMPLE_RATES[0]:,} to {SAMPLE_RATES[-1]:,} are allowed"
        _refuse(field, str(file.samplerate), message)


def _damaged(field: str, why: str, cause: Exception | None = None) -> NoReturn:
    raise InputRefused(FieldProblem(field, "a damaged file", f"the sound is damaged: {why}")) from cause


def _refuse(field: str, value: str, message: str) -> NoReturn:
    raise InputRefused(FieldProblem(field, value, message))
