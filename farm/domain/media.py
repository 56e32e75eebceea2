"""The media that the farm takes and makes: the one list of formats, and what a stored file says of its content.

Reading this module needs only the standard library, because the client's base installation does it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from farm.pipelines.spec import Media

#: Recorded with an image that is dark everywhere: as a mask it would select nothing.
EMPTY_MASK: Final = "empty_mask"

#: Recorded with an output that looks wrong though its job succeeded, with why: see `SUSPICIONS`.
SUSPICIOUS: Final = "suspicious_output"
#: What is said of such an output, by why it looks wrong.
SUSPICIONS: Final = {
    "uniform": "is of one colour",
    "saturated": "has hardly a value that is not black or full: the arithmetic may have overflowed",
    "silent": "is silent",
}

#: ``width`` and ``height`` in pixels, as seen; ``frames``, ``fps`` and ``seconds`` of a video; ``seconds``,
#: ``sample_rate`` and ``channels`` of audio. A file has only those that its kind has.
MediaMetadata: TypeAlias = Mapping[str, int | float | str]


@dataclass(frozen=True, slots=True)
class MediaFormat:
    """One file format."""

    name: str  #: what ``output_format`` says; unique within a kind of media
    media: Media
    media_type: str  #: MIME type
    extensions: tuple[str, ...]  #: without the dot; the farm writes the first
    title: str  #: as an error names it
    is_input: bool = True  #: whether a job's input may have it
    is_output: bool = True  #: whether a job's output may have it

    @property
    def extension(self) -> str:
        """The extension of a file that the farm writes, without the dot."""
        return self.extensions[0]


#: The formats, the default output format of each kind of media first. A name that two kinds share (``webp``) has one
#: media type and one extension.
FORMATS: Final[tuple[MediaFormat, ...]] = (
    MediaFormat("png", Media.IMAGE, "image/png", ("png",), "PNG"),
    MediaFormat("webp", Media.IMAGE, "image/webp", ("webp",), "WebP"),
    MediaFormat("jpeg", Media.IMAGE, "image/jpeg", ("jpg", "jpeg"), "JPEG"),
    MediaFormat("mp4", Media.VIDEO, "video/mp4", ("mp4", "m4v"), "MP4"),
    MediaFormat("webm", Media.VIDEO, "video/webm", ("webm",), "WebM"),
    MediaFormat("mov", Media.VIDEO, "video/quicktime", ("mov",), "QuickTime", is_output=False),
    MediaFormat("webp", Media.VIDEO, "image/webp", ("webp",), "animated WebP"),
    MediaFormat("gif", Media.VIDEO, "image/gif", ("gif",), "GIF"),
    MediaFormat("wav", Media.AUDIO, "audio/wav", ("wav",), "WAV"),
    MediaFormat("flac", Media.AUDIO, "audio/flac", ("flac",), "FLAC"),
    MediaFormat("ogg", Media.AUDIO, "audio/ogg", ("ogg", "oga", "opus"), "Ogg"),
    MediaFormat("mp3", Media.AUDIO, "audio/mpeg", ("mp3",), "MP3", is_output=False),
)


def input_formats(media: Media) -> tuple[MediaFormat, ...]:
    """What an input of this kind may be encoded as."""
    return tuple(one for one in FORMATS if one.media is media and one.is_input)


def output_formats(media: Media) -> tuple[MediaFormat, ...]:
    """What an output of this kind may be encoded as; the first is the default."""
    return tuple(one for one in FORMATS if one.media is media and one.is_output)


def output_format(media: Media, name: str) -> MediaFormat:
    """The format that ``output_format`` names.

    Raises:
        ValueError: there is no such output of this kind.
    """
    known = output_formats(media)
    for one in known:
        if one.name == name:
            return one
    raise ValueError(f"{name!r} is not an output format for {media}; allowed: {', '.join(one.name for one in known)}")


def extension_of(media_type: str) -> str | None:
    """The extension for a MIME type, without the dot; None for a type that no format has."""
    return next((one.extension for one in FORMATS if one.media_type == media_type), None)


def media_of(media_type: str, metadata: MediaMetadata) -> Media:
    """What a stored file is; an animated WebP is a video."""
    kind = media_type.partition("/")[0]
    if kind == "audio":
        return Media.AUDIO
    return Media.VIDEO if kind == "video" or "frames" in metadata else Media.IMAGE


def titles(formats: tuple[MediaFormat, ...]) -> str:
    """The formats as a sentence lists them: ``PNG, WebP or JPEG``."""
    names = [one.title for one in formats]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def pixels(metadata: MediaMetadata, side: str) -> int | None:
    """The ``width`` or ``height`` in pixels; None for a file that has none."""
    value = metadata.get(side)
    return value if isinstance(value, int) else None
