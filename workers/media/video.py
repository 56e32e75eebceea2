"""Encodes clips as files that contain their recipe.

| format | frames                              | sound | recipe                     |
|--------|-------------------------------------|-------|----------------------------|
| MP4    | H.264, quality 18, BT.709           | AAC   | iTunes' comment (``©cmt``) |
| WebM   | VP9, quality 24, BT.709             | Opus  | tag ``COMMENT``            |
| WebP   | lossy, quality 90, endless loop     | none  | EXIF ImageDescription      |
| GIF    | 256 colours a frame, endless loop   | none  | comment                    |

H.264 halves the colours' resolution, which needs even sides; a clip with odd sides keeps it (4:4:4), which some
players do not play.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import av
import numpy as np
from av.audio.resampler import AudioResampler
from numpy.typing import NDArray
from PIL import Image

from farm.domain.media import MediaMetadata
from farm.objects.recipes import COMMENT_MARK, IMAGE_DESCRIPTION
from workers.media.artifacts import Clip, Sound

_BT709: Final = 1  #: libav's number of the colour space, its primaries and its transfer function
_LIMITED: Final = 1  #: libav's number of the range 16 to 235, which players expect
_BITEXACT: Final = 1 << 23  #: AV_CODEC_FLAG_BITEXACT: no version in the stream
_FINEST_RATE: Final = 1001  #: the largest denominator of a frame rate: NTSC's
_GIF_TICK: Final = 10  #: milliseconds
#: Browsers show a frame of less than 20 ms for 100 ms.
_SHORTEST_FRAME: Final = 20


@dataclass(frozen=True)
class _Codecs:
    container: str
    video: str
    options: dict[str, str]
    audio: str
    audio_rate: int | None  #: samples a second; None: those of the sound
    container_options: dict[str, str]


_CODECS: Final = {
    "mp4": _Codecs(
        "mp4",
        "libx264",
        # without the macroblock tree, whose vector code reads memory that nobody wrote, so that equal clips differ
        {"crf": "18", "preset": "medium", "x264-params": "mbtree=0"},
        "aac",
        None,
        {"movflags": "+faststart", "fflags": "+bitexact"},  # players need the index first
    ),
    "webm": _Codecs(
        "webm",
        "libvpx-vp9",
        {"crf": "24", "b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "0"},
        "libopus",
        48_000,  # the only rate of Opus
        {"fflags": "+bitexact"},
    ),
}
#: AAC's sampling rates; another is resampled to 48 kHz.
_AAC_RATES: Final = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
_LAYOUTS: Final = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}


def encode(clip: Clip, form: str, recipe: str) -> tuple[bytes, MediaMetadata]:
    """The file, and what it holds.

    Args:
        clip: at least one frame.
        form: an output format of videos.
        recipe: JSON, in ASCII.
    """
    rate = Fraction(clip.fps).limit_denominator(_FINEST_RATE)
    codecs = _CODECS.get(form)
    if codecs is not None:
        body = _with_codecs(clip, rate, codecs, recipe)
        seconds = len(clip) / rate
    else:
        tick = _GIF_TICK if form == "gif" else 1
        shown = _durations(len(clip), rate, tick)
        body = _as_gif(clip, shown, recipe) if form == "gif" else _as_webp(clip, shown, recipe)
        seconds = Fraction(sum(shown), 1000)
    width, height = clip.size
    metadata: dict[str, int | float | str] = {
        "width": width,
        "height": height,
        "frames": len(clip),
        "fps": round(float(len(clip) / seconds), 6),
        "seconds": round(float(seconds), 6),
    }
    if codecs is not None and clip.sound is not None:
        metadata |= {"sample_rate": _audio_rate(clip.sound, codecs), "channels": clip.sound.samples.shape[1]}
    return body, metadata


def _with_codecs(clip: Clip, rate: Fraction, codecs: _Codecs, recipe: str) -> bytes:
    width, height = clip.size
    pixels = "yuv444p" if codecs.video == "libx264" and (width % 2 or height % 2) else "yuv420p"
    with tempfile.TemporaryDirectory(prefix="farm-") as folder:  # an index in front needs a file that is read again
        path = Path(folder) / f"clip.{codecs.container}"
        with av.open(path, "w", format=codecs.container, options=codecs.container_options) as container:
            container.metadata["comment"] = COMMENT_MARK.decode() + recipe
            stream: Any = container.add_stream(codecs.video, rate=rate, options=codecs.options)
            stream.width, stream.height, stream.pix_fmt = width, height, pixels
            context = stream.codec_context
            context.thread_count = 1  # with more, the bytes depend on how many there are
            context.color_range, context.colorspace = _LIMITED, _BT709
            context.color_primaries = context.color_trc = _BT709
            context.flags |= _BITEXACT
            if clip.sound is not None:
                _add_sound(container, clip.sound, codecs)
            for number, frame in enumerate(_frames(clip)):
                picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
                picture = picture.reformat(format=pixels, dst_colorspace=_BT709)
                picture.pts = number
                container.mux(stream.encode(picture))
            container.mux(stream.encode(None))
        return path.read_bytes()


def _audio_rate(sound: Sound, codecs: _Codecs) -> int:
    if codecs.audio_rate is not None:
        return codecs.audio_rate
    return sound.sample_rate if sound.sample_rate in _AAC_RATES else 48_000


def _add_sound(container: Any, sound: Sound, codecs: _Codecs) -> None:
    layout = _LAYOUTS.get(sound.samples.shape[1])
    samples = sound.samples
    if layout is None:
        layout, samples = "mono", samples.mean(axis=1, keepdims=True, dtype=np.float32)
    stream = container.add_stream(codecs.audio, rate=_audio_rate(sound, codecs))
    stream.layout = layout
    context = stream.codec_context
    context.thread_count = 1
    context.flags |= _BITEXACT
    context.open()
    resampler = AudioResampler(
        format=context.format.name, layout=layout, rate=context.sample_rate, frame_size=context.frame_size
    )
    planes = np.ascontiguousarray(np.clip(samples, -1, 1).T, np.float32)
    frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=layout)
    frame.sample_rate = sound.sample_rate
    frame.pts = 0
    for part in (*resampler.resample(frame), *resampler.resample(None)):
        container.mux(stream.encode(part))
    container.mux(stream.encode(None))


def _durations(count: int, rate: Fraction, tick: int) -> list[int]:
    """How long each frame is shown, in milliseconds: multiples of the tick, whose sum stays close to the truth."""
    shown, total = [], 0
    for number in range(1, count + 1):
        end = round(number * 1000 / rate / tick) * tick
        one = max(_SHORTEST_FRAME if tick > 1 else 1, end - total)
        shown.append(one)
        total += one
    return shown


def _as_webp(clip: Clip, shown: list[int], recipe: str) -> bytes:
    exif = Image.Exif()
    exif[IMAGE_DESCRIPTION] = recipe
    first, *others = _pictures(clip)
    out = io.BytesIO()
    first.save(
        out,
        "WEBP",
        save_all=True,
        append_images=others,
        duration=shown,
        loop=0,
        quality=90,
        method=4,
        exif=exif.tobytes(),
    )
    return out.getvalue()


def _as_gif(clip: Clip, shown: list[int], recipe: str) -> bytes:
    first, *others = (one.quantize(256, Image.Quantize.MEDIANCUT) for one in _pictures(clip))
    out = io.BytesIO()
    first.save(
        out,
        "GIF",
        save_all=True,
        append_images=others,
        duration=shown,
        loop=0,
        comment=COMMENT_MARK + recipe.encode("ascii"),
    )
    return out.getvalue()


def _frames(clip: Clip) -> Iterator[NDArray[np.uint8]]:
    for frame in clip.frames:
        pixels = np.asarray(frame.convert("RGB") if isinstance(frame, Image.Image) else frame)
        yield np.ascontiguousarray(pixels[..., :3], np.uint8)


def _pictures(clip: Clip) -> Iterator[Image.Image]:
    return (Image.fromarray(frame, "RGB") for frame in _frames(clip))
