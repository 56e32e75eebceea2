"""Thumbnails of stored files: an image made small, a clip's first frame, a sound's waveform."""

from __future__ import annotations

import io
from typing import Final

from PIL import Image, ImageDraw

from farm.objects import clips, containers, images, sounds
from farm.objects.limits import Limits
from farm.pipelines.spec import Media
from farm.settings import Settings

_WAVE: Final = (74, 108, 247, 255)  #: readable on light and dark pages
_QUIET: Final = 0.02  #: the height of silence


def thumbnail(data: bytes, side: int, settings: Settings) -> bytes:
    """A WebP whose longer side has at most so many pixels.

    Args:
        data: an output of a worker, or an input that was checked.
        side: pixels.
        settings: the limits of this process.

    Raises:
        InputRefused: the file does not decode.
        DecodersBusy: the process decodes too many pixels at this moment.
    """
    out = io.BytesIO()
    still(data, side, settings).save(out, "WEBP", quality=82, method=2)
    return out.getvalue()


def still(data: bytes, side: int, settings: Settings) -> Image.Image:
    """The thumbnail: RGB, or RGBA where the file is transparent.

    Raises:
        InputRefused: the file does not decode.
        DecodersBusy: the process decodes too many pixels at this moment.
    """
    form = containers.recognise(data)
    if form is None or form.media is Media.IMAGE:
        return images.load_small(data, side, settings)
    if form.media is Media.AUDIO:
        return _waveform(sounds.peaks(data, form, Limits.of(settings), side), side)
    frame = clips.first_frame(data, form, settings)
    frame.thumbnail((side, side), Image.Resampling.LANCZOS)
    return frame


def _waveform(peaks: list[float], side: int) -> Image.Image:
    """Bars from the middle line, three pixels apart, on nothing."""
    height = max(2, side // 2)
    drawn = Image.new("RGBA", (side, height), (0, 0, 0, 0))
    pen = ImageDraw.Draw(drawn)
    for column in range(0, side, 3):
        high = max(peaks[column * len(peaks) // side : (column + 3) * len(peaks) // side] or [0.0])
        half = max(_QUIET, min(1.0, high)) * (height / 2 - 1)
        pen.rectangle((column, height / 2 - half, column + 1, height / 2 + half), fill=_WAVE)
    return drawn
