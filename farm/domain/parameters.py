"""The parameters of all tasks: their names, kinds and values from text. Derived from `farm.tasks`.

Whatever lists parameters (CSV columns, query defaults, forms, adapters, the tests that compare them) reads them here.
"""

from __future__ import annotations

import json
import re
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import AliasChoices, AwareDatetime
from pydantic.fields import FieldInfo

from farm.domain.requests import REQUESTS
from farm.fields import CellText
from farm.tasks import INPUT_ROLES, TASKS


class ParameterKind(StrEnum):
    """What a parameter's value is."""

    TEXT = "text"
    INTEGER = "integer"
    NUMBER = "number"
    NUMBERS = "numbers"  #: one number, or one for each of several files
    BOOLEAN = "boolean"
    CHOICE = "choice"  #: one of `Parameter.choices`
    TIME = "time"
    INPUT = "input"  #: a reference to an input file, or several
    LORAS = "loras"
    METADATA = "metadata"  #: texts by name
    OBJECT = "object"  #: JSON values by name
    INPUTS = "inputs"  #: references to input files by name


@dataclass(frozen=True)
class Parameter:
    """One parameter of a job's request."""

    name: str  #: as it is stored
    kind: ParameterKind
    tasks: frozenset[str]  #: the tasks that have it
    required: bool  #: by each of these tasks
    choices: tuple[str, ...]  #: of a `ParameterKind.CHOICE`
    aliases: tuple[str, ...]  #: other names that requests may use
    description: str
    field: FieldInfo  #: the declaration, of the first task that has it
    many: bool = False  #: of a `ParameterKind.INPUT`: whether some task takes several

    @property
    def names(self) -> tuple[str, ...]:
        """All names that requests may use, the stored one first."""
        return (self.name, *self.aliases)


def _unwrapped(annotation: Any) -> Any:
    """The type inside ``Annotated`` and ``… | None``."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _unwrapped(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return _unwrapped(next(one for one in get_args(annotation) if one is not type(None)))
    return annotation


def _kind(name: str, annotation: Any) -> tuple[ParameterKind, tuple[str, ...]]:
    plain = _unwrapped(annotation)
    if any(name in roles for roles in INPUT_ROLES.values()):
        return ParameterKind.INPUT, ()
    if name == "task":
        return ParameterKind.CHOICE, tuple(TASKS)
    if get_origin(plain) is Literal:
        return ParameterKind.CHOICE, get_args(plain)
    if isinstance(plain, type) and issubclass(plain, StrEnum):
        return ParameterKind.CHOICE, tuple(one.value for one in plain)
    union = get_origin(annotation) in (Union, types.UnionType)
    if plain in (int, float) and union and any(get_origin(_unwrapped(one)) is tuple for one in get_args(annotation)):
        return ParameterKind.NUMBERS, ()
    kinds = {
        str: ParameterKind.TEXT,
        int: ParameterKind.INTEGER,
        float: ParameterKind.NUMBER,
        bool: ParameterKind.BOOLEAN,
        AwareDatetime: ParameterKind.TIME,
        tuple: ParameterKind.LORAS,
        dict: {"metadata": ParameterKind.METADATA, "inputs": ParameterKind.INPUTS}.get(name, ParameterKind.OBJECT),
    }
    return kinds[get_origin(plain) or plain], ()


def _aliases(name: str, field: FieldInfo) -> tuple[str, ...]:
    alias = field.validation_alias
    return tuple(str(one) for one in alias.choices if one != name) if isinstance(alias, AliasChoices) else ()


def _parameters() -> dict[str, Parameter]:
    found: dict[str, Parameter] = {}
    for name in dict.fromkeys(name for request in REQUESTS.values() for name in request.model_fields):
        fields = {
            task: request.model_fields[name] for task, request in REQUESTS.items() if name in request.model_fields
        }
        first = next(iter(fields.values()))
        kind, choices = _kind(name, first.annotation)
        for field in fields.values():  # tasks of other media have other choices
            choices = tuple(dict.fromkeys((*choices, *_kind(name, field.annotation)[1])))
        found[name] = Parameter(
            name=name,
            kind=kind,
            tasks=frozenset(fields),
            required=all(field.is_required() for field in fields.values()),
            choices=choices,
            aliases=_aliases(name, first),
            description=first.description or "",
            field=first,
            many=any(TASKS[task].inputs[name].max > 1 for task in fields) if kind is ParameterKind.INPUT else False,
        )
    return found


#: All parameters by their stored names, in the order in which requests declare them.
PARAMETERS: Final[Mapping[str, Parameter]] = _parameters()
_BY_NAME: Final = {name: parameter for parameter in PARAMETERS.values() for name in parameter.names}


def stored_name(name: str) -> str:
    """The name under which a parameter is stored; a name that is not a parameter stays as it is."""
    parameter = _BY_NAME.get(name)
    return name if parameter is None else parameter.name


def without(given: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The given parameters without the named ones, under any of their names."""
    left_out = {stored_name(name) for name in names}
    return {name: value for name, value in given.items() if stored_name(name) not in left_out}


def merge(defaults: Mapping[str, Any], request: Mapping[str, Any]) -> dict[str, Any]:
    """The request with defaults for what it leaves out."""
    return without(defaults, request) | dict(request)


# -- values from text --------------------------------------------------------------------------------------------------

#: Kinds of which a column may hold one value.
OBJECTS: Final = (ParameterKind.OBJECT, ParameterKind.INPUTS)
#: What a column or a field of one value of an object is called: ``parameters.clip_skip``.
OBJECT_PREFIXES: Final = tuple(f"{one.name}." for one in PARAMETERS.values() if one.kind in OBJECTS)

_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,30}(?:\.0+)?", re.ASCII)
_NUMBER: Final = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?", re.ASCII)
_BOOLEANS: Final = {"true": True, "false": False}
#: Texts whose white space is the client's own.
_VERBATIM: Final = frozenset({"prompt", "negative_prompt"})


def from_text(name: str, text: str) -> object:
    """A parameter's value from the text of a CSV cell, a form field or a query.

    Text that is not of the parameter's kind stays as it is, so that the check of the request names it.
    """
    parameter = _BY_NAME.get(name)
    if parameter is None and name.startswith(OBJECT_PREFIXES):
        return _references(text) if name.startswith("inputs.") else CellText(text)
    if parameter is None or parameter.name in _VERBATIM:
        return text
    stripped = text.strip()
    match parameter.kind:
        case ParameterKind.INTEGER if _INTEGER.fullmatch(stripped):
            return int(stripped.partition(".")[0])
        case ParameterKind.NUMBER if _NUMBER.fullmatch(stripped):
            return float(stripped)
        case ParameterKind.NUMBERS:
            numbers = [_number(one) for one in stripped.replace(",", " ").split()]
            return numbers[0] if len(numbers) == 1 else numbers
        case ParameterKind.BOOLEAN:
            return _BOOLEANS.get(stripped.lower(), stripped)
        case ParameterKind.LORAS:
            return _json(stripped) if stripped.startswith("[") else [_lora(one) for one in stripped.split(",")]
        case ParameterKind.METADATA | ParameterKind.OBJECT | ParameterKind.INPUTS:
            return _json(stripped)
        case ParameterKind.INPUT if stripped.startswith(("[", "{")):
            return _json(stripped)
        case ParameterKind.INPUT if parameter.many:
            return _references(stripped)
    return stripped


def _references(text: str) -> object:
    """One reference, or several that are separated by spaces."""
    found = text.split()
    return found[0] if len(found) == 1 else found


def _number(text: str) -> object:
    if _INTEGER.fullmatch(text):
        return int(text.partition(".")[0])
    return float(text) if _NUMBER.fullmatch(text) else text


def to_text(value: object) -> str:
    """The text of a parameter's value, which `from_text` reads; of no value, no text."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        if all(isinstance(one, str | int | float) for one in value):
            return " ".join(map(str, value))
        return ", ".join(f"{one['name']}:{one['scale']:g}" for one in value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)


def _lora(text: str) -> dict[str, object]:
    """``NAME`` or ``NAME:SCALE``."""
    name, separator, scale = text.partition(":")
    found: dict[str, object] = {"name": name.strip()}
    if separator:
        scale = scale.strip()
        found["scale"] = float(scale) if _NUMBER.fullmatch(scale) else scale
    return found


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
