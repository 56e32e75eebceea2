"""Literal types of the API as options that may be repeated.

typer takes a literal type for an option with one value, but not for a list of them. At run time these are enumerations
of the same texts, whose members are strings.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any, get_args

from farm import api_types

if TYPE_CHECKING:
    EventType = api_types.EventType
    JobState = api_types.JobState
    Scope = api_types.Scope
else:

    def _enumeration(name: str, literal: Any) -> type[StrEnum]:
        return StrEnum(name, [(text, text) for text in get_args(literal)])

    EventType = _enumeration("EventType", api_types.EventType)
    JobState = _enumeration("JobState", api_types.JobState)
    Scope = _enumeration("Scope", api_types.Scope)
