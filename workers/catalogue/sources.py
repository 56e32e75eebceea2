"""The syntax trees of diffusers' classes: what a signature cannot say is read from the source."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

#: What a function is in a syntax tree; nothing in diffusers is asynchronous.
Function = ast.FunctionDef


@cache
def module_tree(module: str) -> ast.Module:
    """The syntax tree of an imported module."""
    path = sys.modules[module].__file__
    return ast.parse(Path(path).read_text(encoding="utf-8")) if path else ast.Module([], [])


@cache
def nodes(root: ast.AST) -> tuple[ast.AST, ...]:
    """Every node of a tree; kept, because each question about a function goes through it again."""
    return tuple(ast.walk(root))


@cache
def class_node(cls: type) -> ast.ClassDef | None:
    """The definition of a class, if its source is in a module of its own name."""
    for node in module_tree(cls.__module__).body:
        if isinstance(node, ast.ClassDef) and node.name == cls.__name__:
            return node
    return None


def own_bases(cls: type) -> Iterator[type]:
    """The class and its bases in diffusers' pipelines, nearest first, without those that all pipelines share."""
    for base in cls.__mro__:
        if base.__module__.startswith(("diffusers.pipelines.", "diffusers.modular_pipelines.")) and not (
            base.__module__.endswith((".pipeline_utils", ".modular_pipeline"))
        ):
            yield base


def method(cls: type, name: str) -> Function | None:
    """The definition of a method, the class's own or the nearest base's."""
    for base in cls.__mro__:
        if not base.__module__.startswith("diffusers."):
            continue
        for node in getattr(class_node(base), "body", ()):
            if isinstance(node, Function) and node.name == name:
                return node
    return None


@cache
def methods(cls: type) -> dict[str, Function]:
    """Every method that the class or one of its own bases defines, the nearest definition of each."""
    found: dict[str, Function] = {}
    for base in own_bases(cls):
        for node in getattr(class_node(base), "body", ()):
            if isinstance(node, Function):
                found.setdefault(node.name, node)
    return found


@cache
def called_methods(cls: type) -> tuple[Function, ...]:
    """``__call__`` and the methods of the class that it calls, directly or through others."""
    known, pending, reached = methods(cls), ["__call__"], dict[str, Function]()
    while pending:
        name = pending.pop()
        if name in known and name not in reached:
            reached[name] = known[name]
            pending += [
                node.func.attr
                for node in nodes(known[name])
                if isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "self"
            ]
    return tuple(reached[name] for name in sorted(reached))


def docstring(function: object) -> str:
    """The docstring of a function behind its decorators."""
    return inspect.getdoc(function) or ""
