"""From the annotation of a parameter to what a request may give for it."""

from __future__ import annotations

import ast
import collections.abc
import enum
import inspect
import sys
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Union

import numpy as np
import PIL.Image
import torch

#: JSON's name of a Python type.
_SCALARS: Final = {str: "string", int: "integer", float: "number", bool: "boolean"}
_SEQUENCES: Final = (list, tuple, set, collections.abc.Iterable, collections.abc.Sequence)
#: A number is the wider type: `int | float` is a number.
_ORDER: Final = ("boolean", "integer", "number", "string")


@dataclass
class Shape:
    """The alternatives that an annotation allows."""

    scalars: set[str] = field(default_factory=set)
    items: Shape | None = None  #: of a list
    length: int | None = None  #: of a tuple
    choices: list[Any] = field(default_factory=list)
    pil: bool = False
    numpy: bool = False
    tensor: bool = False
    callable: bool = False
    generator: bool = False
    objects: bool = False  #: dicts, and classes that JSON does not know
    unknown: bool = False  #: no annotation

    @property
    def nested_pil(self) -> int:
        """How many lists surround an image: a list of lists of images is a list of videos."""
        inner = 0 if self.items is None else self.items.nested_pil
        if self.items is not None and (inner or self.items.pil):
            return inner + 1
        return 0

    def leaf(self, name: str) -> bool:
        """Whether an alternative, or an item of one, is of a kind: ``pil``, ``numpy``, ``tensor``."""
        return bool(getattr(self, name)) or (self.items is not None and self.items.leaf(name))


def shape_of(annotation: Any, module: str) -> Shape:
    """What an annotation allows.

    Args:
        annotation: as `inspect.signature` gives it: a type, or its text.
        module: whose names the text uses.
    """
    shape = Shape()
    if annotation in (inspect.Parameter.empty, Any, None):
        shape.unknown = True
    else:
        _add(shape, _evaluate(annotation, module) if isinstance(annotation, str) else annotation, module)
    return shape


def _evaluate(text: str, module: str) -> Any:
    """The type that a text means; names in quotation marks inside it are names, too."""

    class Unquote(ast.NodeTransformer):
        def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
            if ast.unparse(node.value).endswith("Literal"):
                return node
            return self.generic_visit(node)

        def visit_Constant(self, node: ast.Constant) -> ast.AST:
            return ast.parse(node.value, mode="eval").body if isinstance(node.value, str) else node

    tree = Unquote().visit(ast.parse(text, mode="eval"))
    names = {"PIL": PIL, **vars(typing), **vars(sys.modules[module])}
    return eval(compile(ast.fix_missing_locations(tree), module, "eval"), names)  # noqa: S307 — diffusers' own source


def _add(shape: Shape, kind: Any, module: str) -> None:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, str | typing.ForwardRef):
        _add(shape, _evaluate(kind if isinstance(kind, str) else kind.__forward_arg__, module), module)
    elif origin in (Union, types.UnionType):
        for alternative in arguments:
            _add(shape, alternative, module)
    elif kind is type(None):
        pass
    elif origin is Literal:
        shape.choices += arguments
    elif origin is typing.Annotated:
        _add(shape, arguments[0], module)
    elif kind in _SCALARS:
        shape.scalars.add(_SCALARS[kind])
    elif origin in _SEQUENCES or kind in _SEQUENCES:
        _add_items(shape, tuple if origin is tuple else list, arguments, module)
    elif origin is collections.abc.Callable or kind is collections.abc.Callable:
        shape.callable = True
    elif inspect.isclass(kind):
        _add_class(shape, kind)
    else:
        shape.objects = True


def _add_items(shape: Shape, container: type, arguments: tuple[Any, ...], module: str) -> None:
    shape.items = shape.items or Shape()
    fixed = container is tuple and len(arguments) > 1 and Ellipsis not in arguments
    if fixed:
        shape.length = len(arguments)
    for argument in arguments:
        if argument is not Ellipsis:
            _add(shape.items, argument, module)
    if not arguments:
        shape.items.unknown = True


def _add_class(shape: Shape, kind: type) -> None:
    if issubclass(kind, enum.Enum) and issubclass(kind, str):
        shape.choices += [member.value for member in kind]
    elif issubclass(kind, PIL.Image.Image):
        shape.pil = True
    elif issubclass(kind, np.ndarray):
        shape.numpy = True
    elif issubclass(kind, torch.Tensor) or isinstance(kind, type(torch.FloatTensor)):
        shape.tensor = True
    elif issubclass(kind, torch.Generator):
        shape.generator = True
    else:
        shape.objects = True


def schema_of(shape: Shape, default: object, *, batched: bool) -> dict[str, Any] | None:
    """The JSON Schema of what a request may give; None if JSON can carry none of the alternatives.

    Args:
        shape: of the annotation.
        default: says the type where the annotation does not.
        batched: whether a list of texts means one text for each image of a batch, of which a job has one.
    """
    if shape.choices:
        return {"enum": list(dict.fromkeys(shape.choices))}
    if shape.unknown or (shape.items is not None and shape.items.unknown and not shape.scalars):
        return _schema_of_value(default)
    kinds = sorted(shape.scalars, key=_ORDER.index)
    if "number" in kinds:
        kinds = [kind for kind in kinds if kind != "integer"]
    items = None if shape.items is None else schema_of(shape.items, None, batched=False)
    if items is None or (batched and kinds == ["string"] and items == {"type": "string"}):
        return {"type": kinds[0] if len(kinds) == 1 else kinds} if kinds else None
    schema: dict[str, Any] = {"type": [*kinds, "array"] if kinds else "array", "items": items}
    if shape.length is not None:
        schema |= {"minItems": shape.length, "maxItems": shape.length}
    return schema


def _schema_of_value(value: object) -> dict[str, Any] | None:
    if type(value) in _SCALARS:
        return {"type": _SCALARS[type(value)]}
    if isinstance(value, list | tuple) and value:
        kinds = {type(item) for item in value}
        kind = float if kinds == {int, float} else kinds.pop() if len(kinds) == 1 else None
        return {"type": "array", "items": {"type": _SCALARS[kind]}} if kind in _SCALARS else None
    return None


def json_default(value: object) -> Any:
    """A default as JSON; None for what JSON cannot carry."""
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, list | tuple):
        items = [json_default(item) for item in value]
        return None if any(item is None for item in items) else items
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if isinstance(value, str | int | bool) else None
