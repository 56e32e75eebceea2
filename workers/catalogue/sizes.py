"""Which sizes and frame counts a pipeline renders exactly, as expressions over the configs of its components."""

from __future__ import annotations

import ast
import importlib
import inspect
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from farm.pipelines.granularity import Granularity
from workers.catalogue.components import components_of, denoisers_of, inner_pipelines
from workers.catalogue.sources import Function, method, methods, nodes

_SIDES: Final = frozenset({"height", "width", "self.height", "self.width", "image_height", "image_width"})
_FRAMES: Final = frozenset({"num_frames", "frames", "video_length"})
_INNER_FRAMES: Final = _FRAMES | {"num_frames_in", "num_frames_out"}
#: A divisor that stands for the reduction of a VAE, and not for a packing of what is reduced already.
_REDUCTION: Final = re.compile(r"scale_(down_)?factor|compression_ratio|spatial_compression|downscale_factor")
#: Kandinsky rounds up to multiples of the square of the reduction.
_ROUNDING: Final = frozenset({"downscale_height_and_width", "get_new_h_w"})
_FUNCTIONS: Final = frozenset({"int", "len", "max", "sum"})


@dataclass(frozen=True)
class _Value:
    """An expression over configs, and its value for the usual models of the class."""

    rule: str
    usual: int | None


def size_of(cls: type) -> Granularity | None:
    """What width and height are multiples of; None for a class that takes no size."""
    if not {"height", "width"} & set(inspect.signature(cls.__call__).parameters):
        return None
    found = list(_divisors(cls, _SIDES))
    reduction = _attribute(cls, "vae_scale_factor") or _attribute(cls, "vae_scale_factor_spatial")
    patch = _patch(cls)
    if reduction is not None and patch is not None:
        found.append(_times(reduction, patch))
    if not found:
        for inner, _ in inner_pipelines(cls).values():
            if (granularity := size_of(inner)) is not None:
                found.append(_Value(granularity.rule, granularity.multiple))
    return _common_multiple(found, 0)


def frames_of(cls: type) -> Granularity | None:
    """The frame counts that are rendered as asked; None for a class that takes no count, or any."""
    if not _FRAMES & set(inspect.signature(cls.__call__).parameters):
        return None
    found = list(_divisors(cls, _INNER_FRAMES))
    return _common_multiple(found, 1)


def _common_multiple(values: list[_Value], offset: int) -> Granularity | None:
    usual: dict[str, int | None] = {}
    for value in values:
        usual[value.rule] = usual.get(value.rule) or value.usual
    # A multiple of another term says more than that term.
    usual = {rule: n for rule, n in usual.items() if not any(other.startswith(f"{rule} * ") for other in usual)}
    numbers = [int(rule) for rule in usual if rule.isdigit()]
    terms = ([str(math.lcm(*numbers))] if numbers else []) + sorted(rule for rule in usual if not rule.isdigit())
    if not terms:
        return None
    known = [value for value in usual.values() if value is not None]
    return Granularity(
        multiple=math.lcm(*known) if len(known) == len(usual) else None,
        rule=terms[0] if len(terms) == 1 else f"lcm({', '.join(terms)})",
        offset=offset,
    )


def _times(left: _Value, right: _Value) -> _Value:
    if left.rule.isdigit() and right.rule.isdigit():
        product = int(left.rule) * int(right.rule)
        return _Value(str(product), product)
    if right.rule == "1":
        return left
    if left.rule == "1":
        return right
    usual = None if left.usual is None or right.usual is None else left.usual * right.usual
    return _Value(f"{_operand(left, ast.Add | ast.Sub)} * {_operand(right, ast.Add | ast.Sub)}", usual)


def _operand(value: _Value, loose: Any) -> str:
    """A rule as an operand, in parentheses if its own operator binds less."""
    node = ast.parse(value.rule, mode="eval").body
    return f"({value.rule})" if isinstance(node, ast.BinOp) and isinstance(node.op, loose) else value.rule


def _divisors(cls: type, names: frozenset[str]) -> Iterator[_Value]:
    """The divisors of the named values, in checks (``height % 16 != 0``) and in sizes of latents."""
    for name, function in methods(cls).items():
        if not (name in ("__call__", "prepare_latents") or "check" in name):
            continue
        # `if num_frames % 2 == 0` chooses between two ways to render; it refuses and rounds nothing.
        choices = {id(node.left) for node in nodes(function) if isinstance(node, ast.Compare) and _is_equality(node)}
        for node in nodes(function):
            match node:
                case ast.BinOp(left=left, op=ast.Mod(), right=right) if (
                    _base(left) in names and id(node) not in choices
                ):
                    value = _value(right, cls, function)
                case ast.BinOp(left=left, op=ast.FloorDiv(), right=right):
                    value = _quotient(left, right, names, cls, function)
                case ast.Call(func=ast.Name(id=function_name), args=[_, _, factor]) if (
                    names is _SIDES and function_name in _ROUNDING
                ):
                    value = _operation(_value(factor, cls, function), ast.Pow(), _Value("2", 2))
                case _:
                    continue
            if value is not None and value.rule != "1":
                yield value


def _is_equality(node: ast.Compare) -> bool:
    return isinstance(node.ops[0], ast.Eq)


def _quotient(left: ast.expr, right: ast.expr, names: frozenset[str], cls: type, function: Function) -> _Value | None:
    """The divisor of ``height // reduction``, or of ``height // reduction // patch``."""
    if _base(left) in names and _is_reduction(right, function):
        return _value(right, cls, function)
    match left:
        case ast.BinOp(left=inner, op=ast.FloorDiv(), right=reduction) if _base(inner) in names and _is_reduction(
            reduction, function
        ):
            outer, more = _value(reduction, cls, function), _value(right, cls, function)
            return None if outer is None or more is None else _times(outer, more)
    return None


def _is_reduction(divisor: ast.expr, function: Function) -> bool:
    text = ast.unparse(divisor)
    if isinstance(divisor, ast.Name) and (assigned := _assigned(function, divisor.id)) is not None:
        text += ast.unparse(assigned)
    return bool(_REDUCTION.search(text))


def _base(node: ast.expr) -> str:
    """The name of a value inside ``int(…)``, or less one: ``num_frames - 1``."""
    match node:
        case ast.Call(func=ast.Name(id="int"), args=[inner]):
            return _base(inner)
        case ast.BinOp(left=inner, op=ast.Sub(), right=ast.Constant(value=1)):
            return _base(inner)
        case ast.Name() | ast.Attribute():
            return ast.unparse(node)
    return ""


def _assigned(function: Function, name: str) -> ast.expr | None:
    """What a local name is set to, if it is set once."""
    values = [
        node.value
        for node in nodes(function)
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets)
    ]
    return values[0] if len(values) == 1 else None


def _default(function: Function, name: str) -> _Value | None:
    """The default of a function's argument, if it is an integer."""
    arguments = function.args.args
    for argument, default in zip(
        arguments[len(arguments) - len(function.args.defaults) :], function.args.defaults, strict=True
    ):
        match default:
            case ast.Constant(value=int(number)) if argument.arg == name and not isinstance(number, bool):
                return _Value(str(number), number)
    return None


def _value(node: ast.expr, cls: type, function: Function | None) -> _Value | None:
    """An expression of a pipeline's source over the configs of its components; None if it is none."""
    match node:
        case ast.Constant(value=bool()):
            return None
        case ast.Constant(value=int(number)):
            return _Value(str(number), number)
        case ast.Name(id=name) if function is not None:
            assigned = _assigned(function, name)
            return _default(function, name) if assigned is None else _value(assigned, cls, function)
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return _choice(test, body, orelse, cls, function)
        case ast.BinOp(left=left, op=op, right=right) if isinstance(op, ast.Mult | ast.Pow | ast.Sub | ast.Add):
            return _operation(_value(left, cls, function), op, _value(right, cls, function))
        case ast.Call(func=ast.Name(id=name), args=[inner]) if name in _FUNCTIONS:
            value = _value(inner, cls, function)
            if value is None or (name == "int" and value.usual is not None):
                return value
            return _Value(f"{name}({value.rule})", value.usual if name == "int" else None)
        case ast.Subscript(value=inner, slice=ast.Constant(value=int(index))):
            value = _value(inner, cls, function)
            if value is None or value.rule.startswith("last("):
                return value
            return _Value(f"{value.rule}[{index}]", None)
        case ast.Attribute():
            return _looked_up(ast.unparse(node), cls)
    return None


def _choice(test: ast.expr, body: ast.expr, orelse: ast.expr, cls: type, function: Function | None) -> _Value | None:
    """``rule if getattr(self, "vae", None) else 8``: the other branch is the value for the usual models."""
    value, other = _value(body, cls, function), _value(orelse, cls, function)
    if value is None or "isinstance" in ast.unparse(test):
        return value or other
    if other is not None and other.rule.isdigit():
        return _Value(value.rule, value.usual if value.rule.isdigit() else other.usual)
    return value


def _operation(left: _Value | None, op: ast.operator, right: _Value | None) -> _Value | None:
    if left is None or right is None:
        return None
    if isinstance(op, ast.Mult):
        return _times(left, right)
    sign = {ast.Pow: "**", ast.Sub: "-", ast.Add: "+"}[type(op)]
    usual = None
    if left.usual is not None and right.usual is not None:
        usual = {"**": left.usual**right.usual, "-": left.usual - right.usual, "+": left.usual + right.usual}[sign]
    loose = ast.operator if sign == "**" else ast.Add | ast.Sub
    return _Value(f"{left.rule if sign != '**' else _operand(left, loose)} {sign} {_operand(right, loose)}", usual)


@cache
def _attribute(cls: type, name: str) -> _Value | None:
    """What ``self.<name>`` is: assigned in the constructor, or a property."""
    for function in (method(cls, "__init__"), methods(cls).get(name)):
        for node in nodes(function) if function else ():
            match node:
                case ast.Assign(targets=[ast.Attribute(value=ast.Name(id="self"), attr=attribute)], value=value) if (
                    attribute == name
                ):
                    found = _value(value, cls, function)
                    if found is not None:
                        return found
                case ast.Return(value=ast.expr() as value) if function is not None and function.name == name:
                    found = _value(value, cls, function)
                    if found is not None:
                        return found
    return None


def _looked_up(text: str, cls: type) -> _Value | None:
    """``self.vae.config.x``, ``self.vae.x`` or ``self.x``."""
    parts = text.removeprefix("self.").split(".")
    components = components_of(cls).classes
    if not text.startswith("self."):
        return None
    if len(parts) == 1:
        return _attribute(cls, parts[0])
    component, key = parts[0], parts[-1]
    if component not in components or len(parts) > 3:
        return None
    if len(parts) == 3 and parts[1] == "config":
        return _Value(_patched(f"{component}.{key}"), None)
    return _model_attribute(component, components[component], key) if len(parts) == 2 else None


def _patched(key: str) -> str:
    """A patch size is one number, or one for each axis, of which the last is the width's."""
    return f"last({key})" if key.endswith(".patch_size") else key


def _model_attribute(component: str, classes: tuple[str, ...], name: str) -> _Value | None:
    """An attribute of a model, over the config from which its constructor computes it."""
    for class_name in classes:
        model = getattr(importlib.import_module("diffusers"), class_name, None)
        if not inspect.isclass(model):
            continue
        options = {key: parameter.default for key, parameter in inspect.signature(model.__init__).parameters.items()}
        expression = _model_expression(model, name)
        computed = None if expression is None else _over_config(expression, component, options)
        if name in options:
            key = _patched(f"{component}.{name}")
            return _Value(
                f"default({key}, {computed})" if computed and computed != f"{component}.{name}" else key, None
            )
        if computed is not None:
            return _Value(computed, None)
    return None


def _model_expression(model: type, name: str) -> ast.expr | None:
    for function in (method(model, "__init__"), method(model, name)):
        for node in nodes(function) if function else ():
            match node:
                case ast.Assign(targets=[ast.Attribute(value=ast.Name(id="self"), attr=attribute)], value=value) if (
                    attribute == name
                ):
                    return value
                case ast.Return(value=ast.expr() as value) if function is not None and function.name == name:
                    return value
    return None


def _over_config(node: ast.expr, component: str, options: dict[str, object]) -> str | None:
    """An expression of a model's constructor, its arguments replaced by keys of the config."""
    match node:
        case ast.Constant(value=int(number)):
            return str(number)
        case ast.Name(id=name) if name in options:
            default = options[name]
            plain = isinstance(default, int) and not isinstance(default, bool)
            return f"default({component}.{name}, {default})" if plain else f"{component}.{name}"
        case ast.Attribute(attr=name) if ast.unparse(node.value) == "self.config" and name in options:
            return _over_config(ast.Name(id=name), component, options)
        case ast.IfExp(test=ast.Compare(left=ast.Name(id=name), ops=[ast.Is()]), body=body) if name in options:
            # `computed if given is None else given`: the config holds what was given, or null
            return _over_config(body, component, options)
        case ast.BinOp(left=left, op=op, right=right) if isinstance(op, ast.Mult | ast.Pow | ast.Sub | ast.Add):
            first, second = _over_config(left, component, options), _over_config(right, component, options)
            sign = {ast.Mult: "*", ast.Pow: "**", ast.Sub: "-", ast.Add: "+"}[type(op)]
            return None if first is None or second is None else f"({first} {sign} {second})"
        case ast.Call(func=ast.Name(id=name), args=[inner]) if name in _FUNCTIONS:
            argument = _over_config(inner, component, options)
            return None if argument is None else f"{name}({argument})"
    return None


def _patch(cls: type) -> _Value | None:
    """The side of the patches that the denoiser makes of latents."""
    for component in denoisers_of(cls):
        for class_name in components_of(cls).classes.get(component, ()):
            model = getattr(importlib.import_module("diffusers"), class_name, None)
            parameters = inspect.signature(model.__init__).parameters if inspect.isclass(model) else {}
            if "patch_size" in parameters:
                default = parameters["patch_size"].default
                usual = default[-1] if isinstance(default, list | tuple) else default
                return _Value(f"last({component}.patch_size)", usual if isinstance(usual, int) else None)
    return _Value("1", 1)
