"""What the files of a model say of it: the class of its pipeline, its scheduler, the configs of its components.

The files lie in a local folder or in an object storage; only small JSON files are read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from farm.domain.model import ModelFacts
from farm.pipelines.catalogue import catalogue
from farm.weights import SAFETENSORS

INDEX: Final = "model_index.json"
MODULAR_INDEX: Final = "modular_model_index.json"
MAX_CONFIG: Final = 2**20  #: bytes of a config file
#: What to do about a model that brings Python code.
_NO_CODE: Final = "use a model of diffusers' own classes: no code of a model is run"
#: The ends of files with weights in formats that are not loaded.
_OTHER_FORMATS: Final = (".bin", ".ckpt", ".h5", ".msgpack", ".onnx", ".pb", ".pt", ".pth")
_LENGTH_BYTES: Final = 8  #: before a safetensors header


class ModelFolder(Protocol):
    """The files of one model, wherever they lie."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    def paths(self) -> Collection[str]:
        """All files, relative to the folder, with ``/`` between the parts."""
        ...

    def read(self, path: str) -> bytes:
        """The first `MAX_CONFIG` bytes of a file. Raises `OSError`, or the storage's own error."""
        ...


@dataclass(frozen=True)
class LocalFolder:
    """A folder of this machine."""

    path: Path

    @property
    def name(self) -> str:
        """Its path."""
        return str(self.path)

    def paths(self) -> frozenset[str]:
        """All files below it; links are followed."""
        return frozenset(
            Path(folder, name).relative_to(self.path).as_posix()
            for folder, _, names in os.walk(self.path, followlinks=True)
            for name in names
        )

    def read(self, path: str) -> bytes:
        """The beginning of a file."""
        with (self.path / path).open("rb") as file:
            return file.read(MAX_CONFIG)


@dataclass
class FolderReport:
    """What a folder says, and what is wrong with it: (message, remedy)."""

    facts: ModelFacts = field(default_factory=ModelFacts)
    problems: list[tuple[str, str]] = field(default_factory=list)


def inspect(folder: ModelFolder, pipeline: str | None = None, *, weights: bool = True) -> FolderReport:
    """Read what a folder in diffusers' layout says.

    Args:
        folder: the files.
        pipeline: the class that the entry states; it wins over the index.
        weights: whether the folder has to have weights: only configs are needed beside a checkpoint in one file.
    """
    report = FolderReport()
    paths = folder.paths()
    if not {INDEX, MODULAR_INDEX} & set(paths):
        report.problems.append((f"{folder.name} has no {INDEX}", "name a folder in diffusers' layout"))
        return report

    def read(path: str) -> dict[str, Any]:
        """The object in a file; empty if there is none, and a problem if it cannot be read."""
        if path not in paths:
            return {}
        try:
            found = json.loads(folder.read(path))
        except (OSError, ValueError, RecursionError) as error:
            report.problems.append((f"{folder.name}/{path} cannot be read: {error}", "repair the folder"))
            return {}
        return found if isinstance(found, dict) else {}

    index = read(INDEX) or read(MODULAR_INDEX)
    named = index.get("_class_name")
    cls = pipeline or (named if isinstance(named, str) else None)
    components = {name: value[0] for name, value in index.items() if _is_component(name, value)}
    if isinstance(named, list):
        report.problems.append((f"{folder.name} names a class of its own, {'.'.join(map(str, named))}", _NO_CODE))
    elif INDEX in paths and index:
        report.problems += _missing(folder, paths, components, cls, weights=weights)
    scheduler, scheduler_config = None, {}
    if isinstance(index.get("scheduler"), list):
        scheduler_config = read("scheduler/scheduler_config.json")
        found = index["scheduler"][-1] or scheduler_config.get("_class_name")
        scheduler = found if isinstance(found, str) else None
        if scheduler is not None and scheduler not in catalogue().scheduler_names:
            message = f"diffusers {catalogue().version} has no scheduler {scheduler}, which {folder.name} names"
            report.problems.append((message, f"name one of diffusers in its {INDEX}"))
    own = {name: value for name, value in index.items() if not name.startswith("_") and not isinstance(value, list)}
    configs = {"": own} | {name: config for name in components if (config := read(f"{name}/config.json"))}
    report.facts = ModelFacts(pipeline=cls, scheduler=scheduler, scheduler_config=scheduler_config, configs=configs)
    return report


def _is_component(name: str, value: object) -> bool:
    """Whether an entry of an index names a library and a class: a component that the folder has."""
    is_pair = isinstance(value, list) and len(value) == len(("library", "class"))
    return is_pair and not name.startswith("_") and all(isinstance(v, str) for v in value)  # type: ignore[attr-defined]


def _missing(
    folder: ModelFolder, paths: Collection[str], components: Mapping[str, str], cls: str | None, *, weights: bool
) -> list[tuple[str, str]]:
    """What the index names and a worker will not find in the folder, or will not run."""
    known = cls in catalogue().pipeline_names
    optional = catalogue().pipeline(cls).optional_components if cls is not None and known else frozenset()
    present = {path.partition("/")[0] for path in paths if "/" in path}
    own = [
        name
        for name, library in components.items()
        if library.startswith("diffusers_modules") or f"{name}/{library}.py" in paths
    ]
    if own:
        return [(f"{folder.name} has code of its own for {', '.join(own)}", _NO_CODE)]
    missing = [name for name in components if name not in optional and name not in present]
    if missing:
        return [(f"{folder.name} lacks {', '.join(missing)}, which its {INDEX} names", "copy the whole model")]
    if not weights:
        return []
    without = [name for name in components if name not in optional and _lacks_weights(folder, paths, name)]
    if without or not any(path.endswith(SAFETENSORS) for path in paths):
        where = f" in {', '.join(without)}" if without else ""
        message = f"{folder.name} has no {SAFETENSORS} files{where}; other formats can contain code"
        return [(message, "copy the whole model, or convert the weights to safetensors")]
    return []


def _lacks_weights(folder: ModelFolder, paths: Collection[str], component: str) -> bool:
    """Whether a component is a network without weights in safetensors."""
    names = [path.removeprefix(f"{component}/") for path in paths if path.startswith(f"{component}/")]
    if any(name.endswith(SAFETENSORS) for name in names):
        return False
    if any(name.endswith(_OTHER_FORMATS) for name in names):
        return True
    if "config.json" not in names:
        return False
    try:
        config = json.loads(folder.read(f"{component}/config.json"))
    except (OSError, ValueError, RecursionError):
        return False  # reported where it is read
    # Some folders of tokenizers have the config of the network that they are for.
    is_tokenizer = any(name.startswith(("tokenizer", "spiece", "vocab")) for name in names)
    return isinstance(config, dict) and ("_class_name" in config or ("architectures" in config and not is_tokenizer))


def tensor_names(start: bytes) -> frozenset[str] | None:
    """The names of a safetensors file's tensors, from its beginning; None if it is not, or too short for the header."""
    if len(start) < _LENGTH_BYTES:
        return None
    length = int.from_bytes(start[:_LENGTH_BYTES], "little")
    if length > len(start) - _LENGTH_BYTES:
        return None
    try:
        header = json.loads(start[_LENGTH_BYTES : _LENGTH_BYTES + length])
    except (ValueError, RecursionError):
        return None
    return frozenset(header) - {"__metadata__"} if isinstance(header, dict) else None
