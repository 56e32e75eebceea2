"""Options of commands for the parameters of jobs that have none of their own: a new parameter is an option at once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, Final

import typer

from farm.api_types import PARAMETERS, ParameterInfo
from farm.errors import BadInput

_TYPES: Final[Mapping[str, Any]] = {
    "integer": int,
    "number": float,
    "numbers": list[str],
    "boolean": bool,
    "text": str,
    "choice": str,
    "time": str,
    "input": str,
    "inputs": list[str],
    "object": list[str],
}
_METAVARS: Final = {"inputs": "NAME=FILE", "object": "NAME=VALUE", "input": "FILE"}


def with_parameters(command: Callable[..., None], without: Collection[str]) -> Callable[..., None]:
    """The command with an option for every parameter of jobs.

    Args:
        command: gets those that were given as the mapping ``more``.
        without: the parameters that it has options of its own for, or does not take.
    """
    own = inspect.signature(command, eval_str=True)
    derived = {name: _option(name, info) for name, info in PARAMETERS.items() if name not in without}

    def called(**given: Any) -> None:
        more = {
            name: _numbers(name, value) if PARAMETERS[name].kind == "numbers" else value
            for name in derived
            if (value := given.pop(name)) is not None and value != []
        }
        command(**given, more=more)

    parameters = [one for one in own.parameters.values() if one.name != "more"]
    place = next(index for index, one in enumerate(parameters) if one.name == "model")
    called.__signature__ = own.replace(parameters=[*parameters[:place], *derived.values(), *parameters[place:]])  # type: ignore[attr-defined]
    called.__annotations__ = {one.name: one.annotation for one in (*parameters, *derived.values())}
    called.__name__, called.__doc__ = command.__name__.lstrip("_"), command.__doc__
    return called


def _numbers(name: str, texts: list[str]) -> object:
    """One number, or a list of them. Raises `BadInput`."""
    try:
        found = [int(text) if text.isdecimal() else float(text) for text in texts]
    except ValueError:
        raise BadInput.of(name, " ".join(texts), "must be a number; repeat the option for several") from None
    return found[0] if len(found) == 1 else found


def _option(name: str, info: ParameterInfo) -> inspect.Parameter:
    kind: Any = _TYPES[info.kind]
    if info.many and kind is str:
        kind = list[str]
    flags = [f"--{each.replace('_', '-')}" for each in (name, *info.aliases)]
    if kind is bool:
        flags = [f"{flag}/--no-{flag.removeprefix('--')}" for flag in flags]
    repeated = " May be repeated." if kind == list[str] else ""
    option = typer.Option(*flags, metavar=_METAVARS.get(info.kind), help=info.description + repeated)
    return inspect.Parameter(
        name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=Annotated[kind | None, option]
    )
