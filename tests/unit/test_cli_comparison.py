"""Two outputs are compared by their pixels or samples."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from farm.cli.comparison import Comparison, compare
from farm.domain.media import output_formats
from farm.pipelines.spec import Media
from tests.unit.test_media_encoders import clip, tone
from workers.media import audio, video


def png(colour: tuple[int, int, int], **options: object) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(out, "PNG", **options)
    return out.getvalue()


def files(form: str, media: Media, recipe: str, *, changed: bool = False) -> bytes:
    if media is Media.AUDIO:
        sound = tone(0.2)
        return audio.encode(dataclasses.replace(sound, samples=sound.samples * (0.5 if changed else 1)), form, recipe)[
            0
        ]
    original = clip(6)
    frames = np.asarray(original.frames)[:: -1 if changed else 1]
    return video.encode(dataclasses.replace(original, frames=frames), form, recipe)[0]


@pytest.mark.parametrize(
    ("form", "media"), [(one.name, one.media) for kind in (Media.VIDEO, Media.AUDIO) for one in output_formats(kind)]
)
def test_clips_and_sounds_are_compared_by_their_content(form: str, media: Media) -> None:
    first = files(form, media, "{}")
    assert compare(first, files(form, media, "{}")) is Comparison.IDENTICAL
    assert compare(first, files(form, media, '{"a":1}')) is Comparison.CONTENT
    assert compare(first, files(form, media, "{}", changed=True)) is Comparison.DIFFERENT


def test_images_are_compared_by_their_pixels() -> None:
    assert compare(png((1, 2, 3)), png((1, 2, 3), compress_level=0)) is Comparison.CONTENT
    assert compare(png((1, 2, 3)), png((1, 2, 4))) is Comparison.DIFFERENT


@pytest.mark.parametrize(
    "data", [b"", b"RIFF\0\0\0\0WAVE", b"fLaC", b"\0\0\0\x08ftyp", b"\x1a\x45\xdf\xa3", png((1, 2, 3))[:40]]
)
def test_a_file_that_does_not_decode_is_different(data: bytes) -> None:
    assert compare(data, png((1, 2, 3))) is Comparison.DIFFERENT
