"""One contact sheet of rendered images: inputs beside results, captions below, on one grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

from PIL import Image, ImageDraw, ImageFont

COLUMNS: Final = 6
_TILE: Final = 192  #: pixels: the side of the square that an image is shown in
_GAP: Final = 20
_MARGIN: Final = 40
_MIDDLE: Final = 26  #: pixels more between the two halves of a row, wider where they are two separate sequences
_CAPTION: Final = 66  #: pixels below a row of images
_HEADING: Final = 46  #: pixels above a section's first row

_PAPER: Final = (247, 246, 243)
_INK: Final = (32, 33, 36)
_QUIET: Final = (122, 122, 118)
_LINE: Final = (222, 220, 214)

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Tile:
    """One image on the sheet. Without an image: an arrow, with a word on what happens there."""

    image: Image.Image | None
    caption: str = ""
    note: str = ""  #: below the caption, in a quieter colour


@dataclass(frozen=True)
class Section:
    """Tiles under one heading, in rows of `COLUMNS`."""

    title: str
    tiles: Sequence[Tile]


def sheet(title: str, subtitle: str, sections: Sequence[Section]) -> Image.Image:
    """The contact sheet, as an RGB image."""
    rows = [-(-len(section.tiles) // COLUMNS) for section in sections]
    width = 2 * _MARGIN + COLUMNS * _TILE + (COLUMNS - 1) * _GAP + _MIDDLE
    height = 2 * _MARGIN + 66 + sum(_HEADING + count * (_TILE + _CAPTION) for count in rows)
    page = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((_MARGIN, _MARGIN - 6), title, font=_font(30), fill=_INK)
    draw.text((_MARGIN, _MARGIN + 32), subtitle, font=_font(15), fill=_QUIET)
    top = _MARGIN + 66
    for section, count in zip(sections, rows, strict=True):
        draw.line((_MARGIN, top + 6, width - _MARGIN, top + 6), fill=_LINE)
        draw.text((_MARGIN, top + 15), section.title, font=_font(17), fill=_INK)
        top += _HEADING
        for index, tile in enumerate(section.tiles):
            column = index % COLUMNS
            left = _MARGIN + column * (_TILE + _GAP) + (_MIDDLE if column >= COLUMNS // 2 else 0)
            _place(page, draw, (left, top + index // COLUMNS * (_TILE + _CAPTION)), tile)
        top += count * (_TILE + _CAPTION)
    return page


def _place(page: Image.Image, draw: ImageDraw.ImageDraw, corner: tuple[int, int], tile: Tile) -> None:
    left, top = corner
    if tile.image is None:
        _arrow(draw, left, top, tile)
        return
    shown = _fitted(tile.image)
    at = left + (_TILE - shown.width) // 2, top + (_TILE - shown.height) // 2
    page.paste(shown, at, _rounded(shown.size))
    below = top + _TILE + 7
    for line in _wrapped(draw, tile.caption, 2):
        draw.text((left, below), line, font=_font(13), fill=_INK)
        below += 16
    if tile.note:
        draw.text((left, below), tile.note, font=_font(12), fill=_QUIET)


def _arrow(draw: ImageDraw.ImageDraw, left: int, top: int, tile: Tile) -> None:
    middle, centre = top + _TILE // 2, left + _TILE // 2
    draw.line((centre - 34, middle, centre + 26, middle), fill=_QUIET, width=3)
    draw.polygon(((centre + 36, middle), (centre + 22, middle - 9), (centre + 22, middle + 9)), fill=_QUIET)
    for text, below, colour in ((tile.caption, 20, _INK), (tile.note, 38, _QUIET)):
        draw.text((centre, middle + below), text, font=_font(13), fill=colour, anchor="ma")


def _fitted(image: Image.Image) -> Image.Image:
    """The image as large as the tile allows, with smooth edges: a small one is drawn larger."""
    scale = _TILE / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def _rounded(size: tuple[int, int]) -> Image.Image:
    """A mask with round corners, drawn four times as large and shrunk so that they are smooth."""
    large = Image.new("L", (size[0] * 4, size[1] * 4))
    ImageDraw.Draw(large).rounded_rectangle((0, 0, large.width - 1, large.height - 1), radius=40, fill=255)
    return large.resize(size, Image.Resampling.LANCZOS)


def _wrapped(draw: ImageDraw.ImageDraw, text: str, most: int) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and draw.textlength(longer, _font(13)) <= _TILE:
            lines[-1] = longer
        elif len(lines) < most:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]}…"
            break
    return lines


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
