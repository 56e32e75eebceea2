"""Measures and decodes input clips: MP4, WebM and QuickTime by libav, GIF and animated WebP by Pillow.

A container is opened by the demuxer of its own format, which may open no other file. Only codecs that cameras and
editors write are decoded, one frame at a time and by one thread.
"""

from __future__ import annotations

import io
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

from PIL import Image, UnidentifiedImageError

from farm.domain.media import MediaFormat, MediaMetadata
from farm.errors import FieldProblem, InputRefused
from farm.objects.decode_budget import PIXELS
from farm.objects.limits import Limits

if TYPE_CHECKING:
    from farm.settings import Settings

CODECS: Final = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mjpeg")
_DEMUXERS: Final = {"mp4": "mp4", "mov": "mov", "webm": "matroska"}
_PILLOW: Final = {"gif": "GIF", "webp": "WEBP"}
_OPTIONS: Final = {"enable_drefs": "0", "use_absolute_path": "0"}  # a QuickTime track may lie in another file
#: What browsers show a frame for that has no duration, in milliseconds.
_DEFAULT_DURATION: Final = 100
_BOXES: Final = 100_000


@dataclass(frozen=True, slots=True)
class DecodedClip:
    """A clip as pipelines take it."""

    frames: list[Image.Image]  #: RGB, upright, of one size
    fps: float


def measure(data: bytes, form: MediaFormat, limits: Limits, field: str) -> MediaMetadata:
    """What a clip holds, found by decoding all of it, one frame at a time.

    Raises:
        InputRefused: it does not decode, or is longer or larger than the limits.
    """
    size, count, fps, seconds = (0, 0), 0, 0.0, 0.0
    for frame in _frames(data, form, limits, field):
        size, fps, seconds = frame.size, frame.fps, frame.end
        count += 1
    return {
        "width": size[0],
        "height": size[1],
        "frames": count,
        "fps": round(fps or count / seconds, 6),
        "seconds": round(seconds, 6),
    }


def load(data: bytes, form: MediaFormat, limits: Limits, field: str) -> DecodedClip:
    """All frames, in memory.

    Raises:
        InputRefused: as :func:`measure`.
    """
    frames: list[Image.Image] = []
    fps = seconds = 0.0
    for frame in _frames(data, form, limits, field):
        frames.append(frame.image())
        fps, seconds = frame.fps, frame.end
    return DecodedClip(frames, fps or len(frames) / seconds)


def first_frame(data: bytes, form: MediaFormat, settings: Settings) -> Image.Image:
    """The first frame, as RGB.

    Raises:
        InputRefused: it does not decode.
        DecodersBusy: the process decodes too many pixels at this moment.
    """
    # how large it is shows only when it is open; most are smaller than a quarter of the largest
    with PIXELS.hold(settings.max_input_pixels // 4, settings.max_decode_pixels, settings.decode_wait_seconds):
        frames = _frames(data, form, Limits.of(settings), "clip")
        image = next(frames).image()
        frames.close()
        return image


class _Frame:
    """A decoded frame that becomes an image only when it is asked for."""

    def __init__(self, raw: Any, size: tuple[int, int], fps: float, end: float) -> None:
        self._raw = raw
        self.size = size  #: upright
        self.fps = fps  #: of the clip; 0: what frames and seconds give
        self.end = end  #: when the next frame follows, in seconds

    def image(self) -> Image.Image:
        if isinstance(self._raw, Image.Image):
            shown = self._raw.convert("RGBA")
            white = Image.new("RGBA", shown.size, (255, 255, 255, 255))
            return Image.alpha_composite(white, shown).convert("RGB")
        turn = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
        image: Image.Image = self._raw.to_image()
        degrees = self._raw.rotation % 360
        return image.transpose(turn[degrees]) if degrees in turn else image


def _frames(data: bytes, form: MediaFormat, limits: Limits, field: str) -> Generator[_Frame, None, None]:
    """The frames, each within the limits; at least one."""
    read = _animation if form.name in _PILLOW else _video
    count, first = 0, (0, 0)
    try:
        for frame in read(data, form, limits, field):
            count += 1
            first = first if count > 1 else frame.size
            if frame.size != first:
                _damaged(field, f"its frames have different sizes ({_size(first)} and {_size(frame.size)})")
            if frame.end > limits.seconds:
                _refuse(field, "a long clip", f"the clip has more than {limits.seconds:g} seconds")
            if count > limits.frames:
                _refuse(field, f"more than {limits.frames} frames", f"the clip has more than {limits.frames:,} frames")
            if count * first[0] * first[1] > limits.clip_pixels:
                _refuse(
                    field,
                    f"{_size(first)} pixels",
                    f"the clip has more than {limits.clip_pixels:,} pixels: {_size(first)} times more than "
                    f"{count - 1:,} frames; send a shorter or smaller one",
                )
            yield frame
    except (InputRefused, MemoryError):
        raise
    except UnidentifiedImageError as error:  # names the object that it read from
        _damaged(field, f"its first bytes are those of a {form.title}, but its header cannot be read", error)
    except Exception as error:  # noqa: BLE001  decoders raise what they like
        _damaged(field, f"it does not decode ({error})", error)
    if count == 0:
        _damaged(field, "it has no frames")


def _check_size(size: tuple[int, int], limits: Limits, field: str) -> None:
    pixels = size[0] * size[1]
    if pixels > limits.frame_pixels:
        message = f"its frames have {_size(size)} = {pixels:,} pixels; at most {limits.frame_pixels:,} are allowed"
        _refuse(field, _size(size), message)
    if pixels < 1:
        _damaged(field, f"its header says {_size(size)} pixels")


def _animation(data: bytes, form: MediaFormat, limits: Limits, field: str) -> Iterator[_Frame]:
    with Image.open(io.BytesIO(data), formats=[_PILLOW[form.name]]) as image:
        _check_size(image.size, limits, field)
        count = getattr(image, "n_frames", 1)
        if count > limits.frames:
            _refuse(field, f"{count} frames", f"the clip has {count:,} frames; at most {limits.frames:,} are allowed")
        end = 0.0
        for number in range(count):
            image.seek(number)
            image.load()
            end += (image.info.get("duration") or _DEFAULT_DURATION) / 1000
            yield _Frame(image, image.size, 0.0, end)


def _video(data: bytes, form: MediaFormat, limits: Limits, field: str) -> Iterator[_Frame]:
    import av  # noqa: PLC0415  loads libav, which few requests need

    if form.name != "webm":
        _check_boxes(data, field)

    def no_other_file(*_: object) -> NoReturn:
        _refuse(field, "a reference", "the clip refers to another file; send one that has all of it")

    with av.open(
        io.BytesIO(data),
        "r",
        format=_DEMUXERS[form.name],
        container_options=_OPTIONS if form.name != "webm" else {},
        metadata_errors="ignore",
        io_open=no_other_file,
    ) as container:
        if not container.streams.video:
            _refuse(field, "no video", "the file has no video stream")
        stream = container.streams.video[0]
        context = stream.codec_context
        codec = "unknown" if context is None else context.codec.canonical_name
        if context is None or codec not in CODECS:
            _refuse(field, codec, f"the codec {codec} is not decoded; allowed: {', '.join(CODECS)}")
        _check_size((context.width, context.height), limits, field)
        if container.duration is not None and container.duration / av.time_base > limits.seconds + 1:
            seconds = container.duration / av.time_base
            _refuse(
                field, f"{seconds:g} s", f"the clip has {seconds:g} seconds; at most {limits.seconds:g} are allowed"
            )
        context.thread_count = 1
        rate = stream.average_rate or stream.guessed_rate
        if not rate or not 0 < rate <= 1000:
            _damaged(field, "its frame rate is not known")
        fps = float(rate)
        for count, frame in enumerate(container.decode(stream), 1):
            size = (frame.width, frame.height)
            _check_size(size, limits, field)
            turned = size[::-1] if frame.rotation % 180 == 90 else size
            yield _Frame(frame, turned, fps, count / fps)


def _check_boxes(data: bytes, field: str) -> None:
    """Refuse a file that ends within one of its outer boxes: libav would decode what is there."""
    at = 0
    for _ in range(_BOXES):
        if at + 8 > len(data):
            return
        size = int.from_bytes(data[at : at + 4])
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16])
        if size == 0:
            return
        if not data[at + 4 : at + 8].isalnum():
            return  # what follows the last box
        if size < 8 or at + size > len(data):
            _refuse(field, "a truncated file", "the clip is cut off: the file ends before the clip does")
        at += size
    _damaged(field, f"it has more than {_BOXES:,} boxes")


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"


def _damaged(field: str, why: str, cause: Exception | None = None) -> NoReturn:
    message = f"the clip is damaged: {why}"
    raise InputRefused(FieldProblem(field, "a damaged file", message)) from cause


def _refuse(field: str, value: str, message: str) -> NoReturn:
    raise InputRefused(FieldProblem(field, value, message))
