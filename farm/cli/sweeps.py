"""The ``--sweep`` options of ``farm submit``: ``NAME=VALUES`` as lists of values."""

from __future__ import annotations

import json
import re
from typing import Any, Final

from farm.api_types import PARAMETERS
from farm.cli.render import size_of
from farm.errors import BadInput

MAX_RANGE: Final = 100_000  #: values that one range may have: as many as a sweep has jobs

_RANGE: Final = re.compile(r"(-?[0-9]{1,19})\.\.(-?[0-9]{1,19})(?:\.\.([0-9]{1,19}))?", re.ASCII)
_NAMES: Final = {alias: name for name, one in PARAMETERS.items() for alias in (name, *one.aliases)}
_NUMBERS: Final = {"integer": int, "number": float, "numbers": float}
_BOOLEANS: Final = {"true": True, "false": False}


def groups(options: list[str]) -> list[dict[str, list[Any]]]:
    """The lists of values, one group for each parameter; an option for the same parameter again adds values.

    ``size=WxH,…`` is one group of ``width`` and ``height``. Raises `BadInput`.
    """
    found: dict[str, dict[str, list[Any]]] = {}
    for option in options:
        given, equals, text = option.partition("=")
        given = given.strip()
        if not equals or not text.strip():
            raise BadInput.of("sweep", option, "must be NAME=VALUES, such as guidance_scale=1,2,4 or seed=1..8")
        if given == "size":
            sizes = [size_of(one) for one in text.split(",")]
            group = found.setdefault(given, {"width": [], "height": []})
            group["width"] += [width for width, _ in sizes]
            group["height"] += [height for _, height in sizes]
            continue
        name = _NAMES.get(given.replace("-", "_"))
        if name is None:
            raise BadInput.of("sweep", given, "is not a parameter of jobs")
        group = found.setdefault(name, {name: []})
        group[name] += values(name, text)
    return list(found.values())


def values(name: str, text: str) -> list[Any]:
    """The values in a text: a JSON list, a range ``FIRST..LAST`` or ``FIRST..LAST..STEP``, or parts between commas."""
    stripped = text.strip()
    if stripped.startswith("["):
        try:
            listed = json.loads(stripped)
        except (ValueError, RecursionError):
            raise BadInput.of(f"sweep {name}", text, "is not a JSON list") from None
        return list(listed)
    counted = _RANGE.fullmatch(stripped)
    if counted is not None:
        first, last, step = int(counted[1]), int(counted[2]), int(counted[3] or 1)
        if not step or last < first or (last - first) // step >= MAX_RANGE:
            raise BadInput.of(f"sweep {name}", text, f"must go up, with at most {MAX_RANGE:,} values")
        return list(range(first, last + 1, step))
    return [_value(name, one.strip()) for one in stripped.split(",")]


def _value(name: str, text: str) -> Any:
    """A value of the parameter's kind; what is none stays text, and the farm names it."""
    kind = PARAMETERS[name].kind
    if kind == "boolean":
        return _BOOLEANS.get(text.lower(), text)
    try:
        return _NUMBERS[kind](text) if kind in _NUMBERS else text
    except ValueError:
        return text
