"""Validation and decoding of input images.

No file name, declared content type or decoder is trusted. An image is recognised by its first bytes, and
its container is walked by the few lines below: size in pixels, frames, and where the image ends. What follows the end
(a motion photo's clip, a hidden archive) is no part of the image and is not stored. Only then does Pillow decode it,
once, with the one decoder that belongs to the format, and within the process's budget of pixels.

PNG, JPEG and WebP are taken. All others are refused, the ones that can carry scripts or other files first of all.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from PIL import Image, ImageChops, ImageCms, ImageOps

from farm.errors import FieldProblem, InputRefused
from farm.objects import containers, recipes
from farm.objects.decode_budget import PIXELS
from farm.settings import Settings
from farm.settings import settings as process_settings

T = TypeVar("T")

PNG: Final = "image/png"
JPEG: Final = "image/jpeg"
WEBP: Final = "image/webp"

_DECODERS: Final = {PNG: "PNG", JPEG: "JPEG", WEBP: "WEBP"}
_PNG_MAGIC: Final = b"\x89PNG\r\n\x1a\n"
_PNG_DEPTHS: Final = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
#: Chunks or segments in one file. Real encoders write a few thousand for 32 MiB; millions of empty ones cost time only.
_MAX_PARTS: Final = 65_536
#: Scans in one JPEG. A progressive one has about ten; each scan, however small, makes the decoder pass over the whole
#: image, so a small file with thousands of them would hold a core for minutes.
_MAX_SCANS: Final = 64

_ORIENTATION: Final = 0x0112  #: EXIF tag
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS: Final = (5, 6, 7, 8)  #: orientations that swap width and height
_MASK_THRESHOLD: Final = 128  #: pipelines repaint what is at least this bright
_SRGB: Final = ImageCms.createProfile("sRGB")
#: Photographs are seldom in a space whose black is not black; without this, shadows would lose their detail.
_CMS_FLAGS: Final = ImageCms.Flags.BLACKPOINTCOMPENSATION


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """An input image that was checked and decodes."""

    media_type: str  #: by its content: ``image/png``, ``image/jpeg`` or ``image/webp``
    width: int  #: pixels, the way it is seen: after the EXIF orientation
    height: int  #: pixels, likewise
    size: int  #: bytes of the image; the file may have more, which belong to no image
    sha256: str  #: hex, of those bytes
    empty_mask: bool  #: whether it is dark everywhere, so that it selects nothing as a mask


@dataclass(frozen=True, slots=True)
class _Header:
    media_type: str
    width: int  #: as stored, before the EXIF orientation
    height: int
    end: int = 0  #: the byte behind the image's last one
    depth: int = 8  #: bits of a PNG's sample

    @property
    def pixels(self) -> int:
        return self.width * self.height


def inspect(data: bytes, settings: Settings | None = None, *, field: str = "image") -> ImageInfo:
    """Validate an encoded image from a client, including that it decodes.

    Args:
        data: the file as it came.
        settings: its limits (``max_input_bytes``, ``max_input_pixels``); None: this process's.
        field: how the client called it, for the refusal.

    Raises:
        InputRefused: with one sentence that says what was given and what is allowed.
    """
    settings = settings or process_settings()
    header = _checked(data, settings, field)
    turned, empty = _converted(data, header, settings, field, _about)
    return ImageInfo(
        header.media_type,
        width=header.height if turned else header.width,
        height=header.width if turned else header.height,
        size=header.end,
        sha256=hashlib.sha256(memoryview(data)[: header.end]).hexdigest(),
        empty_mask=empty,
    )


def load_rgb(data: bytes, settings: Settings | None = None, *, field: str = "image") -> Image.Image:
    """The image upright and as ``RGB``.

    Colours are converted to sRGB from the image's ICC profile. 16 bits per channel become 8; CMYK, grey and palettes
    are converted; transparent parts are laid on white, because what lies under them is whatever the drawing program
    left there.

    Raises:
        InputRefused: as :func:`inspect`.
        DecodersBusy: the process decodes too many pixels at this moment.
    """
    return _load(data, settings, field, lambda image: on_white(_srgb(eight_bit(image))))


def load_mask(data: bytes, settings: Settings | None = None, *, field: str = "mask") -> Image.Image:
    """The image upright and as ``L``: white is repainted, black is kept.

    Transparent parts count as black, so white strokes on a transparent layer work as expected.

    Raises:
        InputRefused: as :func:`inspect`.
        DecodersBusy: the process decodes too many pixels at this moment.
    """
    return _load(data, settings, field, _as_mask)


def load_holes(data: bytes, settings: Settings | None = None, *, field: str = "mask") -> Image.Image:
    """The image upright and as a mask ``L``: white where it is transparent, black where it is opaque.

    Raises:
        InputRefused: as :func:`inspect`, and for an image that cannot be transparent.
        DecodersBusy: the process decodes too many pixels at this moment.
    """

    def holes(image: Image.Image) -> Image.Image:
        if not image.has_transparency_data:
            raise _refused(field, image.mode, "has no transparency: its transparent part says what is painted anew")
        return ImageOps.invert(eight_bit(image).convert("RGBA").getchannel("A"))

    return _load(data, settings, field, holes)


def load_depth(data: bytes, settings: Settings | None = None, *, field: str = "depth") -> Image.Image:
    """The depth map upright: ``I;16`` where 16-bit grey was given, or else ``L``.

    Raises:
        InputRefused: as :func:`inspect`.
        DecodersBusy: the process decodes too many pixels at this moment.
    """
    return _load(data, settings, field, _as_depth)


def load_small(data: bytes, side: int, settings: Settings) -> Image.Image:
    """The image upright and in sRGB, as RGB or RGBA, with its longer side of at most so many pixels.

    Raises:
        InputRefused: as :func:`inspect`.
        DecodersBusy: the process decodes too many pixels at this moment.
    """

    def small(image: Image.Image) -> Image.Image:
        shown = eight_bit(image)
        if shown.mode == "P":
            shown = shown.convert("RGBA" if shown.has_transparency_data else "RGB")
        shown.thumbnail((side, side), Image.Resampling.LANCZOS)
        shown = _srgb(shown)
        return shown.convert("RGBA" if shown.has_transparency_data else "RGB")

    return _load(data, settings, "image", small)


def text_of(data: bytes, settings: Settings | None = None, *, field: str = "image") -> dict[str, str]:
    """The texts that an image carries, by their keywords; its pixels are not decoded.

    Raises:
        InputRefused: it is not an image that may be used.
    """
    inspect(data, settings, field=field)
    with Image.open(io.BytesIO(data)) as image:
        found = {str(name): text for name, text in image.info.items() if isinstance(text, str)}
    if "parameters" not in found and (recipe := recipes.read(io.BytesIO(data))) is not None:
        found["farm"] = recipe
    return found


def as_png(image: Image.Image) -> bytes:
    """The image as a PNG file."""
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=1)
    return out.getvalue()


def _load(
    data: bytes, settings: Settings | None, field: str, convert: Callable[[Image.Image], Image.Image]
) -> Image.Image:
    settings = settings or process_settings()
    header = _checked(data, settings, field)
    return _converted(data, header, settings, field, lambda image: convert(upright(image)))


def _converted(data: bytes, header: _Header, settings: Settings, field: str, convert: Callable[[Image.Image], T]) -> T:
    """What ``convert`` makes of the decoded image, whose pixels count against the budget meanwhile.

    The image is no variable of this function: it is freed before another decode begins.
    """
    with PIXELS.hold(header.pixels, settings.max_decode_pixels, settings.decode_wait_seconds):
        return convert(_decoded(data, header, field))


def _about(image: Image.Image) -> tuple[bool, bool]:
    """Whether the image lies on its side, and whether it selects nothing as a mask."""
    turned = image.getexif().get(_ORIENTATION) in _SIDEWAYS
    return turned, not any(_as_mask(image).histogram()[_MASK_THRESHOLD:])


def _checked(data: bytes, settings: Settings, field: str) -> _Header:
    """All that can be refused without decoding."""
    if not data:
        raise _refused(field, "0 bytes", "the file is empty; send a PNG, JPEG or WebP image")
    if len(data) > settings.max_input_bytes:
        raise _refused(
            field,
            f"{len(data)} bytes",
            f"the file has {len(data):,} bytes; at most {settings.max_input_bytes:,} are allowed",
        )
    if data.startswith(_PNG_MAGIC):
        header = _png(data, field)
    elif data.startswith(b"\xff\xd8\xff"):
        header = _jpeg(data, field)
    elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        header = _webp(data, field)
    else:
        form = containers.recognise(data)
        what = containers.describe(data) if form is None else f"of the format {form.title}"
        raise _refused(field, what, f"the file is {what}; send a PNG, JPEG or WebP image")
    if header.width < 1 or header.height < 1:
        raise _damaged(field, f"its header says {header.width}×{header.height} pixels")
    pixels = header.width * header.height
    if pixels > settings.max_input_pixels:
        raise _refused(
            field,
            f"{header.width}×{header.height}",
            f"the image has {header.width}×{header.height} = {pixels:,} pixels; "
            f"at most {settings.max_input_pixels:,} are allowed",
        )
    return header


def _png(data: bytes, field: str) -> _Header:
    """Walk the chunks (PNG, third edition, section 5)."""
    header: _Header | None = None
    has_pixels = False
    at = len(_PNG_MAGIC)
    for _ in range(_MAX_PARTS):
        length, kind = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        end = at + 12 + length
        if len(kind) < 4 or end > len(data):
            raise _truncated(field)
        if header is None:
            if kind != b"IHDR" or length != 13:
                raise _damaged(field, "it does not begin with a PNG header")
            depth, color = data[at + 16], data[at + 17]
            if depth not in _PNG_DEPTHS.get(color, ()):
                raise _damaged(field, f"PNG has no {depth}-bit pixels of colour type {color}")
            width, height = int.from_bytes(data[at + 8 : at + 12]), int.from_bytes(data[at + 12 : at + 16])
            header = _Header(PNG, width, height, depth=depth)
        elif kind == b"IHDR":
            raise _damaged(field, "it has two PNG headers")
        elif kind in (b"acTL", b"fcTL", b"fdAT"):
            raise _animated(field, "PNG")
        elif kind == b"IDAT":
            has_pixels = True
        elif kind == b"IEND":
            if not has_pixels:
                raise _damaged(field, "it has a header, but no pixels")
            return replace(header, end=end)
        at = end
    raise _damaged(field, f"it has more than {_MAX_PARTS:,} chunks")


# In the compressed data a 0xff is followed by 0x00 or a restart marker; anything else ends it.
_JPEG_SCAN_END: Final = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


def _jpeg(data: bytes, field: str) -> _Header:
    """Walk the segments up to the end of the image (ITU-T T.81, annex B)."""
    header: _Header | None = None
    scans = 0
    at = 2
    for _ in range(_MAX_PARTS):
        while data[at : at + 2] == b"\xff\xff":  # any marker may be preceded by fill bytes
            at += 1
        if at + 2 > len(data):
            raise _truncated(field)
        if data[at] != 0xFF:
            raise _damaged(field, f"there is no JPEG marker at byte {at}")
        marker = data[at + 1]
        at += 2
        if marker == 0xD9:  # end of image
            if header is None or scans == 0:
                raise _damaged(field, "it ends before its first pixel")
            return replace(header, end=at)
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:
            raise _damaged(field, f"marker 0x{marker:02x} does not belong there")
        length = int.from_bytes(data[at : at + 2])
        if length < 2:
            raise _damaged(field, f"a segment has the length {length}")
        if at + length > len(data):
            raise _truncated(field)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # start of frame
            if header is not None:
                raise _damaged(field, "it has two frame headers")
            if length < 8:
                raise _damaged(field, "its frame header is too short")
            header = _Header(JPEG, int.from_bytes(data[at + 5 : at + 7]), int.from_bytes(data[at + 3 : at + 5]))
        at += length
        if marker == 0xDA:  # start of scan: compressed data follows
            scans += 1
            if scans > _MAX_SCANS:
                raise _refused(
                    field,
                    f"more than {_MAX_SCANS} scans",
                    f"the JPEG has more than {_MAX_SCANS} scans; save it as a baseline or ordinary progressive JPEG",
                )
            found = _JPEG_SCAN_END.search(data, at)
            if found is None:
                raise _truncated(field)
            at = found.start()
    raise _damaged(field, f"it has more than {_MAX_PARTS:,} segments")


def _webp(data: bytes, field: str) -> _Header:
    """Walk the RIFF chunks (WebP container specification; RFC 9649)."""
    end = 8 + int.from_bytes(data[4:8], "little")
    if end > len(data):
        raise _truncated(field)
    canvas: _Header | None = None
    frame: _Header | None = None
    for kind, body in _riff(data, end, field):
        if kind == b"VP8X":
            if canvas is not None or frame is not None or len(body) < 10:
                raise _damaged(field, "its WebP header is not where it belongs")
            if body[0] & 0x02:
                raise _animated(field, "WebP")
            canvas = _Header(WEBP, 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little"))
        elif kind in (b"ANIM", b"ANMF"):
            raise _animated(field, "WebP")
        elif kind in (b"VP8 ", b"VP8L"):
            if frame is not None:
                raise _damaged(field, "it has two images")
            frame = _webp_frame(kind, body, field)
    if frame is None:
        raise _damaged(field, "it has a header, but no pixels")
    if canvas is not None and canvas != frame:
        raise _damaged(field, f"its canvas is {canvas.width}×{canvas.height}, its image {frame.width}×{frame.height}")
    return replace(frame, end=end)


def _riff(data: bytes, end: int, field: str) -> Iterator[tuple[bytes, bytes]]:
    at = 12
    for _ in range(_MAX_PARTS):
        if at >= end:
            return
        kind, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if at + 8 + length > end:
            raise _truncated(field)
        yield kind, data[at + 8 : at + 8 + min(length, 16)]  # headers lie in the first bytes
        at += 8 + length + length % 2  # chunks are padded to even lengths
    raise _damaged(field, f"it has more than {_MAX_PARTS:,} chunks")


def _webp_frame(kind: bytes, body: bytes, field: str) -> _Header:
    if kind == b"VP8L":
        if len(body) < 5 or body[0] != 0x2F:
            raise _damaged(field, "its lossless image has no header")
        packed = int.from_bytes(body[1:5], "little")
        return _Header(WEBP, 1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF))
    if len(body) < 10 or body[3:6] != b"\x9d\x01\x2a":
        raise _damaged(field, "its lossy image has no key frame")
    return _Header(WEBP, int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF)


def _decoded(data: bytes, header: _Header, field: str) -> Image.Image:
    try:
        # what follows the image is given to no decoder
        image = Image.open(io.BytesIO(memoryview(data)[: header.end]), formats=[_DECODERS[header.media_type]])
        # Whatever a decoder makes of a hostile header, it may not be more pixels than were counted above.
        if image.size == (header.width, header.height):
            image.load()
            image.getexif()  # as hostile as the rest
            _repair_transparency(image, header)
            return image
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise a dozen kinds, SyntaxError among them
        raise _damaged(field, f"it does not decode ({error})") from error
    raise _damaged(field, "its headers contradict each other")


def _repair_transparency(image: Image.Image, header: _Header) -> None:
    """Scale a PNG's transparent value as its samples are scaled: Pillow leaves it in the file's bit depth."""
    value = image.info.get("transparency")
    if header.media_type != PNG or value is None:
        return
    if image.mode == "L" and header.depth < 8:
        image.info["transparency"] = value * 255 // (2**header.depth - 1)
    elif image.mode == "RGB" and header.depth == 16:
        image.info["transparency"] = tuple(one >> 8 for one in value)


def upright(image: Image.Image) -> Image.Image:
    """The image as its EXIF orientation says."""
    turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.info = dict(image.info)  # the profile and the transparent value
    return turned


def eight_bit(image: Image.Image) -> Image.Image:
    """16-bit grey as ``L``, or as ``LA`` if it has a transparent value. Pillow itself clips at 255 and drops that."""
    if image.mode == "I":
        image = image.convert("I;16")
    if image.mode != "I;16":
        return image
    samples = image.tobytes()  # little-endian pairs
    high = Image.frombytes("L", image.size, samples[1::2])
    value = image.info.get("transparency")
    if value is not None:
        low = Image.frombytes("L", image.size, samples[0::2])
        alpha = ImageChops.lighter(
            high.point([0 if one == value >> 8 else 255 for one in range(256)]),
            low.point([0 if one == value & 0xFF else 255 for one in range(256)]),
        )
        high = Image.merge("LA", (high, alpha))
    if "icc_profile" in image.info:
        high.info["icc_profile"] = image.info["icc_profile"]
    return high


def _as_mask(image: Image.Image) -> Image.Image:
    image = eight_bit(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, image).convert("L")
    return image.convert("L")


def _as_depth(image: Image.Image) -> Image.Image:
    if image.mode == "I;16":
        return image
    if image.mode == "I":
        return image.convert("I;16")
    if image.has_transparency_data:
        return image.convert("RGBA").convert("L")
    return image.convert("L")


def on_white(image: Image.Image) -> Image.Image:
    """The image as RGB, with white where it is transparent."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _srgb(image: Image.Image) -> Image.Image:
    """The image converted to sRGB from its ICC profile.

    A profile that cannot be used is ignored, as browsers do.
    """
    profile = image.info.get("icc_profile")
    if not profile:
        return image
    if image.mode == "P":
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if image.mode == "1":
        image = image.convert("L")
    if image.mode in ("L", "RGB") and "transparency" in image.info:  # a value of the file's space
        image = image.convert("LA" if image.mode == "L" else "RGBA")
    alpha = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
    colours = image.convert("L" if image.mode == "LA" else "RGB") if alpha is not None else image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(
            colours, source, _SRGB, ImageCms.Intent.RELATIVE_COLORIMETRIC, "RGB", flags=_CMS_FLAGS
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image
    assert converted is not None  # it is not converted in place
    if alpha is not None:
        converted.putalpha(alpha)
    converted.info.pop("icc_profile", None)
    return converted


def _truncated(field: str) -> InputRefused:
    return _refused(field, "a truncated file", "the image is cut off: the file ends before the image does")


def _damaged(field: str, why: str) -> InputRefused:
    return _refused(field, "a damaged file", f"the image is damaged: {why}; send a PNG, JPEG or WebP that opens")


def _animated(field: str, kind: str) -> InputRefused:
    return _refused(field, f"an animated {kind}", f"the {kind} is animated; send one still image")


def _refused(field: str, value: str, message: str) -> InputRefused:
    return InputRefused(FieldProblem(field, value, message))
