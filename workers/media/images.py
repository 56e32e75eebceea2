"""Encodes images as files that contain their recipe.

| format | pixels            | ``parameters``                  | ``farm`` JSON              |
|--------|-------------------|---------------------------------|----------------------------|
| PNG    | lossless, level 1 | tEXt or iTXt ``parameters``     | tEXt ``farm``              |
| WebP   | lossless          | EXIF UserComment (UTF-16)       | EXIF ImageDescription      |
| JPEG   | quality 95, 4:4:4 | EXIF UserComment (UTF-16)       | comment segments ``farm``  |

A JPEG segment has at most 64 KiB, and a recipe with two long prompts does not fit into one, so it is split into
several. No time and no id is written: the same recipe gives the same bytes. `farm.objects.recipes` reads all of these.
"""

from __future__ import annotations

import io
from typing import Any, Final

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from farm.domain.media import MediaMetadata
from farm.objects.images import eight_bit, on_white
from farm.objects.recipes import COMMENT_MARK, IMAGE_DESCRIPTION

_EXIF_IFD: Final = 0x8769  #: EXIF tag: where the directory of the camera's fields lies
_USER_COMMENT: Final = 0x9286  #: EXIF tag, in that directory
_UNICODE_MARK: Final = b"UNICODE\x00"  #: the character code that a UserComment begins with
_SEGMENT: Final = 60_000  #: bytes of one JPEG segment's content, below the format's 65,533
#: zlib's level for PNG: 300–500 ms at the default become 88–154 ms for 1024 × 1024 pixels
_PNG_LEVEL: Final = 1


def encode(image: Image.Image, form: str, text: str, recipe: str) -> tuple[bytes, MediaMetadata]:
    """The file, and what it holds.

    Args:
        image: RGB, RGBA or grey of 8 or 16 bits. JPEG has no transparency: it is laid on white there.
        form: an output format of images.
        text: the infotext, which other tools read.
        recipe: JSON, in ASCII.
    """
    target = io.BytesIO()
    match form:
        case "png":
            info = PngInfo()
            info.add_text("parameters", text)
            info.add_text("farm", recipe)
            image.save(target, "PNG", compress_level=_PNG_LEVEL, pnginfo=info)
        case "webp":
            shown = eight_bit(image)
            shown.save(target, "WEBP", lossless=True, method=0, exif=_exif(text, recipe))
        case "jpeg":
            on_white(eight_bit(image)).save(
                target,
                "JPEG",
                quality=95,
                subsampling="4:4:4",
                exif=_exif(text[: _fitting(text)]),
                extra=_comments(recipe),
            )
        case _:
            raise ValueError(f"{form!r} is no format of images")
    return target.getvalue(), {"width": image.width, "height": image.height}


def _exif(text: str, recipe: str | None = None) -> bytes:
    exif = Image.Exif()
    if recipe is not None:
        exif[IMAGE_DESCRIPTION] = recipe
    details: dict[int, Any] = exif.get_ifd(_EXIF_IFD)
    # big-endian without a byte order mark, like other tools that write this field
    details[_USER_COMMENT] = _UNICODE_MARK + text.encode("utf-16-be")
    return exif.tobytes()


def _fitting(text: str) -> int:
    """How many characters of a text fit into one JPEG segment as UTF-16."""
    used = 0
    for count, character in enumerate(text):
        used += 4 if ord(character) > 0xFFFF else 2
        if used > _SEGMENT:
            return count
    return len(text)


def _comments(recipe: str) -> bytes:
    data = recipe.encode("ascii")
    parts = [data[start : start + _SEGMENT] for start in range(0, len(data), _SEGMENT)]
    return b"".join(_comment(COMMENT_MARK + part) for part in parts)


def _comment(content: bytes) -> bytes:
    return b"\xff\xfe" + (len(content) + 2).to_bytes(2) + content
