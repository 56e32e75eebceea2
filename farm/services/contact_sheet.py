"""A batch on one page: its images in a grid, with what differs between them written at the edges.

Images are fetched a few at a time and shrunk before the next, so what is held is one page and a handful of files.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any, Final

from PIL import Image, ImageDraw, ImageFont

from farm.domain.job import Job, Output
from farm.errors import BadInput
from farm.objects.images import on_white
from farm.objects.thumbnails import still
from farm.settings import Settings
from farm.tasks import INPUT_ROLES

MAX_IMAGES: Final = 400  #: on one sheet
MAX_PIXELS: Final = 16_000_000  #: of one sheet: 48 MB while it is drawn
MAX_SIDE: Final = 60_000  #: pixels; a JPEG has at most 65,535
_SMALLEST: Final = 16
_MANY: Final = 16  #: values of a parameter that still make good columns
_LABEL: Final = 190  #: pixels left of the rows
_HEAD: Final = 64  #: pixels above the first row
_LINE: Final = 16
_GAP: Final = 8
_PAPER: Final = (247, 246, 243)
_INK: Final = (32, 33, 36)
_QUIET: Final = (122, 122, 118)

#: What tells one image from another on a sheet, beside the other parameters.
_LAST_CHOICE: Final = frozenset({"seed", "prompt", "negative_prompt"}.union(*INPUT_ROLES.values()))


class SheetFormat(StrEnum):
    """The file format of a contact sheet."""

    PNG = "png"
    JPEG = "jpeg"


@dataclass(frozen=True)
class SheetCell:
    """One image and its place."""

    output: Output
    row: int
    column: int


@dataclass(frozen=True)
class SheetLayout:
    """What goes where."""

    columns: tuple[str, ...]
    rows: tuple[str, ...]
    cells: tuple[SheetCell, ...]


def lay_out(jobs: Sequence[Job], across: str | None, down: str | None) -> SheetLayout:
    """A grid of the jobs' images: one column for each value of ``across``, rows for all else that differs.

    With ``down``, rows are of that parameter alone. Without ``across`` a parameter is chosen that has few values.
    Raises `BadInput` for a parameter that no job has.
    """
    images = [(job, output) for job in jobs for output in job.outputs]
    about = [{**job.spec.request(), "seed": output.seed} for job, output in images]
    known = list(dict.fromkeys(name for one in about for name in one))
    for field, name in (("columns", across), ("rows", down)):
        if name is not None and name not in known:
            raise BadInput.of(field, name, f"is no parameter of these jobs; there are {', '.join(known) or 'none'}")
    values = {name: list(dict.fromkeys(_text(one.get(name)) for one in about)) for name in known}
    differing = [name for name in known if len(values[name]) > 1]
    if across is None:
        few = [name for name in differing if len(values[name]) <= _MANY and name != down]
        few.sort(key=lambda name: (name in _LAST_CHOICE, -len(values[name])))
        across = few[0] if few else None
    if across is None:
        return _plain(images)
    others = [name for name in differing if name != across] if down is None else [down]
    columns = values[across]
    rows: list[str] = []
    first: dict[str, list[int]] = {}  # the rows that have a label: a second image in one place takes another row
    cells: list[SheetCell] = []
    taken: set[tuple[int, int]] = set()
    for (_, output), one in zip(images, about, strict=True):
        label = " · ".join(_named(name, _text(one.get(name))) for name in others)
        column = columns.index(_text(one.get(across)))
        mine = first.setdefault(label, [])
        row = next((number for number in mine if (number, column) not in taken), None)
        if row is None:
            row = len(rows)
            rows.append(label)
            mine.append(row)
        taken.add((row, column))
        cells.append(SheetCell(output, row, column))
    return SheetLayout(tuple(_named(across, value) for value in columns), tuple(rows), tuple(cells))


def _plain(images: Sequence[tuple[Job, Output]]) -> SheetLayout:
    """A grid in the order of the batch, where nothing makes columns."""
    across = max(1, math.ceil(math.sqrt(len(images))))
    cells = tuple(SheetCell(output, place // across, place % across) for place, (_, output) in enumerate(images))
    names = [job.custom_id or f"#{job.batch_seq}" for job, _ in images]
    rows = tuple(names[start] for start in range(0, len(names), across))
    return SheetLayout(("",) * min(across, len(images)), rows, cells)


def draw(
    layout: SheetLayout,
    title: str,
    fetched: Callable[[Iterable[SheetCell]], Iterator[tuple[SheetCell, bytes]]],
    tile: int,
    form: SheetFormat,
    settings: Settings,
) -> bytes:
    """The encoded sheet. ``fetched`` gives each cell's file; ``tile`` is an image's longest side, at most."""
    columns, rows = max(1, len(layout.columns)), max(1, len(layout.rows))
    size = _size(columns, rows, tile)
    while tile > _SMALLEST and (math.prod(size) > MAX_PIXELS or max(size) > MAX_SIDE):
        tile -= 4
        size = _size(columns, rows, tile)
    step = tile + _GAP
    page = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(page)
    pen.text((_GAP, _GAP), title, font=_font(15), fill=_INK)
    for number, label in enumerate(layout.columns):
        text = _fitted(pen, label, tile, 1)
        pen.text((_LABEL + number * step, _HEAD - _LINE - _GAP // 2), text, font=_font(12), fill=_INK)
    for number, label in enumerate(layout.rows):
        text = _fitted(pen, label, _LABEL - 2 * _GAP, max(1, tile // _LINE - 1))
        pen.multiline_text((_GAP, _HEAD + number * step), text, font=_font(12), fill=_QUIET, spacing=2)
    for cell, data in fetched(layout.cells):
        image = on_white(still(data, tile, settings))
        page.paste(image, (_LABEL + cell.column * step, _HEAD + cell.row * step))
    out = io.BytesIO()
    if form is SheetFormat.JPEG:
        page.save(out, "JPEG", quality=88)
    else:
        page.save(out, "PNG", compress_level=1)
    return out.getvalue()


def _size(columns: int, rows: int, tile: int) -> tuple[int, int]:
    return _LABEL + columns * (tile + _GAP) + _GAP, _HEAD + rows * (tile + _GAP) + _GAP


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _named(name: str, value: str) -> str:
    return value if name == "prompt" else f"{name} {value}"


def _fitted(pen: ImageDraw.ImageDraw, text: str, width: int, most: int) -> str:
    """The text in lines no wider than that, ended early where it would take more than ``most``."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if not lines[-1] or pen.textlength(longer, font=_font(12)) <= width:
            lines[-1] = longer
        elif len(lines) < most:
            lines.append(word)
        else:
            lines[-1] += "…"
            break
    return "\n".join(_cut(pen, line, width) for line in lines)


def _cut(pen: ImageDraw.ImageDraw, line: str, width: int) -> str:
    while len(line) > 1 and pen.textlength(line, font=_font(12)) > width:
        line = line[:-2] + "…"
    return line


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
