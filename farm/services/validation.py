"""Errors of pydantic as `FieldProblem`, and values of clients in a form that can be sent back."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from farm.domain.job import JobFilter
from farm.domain.parameters import stored_name
from farm.domain.requests import AnyJobRequest
from farm.errors import BadInput, FieldProblem
from farm.tasks import TASKS

MAX_VALUE: Final = 100  #: characters of a refused value that are sent back

_REQUEST: Final[TypeAdapter[AnyJobRequest]] = TypeAdapter(AnyJobRequest)


def job_request(body: object) -> AnyJobRequest:
    """A job's request from its fields. Raises `BadInput` with every problem found."""
    try:
        return _REQUEST.validate_python(body)
    except ValidationError as error:
        raise BadInput(*of_body(error)) from None


def job_filter(states: Iterable[str], texts: Mapping[str, str]) -> JobFilter:
    """A filter from the texts of a form or a query; an empty text does not filter. Raises `BadInput`."""
    given = {name: text.strip() for name, text in texts.items() if text.strip()}
    try:
        return JobFilter.model_validate({"state": tuple(states), **given})
    except ValidationError as error:
        raise BadInput(*of_body(error)) from None


def of_body(error: ValidationError) -> list[FieldProblem]:
    """What pydantic found wrong with a body, or with a part of one, that was validated by hand."""
    return [problem_of({**one, "loc": ("body", *one["loc"])}) for one in error.errors(include_url=False)]


_TAGS: Final = frozenset(TASKS)


def problem_of(error: Mapping[str, Any]) -> FieldProblem:
    """One of pydantic's errors, with the field as the client wrote it."""
    where, *path = error["loc"]
    kind, context = error["type"], error.get("ctx", {})
    if where == "body" and len(path) > 1 and path[0] in _TAGS:
        path = path[1:]  # pydantic's name for the branch of the union, which the client never wrote
    if path and path[-1] == "[key]":
        path.pop()
    field = ".".join(map(str, path)) or where
    value = error.get("input")
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        given = value.get("task") if isinstance(value, Mapping) else value
        return FieldProblem("task", given, f"must be one of {', '.join(TASKS)}")
    if kind == "missing":
        return FieldProblem(field, None, "is required")
    if kind == "extra_forbidden":
        stored = stored_name(str(path[-1])) if path else field
        if path and stored != path[-1]:
            return FieldProblem(field, value, f"is another name of {stored}; give one of them")
        return FieldProblem(field, value, "is not a field of this request")
    if kind in ("model_attributes_type", "model_type", "dict_type") and not path:
        return FieldProblem(field, value, "must be a JSON object")
    if kind in ("list_type", "tuple_type"):
        return FieldProblem(field, value, "must be a list")
    if kind == "value_error":
        return FieldProblem(field, value, str(context.get("error", error["msg"])))
    if kind == "string_unicode":
        return FieldProblem(field, value, "must not contain lone surrogates: send valid Unicode text")
    message = str(error["msg"])
    for prefix in ("Input should be ", "Value should be "):
        if message.startswith(prefix):
            message = "must be " + message.removeprefix(prefix)
    return FieldProblem(field, value, message)


def encodable(text: str) -> str:
    """The text without what UTF-8 cannot carry."""
    return text.encode("utf-8", "backslashreplace").decode()


def shortened(text: str, length: int) -> str:
    """The text in a form that is encodable and has at most so many characters."""
    text = encodable(text[: length + 1])
    return text if len(text) <= length else text[: length - 1] + "…"


def shown(value: object) -> str | int | float | bool | None:
    """A client's value in a form that is short and always encodable."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(value) < 2**63:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, str):
        text = value
    elif isinstance(value, int):
        text = f"a number of {value.bit_length()} bits"
    elif isinstance(value, float):
        text = str(value)
    else:
        text = _json(value)
    return shortened(text, MAX_VALUE)


def _json(value: object) -> str:
    text = ""
    try:
        for part in _ENCODER.iterencode(value):  # a large value is not written to its end
            text += part
            if len(text) > MAX_VALUE:
                break
    except (ValueError, RecursionError, TypeError):
        return type(value).__name__
    return text


_ENCODER: Final = json.JSONEncoder(default=lambda other: type(other).__name__, ensure_ascii=False)
