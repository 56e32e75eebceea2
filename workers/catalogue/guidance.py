"""When a pipeline uses its negative prompt: the comparison by which it decides about classifier-free guidance."""

from __future__ import annotations

import ast
from typing import Final

from farm.pipelines.spec import Guidance
from workers.catalogue.sources import Function, methods, nodes

#: What sources call the decision.
_DECISIONS: Final = frozenset({"do_classifier_free_guidance", "do_true_cfg"})
_SCALES: Final = ("true_cfg_scale", "guidance_scale")


def guidance_of(cls: type) -> Guidance | None:
    """The parameter that switches guidance on, and above which value; None where the source does not tell.

    ``do_classifier_free_guidance = guidance_scale > 1``, or a property of that name; ``do_true_cfg = true_cfg_scale > 1
    and has_neg_prompt``, which needs a negative prompt as well.
    """
    found = {decision for function in methods(cls).values() for decision in _decisions(function)}
    for scale in _SCALES:
        chosen = {one for one in found if one.scale == scale}
        if chosen:
            return chosen.pop() if len(chosen) == 1 else None
    return None


def _decisions(function: Function) -> list[Guidance]:
    values: list[ast.expr] = []
    for node in nodes(function):
        match node:
            case ast.Return(value=ast.expr() as value) if function.name in _DECISIONS:
                values.append(value)
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if name in _DECISIONS:
                values.append(value)
    return [decision for value in values if (decision := _decision(value)) is not None]


def _decision(value: ast.expr) -> Guidance | None:
    for node in ast.walk(value):
        match node:
            case ast.Compare(left=left, ops=[ast.Gt()], comparators=[ast.Constant(value=int() | float() as above)]):
                name = left.attr if isinstance(left, ast.Attribute) else left.id if isinstance(left, ast.Name) else ""
                scale = name.lstrip("_")
                if scale in _SCALES:
                    needs = any(isinstance(one, ast.Name) and one.id == "has_neg_prompt" for one in ast.walk(value))
                    return Guidance(scale, float(above), needs_negative=needs)
    return None
