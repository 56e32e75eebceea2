"""Input images: what is refused before anything decodes it, and what a pipeline gets to see."""

from __future__ import annotations

import contextlib
import hashlib
import io
import random
import struct
import threading
import time
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFile

from farm.errors import DecodersBusy, InputRefused
from farm.objects import images
from farm.objects.decode_budget import PIXELS, DecodeBudget
from farm.settings import Settings

LIMITS = Settings(max_input_pixels=1024 * 1024, max_input_bytes=1 << 20)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def scene(mode: str = "RGB", size: tuple[int, int] = (48, 32)) -> Image.Image:
    image = Image.new("RGB", size, (10, 20, 200))
    ImageDraw.Draw(image).rectangle((0, 0, 15, 15), fill=(250, 240, 5))
    return image.convert(mode)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, color: int, pixels: bytes, *extra: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            *extra,
            chunk(b"IDAT", zlib.compress(pixels)),
            chunk(b"IEND", b""),
        )
    )


def bomb() -> bytes:
    """30,000 × 30,000 pixels of zeros at 1 bit each, twice deflated to a few kB: 112 MB as rows, 900 MB as pixels."""
    row_bytes = 1 + 30_000 // 8
    packer = zlib.compressobj(9)
    pixels = b"".join([packer.compress(bytes(row_bytes * 300)) for _ in range(100)]) + packer.flush()
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


PNG = encoded(scene())
JPEG = encoded(scene(), "JPEG", quality=95)
WEBP = encoded(scene(), "WEBP", lossless=True)


def layered() -> bytes:
    """A lossy WebP with an alpha plane, which needs the extended header."""
    image = scene("RGBA", size=(1025, 1024))
    image.putpixel((0, 0), (0, 0, 0, 0))
    return encoded(image, "WEBP", quality=1)


def refusal(data: bytes, limits: Settings = LIMITS) -> str:
    with pytest.raises(InputRefused) as refused:
        images.inspect(data, limits, field="inputs.image")
    (problem,) = refused.value.problems
    assert problem.field == "inputs.image"
    assert len(problem.message) > 20
    return problem.message


# ------------------------------------------------------------------------------------------------------- accepted


@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        (PNG, "image/png"),
        (encoded(scene("P")), "image/png"),
        (encoded(scene("1")), "image/png"),
        (encoded(scene("LA")), "image/png"),
        (encoded(Image.new("I;16", (48, 32), 40_000)), "image/png"),
        (JPEG, "image/jpeg"),
        (encoded(scene("CMYK"), "JPEG"), "image/jpeg"),
        (encoded(scene("L"), "JPEG", progressive=True), "image/jpeg"),
        (WEBP, "image/webp"),
        (encoded(scene("RGBA"), "WEBP", quality=80, exif=b"Exif\0\0"), "image/webp"),
    ],
)
def test_still_images_of_the_three_formats_are_taken(data: bytes, media_type: str) -> None:
    image = images.inspect(data, LIMITS)
    sha256 = hashlib.sha256(data).hexdigest()
    assert (image.media_type, image.width, image.height, image.size, image.sha256) == (
        media_type,
        48,
        32,
        len(data),
        sha256,
    )
    assert images.load_rgb(data, LIMITS).mode == "RGB"
    assert images.load_mask(data, LIMITS).mode == "L"
    assert images.load_depth(data, LIMITS).mode in ("L", "I;16")


def test_an_image_that_is_exactly_at_the_limits_is_taken() -> None:
    exact = Settings(max_input_pixels=48 * 32, max_input_bytes=len(PNG))
    assert images.inspect(PNG, exact).width == 48


@pytest.mark.parametrize("data", [PNG, JPEG, WEBP], ids=["png", "jpeg", "webp"])
@pytest.mark.parametrize(
    "tail", [bytes(10), b"PK\x05\x06" + bytes(18), b"<?php system($_GET[0]); ?>", PNG, bytes(3) + JPEG, b"x"]
)
def test_what_follows_the_end_is_no_part_of_the_image(data: bytes, tail: bytes) -> None:
    image = images.inspect(data + tail, LIMITS)
    assert (image.width, image.size, image.sha256) == (48, len(data), hashlib.sha256(data).hexdigest())
    assert images.load_rgb(data + tail, LIMITS).tobytes() == images.load_rgb(data, LIMITS).tobytes()


# ------------------------------------------------------------------------------------------ refused before decoding


@pytest.fixture
def no_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test if Pillow is asked to open or decode anything."""

    def decode(*_: object, **__: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(Image, "open", decode)
    monkeypatch.setattr(ImageFile.ImageFile, "load", decode)


@pytest.mark.usefixtures("no_decoder")
def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    data = bomb()
    assert len(data) < 200_000
    tracemalloc.start()
    try:
        message = refusal(data, Settings())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "30000×30000" in message
    assert "16,777,216" in message
    assert peak < 2**20, f"{peak} bytes were used"


@pytest.mark.usefixtures("no_decoder")
@pytest.mark.parametrize(
    "data",
    [
        encoded(scene(size=(1025, 1024))),
        encoded(scene(size=(1025, 1024)), "JPEG"),
        encoded(scene(size=(1025, 1024)), "WEBP", lossless=True),
        encoded(scene(size=(1025, 1024)), "WEBP", quality=1),
        layered(),
    ],
    ids=["png", "jpeg", "webp-lossless", "webp-lossy", "webp-layered"],
)
def test_too_many_pixels_are_refused_by_the_header(data: bytes) -> None:
    message = refusal(data)
    assert "1025×1024 = 1,049,600 pixels" in message
    assert "1,048,576" in message


@pytest.mark.usefixtures("no_decoder")
def test_too_many_bytes_are_refused() -> None:
    message = refusal(PNG + bytes(1 << 20))
    assert "at most 1,048,576 are allowed" in message


@pytest.mark.usefixtures("no_decoder")
@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"", "empty"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>', "SVG"),
        (b"\xef\xbb\xbf  <svg/>", "SVG"),
        (encoded(scene(), "GIF"), "GIF"),
        (encoded(scene(), "TIFF"), "TIFF"),
        (encoded(scene(), "BMP"), "BMP"),
        (encoded(scene(), "ICO"), "icon"),
        (encoded(scene(), "PDF"), "PDF"),
        (encoded(scene(), "EPS"), "PostScript"),
        (encoded(scene(), "JPEG2000"), "JPEG 2000"),
        (encoded(scene(), "PPM"), "unknown kind"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "AVIF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
        (b"\0\0\0\x18ftypisom\0\0\0\0", "MP4"),
        (b"PK\x03\x04" + PNG, "ZIP"),
        (b"<!DOCTYPE html><img>", "HTML"),
        (b"\n" + PNG, "unknown kind"),
        (b"GIF89a/*" + JPEG, "GIF"),
        (b"RIFF\x10\0\0\0WAVEfmt ", "WAV"),
        (b"\x89PN", "unknown kind"),
    ],
)
def test_other_formats_are_refused_by_name(data: bytes, name: str) -> None:
    message = refusal(data)
    assert name in message
    assert "PNG, JPEG or WebP" in message


@pytest.mark.usefixtures("no_decoder")
def test_animations_are_refused() -> None:
    frames = [scene(), scene().transpose(Image.Transpose.ROTATE_180)]
    assert "animated" in refusal(encoded(frames[0], "PNG", save_all=True, append_images=frames[1:]))
    assert "animated" in refusal(encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], duration=50))


@pytest.mark.usefixtures("no_decoder")
@pytest.mark.parametrize(
    "data",
    [
        png(0, 5, 8, 2, b""),
        png(5, 5, 3, 2, b""),
        png(5, 5, 8, 9, b""),
        png(5, 5, 8, 2, b"", chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))),
        b"\x89PNG\r\n\x1a\n" + chunk(b"IEND", b""),
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)) + chunk(b"IEND", b""),
        png(5, 5, 8, 2, b"", *[chunk(b"aaAa", b"")] * 70_000),
        b"\xff\xd8\xff\xd9",
        b"\xff\xd8\xff\xe0\x00\x01" + JPEG,
        JPEG[:2] + JPEG[JPEG.index(b"\xff\xc0") : JPEG.index(b"\xff\xc0") + 19] + JPEG[2:],
        b"\xff\xd8\xff" + b"\xd0" + JPEG,
        WEBP[:12] + b"VP8L\x00\x00\x00\x00" + WEBP[12:],
        b"RIFF\x04\x00\x00\x00WEBP",
        b"RIFF\x12\x00\x00\x00WEBPVP8 \x06\x00\x00\x00\1\0\0\0\0\0",
    ],
)
def test_contradictory_headers_are_refused(data: bytes) -> None:
    refusal(data)


@pytest.mark.usefixtures("no_decoder")
def test_a_canvas_cannot_hide_a_larger_image() -> None:
    image = scene("RGBA")
    image.putpixel((0, 0), (0, 0, 0, 0))
    data = bytearray(encoded(image, "WEBP", quality=80))
    assert data[12:16] == b"VP8X"
    data[24:27] = (9).to_bytes(3, "little")
    assert "canvas" in refusal(bytes(data))


@pytest.mark.usefixtures("no_decoder")
def test_a_jpeg_of_endless_scans_is_refused() -> None:
    data = encoded(scene(), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    scan = data[last:-2]
    assert "scans" in refusal(data[:-2] + scan * 200 + data[-2:])


# ---------------------------------------------------------------------------------------------- refused by decoding


@pytest.mark.parametrize(
    "data", [PNG, JPEG, WEBP, encoded(scene(), "JPEG", progressive=True)], ids=["png", "jpeg", "webp", "progressive"]
)
@given(st.data())
@budget(max_examples=60, deadline=None)
def test_a_truncated_image_is_refused(data: bytes, draw: st.DataObject) -> None:
    # Zero bytes at the end may be padding, so what is cut off must hold something.
    cut = draw.draw(st.integers(0, len(data.rstrip(b"\x00")) - 1))
    refusal(data[:cut])


@pytest.mark.parametrize("data", [PNG, JPEG, WEBP], ids=["png", "jpeg", "webp"])
@given(st.data())
@budget(max_examples=150, deadline=None)
def test_a_damaged_image_is_taken_or_refused_but_never_crashes(data: bytes, draw: st.DataObject) -> None:
    broken = bytearray(data)
    for at, value in draw.draw(st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255)), min_size=1)):
        broken[at] = value
    for check in (images.inspect, images.load_rgb, images.load_mask, images.load_depth):
        with contextlib.suppress(InputRefused):
            check(bytes(broken), LIMITS)


@given(st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\x40\0\0\0WEBP", b""]), st.binary(max_size=300))
def test_rubbish_is_refused(start: bytes, rest: bytes) -> None:
    refusal(start + rest)


def test_a_broken_compressed_stream_is_refused() -> None:
    data = bytearray(png(64, 64, 8, 0, random.Random(1).randbytes(65 * 64)))
    at = data.index(b"IDAT") + 1000
    data[at : at + 100] = bytes(100)
    assert "does not decode" in refusal(bytes(data))


def test_a_text_bomb_in_the_metadata_is_refused() -> None:
    text = chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(50_000_000), 9))
    assert "does not decode" in refusal(png(4, 4, 8, 0, bytes(5 * 4), text))


# -------------------------------------------------------------------------------------------- what a pipeline sees


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_exif_orientation_is_applied(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side: to be turned clockwise
    options = {"quality": 95} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    data = encoded(scene(), kind, exif=exif, **options)
    info = images.inspect(data, LIMITS)
    assert (info.width, info.height) == (32, 48)
    image = images.load_rgb(data, LIMITS)
    assert image.size == (32, 48)
    corner = image.getpixel((28, 3))  # the yellow square was at the left, above
    assert isinstance(corner, tuple)
    assert corner[0] > 200
    assert corner[2] < 60
    assert images.load_mask(data, LIMITS).size == images.load_depth(data, LIMITS).size == (32, 48)


def test_16_bit_grey_is_scaled_and_not_clipped() -> None:
    data = encoded(Image.new("I;16", (8, 8), 0x8042))
    assert images.load_rgb(data, LIMITS).getpixel((0, 0)) == (0x80, 0x80, 0x80)
    assert images.load_mask(data, LIMITS).getpixel((0, 0)) == 0x80


def test_a_depth_map_keeps_its_16_bits() -> None:
    depth = images.load_depth(encoded(Image.new("I;16", (8, 8), 0x8042)), LIMITS)
    assert depth.mode == "I;16"
    assert depth.getpixel((0, 0)) == 0x8042
    assert images.load_depth(encoded(scene("RGBA")), LIMITS).mode == "L"


def test_16_bit_grey_with_a_transparent_value_loads() -> None:
    data = png(2, 1, 16, 0, b"\0\x80\x42\x00\x00", chunk(b"tRNS", b"\x00\x00"))
    assert images.load_rgb(data, LIMITS).getpixel((0, 0)) == (0x80, 0x80, 0x80)
    assert images.load_depth(data, LIMITS).getpixel((0, 0)) == 0x8042


def test_transparency_is_white_in_an_image_and_black_in_a_mask() -> None:
    image = Image.new("RGBA", (4, 4), (200, 10, 10, 0))
    image.putpixel((0, 0), (255, 255, 255, 255))
    for data in (encoded(image), encoded(image, "WEBP", lossless=True)):
        assert images.load_rgb(data, LIMITS).getpixel((3, 3)) == (255, 255, 255)
        assert images.load_mask(data, LIMITS).getpixel((3, 3)) == 0
        assert images.load_mask(data, LIMITS).getpixel((0, 0)) == 255


def test_a_palette_with_a_transparent_entry_is_laid_on_white() -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([200, 10, 10, 0, 0, 255])
    image.putpixel((0, 0), 1)
    rgb = images.load_rgb(encoded(image, transparency=0), LIMITS)
    assert rgb.getpixel((3, 3)) == (255, 255, 255)
    assert rgb.getpixel((0, 0)) == (0, 0, 255)


def test_cmyk_becomes_rgb() -> None:
    corner = images.load_rgb(encoded(scene("CMYK"), "JPEG", quality=95), LIMITS).getpixel((3, 3))
    assert isinstance(corner, tuple)
    assert corner[0] > 200
    assert corner[2] < 60


# ----------------------------------------------------------------------------------------- colours and transparency

#: ICC's D50 primaries of Display P3, and the gamma of its curve.
P3 = ((0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407))


def p3_profile(gamma: float = 2.2) -> bytes:
    """A matrix profile (ICC.1:2001) of P3's primaries."""

    def xyz(values: tuple[float, float, float]) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(one * 65536)) for one in values)

    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    tags = [(b"wtpt", xyz((0.9642, 1.0, 0.8249)))]
    tags += [(name + b"XYZ", xyz(values)) for name, values in zip((b"r", b"g", b"b"), P3, strict=True)]
    tags += [(name + b"TRC", curve) for name in (b"r", b"g", b"b")]
    tags.append((b"desc", b"desc\0\0\0\0" + struct.pack(">I", 3) + b"P3\0" + bytes(80)))
    tags.append((b"cprt", b"text\0\0\0\0-\0\0\0"))
    table, body = struct.pack(">I", len(tags)), b""
    for name, unpadded in tags:
        content = unpadded + bytes(-len(unpadded) % 4)
        table += name + struct.pack(">II", 128 + 4 + 12 * len(tags) + len(body), len(content))
        body += content
    size = 128 + len(table) + len(body)
    header = struct.pack(">I4sI4s4s4s", size, b"none", 0x02400000, b"mntr", b"RGB ", b"XYZ ").ljust(36, b"\0")
    header += b"acsp" + bytes(28) + struct.pack(">iii", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + table + body


@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        ("RGB", "PNG", {}),
        ("RGBA", "PNG", {}),
        ("P", "PNG", {}),
        ("RGB", "JPEG", {"quality": 100, "subsampling": 0}),
        ("RGB", "WEBP", {"lossless": True}),
        ("RGBA", "WEBP", {"lossless": True}),
    ],
)
def test_a_colour_profile_is_converted_to_srgb(mode: str, kind: str, options: dict[str, object]) -> None:
    image = Image.new("RGB", (16, 16), (200, 60, 40))
    image = image.quantize(2) if mode == "P" else image.convert(mode)
    pixel = images.load_rgb(encoded(image, kind, icc_profile=p3_profile(), **options), LIMITS).getpixel((8, 8))
    assert isinstance(pixel, tuple)
    red, green, blue = pixel
    assert abs(red - 219) <= 3, "P3's red is more saturated than sRGB's"
    assert abs(green - 38) <= 4
    assert abs(blue - 15) <= 4


def test_the_profile_of_an_image_that_lies_on_its_side_is_kept() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.new("RGB", (16, 8), (200, 60, 40)), exif=exif, icc_profile=p3_profile())
    pixel = images.load_rgb(data, LIMITS).getpixel((4, 4))
    assert isinstance(pixel, tuple)
    assert pixel[0] > 210


@pytest.mark.parametrize("profile", [b"rubbish" * 40, p3_profile()[:200]])
def test_a_profile_that_cannot_be_used_is_ignored(profile: bytes) -> None:
    data = encoded(Image.new("RGB", (4, 4), (200, 60, 40)), icc_profile=profile)
    assert images.load_rgb(data, LIMITS).getpixel((0, 0)) == (200, 60, 40)


def test_the_profile_of_another_kind_of_pixels_is_ignored() -> None:
    data = encoded(Image.new("L", (4, 4), 100), icc_profile=p3_profile())
    assert images.load_rgb(data, LIMITS).getpixel((0, 0)) == (100, 100, 100)


@pytest.mark.parametrize(
    ("depth", "color", "pixels", "transparent"),
    [
        (16, 0, b"\x80\x42\x80\x43", b"\x80\x42"),
        (16, 2, b"\x80\x42\x10\x00\x20\x00\x12\x34\x10\x00\x20\x00", b"\x80\x42\x10\x00\x20\x00"),
        (8, 0, b"\x80\x81", b"\x00\x80"),
        (8, 2, b"\x80\x10\x20\x12\x10\x20", b"\x00\x80\x00\x10\x00\x20"),
        (4, 0, b"\x54", b"\x00\x05"),
        (2, 0, b"\x40", b"\x00\x01"),
        (1, 0, b"\x00", b"\x00\x00"),
    ],
)
def test_the_transparent_value_of_a_png_is_composited_at_every_depth(
    depth: int, color: int, pixels: bytes, transparent: bytes
) -> None:
    data = png(2, 1, depth, color, b"\0" + pixels, chunk(b"tRNS", transparent))
    assert images.load_rgb(data, LIMITS).getpixel((0, 0)) == (255, 255, 255)
    assert images.load_mask(data, LIMITS).getpixel((0, 0)) == 0
    if depth > 1:
        assert images.load_rgb(data, LIMITS).getpixel((1, 0)) != (255, 255, 255), "the other pixel is opaque"


@pytest.mark.parametrize(
    ("image", "empty"),
    [
        (Image.new("L", (8, 8), 127), True),
        (Image.new("L", (8, 8), 128), False),
        (Image.new("I;16", (8, 8), 0x8000), False),
        (Image.new("RGBA", (8, 8), (255, 255, 255, 0)), True),
        (Image.new("RGBA", (8, 8), (255, 255, 255, 255)), False),
        (Image.new("1", (8, 8), 0), True),
    ],
)
def test_a_mask_that_selects_nothing_is_recognised(image: Image.Image, *, empty: bool) -> None:
    assert images.inspect(encoded(image), LIMITS).empty_mask is empty


# ----------------------------------------------------------------------------------------------- a budget of pixels


def test_decodes_in_parallel_hold_no_more_pixels_than_the_budget() -> None:
    budget_, held, peak, lock = DecodeBudget(), 0, 0, threading.Lock()

    def decode(pixels: int) -> None:
        nonlocal held, peak
        with budget_.hold(pixels, 100, 30):
            with lock:
                held += pixels
                peak = max(peak, held)
            time.sleep(0.01)
            with lock:
                held -= pixels

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(decode, [40, 60, 10, 100, 30, 40, 90, 5] * 4))
    assert 60 < peak <= 100


def test_a_decode_that_waits_too_long_is_refused_and_leaves_the_queue() -> None:
    budget_ = DecodeBudget()
    with budget_.hold(80, 100, 1):
        with pytest.raises(DecodersBusy) as busy, budget_.hold(30, 100, 0.05):
            pass
        assert busy.value.retry_after
        with budget_.hold(20, 100, 0.05):
            pass
    with budget_.hold(1_000, 100, 0.05):  # one that is larger than the whole budget decodes alone
        pass


def test_an_image_waits_for_the_pixels_of_others() -> None:
    limits = Settings(max_decode_pixels=48 * 32, decode_wait_seconds=0.05)
    with PIXELS.hold(1, limits.max_decode_pixels, 1):
        for decode in (images.inspect, images.load_rgb, images.load_mask, images.load_depth):
            with pytest.raises(DecodersBusy):
                decode(PNG, limits)
    assert images.inspect(PNG, limits).width == 48
