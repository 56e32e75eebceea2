"""Query parameters that a route does not have are refused, as unknown fields of a body are."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from pydantic import AliasChoices, BaseModel
from pydantic.fields import FieldInfo

from farm.errors import BadInput, FieldProblem

MAX_PROBLEMS = 20  #: parameters that one refusal names


def check_names(request: Request, allowed: Collection[str]) -> None:
    """Raise `BadInput` for a query parameter with another name."""
    unknown = [(name, value) for name, value in request.query_params.multi_items() if name not in allowed]
    if unknown:
        raise BadInput(*(FieldProblem(name, value, _remedy(name, allowed)) for name, value in unknown[:MAX_PROBLEMS]))


def _remedy(name: str, allowed: Collection[str]) -> str:
    close = difflib.get_close_matches(name[:64], allowed, n=1, cutoff=0.6)
    if close:
        return f"is not a query parameter here; did you mean {close[0]}?"
    if allowed:
        return f"is not a query parameter here; there are: {', '.join(sorted(allowed))}"
    return "is not a query parameter here; there are none"


async def known_query_parameters(request: Request) -> None:
    """A dependency of every route: its query has no other parameters than the route declares. Raises `BadInput`."""
    route = request.scope.get("route")
    if request.scope["query_string"] and isinstance(route, APIRoute):
        check_names(request, frozenset(_names(route.dependant)))


def _names(dependant: Dependant) -> Iterator[str]:
    for field in dependant.query_params:
        kind = field.field_info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            for name, info in kind.model_fields.items():
                yield from _aliases(name, info)
        else:
            yield from _aliases(field.alias, field.field_info)
    for one in dependant.dependencies:
        yield from _names(one)


def _aliases(name: str, info: FieldInfo) -> Iterator[str]:
    alias = info.validation_alias
    if isinstance(alias, AliasChoices):
        yield from (choice for choice in alias.choices if isinstance(choice, str))
    else:
        yield alias if isinstance(alias, str) else info.alias or name
