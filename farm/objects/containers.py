"""Recognises a file's format by its first bytes; names and declared types are not looked at."""

from __future__ import annotations

from typing import Final

from farm.domain.media import FORMATS, MediaFormat, input_formats, titles
from farm.pipelines.spec import Media

# Formats that clients send often and that are not taken, so that the error can name them.
_OTHERS: Final[tuple[tuple[bytes, str], ...]] = (
    (b"II*\x00", "a TIFF"),
    (b"MM\x00*", "a TIFF"),
    (b"II+\x00", "a BigTIFF"),
    (b"MM\x00+", "a BigTIFF"),
    (b"BM", "a BMP"),
    (b"%PDF", "a PDF"),
    (b"%!PS", "a PostScript file"),
    (b"8BPS", "a Photoshop file"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip file"),
    (b"\xff\x0a", "a JPEG XL"),
    (b"\x00\x00\x00\x0cJXL ", "a JPEG XL"),
    (b"\x00\x00\x00\x0cjP  ", "a JPEG 2000"),
    (b"\x00\x00\x01\x00", "an icon file"),
    (b"qoif", "a QOI"),
    (b"\x76\x2f\x31\x01", "an OpenEXR"),
    (b"FORM", "an AIFF"),
    (b".snd", "an AU sound"),
    (b"FLV\x01", "a Flash video"),
    (b"\x30\x26\xb2\x75", "a Windows Media file"),
    (b"\x00\x00\x01\xba", "an MPEG program stream"),
    (b"#EXTM3U", "a playlist"),
)
#: Brands of ISO's base media file format that are no videos, by their first three letters.
_BRANDS: Final = {
    b"avi": "an AVIF or HEIC",
    b"hei": "an AVIF or HEIC",
    b"hev": "an AVIF or HEIC",
    b"mif": "an AVIF or HEIC",
    b"msf": "an AVIF or HEIC",
    b"M4A": "an M4A sound",
    b"M4B": "an M4A sound",
}
#: The frame header of an MPEG-1 or MPEG-2 layer III stream: synchronised, a known version and layer III.
_MP3_SECOND_BYTES: Final = (0xFB, 0xFA, 0xF3, 0xF2, 0xE3, 0xE2)


def recognise(data: bytes) -> MediaFormat | None:
    """The input format that a file has; None if it has none of them."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _named("png", Media.IMAGE)
    if data.startswith(b"\xff\xd8\xff"):
        return _named("jpeg", Media.IMAGE)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        animated = data[12:16] == b"VP8X" and data[20:21] and data[20] & 0x02
        return _named("webp", Media.VIDEO if animated else Media.IMAGE)
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return _named("gif", Media.VIDEO)
    if data[4:8] == b"ftyp" and data[8:11] not in _BRANDS:
        return _named("mov" if data[8:12] == b"qt  " else "mp4", Media.VIDEO)
    if data.startswith(b"\x1a\x45\xdf\xa3") and b"webm" in data[4:64]:
        return _named("webm", Media.VIDEO)
    if data[:4] in (b"RIFF", b"RF64") and data[8:12] == b"WAVE":
        return _named("wav", Media.AUDIO)
    if data.startswith(b"fLaC"):
        return _named("flac", Media.AUDIO)
    if data.startswith(b"OggS"):
        return _named("ogg", Media.AUDIO)
    if data.startswith(b"ID3") or (data[:1] == b"\xff" and data[1:2] and data[1] in _MP3_SECOND_BYTES):
        return _named("mp3", Media.AUDIO)
    return None


def describe(data: bytes) -> str:
    """What a file is that has no input format, as an error names it."""
    for magic, name in _OTHERS:
        if data.startswith(magic):
            return name
    if data[4:8] == b"ftyp":
        return _BRANDS.get(data[8:11], "an MP4 video")
    if data.startswith(b"\x1a\x45\xdf\xa3"):
        return "a Matroska video"
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return "an AVI video"
    start = data[:1024].lstrip(b"\xef\xbb\xbf\x00 \t\r\n").lower()
    if b"<svg" in start:
        return "an SVG"
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<script")):
        return "an HTML page"
    return "of an unknown kind"


def allowed() -> str:
    """The input formats, as an error lists them."""
    images, clips, sounds = (titles(input_formats(one)) for one in (Media.IMAGE, Media.VIDEO, Media.AUDIO))
    return f"an image ({images}), a clip ({clips}) or a sound ({sounds})"


def _named(name: str, media: Media) -> MediaFormat:
    return next(one for one in FORMATS if (one.name, one.media) == (name, media))
