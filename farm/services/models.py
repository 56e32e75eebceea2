"""Models that are added, changed and removed while the farm runs."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

import structlog
from pydantic import ValidationError

from farm import model_registry
from farm.domain.model import MODEL_ID, Model, ModelEntry, ModelFacts, ModelState
from farm.domain.model_files import SCHEME
from farm.errors import BadInput, Conflict, FieldProblem, NotFound
from farm.model_folder import MAX_CONFIG, LocalFolder, ModelFolder, inspect, tensor_names
from farm.services import model_copies, model_uploads
from farm.services.context import ServiceContext
from farm.services.live_registry import ORIGIN, read_row
from farm.store.models import StoredModel
from farm.weights import SAFETENSORS

log = structlog.stdlib.get_logger()

_ID: Final = re.compile(MODEL_ID, re.ASCII)


def add(context: ServiceContext, entry: ModelEntry) -> StoredModel:
    """Add a model, which a worker has to check before jobs may name it.

    An entry that is there already, word for word, is returned: sending it twice adds one.

    Raises:
        BadInput: the entry, or the files that it names, cannot be used.
        Conflict: another entry has its id.
    """
    _require_undeclared(context, entry.id)
    with context.store.begin() as unit:
        there = unit.models.get(entry.id)
        standing = there is not None and there.state in (ModelState.CHECKING, ModelState.READY)
        if there is not None and standing and there.entry == _stated(entry):
            return there
        unit.models.lock_files(wait=True)
        facts = _facts(context, entry)
        if facts.pipeline is not None or entry.pipeline is not None or entry.tasks:
            _, problems = model_registry.combine(entry, facts, ORIGIN)
            if problems:
                raise BadInput(*(FieldProblem(one.key, entry.id, f"{one.message}; {one.remedy}") for one in problems))
        added = unit.models.add(entry, facts, ModelState.CHECKING)
    log.info("model added", action="model_added", model=entry.id, source=entry.source)
    context.models.refresh()
    return added


def change(context: ServiceContext, model_id: str, changes: Mapping[str, Any]) -> StoredModel:
    """Change what an operator decides for a model; jobs that were accepted keep what they were accepted with.

    Args:
        context: the process's connections.
        model_id: the model.
        changes: fields of `ModelChoices`, as JSON.

    Raises:
        NotFound: there is no such model.
        Conflict: the models file declares it.
    """
    _require_undeclared(context, model_id)
    with context.store.begin() as unit:
        there = unit.models.get(model_id) if _ID.fullmatch(model_id) else None
        if there is None:
            raise NotFound("model", model_id)
        changed = unit.models.change(model_id, entry={**there.entry, **changes})
    context.models.refresh()
    return changed


def remove(context: ServiceContext, model_id: str) -> StoredModel:
    """Let no new job name a model; accepted ones still end with it.

    Raises:
        NotFound: there is no such model.
        Conflict: the models file declares it.
    """
    _require_undeclared(context, model_id)
    if not _ID.fullmatch(model_id):
        raise NotFound("model", model_id)
    with context.store.begin() as unit:
        gone = unit.models.remove(model_id)
    log.info("model removed", action="model_removed", model=model_id)
    context.models.refresh()
    return gone


def unready(context: ServiceContext) -> list[tuple[StoredModel, Model]]:
    """The added models that no job may name yet, or that failed their check, oldest first."""
    with context.store.look() as unit:
        rows = unit.models.all()
    waiting = (ModelState.CHECKING, ModelState.FAILED)
    return [(row, model_of(row)) for row in rows if row.state in waiting and not context.models.declares(row.id)]


def get(context: ServiceContext, model_id: str) -> tuple[StoredModel | None, Model]:
    """A model with its row; no row if the models file declares it. Raises `NotFound`."""
    if context.models.declares(model_id):
        declared = context.registry.get(model_id)
        assert declared is not None
        return None, declared
    with context.store.look() as unit:
        row = unit.models.get(model_id) if _ID.fullmatch(model_id) else None
    if row is None or row.state is ModelState.REMOVED:
        raise NotFound("model", model_id)
    if row.state is ModelState.READY:
        context.models.know((model_id,))  # whoever reads that it is ready may name it at once
    return row, model_of(row)


def model_of(row: StoredModel) -> Model:
    """What is known of a row's model, whether or not it can be used."""
    found, _ = read_row(row)
    if found is not None:
        return found
    try:
        known = Model.of(ModelEntry.model_validate(row.entry), ModelFacts.model_validate(row.facts))
    except ValidationError:  # of another release of the farm
        known = Model(id=row.id, source=str(row.entry.get("source")))
    return known.model_copy(update={"tasks": ()})


def _stated(entry: ModelEntry) -> dict[str, Any]:
    return entry.model_dump(mode="json", exclude_unset=True)


def _require_undeclared(context: ServiceContext, model_id: str) -> None:
    if context.models.declares(model_id):
        raise Conflict(f"the models file declares {model_id}: change it there")


def _facts(context: ServiceContext, entry: ModelEntry) -> ModelFacts:
    """What the entry's files say, as far as this process can read them. Raises `BadInput`."""
    folder = _folder(context, entry.source, "source")
    checkpoint = _checkpoint(entry.source, folder)
    if checkpoint is None:
        if entry.config is not None:
            raise BadInput.of("config", entry.config, "is for a checkpoint in one .safetensors file: leave it out")
        return ModelFacts() if folder is None else _read(folder, "source", entry)
    config = _config(context, entry, tensor_names(checkpoint))
    configs = None if config is None else _folder(context, config, "config")
    if configs is None:  # on the Hub: the worker that checks the model reads it
        return ModelFacts(config=config)
    return _read(configs, "config", entry, weights=False).model_copy(update={"config": config})


def _read(folder: ModelFolder, key: str, entry: ModelEntry, *, weights: bool = True) -> ModelFacts:
    """What a folder says. Raises `BadInput`."""
    report = inspect(folder, entry.pipeline, weights=weights)
    if report.problems:
        raise BadInput(*(FieldProblem(key, folder.name, f"{text}; {fix}") for text, fix in report.problems))
    return report.facts


def _checkpoint(source: str, folder: ModelFolder | None) -> bytes | None:
    """The beginning of a checkpoint in one file; None if the source is something else, empty if it is not here."""
    if isinstance(folder, model_uploads.PushedFolder) and (name := folder.manifest.single_file) is not None:
        return folder.read(name)
    if folder is not None or not source.endswith(SAFETENSORS):
        return None
    try:
        with Path(source).open("rb") as file:
            return file.read(MAX_CONFIG)
    except OSError:  # it may be on the workers only
        return b""


def _config(context: ServiceContext, entry: ModelEntry, tensors: Collection[str] | None) -> str | None:
    """The source of configs and tokenizers that the entry means. Raises `BadInput`."""
    if entry.config is None:
        return None
    other = context.registry.get(entry.config)
    source = entry.config if other is None else other.source
    if source.startswith(model_registry.BUILTIN) or (other is not None and source.endswith(SAFETENSORS)):
        raise BadInput.of("config", entry.config, "has no folder of configs: name a model in diffusers' layout")
    return model_uploads.config_manifest(context.storage, source, tensors) if source.startswith(SCHEME) else source


def _folder(context: ServiceContext, source: str, key: str) -> ModelFolder | None:
    """The files of a source, where this process can read them. Raises `BadInput`."""
    if source.startswith(SCHEME):
        return model_uploads.require_pushed(context.storage, source)
    if source.startswith(model_copies.SCHEME):
        model_copies.parse(source)
        return None  # the worker that checks the model copies it
    try:
        is_folder = not source.startswith(model_registry.BUILTIN) and Path(source).is_dir()
    except OSError as error:
        raise BadInput.of(key, source[:100], f"cannot be read: {error.strerror}") from error
    return LocalFolder(Path(source)) if is_folder else None
