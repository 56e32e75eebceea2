"""Where the registry of models comes from: ``FARM_MODELS_FILE``, or the one that ships with the farm.

An entry that is wrong is left out and reported; it stops no service.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, Final

import structlog
from pydantic import ValidationError

from farm.domain.model import IMAGE_STEPS, EntryProblem, Model, Registry
from farm.errors import SetupError
from farm.pipelines.catalogue import catalogue

log = structlog.stdlib.get_logger()

INDEX: Final = "model_index.json"
MODULAR_INDEX: Final = "modular_model_index.json"
MAX_CONFIG: Final = 2**20  #: bytes of a config file


def load(models_file: Path | None) -> Registry:
    """The registry in that file, or the built-in one; `SetupError` if it cannot be read."""
    if models_file is None:
        return parse(resources.files("farm").joinpath("models.toml").read_text("utf-8"), "the built-in models.toml")
    try:
        text = models_file.read_text("utf-8")
    except OSError as error:
        raise SetupError(f"the models file {models_file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SetupError(f"the models file {models_file} is not UTF-8 at byte {error.start}") from error
    return parse(text, str(models_file))


def load_and_log(models_file: Path | None) -> Registry:
    """`load` for a service: each problem is a warning in its log."""
    registry = load(models_file)
    for one in registry.problems:
        log.warning(
            "a model's entry, or a task of it, is left out",
            action="model_entry_refused",
            model=one.entry,
            key=one.key,
            problem=one.message,
            remedy=one.remedy,
        )
    return registry


def parse(text: str, origin: str) -> Registry:
    """The registry that a models.toml describes.

    Raises:
        SetupError: the text as a whole cannot be used.
    """
    try:
        entries = tomllib.loads(text).get("model", ())
    except tomllib.TOMLDecodeError as error:
        raise SetupError(f"{origin} is not valid TOML: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise SetupError(f"{origin} names no model: add a [[model]] table")
    models: dict[str, Model] = {}
    problems: list[EntryProblem] = []
    for number, entry in enumerate(entries, start=1):
        name = entry.get("id") if isinstance(entry, dict) else None
        found = _Entry(origin, name if isinstance(name, str) else f"number {number}")
        model = found.read(entry)
        if model is not None and model.id in models:
            found.report("id", "is the id of an earlier entry", "give each entry an id of its own")
            model = None
        if model is not None:
            models[model.id] = model
        problems += found.problems
    models.setdefault(IMAGE_STEPS.id, IMAGE_STEPS)
    return Registry(models=tuple(models.values()), problems=tuple(problems))


def _is_component(value: object) -> bool:
    """Whether a value of an index names a library and a class: a component that the folder has."""
    return (
        isinstance(value, list) and len(value) == len(("library", "class")) and all(isinstance(v, str) for v in value)
    )


class _Entry:
    """One entry while it is read; collects what is wrong with it."""

    def __init__(self, origin: str, name: str) -> None:
        self.origin, self.name = origin, name
        self.problems: list[EntryProblem] = []

    def report(self, key: str, message: str, remedy: str) -> None:
        self.problems.append(EntryProblem(self.origin, self.name, key, message, remedy))

    def read(self, entry: object) -> Model | None:
        """The model of an entry; None if it cannot be used."""
        try:
            model = Model.model_validate(entry)
        except ValidationError as error:
            for one in error.errors():
                self.report(".".join(map(str, one["loc"])) or "entry", one["msg"], "correct it, or remove the key")
            return None
        model = self._with_folder(model)
        if any(one.key == "source" for one in self.problems):
            return None
        for key, cls in (("pipeline", model.pipeline), *(("pipelines", each) for each in model.pipelines.values())):
            if cls is not None and cls not in catalogue().pipeline_names:
                close = difflib.get_close_matches(cls, catalogue().pipeline_names, n=1)
                remedy = f"did you mean {close[0]}?" if close else "name a pipeline class of diffusers"
                self.report(key, f"diffusers {catalogue().version} has no class {cls}", remedy)
                return None
        if model.scheduler is not None and model.scheduler not in catalogue().scheduler_names:
            self.report(
                "scheduler",
                f"diffusers {catalogue().version} has no class {model.scheduler}",
                "name a scheduler class of diffusers, or leave the key out",
            )
            model = model.model_copy(update={"scheduler": None})
        return self._with_tasks(model)

    def _with_tasks(self, model: Model) -> Model | None:
        """The entry with the tasks that its class can do: all of them where it states none."""
        if model.pipeline is None:
            if not model.tasks:
                self.report("tasks", "are not stated, and the pipeline's class is not known", "state pipeline or tasks")
                return None
            return model
        able = model.capable()
        for task in model.tasks:
            if task not in able:
                self.report(
                    "tasks",
                    f"{model.pipeline} cannot do {task}",
                    f"remove it; it can do {', '.join(able) or 'none of the tasks'}",
                )
        tasks = tuple(task for task in model.tasks or able if task in able)
        if not tasks:
            reason = catalogue().pipeline(model.pipeline).no_task
            self.report(
                "pipeline",
                f"{model.pipeline} does none of the farm's tasks" + (f": {reason}" if reason else ""),
                "remove the entry",
            )
            return None
        return model.model_copy(update={"tasks": tasks})

    # -- what the folder says ------------------------------------------------------------------------------------------

    def _with_folder(self, model: Model) -> Model:
        """The entry with what a local folder says of its classes and configs; what the entry states wins."""
        folder = Path(model.source)
        if model.source.startswith("builtin:") or not folder.is_dir():
            return model
        if not any((folder / name).is_file() for name in (INDEX, MODULAR_INDEX)):
            self.report("source", f"{folder} has no {INDEX}", "name a folder in diffusers' layout")
            return model
        index = self._json(folder / INDEX) or self._json(folder / MODULAR_INDEX) or {}
        read: dict[str, Any] = {}
        if model.pipeline is None and isinstance(index.get("_class_name"), str):
            read["pipeline"] = index["_class_name"]
        components = [name for name, value in index.items() if _is_component(value)]
        if (folder / INDEX).is_file() and index:
            self._check_components(folder, components, str(read.get("pipeline", model.pipeline)))
        read["configs"] = dict(self._configs(folder, components))
        if isinstance(index.get("scheduler"), list):
            config = self._json(folder / "scheduler" / "scheduler_config.json") or {}
            read["scheduler_config"] = config
            cls = index["scheduler"][-1] or config.get("_class_name")
            if model.scheduler is None and isinstance(cls, str):
                read["scheduler"] = cls
        return model.model_copy(update=read)

    def _check_components(self, folder: Path, components: list[str], cls: str) -> None:
        """Report what the index names and the folder does not have."""
        optional = catalogue().pipeline(cls).optional_components if cls in catalogue().pipeline_names else frozenset()
        missing = [name for name in components if name not in optional and not (folder / name).is_dir()]
        if missing:
            found = f"{folder} lacks {', '.join(missing)}, which its {INDEX} names"
            self.report("source", found, "copy the whole model")
        elif not any(folder.rglob("*.safetensors")):
            found = f"{folder} has no .safetensors files; other formats can contain code"
            self.report("source", found, "convert the weights to safetensors")

    def _configs(self, folder: Path, components: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        for name in components:
            if (found := self._json(folder / name / "config.json")) is not None:
                yield name, found

    def _json(self, path: Path) -> dict[str, Any] | None:
        """The object in a file of the folder; None if there is none, and a problem if it cannot be read."""
        try:
            if not path.is_file():
                return None
            with path.open("rb") as file:
                found = json.loads(file.read(MAX_CONFIG))
        except (OSError, ValueError, RecursionError) as error:
            self.report("source", f"{path} cannot be read: {error}", "repair the folder")
            return None
        return found if isinstance(found, dict) else None
