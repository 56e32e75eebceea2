"""Checks of a JSON value against the part of JSON Schema that the catalogue uses."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Final

MAX_TEXT: Final = 10_000  #: characters of a string
MAX_ITEMS: Final = 1_000  #: of a list: as many as a scheduler has training steps
_INT64: Final = 2**63


class Unfit(ValueError):
    """The value does not fit; the text says what is allowed, to follow the name of the field."""


def coerce(schema: Mapping[str, Any], value: object) -> Any:
    """The value in the type that a pipeline expects.

    A number without a fraction is an integer in JSON, so ``3.0`` becomes ``3`` where an integer is wanted, and ``5``
    becomes ``5.0`` where a number is wanted. Nothing else is converted.

    Raises:
        Unfit: what is allowed.
    """
    if "enum" in schema:
        if isinstance(value, bool) or value not in schema["enum"]:
            raise Unfit(f"must be one of {', '.join(map(str, schema['enum']))}")
        return value
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    for kind in types:
        if (coerced := _CONVERSIONS[kind](value)) is not None:
            _check(kind, schema, coerced)
            return _items(schema, coerced) if kind == "array" else coerced
    raise Unfit(f"must be {' or '.join(_NOUNS[kind] for kind in types)}, not {_noun_of(value)}")


def parse(schema: Mapping[str, Any], text: str) -> Any:
    """The value that a cell of a CSV file or an option of a command line means: a text as it is, all else as JSON.

    Raises:
        Unfit: what is allowed.
    """
    if schema.get("type") == "string" or "enum" in schema:
        return coerce(schema, text)
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    return coerce(schema, value)


def allowed(schema: Mapping[str, Any]) -> str:
    """What a schema allows, in words: `a number of at least 0 and of at most 1`."""
    if "enum" in schema:
        return f"one of {', '.join(map(str, schema['enum']))}"
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return " or ".join(_NOUNS[kind] for kind in types) + _bounds(schema)


def _bounds(schema: Mapping[str, Any]) -> str:
    low, above, high = schema.get("minimum"), schema.get("exclusiveMinimum"), schema.get("maximum")
    words = [
        *([f"of at least {low:g}"] if low is not None else []),
        *([f"above {above:g}"] if above is not None else []),
        *([f"of at most {high:g}"] if high is not None else []),
    ]
    return f" {' and '.join(words)}" if words else ""


def _check(kind: str, schema: Mapping[str, Any], value: Any) -> None:
    if kind in ("integer", "number"):
        low, above, high = schema.get("minimum"), schema.get("exclusiveMinimum"), schema.get("maximum")
        if (
            (low is not None and value < low)
            or (above is not None and value <= above)
            or (high is not None and value > high)
        ):
            raise Unfit(f"is {value:g}; allowed is {allowed(schema)}")
    elif kind == "string":
        _check_text(value)
    elif kind == "array":
        least, most = schema.get("minItems", 0), schema.get("maxItems", MAX_ITEMS)
        if not least <= len(value) <= most:
            wanted = f"{least}" if least == most else f"{least} to {most}"
            raise Unfit(f"has {len(value)} items; allowed are {wanted}")


def _check_text(text: str) -> None:
    if len(text) > MAX_TEXT:
        raise Unfit(f"has {len(text)} characters; allowed are {MAX_TEXT}")
    if "\x00" in text:
        raise Unfit("must not contain NUL characters")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Unfit("must not contain lone surrogates: send valid Unicode text") from None


def _items(schema: Mapping[str, Any], values: list[object]) -> list[Any]:
    coerced = []
    for index, value in enumerate(values):
        try:
            coerced.append(coerce(schema["items"], value))
        except Unfit as problem:
            raise Unfit(f"item {index} {problem}") from None
    return coerced


def _integer(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, float) and not value.is_integer():  # NaN and the infinities are no integers either
        return None
    if not -_INT64 <= value < _INT64:
        raise Unfit("must fit into 64 bits")
    return int(value)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise Unfit("must be a finite number")
    return number


_CONVERSIONS: Final[Mapping[str, Any]] = {
    "integer": _integer,
    "number": _number,
    "boolean": lambda value: value if isinstance(value, bool) else None,
    "string": lambda value: value if isinstance(value, str) else None,
    "array": lambda value: list(value) if isinstance(value, list | tuple) else None,
}
_NOUNS: Final = {
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "string": "a text",
    "array": "a list",
}


def _noun_of(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, Mapping):
        return "an object"
    for kind in ("boolean", "string", "array"):
        if _CONVERSIONS[kind](value) is not None:
            return "a boolean" if kind == "boolean" else _NOUNS[kind]
    return repr(value) if isinstance(value, int | float) else type(value).__name__
