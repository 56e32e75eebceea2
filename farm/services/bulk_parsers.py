"""Bodies of bulk requests, parsed while they arrive: bytes in, (line number, request) out, one line at a time."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from farm.domain.parameters import OBJECT_PREFIXES, PARAMETERS, from_text, stored_name
from farm.errors import BadInput, FieldProblem

JSONL: Final = ("application/jsonl", "application/x-ndjson")
CSV: Final = "text/csv"
MAX_LINE: Final = 2**20  #: bytes

METADATA_PREFIX: Final = "metadata."
#: What columns begin with that hold one value of an object.
PREFIXES: Final = (METADATA_PREFIX, *OBJECT_PREFIXES)
#: What a CSV column may be called, besides those.
COLUMNS: Final = tuple(name for one in PARAMETERS.values() if one.name != "metadata" for name in one.names)


@dataclass(frozen=True)
class RefusedLine:
    """A line that an adapter has refused before it is checked as a job."""

    custom_id: str
    problems: tuple[FieldProblem, ...]


#: One line of a body: its number, and its request, or what is wrong with the line as a whole.
BulkLine = tuple[int, dict[str, Any] | FieldProblem | RefusedLine]


def parse(media_type: str, chunks: Iterable[bytes]) -> Iterator[BulkLine]:
    """The lines of a body of that media type, `CSV` or one of `JSONL`. Raises `BadInput`."""
    return table(chunks) if media_type == CSV else jsonl(chunks)


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
    """One JSON object per line; empty lines are skipped."""
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
    """CSV (RFC 4180) whose first row names the parameters; an empty cell leaves its parameter out.

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
        line, number = number, reader.line_num + 1
        if not any(cells):
            continue
        if columns is None:
            columns = [cell.strip() for cell in cells]
            _check_header(columns, line)
            continue
        if len(cells) > len(columns):
            message = f"has {len(cells)} cells, and the header names {len(columns)} columns"
            yield line, FieldProblem("line", cells[len(columns)], message, line)
            continue
        yield line, row(zip(columns, cells, strict=False))


def row(cells: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """A request from (parameter, text) pairs; an empty text leaves its parameter out."""
    request: dict[str, Any] = {}
    objects: dict[str, dict[str, object]] = {}
    for name, text in cells:
        if name.startswith(PREFIXES):
            if text:
                of, _, key = name.partition(".")
                objects.setdefault(of, {})[key] = from_text(name, text)
        elif text.strip():
            request[name] = from_text(name, text)
    for of, values in objects.items():
        whole = request.get(of, {})
        # an object beside columns of its values; what is no object is refused as a whole
        request[of] = {**whole, **values} if isinstance(whole, dict) else whole
    return request


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
    seen: dict[str, str] = {}
    for name in columns:
        stored = stored_name(name)
        if name not in COLUMNS and not (name.startswith(PREFIXES) and name not in PREFIXES):
            more = ", ".join(f"{prefix}<name>" for prefix in PREFIXES)
            message = f"is not a parameter; columns are: {', '.join(COLUMNS)}, {more}"
            problems.append(FieldProblem(name or "header", name, message, line))
        elif stored in seen:
            message = "is the name of two columns" if seen[stored] == name else f"is another name of {seen[stored]}"
            problems.append(FieldProblem(name, name, message, line))
        seen.setdefault(stored, name)
    if problems:
        raise BadInput(*problems)
