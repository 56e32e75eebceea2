"""Where the registry of models comes from: ``FARM_MODELS_FILE``, or the one that ships with the farm.

An entry that is wrong is left out and reported; it stops no service.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import tomllib
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Final

import structlog
from pydantic import ValidationError

from farm.domain.model import IMAGE_STEPS, EntryProblem, Model, ModelEntry, ModelFacts, Registry
from farm.errors import SetupError
from farm.model_folder import LocalFolder, inspect
from farm.pipelines.catalogue import catalogue
from farm.weights import SAFETENSORS

log = structlog.stdlib.get_logger()

BUILTIN: Final = "builtin:"  #: a source that starts with it ships with the farm


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


def combine(entry: ModelEntry, facts: ModelFacts, origin: str) -> tuple[Model | None, list[EntryProblem]]:
    """The model of an entry and of what its files say, with what is wrong; no model if it cannot be used."""
    found = _Entry(origin, entry.id)
    return found.combine(entry, facts), found.problems


#: The packages of diffusers' quantizers, by the method in a config.
_QUANTIZERS: Final = {
    "bitsandbytes": "bitsandbytes",
    "gguf": "gguf",
    "modelopt": "nvidia-modelopt",
    "quanto": "optimum-quanto",
    "torchao": "torchao",
}


def lacking(model: Model) -> Iterator[EntryProblem]:
    """The packages that a model's jobs need and this machine's environment lacks."""
    for key, needed in _packages_of(model):
        for package in needed:
            try:
                importlib.metadata.distribution(package)
            except importlib.metadata.PackageNotFoundError:
                yield EntryProblem(
                    "this environment", model.id, key, f"needs the package {package}", f"pip install {package}"
                )


def _packages_of(model: Model) -> Iterator[tuple[str, tuple[str, ...]]]:
    """What needs packages in an entry, and which."""
    classes = {spec.name: spec for spec in map(model.pipeline_for, model.tasks) if spec is not None}
    for name, spec in classes.items():
        yield name, spec.packages
    if model.scheduler in catalogue().scheduler_names:
        yield model.scheduler, catalogue().scheduler(model.scheduler).packages
    for name, config in model.configs.items():
        quantization = config.get("quantization_config")
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        if isinstance(method, str) and method in _QUANTIZERS:
            yield name, (_QUANTIZERS[method],)


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
            stated = ModelEntry.model_validate(entry)
        except ValidationError as error:
            for one in error.errors():
                self.report(".".join(map(str, one["loc"])) or "entry", one["msg"], "correct it, or remove the key")
            return None
        facts = ModelFacts()
        whole = not stated.source.endswith(SAFETENSORS)  # a checkpoint in one file has its configs elsewhere
        key, folder = ("source", stated.source) if whole else ("config", stated.config or "")
        if folder and not folder.startswith(BUILTIN) and Path(folder).is_dir():
            found = inspect(LocalFolder(Path(folder)), stated.pipeline, weights=whole)
            for message, remedy in found.problems:
                self.report(key, message, remedy)
            if found.problems:
                return None
            facts = found.facts
        return self.combine(stated, facts)

    def combine(self, stated: ModelEntry, facts: ModelFacts) -> Model | None:
        """The model of an entry and of what its files say; None if it cannot be used."""
        model = Model.of(stated, facts)
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
                    f"{model.pipeline} cannot do {task}" + (f": {reason}" if (reason := model.unfit_for(task)) else ""),
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
