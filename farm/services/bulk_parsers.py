"""Bodies of bulk requests, parsed while they arrive: bytes in, (line number, request) out, one line at a time."""

from __future__ import annotations

import codecs
import csv
import difflib
import io
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, NoReturn, Self

from farm.domain.parameters import OBJECT_PREFIXES, PARAMETERS, from_text, stored_name
from farm.errors import BadInput, FieldProblem

JSONL: Final = ("application/jsonl", "application/x-ndjson")
CSV: Final = "text/csv"
MAX_LINE: Final = 2**20  #: bytes of a line of JSON, characters of a row of CSV
MAX_HEADER: Final = 2**16  #: characters of the row that names the columns
MAX_COLUMNS: Final = 500
MAX_PROBLEMS: Final = 10  #: columns that one refusal names
DELIMITERS: Final = (",", ";", "\t")  #: Excel writes a semicolon where the comma is in numbers

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
        return FieldProblem("line", f"byte {error.start}", _not_utf8(raw if number == 1 else b""), number)
    except json.JSONDecodeError as error:
        message = f"is not valid JSON: {error.msg} at character {error.pos + 1}"
        return FieldProblem("line", raw[:200].decode(errors="replace").strip(), message, number)
    except RecursionError:
        return FieldProblem("line", None, "is nested too deeply", number)
    except _NoConstant as error:
        return FieldProblem("line", None, f"is not valid JSON: {error}", number)
    except ValueError:
        return FieldProblem("line", None, "holds a number of more than 4,300 digits", number)
    if not isinstance(value, dict):
        return FieldProblem("line", value, "must be a JSON object", number)
    return value


class _NoConstant(ValueError):
    """NaN or Infinity, which Python's parser would take."""


def _no_constant(name: str) -> NoReturn:
    raise _NoConstant(f"{name} is not a JSON value")


_DECODER: Final = json.JSONDecoder(parse_constant=_no_constant)


def table(chunks: Iterable[bytes]) -> Iterator[BulkLine]:
    """CSV (RFC 4180) whose first row names the parameters; an empty cell leaves its parameter out.

    What spreadsheets write is understood too: semicolons or tabs between the cells, a first line ``sep=;``, UTF-16 with
    a byte order mark, lines that end in a carriage return, and columns without a name that are empty.

    Raises `BadInput` for a header that cannot be used, and where the text stops being CSV.
    """
    lines = _Rows(_text(chunks))
    reader: Any = None
    columns: list[str] | None = None
    number = 1
    while True:
        lines.begin_row(MAX_HEADER if columns is None else MAX_LINE)
        if reader is None:
            delimiter = lines.delimiter()
            reader = csv.reader(lines, strict=True, delimiter=delimiter)
            number = lines.number + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise BadInput(FieldProblem("body", None, f"is not valid CSV: {_reason(error)}", number)) from error
        line, number = number, lines.number + 1
        if not any(cells):
            continue
        if columns is None:
            columns = [cell.strip() for cell in cells]
            while not columns[-1]:
                columns.pop()
            _check_header(columns, line)
            continue
        if any(cells[len(columns) :]):
            extra = next(cell for cell in cells[len(columns) :] if cell)
            message = f"has {len(cells)} cells, and the header names {len(columns)} columns"
            yield line, FieldProblem("line", extra, message, line)
            continue
        yield line, row(zip(columns, cells, strict=False))


class _Rows:
    """The lines of a text for `csv.reader`, which asks for as many as a row has: never more than a row may have."""

    def __init__(self, text: Iterator[str]) -> None:
        self.number = 0  #: of the last line
        self._text = text
        self._rest = ""
        self._at = 0  #: what is before is read
        self._size = 0
        self._limit = 0

    def begin_row(self, limit: int) -> None:
        """The next line begins a row, which may have so many characters."""
        self._size, self._limit = 0, limit

    def delimiter(self) -> str:
        """What stands between the cells: by a first line ``sep=;``, else by what the first line has most of."""
        first = next(self, "")
        said = first.rstrip("\n")
        if said.lower().startswith("sep=") and len(said) == len("sep=") + 1:
            return said[-1]
        self.number -= 1
        self._at -= len(first)
        return max(DELIMITERS, key=first.count)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        while (end := self._rest.find("\n", self._at) + 1) == 0:
            left = len(self._rest) - self._at
            self._check(left)
            more = next(self._text, "")
            if not more:
                if not left:
                    raise StopIteration
                end = len(self._rest)
                break
            self._rest, self._at = self._rest[self._at :] + more, 0
        line, self._at = self._rest[self._at : end], end
        self._check(len(line))
        self._size += len(line)
        self.number += 1
        return line

    def _check(self, more: int) -> None:
        if self._size + more > self._limit:
            what = "the row that names the columns" if self._limit == MAX_HEADER else "a row"
            message = f"{what} has at most {self._limit:,} characters; is a quotation mark missing?"
            raise BadInput(FieldProblem("body", f"{self._size + more:,} characters", message, self.number + 1))


def _reason(error: csv.Error) -> str:
    """What Python says about it, as a sentence about the text."""
    said = str(error)
    if "field larger than field limit" in said:
        return f"a cell has more than {csv.field_size_limit():,} characters"
    if "unexpected end of data" in said:
        return "a quotation mark is missing at the end of a cell"
    if "expected after" in said:
        return 'after a closing quotation mark the cell must end; write a quotation mark inside a cell as ""'
    return said


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


def _text(chunks: Iterable[bytes]) -> Iterator[str]:
    """The text with a line feed at the end of each line, in pieces. Raises `BadInput` unless it is UTF-8 or UTF-16."""
    begin = b""
    rest = iter(chunks)
    for chunk in rest:
        begin += chunk
        if len(begin) >= len(codecs.BOM_UTF8):
            break
    utf16 = begin.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    decoder = codecs.getincrementaldecoder("utf-16" if utf16 else "utf-8-sig")()
    newlines = io.IncrementalNewlineDecoder(decoder, translate=True)
    line = 1
    for chunk, final in itertools.chain([(begin, False)], ((more, False) for more in rest), [(b"", True)]):
        try:
            text = newlines.decode(chunk, final=final)
        except UnicodeDecodeError as error:
            line += error.object[: error.start].count(b"\n")
            message = "is not valid UTF-16" if utf16 else _not_utf8(begin)
            raise BadInput(FieldProblem("body", f"byte {error.start}", message, line)) from error
        line += text.count("\n")
        for start in range(0, len(text), PIECE):
            yield text[start : start + PIECE]


PIECE: Final = 2**14  #: characters


def _not_utf8(begin: bytes) -> str:
    """What bytes are instead of UTF-8, if they begin as something that is known, and the remedy."""
    for magic, name, remedy in _MAGIC:
        if begin.startswith(magic):
            return f"is {name}: {remedy}"
    return "is not valid UTF-8: save the file as UTF-8"


_MAGIC: Final = (
    (b"\x1f\x8b", "compressed with gzip", "send it with Content-Encoding: gzip"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "send it with Content-Encoding: zstd"),
    (b"PK\x03\x04", "a ZIP archive or an Excel workbook", "save the sheet as CSV UTF-8"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook", "save the sheet as CSV UTF-8"),
    (codecs.BOM_UTF16_LE, "UTF-16", "save the file as UTF-8"),
    (codecs.BOM_UTF16_BE, "UTF-16", "save the file as UTF-8"),
)


def _check_header(columns: list[str], line: int) -> None:
    if len(columns) > MAX_COLUMNS:
        message = f"names {len(columns):,} columns; at most {MAX_COLUMNS} are allowed"
        raise BadInput(FieldProblem("header", None, message, line))
    problems = []
    seen: dict[str, str] = {}
    for place, name in enumerate(columns, start=1):
        stored = stored_name(name)
        if not name:
            message = f"column {place} has no name: name it, or leave it out"
            problems.append(FieldProblem("header", name, message, line))
            continue
        if name not in _COLUMNS and not (name.startswith(PREFIXES) and name not in PREFIXES):
            problems.append(FieldProblem(name, name, f"is not a parameter; {_suggestion(name)}", line))
        elif stored in seen:
            message = "is the name of two columns" if seen[stored] == name else f"is another name of {seen[stored]}"
            problems.append(FieldProblem(name, name, message, line))
        seen.setdefault(stored, name)
        if len(problems) >= MAX_PROBLEMS:
            break
    if problems:
        raise BadInput(*problems)


_COLUMNS: Final = frozenset(COLUMNS)


def _suggestion(name: str) -> str:
    """The column that was probably meant; else all that there are."""
    close = difflib.get_close_matches(name.lower().replace(" ", "_").replace("-", "_")[:64], COLUMNS, n=1, cutoff=0.7)
    if close:
        return f"did you mean {close[0]}?"
    return f"columns are: {', '.join((*COLUMNS, *(f'{prefix}<name>' for prefix in PREFIXES)))}"
