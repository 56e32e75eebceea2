"""Which sizes and frame counts a pipeline renders exactly, computed from the configs of a model folder."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

_OPERATORS: Final[dict[type[ast.operator], Callable[[Any, Any], Any]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
}
_FUNCTIONS: Final[dict[str, Callable[..., Any]]] = {
    "int": int,
    "lcm": math.lcm,
    "len": len,
    "max": max,
    "prod": math.prod,
    "sum": sum,
}


class MissingConfig(LookupError):
    """The folder's configs lack a key that the rule reads."""


@dataclass(frozen=True, slots=True)
class Granularity:
    """The values that a width, a height or a frame count may take: ``k * multiple + offset``."""

    multiple: int | None  #: for the usual models of the class; None where only a folder's configs tell
    rule: str  #: the multiple as an expression: `lcm(8, 2 ** (len(vae.block_out_channels) - 1))`
    offset: int = 0

    def multiple_for(self, configs: Mapping[str, Mapping[str, Any]]) -> int:
        """The multiple of one model.

        Args:
            configs: the ``config.json`` of each component, by the component's name.

        Raises:
            MissingConfig: a key that the rule reads is absent, and the rule names no default for it.
        """
        value = _evaluate(ast.parse(self.rule, mode="eval").body, configs)
        if not isinstance(value, int) or value < 1:
            raise MissingConfig(f"{self.rule} is {value!r}, not a positive integer")
        return value


def _evaluate(node: ast.expr, configs: Mapping[str, Mapping[str, Any]]) -> Any:
    """The value of a rule: arithmetic, a few functions, and ``component.key`` for what a config says."""
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Attribute(value=ast.Name(id=component), attr=key):
            if (found := configs.get(component, {}).get(key)) is None:
                raise MissingConfig(f"the config of {component} has no {key}")
            return found
        case ast.Subscript(value=value, slice=index):
            return _evaluate(value, configs)[_evaluate(index, configs)]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluate(operand, configs)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_evaluate(left, configs), _evaluate(right, configs))
        case ast.Tuple(elts=items) | ast.List(elts=items):
            return [_evaluate(item, configs) for item in items]
        case ast.Call(func=ast.Name(id="default"), args=[wanted, other]):
            try:
                return _evaluate(wanted, configs)
            except MissingConfig:
                return _evaluate(other, configs)
        case ast.Call(func=ast.Name(id="last"), args=[listed]):  # a patch size: one number, or one for each axis
            value = _evaluate(listed, configs)
            return value[-1] if isinstance(value, list | tuple) else value
        case ast.Call(func=ast.Name(id=name), args=args) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*(_evaluate(arg, configs) for arg in args))
    raise ValueError(f"a rule may not contain {ast.unparse(node)}")
