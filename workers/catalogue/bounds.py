"""Bounds and choices of a parameter: from the checks in a pipeline's source, and what the field knows."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from typing import Any, Final

from workers.catalogue.sources import Function

#: What every pipeline means by a name, whether or not its source checks it. The first pattern that matches the whole
#: name decides.
_KNOWN: Final[tuple[tuple[str, dict[str, float]], ...]] = (
    (r"strength|control_guidance_(start|end)|denoising_(start|end)|guidance_rescale", {"minimum": 0, "maximum": 1}),
    (r"(\w+_)?(guidance|cfg)_scale(_\d)?|pag_(adaptive_)?scale|eta|clip_skip", {"minimum": 0}),
    (r"(controlnet|adapter|controls)_conditioning_scale", {"minimum": 0}),
    (r"(\w+_)?num_inference_steps|num_(images|videos|waveforms)_per_prompt|num_frames|video_length", {"minimum": 1}),
    (r"height|width|fps|frame_rate|max_sequence_length|batch_size|decode_chunk_size", {"minimum": 1}),
)
_FLIPPED: Final = {ast.Lt: ast.Gt, ast.LtE: ast.GtE, ast.Gt: ast.Lt, ast.GtE: ast.LtE}


def known_bounds(name: str) -> dict[str, float]:
    """The bounds that hold for the name in every pipeline."""
    return next((bounds for pattern, bounds in _KNOWN if re.fullmatch(pattern, name)), {})


def checked_bounds(functions: Iterable[Function], names: Iterable[str], module: str) -> dict[str, dict[str, Any]]:
    """What the source refuses, as JSON Schema keywords by parameter.

    Read from statements of the form ``if strength < 0 or strength > 1: raise …`` and ``if mode not in (…): raise …``.

    Args:
        functions: that check the call's arguments under their own names.
        names: of the call's parameters.
        module: whose constants the checks may name.
    """
    wanted = set(names)
    found: dict[str, dict[str, Any]] = {}
    for test in _refusals(functions):
        for condition in _alternatives(test):
            for name, keywords in _refused(condition, module):
                if name in wanted:
                    _narrow(found.setdefault(name, {}), keywords)
    return found


def _refusals(functions: Iterable[Function]) -> Iterator[ast.expr]:
    """The conditions of ``if …: raise``, but for those inside another condition's body: they do not always hold."""
    pending: list[ast.stmt] = [statement for function in functions for statement in function.body]
    while pending:
        statement = pending.pop()
        if isinstance(statement, ast.If):
            if any(isinstance(inner, ast.Raise) for inner in statement.body):
                yield statement.test
            pending += statement.orelse


def _narrow(known: dict[str, Any], more: Mapping[str, Any]) -> None:
    for keyword, value in more.items():
        if keyword not in known:
            known[keyword] = value
        elif keyword in ("minimum", "exclusiveMinimum"):
            known[keyword] = max(known[keyword], value)
        elif keyword == "maximum":
            known[keyword] = min(known[keyword], value)


def _alternatives(test: ast.expr) -> list[ast.expr]:
    """The conditions each of which alone raises; ``x is not None`` beside another is no condition of its own."""
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.Or):
        return [condition for value in test.values for condition in _alternatives(value)]
    if isinstance(test, ast.BoolOp):
        rest = [value for value in test.values if not _is_presence(value)]
        return _alternatives(rest[0]) if len(rest) == 1 else []
    return [test]


def _is_presence(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Compare)
        and isinstance(node.ops[0], ast.IsNot)
        and isinstance(node.comparators[0], ast.Constant)
        and node.comparators[0].value is None
    )


def _refused(condition: ast.expr, module: str) -> list[tuple[str, dict[str, Any]]]:
    if isinstance(condition, ast.UnaryOp) and isinstance(condition.op, ast.Not):
        inner = condition.operand
        return _accepted(inner) if isinstance(inner, ast.Compare) else []
    if not isinstance(condition, ast.Compare) or len(condition.ops) != 1:
        return []
    left, operator, right = condition.left, type(condition.ops[0]), condition.comparators[0]
    if isinstance(left, ast.Name) and operator is ast.NotIn:
        choices = _choices(right, module)
        return [(left.id, {"enum": choices})] if choices else []
    if isinstance(right, ast.Name) and operator in _FLIPPED:
        left, operator, right = right, _FLIPPED[operator], left
    bound = _number(right)
    if not isinstance(left, ast.Name) or bound is None:
        return []
    keyword = {
        ast.Lt: "minimum",
        ast.LtE: "exclusiveMinimum",
        ast.Gt: "maximum",
    }.get(operator)
    return [(left.id, {keyword: bound})] if keyword else []


def _accepted(compare: ast.Compare) -> list[tuple[str, dict[str, Any]]]:
    """``not 0 <= x <= 1``: what is inside the negation is accepted."""
    found: list[tuple[str, dict[str, Any]]] = []
    operands = [compare.left, *compare.comparators]
    for left, operator, right in zip(operands, compare.ops, operands[1:], strict=False):
        low, high = _number(left), _number(right)
        if isinstance(right, ast.Name) and low is not None and isinstance(operator, ast.Lt | ast.LtE):
            found.append((right.id, {"minimum" if isinstance(operator, ast.LtE) else "exclusiveMinimum": low}))
        if isinstance(left, ast.Name) and high is not None and isinstance(operator, ast.LtE):
            found.append((left.id, {"maximum": high}))
    return found


def _number(node: ast.expr) -> float | None:
    try:
        value = ast.literal_eval(node)
    except ValueError:
        return None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _choices(node: ast.expr, module: str) -> list[Any]:
    """The values of a literal, or of a constant of the module."""
    try:
        value = ast.literal_eval(node)
    except ValueError:
        value = getattr(sys.modules[module], node.id, None) if isinstance(node, ast.Name) else None
    if isinstance(value, type) and issubclass(value, Enum):
        value = [member.value for member in value]
    items = list(value) if isinstance(value, list | tuple | set | frozenset | dict) else []
    return sorted(items) if items and all(isinstance(item, str) for item in items) else []


def needed(functions: Iterable[Function], offered: Iterable[str], internal: Iterable[str]) -> set[str]:
    """The parameters without which the source raises, though their default is None.

    ``if prompt is None and prompt_embeds is None: raise …`` makes ``prompt`` needed: nobody can give the tensor.

    Args:
        functions: that check the call's arguments under their own names.
        offered: names that a request can give.
        internal: names that it cannot.
    """
    given, hidden = set(offered), set(internal)
    found: set[str] = set()
    for test in _refusals(functions):
        absent = _absent(test)
        if absent is not None and absent <= given | hidden and len(absent & given) == 1:
            found |= absent & given
    return found


def _absent(test: ast.expr) -> set[str] | None:
    """The names of ``a is None and b is None``; None for any other condition."""
    values = test.values if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And) else [test]
    names: set[str] = set()
    for value in values:
        if not (
            isinstance(value, ast.Compare)
            and isinstance(value.left, ast.Name)
            and isinstance(value.ops[0], ast.Is)
            and isinstance(value.comparators[0], ast.Constant)
            and value.comparators[0].value is None
        ):
            return None
        names.add(value.left.id)
    return names
