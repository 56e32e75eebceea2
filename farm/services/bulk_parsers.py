"""Bulk bodies, read as they arrive: bytes in, (line number, request) out, and never more than a line in memory."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from farm.domain.tasks import (
    DepthToImageRequest,
    ImageToImageRequest,
    InpaintingRequest,
    TextToImageRequest,
)
from farm.errors import BadInput, FieldProblem

JSONL: Final = ("application/jsonl", "application/x-ndjson")
CSV: Final = "text/csv"
MAX_LINE: Final = 2**20  #: bytes

#: Every parameter of every task, and so every column that a CSV may have beside ``metadata.…``.
FIELDS: Final[tuple[str, ...]] = tuple(
    dict.fromkeys(
        name
        for shape in (TextToImageRequest, ImageToImageRequest, InpaintingRequest, DepthToImageRequest)
        for name in shape.model_fields
    )
)
_WHOLE: Final = frozenset({"num_inference_steps", "seed", "num_images_per_prompt", "width", "height"})
_FRACTIONS: Final = frozenset({"guidance_scale", "strength"})
_FLAGS: Final = {"true": True, "false": False}
_METADATA: Final = "metadata."
_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,30}(?:\.0+)?", re.ASCII)
_DECIMAL: Final = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?", re.ASCII)


@dataclass(frozen=True)
class RefusedLine:
    """A line whose request cannot be taken, known before it is checked as a job."""

    custom_id: str
    problems: tuple[FieldProblem, ...]


#: One line of a body: its number, and its request or what is wrong with the line as a whole.
BulkLine = tuple[int, dict[str, Any] | FieldProblem | RefusedLine]


def split(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of a body with their ends. Raises `BadInput` for one that is too long."""
    rest = b""
    number = 1
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n") if b"\n" in chunk else (rest + chunk,)
        for line in whole:
            yield line + b"\n"
            number += 1
        if len(rest) > MAX_LINE:
            raise BadInput(
                FieldProblem("body", f"{len(rest):,} bytes", f"a line has at most {MAX_LINE:,} bytes", number)
            )
    if rest:
        yield rest


def jsonl(chunks: Iterable[bytes]) -> Iterator[BulkLine]:
    """One JSON object per line; empty lines are passed over."""
    for number, line in enumerate(split(chunks), start=1):
        raw = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if not raw.strip():
            continue
        yield number, _object(raw, number)


def _object(raw: bytes, number: int) -> dict[str, Any] | FieldProblem:
    try:
        value = _DECODER.decode(raw.decode())
    except UnicodeDecodeError as error:
        return FieldProblem("line", f"byte {error.start}", "is not valid UTF-8", number)
    except json.JSONDecodeError as error:
        message = f"is not valid JSON: {error.msg} at character {error.pos + 1}"
        return FieldProblem("line", raw[:200].decode(errors="replace").strip(), message, number)
    except RecursionError:
        return FieldProblem("line", None, "is nested too deeply", number)
    except ValueError as error:  # NaN, Infinity, an integer of thousands of digits
        return FieldProblem("line", None, f"is not valid JSON: {error}", number)
    if not isinstance(value, dict):
        return FieldProblem("line", value, "must be a JSON object", number)
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


_DECODER: Final = json.JSONDecoder(parse_constant=_no_constant)


def table(chunks: Iterable[bytes]) -> Iterator[BulkLine]:
    """CSV (RFC 4180) whose first row names the parameters; an empty cell leaves its parameter open.

    Raises `BadInput` for a header that cannot be used, and where the text stops being CSV.
    """
    reader = csv.reader(_text(split(chunks)), strict=True)
    columns: list[str] | None = None
    number = 1
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise BadInput(FieldProblem("body", None, f"is not valid CSV: {error}", number)) from error
        here, number = number, reader.line_num + 1
        if not any(cells):
            continue
        if columns is None:
            columns = [cell.strip() for cell in cells]
            _check_header(columns, here)
            continue
        if len(cells) > len(columns):
            message = f"has {len(cells)} cells, and the header names {len(columns)} columns"
            yield here, FieldProblem("line", cells[len(columns)], message, here)
            continue
        yield here, row(zip(columns, cells, strict=False))


def row(cells: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """A request from texts: numbers where the parameter is one; what is no number stays text, to be refused by name."""
    request: dict[str, Any] = {}
    metadata: dict[str, str] = {}
    for name, cell in cells:
        if name.startswith(_METADATA):
            if cell:
                metadata[name.removeprefix(_METADATA)] = cell
        elif cell.strip():
            request[name] = value(name, cell)
    if metadata:
        request["metadata"] = metadata
    return request


def value(name: str, cell: str) -> object:
    """A parameter's value from its text."""
    text = cell.strip()
    if name in _WHOLE and _INTEGER.fullmatch(text):
        return int(text.partition(".")[0])
    if name in _FRACTIONS and _DECIMAL.fullmatch(text):
        return float(text)
    if name in ("exact", "preview") and text.lower() in _FLAGS:
        return _FLAGS[text.lower()]
    return cell if name in ("prompt", "negative_prompt") else text


def _text(lines: Iterable[bytes]) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            message = "is not valid UTF-8: save the table as UTF-8"
            raise BadInput(FieldProblem("body", f"byte {error.start}", message, number)) from error
        yield text


def _check_header(columns: list[str], line: int) -> None:
    problems = []
    for name in columns:
        known = name in FIELDS and name != "metadata"
        if not known and not (name.startswith(_METADATA) and len(name) > len(_METADATA)):
            allowed = ", ".join(one for one in FIELDS if one != "metadata")
            problems.append(
                FieldProblem(name or "header", name, f"is no parameter; columns are: {allowed}, metadata.<name>", line)
            )
        elif columns.count(name) > 1:
            problems.append(FieldProblem(name, name, "names two columns", line))
    if problems:
        raise BadInput(*problems)


def merged(defaults: Mapping[str, Any], request: Mapping[str, Any]) -> dict[str, Any]:
    """The request with defaults for what it leaves open."""
    return {**defaults, **request}
