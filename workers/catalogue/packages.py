"""The Python packages that a pipeline needs beside torch, numpy and transformers."""

from __future__ import annotations

import ast
import re
import sys
from functools import cache
from typing import Final

from workers.catalogue.library import guards
from workers.catalogue.sources import module_tree, nodes, own_bases

#: What every worker has, by the name in `import`.
_PRESENT: Final = frozenset(
    {
        *("PIL", "accelerate", "diffusers", "filelock", "httpx", "huggingface_hub", "importlib_metadata", "numpy"),
        *(
            "packaging",
            "peft",
            "regex",
            "requests",
            "safetensors",
            "torch",
            "tqdm",
            "transformers",
            "typing_extensions",
        ),
        "yaml",
    }
)
#: The name on the package index, where `import` or diffusers says another.
_DISTRIBUTIONS: Final = {
    "bs4": "beautifulsoup4",
    "cv2": "opencv-python-headless",
    "imwatermark": "invisible-watermark",
    "note_seq": "note-seq",
    "onnx": "onnxruntime",
    "opencv": "opencv-python-headless",
    "torch_xla": "",  # another kind of device
    "torch_npu": "",
}
_AVAILABLE: Final = re.compile(r"is_(\w+)_available")


@cache
def packages_of(cls: type) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The packages that the class needs, and those that it uses where they are installed."""
    needed = set(guards().get(cls.__name__, ()))
    optional: set[str] = set()
    for base in own_bases(cls):
        more, maybe = _imports(base.__module__)
        needed |= more
        optional |= maybe
    return _named(needed), _named(optional - needed)


def scheduler_packages(name: str) -> tuple[str, ...]:
    """The packages that a scheduler class needs."""
    return _named(set(guards().get(name, ())))


def _named(packages: set[str]) -> tuple[str, ...]:
    return tuple(sorted({name for package in packages if (name := _DISTRIBUTIONS.get(package, package))}))


@cache
def _imports(module: str) -> tuple[set[str], set[str]]:
    """What a module imports: whatever happens, and only where it is installed."""
    tree = module_tree(module)
    needed, guarded = set[str](), dict[str, str]()
    for statement in tree.body:
        if isinstance(statement, ast.If) and (backend := _guard(statement.test)):
            guarded |= {name: backend for inner in statement.body for name in _imported(inner)}
        else:
            needed |= _imported(statement)
    inside = {
        name
        for node in nodes(tree)
        if isinstance(node, ast.Import | ast.ImportFrom) and node not in tree.body
        for name in _imported(node)
    }
    # A guarded package that the code uses without asking again is needed after all.
    asked = {
        match.group(1)
        for function in nodes(tree)
        if isinstance(function, ast.FunctionDef)
        for node in nodes(function)
        if isinstance(node, ast.Call) and (match := _AVAILABLE.fullmatch(ast.unparse(node.func)))
    }
    used = {
        node.value.id for node in nodes(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    needed |= {name for name, backend in guarded.items() if name in used and backend not in asked}
    return needed, (set(guarded) | inside) - needed


def _guard(test: ast.expr) -> str:
    match = _AVAILABLE.fullmatch(ast.unparse(test.func)) if isinstance(test, ast.Call) else None
    return match.group(1) if match else ""


def _imported(statement: ast.stmt) -> set[str]:
    names: set[str] = set()
    if isinstance(statement, ast.Import):
        names = {alias.name.split(".", maxsplit=1)[0] for alias in statement.names}
    elif isinstance(statement, ast.ImportFrom) and statement.level == 0 and statement.module:
        names = {statement.module.split(".", maxsplit=1)[0]}
    return names - _PRESENT - sys.stdlib_module_names
