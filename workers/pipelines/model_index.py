"""What a folder's ``model_index.json`` names, where diffusers does not load it as it stands."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import diffusers

from farm.pipelines.spec import PipelineSpec
from workers.pipelines.files import weight_files

#: A folder's index: of a pipeline, of a modular pipeline.
INDEX: Final = "model_index.json"
MODULAR_INDEX: Final = "modular_model_index.json"

#: The name of a weights file of a variant, whole or one of several.
_VARIANT: Final = re.compile(r"[^.]+\.([a-z][a-z0-9]*)(?:-\d+-of-\d+)?\.safetensors$")
_DEPRECATED: Final = "diffusers.pipelines.deprecated"


def components(folder: Path) -> Iterator[tuple[str, str | None, str | None]]:
    """The components of an index: name, library and class, which are None for one that the model does without."""
    for name, value in json.loads((folder / INDEX).read_text("utf-8")).items():
        if isinstance(value, list) and len(value) == len(("library", "class")) and not name.startswith("_"):
            yield name, *value


def absent_components(spec: PipelineSpec, folder: Path) -> dict[str, None]:
    """The components that are given as None: those without a class, and optional ones without a folder.

    Diffusers takes an index with ``[null, null]`` only for the optional components of its class, but also writes it for
    others: Stable Diffusion 3 without its third text encoder.
    """
    taken = inspect.signature(getattr(diffusers, spec.name).__init__).parameters
    return {
        name: None
        for name, library, _ in components(folder)
        if (library is None and name in taken)
        or (library is not None and name in spec.optional_components and not (folder / name).is_dir())
    }


def is_left_out(component: Any) -> bool:
    """Whether a component of a modular pipeline, a `ComponentSpec`, is one that the model does without.

    Its index has no place for it, or names a folder of a pipeline whose index has null.
    """
    source = component.pretrained_model_name_or_path
    if source is None:
        return True
    folder = Path(source)
    without = {name for name, library, _ in components(folder) if library is None} if (folder / INDEX).is_file() else ()
    return component.subfolder in without


def find_moved_packages(folder: Path) -> None:
    """Let diffusers find component classes in the packages that it has moved among the deprecated ones.

    An index names a class of a pipeline's package by that package: ``["wuerstchen", "PaellaVQModel"]``.
    """
    for _, library, _ in components(folder):
        if library is not None:
            find_moved_package(library)


def find_moved_package(library: str) -> None:
    """The same for one package of pipelines; others are left alone."""
    pipelines = diffusers.pipelines
    if hasattr(pipelines, library) or not library.isidentifier():
        return
    if importlib.util.find_spec(f"{_DEPRECATED}.{library}") is not None:
        setattr(pipelines, library, importlib.import_module(f"{_DEPRECATED}.{library}"))


def only_variant(folder: Path) -> str | None:
    """The variant that some component of a folder has alone: `fp16` of `model.fp16.safetensors`; None without one.

    Diffusers loads a component without that variant from its plain files.
    """
    by_component: dict[Path, set[str | None]] = {}
    for path in (one for one in weight_files(folder) if one.parent != folder):
        match = _VARIANT.match(path.name)
        by_component.setdefault(path.parent, set()).add(match[1] if match else None)
    needed = {name for names in by_component.values() if None not in names for name in names}
    return needed.pop() if len(needed) == 1 else None
