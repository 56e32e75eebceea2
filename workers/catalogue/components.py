"""The parts of a pipeline: components with their classes, denoisers, decoders, pipelines inside it."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from dataclasses import dataclass
from functools import cache
from typing import Final

from workers.catalogue.sources import Function, called_methods, method, methods, nodes, own_bases

#: Called in each step beside the denoiser, or once before the loop: no denoisers.
_HELPERS: Final = re.compile(
    r"(\w+_)?(\w*encoder|tokenizer|safety_checker|watermarker|feature_extractor|siglip|image_project|"
    r"scheduler|controlnet|adapter|vae|vqvae|movq|vqgan|vocoder|processor|guider|connectors|image_processor|"
    r"video_processor|blip_diffuser|image_normalizer|mel|prior_model|language_model|projection_model|qformer)(_\w+)?"
)
_DECODER: Final = re.compile(r"(\w+_)?(vae|vqvae|movq|vqgan|vocoder|melgan|shap_e_renderer|diffusion_decoder)(_\w+)?")


@dataclass(frozen=True)
class Components:
    """The components that a pipeline registers."""

    classes: dict[str, tuple[str, ...]]  #: name → the classes that the annotation accepts
    optional: frozenset[str]


@cache
def components_of(cls: type) -> Components:
    """What the constructor registers, with the classes that its annotations name."""
    registered: dict[str, str] = {}
    annotations: dict[str, ast.expr | None] = {}
    for base in reversed(list(own_bases(cls))):
        init = method(base, "__init__")
        if init is None:
            continue
        annotations |= {argument.arg: argument.annotation for argument in (*init.args.args, *init.args.kwonlyargs)}
        for node in nodes(init):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "self.register_modules":
                registered |= {
                    keyword.arg: keyword.value.id if isinstance(keyword.value, ast.Name) else keyword.arg
                    for keyword in node.keywords
                    if keyword.arg
                }
    accepted = set(inspect.signature(cls.__init__).parameters)  # type: ignore[misc]
    return Components(
        classes={
            name: _class_names(annotations.get(argument), cls.__module__)
            for name, argument in sorted(registered.items())
            if argument in accepted or name in accepted
        },
        optional=frozenset(getattr(cls, "_optional_components", ())) & frozenset(registered),
    )


def _class_names(annotation: ast.expr | None, module: str) -> tuple[str, ...]:
    """The classes in an annotation; the enumeration of schedulers stands for its members."""
    if annotation is None:
        return ()
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = ast.parse(annotation.value, mode="eval").body
    names: list[str] = []
    for node in nodes(annotation):
        name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
        if name == "KarrasDiffusionSchedulers":
            names += [member.name for member in vars(sys.modules[module])[name]]
        elif name[:1].isupper() and name not in ("Any", "Callable", "List", "None", "Optional", "Tuple", "Union"):
            names.append(name)
    return tuple(dict.fromkeys(names))


@cache
def inner_pipelines(cls: type) -> dict[str, tuple[type, dict[str, str]]]:
    """The pipelines that the constructor makes of its own components.

    Returns:
        By attribute: the class, and its component → this class's component.
    """
    init = method(cls, "__init__")
    found: dict[str, tuple[type, dict[str, str]]] = {}
    for node in nodes(init) if init else ():
        match node:
            case ast.Assign(
                targets=[ast.Attribute(value=ast.Name(id="self"), attr=attribute)],
                value=ast.Call(func=ast.Name(id=name), keywords=keywords),
            ) if name.endswith("Pipeline"):
                inner = vars(sys.modules[cls.__module__]).get(name)
                if inspect.isclass(inner):
                    parts = {k.arg: k.value.id for k in keywords if k.arg and isinstance(k.value, ast.Name)}
                    found[attribute] = (inner, parts)
    return found


@cache
def denoisers_of(cls: type) -> tuple[str, ...]:
    """The components that are called in a loop: once or more for each step."""
    names = components_of(cls).classes
    found = {
        part
        for function, loop in _loops(cls)
        for part in _called_components(function, loop)
        if part in names and not _HELPERS.fullmatch(part)
    }
    for inner, parts in inner_pipelines(cls).values():
        found |= {parts.get(part, part) for part in denoisers_of(inner)} & set(names)
    return tuple(sorted(found))


def _loops(cls: type) -> list[tuple[Function, ast.AST]]:
    """Every loop of the call, and the whole of each method that is called inside one."""
    known = methods(cls)
    found: list[tuple[Function, ast.AST]] = []
    pending: list[tuple[Function, ast.AST]] = [
        (function, node)
        for function in called_methods(cls)
        for node in nodes(function)
        if isinstance(node, ast.For | ast.While)
    ]
    seen: set[str] = set()
    while pending:
        function, loop = pending.pop()
        found.append((function, loop))
        for node in nodes(loop):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="self"), attr=name)) if (
                    name in known and name not in seen
                ):
                    seen.add(name)
                    pending.append((known[name], known[name]))
    return found


def _called_components(function: Function, loop: ast.AST) -> set[str]:
    """Attributes of ``self`` that the loop calls, directly or under a local name."""
    local: dict[str, set[str]] = {}
    for node in nodes(function):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                local.setdefault(name, set()).update(
                    part.attr
                    for part in nodes(value)
                    if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name) and part.value.id == "self"
                )
    called: set[str] = set()
    for node in nodes(loop):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="self"), attr=name)):
                called.add(name)
            case ast.Call(func=ast.Name(id=name)):
                called |= local.get(name, set())
    return called


@cache
def decoders_of(cls: type) -> tuple[str, ...]:
    """The components between latents and media, by their names."""
    return tuple(name for name in components_of(cls).classes if _DECODER.fullmatch(name))
