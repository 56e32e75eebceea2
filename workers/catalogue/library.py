"""Every pipeline and scheduler class of the installed diffusers, whatever else is installed.

Diffusers replaces a class whose optional packages are absent by a dummy. The catalogue must not depend on what this
machine has, so those packages are declared available before the classes are imported, and where one is absent an empty
module stands in for it: only signatures, docstrings and sources are read.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import inspect
import logging
import pkgutil
import sys
import types
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any, Final

from workers.torchvision_operators import declare_missing_operators

#: The packages that diffusers' guards name, by the name in `import`.
_MODULES: Final = {
    "librosa": "librosa",
    "note_seq": "note_seq",
    "onnx": "onnxruntime",
    "opencv": "cv2",
    "scipy": "scipy",
    "sentencepiece": "sentencepiece",
    "torchsde": "torchsde",
}
#: The packages that every worker has.
_ALWAYS: Final = frozenset({"torch", "transformers"})


class _Absent(types.ModuleType):
    """Stands in for a package that is not installed: each of its names is an empty class."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _AbsentFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 — the signature that the import system calls
        target: types.ModuleType | None = None,  # noqa: ARG002
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.split(".", maxsplit=1)[0] not in _MODULES.values():
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Absent(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to run."""


@cache
def load() -> types.ModuleType:
    """Diffusers, with every guarded class importable."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    declare_missing_operators()
    diffusers = importlib.import_module("diffusers")
    available = importlib.import_module("diffusers.utils.import_utils")
    for backend in _MODULES:
        setattr(available, f"_{backend}_available", True)
    sys.meta_path.append(_AbsentFinder())
    return diffusers


@cache
def guards() -> dict[str, tuple[str, ...]]:
    """The packages that each guarded class needs, by the class's name, under diffusers' own names."""
    utils = importlib.import_module("diffusers.utils")
    needed: dict[str, frozenset[str]] = {}
    for module in pkgutil.iter_modules(utils.__path__):
        if module.name.startswith("dummy_"):
            for name, value in vars(importlib.import_module(f"diffusers.utils.{module.name}")).items():
                backends = getattr(value, "_backends", None) if inspect.isclass(value) else None
                if backends:
                    needed[name] = needed.get(name, frozenset()) | (frozenset(backends) - _ALWAYS)
    return {name: tuple(sorted(backends)) for name, backends in needed.items()}


@cache
def pipelines() -> dict[str, type]:
    """Every `DiffusionPipeline`, by name."""
    return _classes("pipelines", "DiffusionPipeline")


@cache
def modular_pipelines() -> dict[str, type]:
    """Every `ModularPipeline`, by name."""
    return _classes("modular_pipelines", "ModularPipeline")


@cache
def schedulers() -> dict[str, type]:
    """Every scheduler, by name."""
    return {name: cls for name, cls in _classes("schedulers", "SchedulerMixin").items() if name.endswith("Scheduler")}


def _classes(package: str, base: str) -> dict[str, type]:
    """The classes of a package of diffusers, and of diffusers itself, that derive from a base."""
    diffusers = load()
    root = getattr(diffusers, base)
    listed = importlib.import_module(f"diffusers.{package}")
    found = {}
    for name in sorted({name for name in (*dir(listed), *dir(diffusers)) if not name.startswith("_")}):
        value = getattr(listed, name, None) or getattr(diffusers, name, None)
        if inspect.isclass(value) and issubclass(value, root) and value is not root:
            found[name] = value
    return found
