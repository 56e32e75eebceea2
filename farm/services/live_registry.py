"""The registry of models as one process sees it: the models file, and the rows that change while the farm runs.

An entry of the models file wins over a row of the same id. A row that cannot be used is left out and logged; it stops
nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection
from typing import Final

import structlog
from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from farm import model_registry
from farm.domain.model import EntryProblem, Model, ModelEntry, ModelFacts, ModelState, Registry
from farm.errors import DatabaseUnavailable, SetupError
from farm.settings import Settings
from farm.store.connection import Database
from farm.store.events import MODEL_CHANNEL
from farm.store.listen import Listener
from farm.store.models import StoredModel
from farm.store.unit_of_work import Store

log = structlog.stdlib.get_logger()

ORIGIN: Final = "the database"  #: of an entry that is a row
POLL_SECONDS: Final = 15.0  #: between two looks at the rows, where no notification comes
WITHOUT_NOTICES_SECONDS: Final = 2.0  #: the same where a pooler loses notifications
RECONNECT_SECONDS: Final = 1.0


def read_row(row: StoredModel) -> tuple[Model | None, list[EntryProblem]]:
    """The model of a row, with what is wrong; no model if it cannot be used."""
    try:
        entry, facts = ModelEntry.model_validate(row.entry), ModelFacts.model_validate(row.facts)
    except ValidationError as error:  # of another release of the farm
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "entry"
        return None, [EntryProblem(ORIGIN, row.id, key, first["msg"], "remove the model and add it again")]
    return model_registry.combine(entry, facts, ORIGIN)


def _refusal(row: StoredModel) -> str | None:
    """Why no job may name a model; None if one may."""
    match row.state:
        case ModelState.CHECKING:
            return "a worker has still to check this model"
        case ModelState.FAILED:
            return f"this model failed its check: {row.report.get('message')}"
        case ModelState.REMOVED:
            return "this model was removed"
        case ModelState.READY:
            return None


class LiveRegistry:
    """Follows the models of a farm. Its methods may be called from any thread."""

    def __init__(self, settings: Settings, store: Store) -> None:
        """Read the models file. Raises `SetupError` if it cannot be read."""
        self._settings = settings
        self._store = store
        self._declared = model_registry.load_and_log(settings.models_file)
        self._rows: dict[str, StoredModel] = {}  # by id, oldest first
        self._models: dict[str, tuple[Model | None, list[EntryProblem]]] = {}  # of the rows
        self._lock = threading.Lock()
        self._look_again_at = 0.0  # for ids that nothing has
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self.current: Registry = self._declared  #: the models now

    def start(self) -> None:
        """Follow changes from now on, by one connection that listens."""
        try:
            self.refresh()
        except (DatabaseUnavailable, SQLAlchemyError) as error:  # the thread tries again
            log.warning("cannot read the models", action="models_unreadable", error=str(error)[:200])
        self._thread = threading.Thread(target=self._follow, name="models", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; blocks for at most two seconds."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(2)

    def declares(self, model_id: str) -> bool:
        """Whether the models file has an entry of that id."""
        return self._declared.get(model_id) is not None

    def refresh(self) -> None:
        """Read the rows that changed. Raises `DatabaseUnavailable`."""
        with self._lock:
            with self._store.look() as unit:
                versions = unit.models.versions()
                changed = [name for name, version in versions.items() if self._version(name) != version]
                if not changed and len(versions) == len(self._rows):
                    return
                read = {row.id: row for row in unit.models.named(changed)} if changed else {}
            before, found = self._rows, self._rows | read
            self._rows = {name: found[name] for name in versions if name in found}
            for row in read.values():
                self._read(row, before.get(row.id))
            self._publish()

    def known(self, model_id: str) -> Model | None:
        """The model of an accepted job, as it is in the database at this moment.

        An entry of the models file is what this process has read; the file is read again for an id that nothing has.
        """
        if (declared := self._declared.get(model_id)) is not None:
            return declared
        try:
            self.refresh()
        except DatabaseUnavailable as error:  # what is known still holds, as far as anybody can tell
            log.warning("cannot read the models", action="models_unreadable", error=str(error))
        found = self.current.known(model_id)
        if found is None:
            self._reload()
            found = self.current.known(model_id)
        return found

    def know(self, model_ids: Collection[str]) -> None:
        """Read the rows if one of these ids is not known yet, at most once a second. Raises `DatabaseUnavailable`."""
        registry = self.current
        unknown = any(registry.known(name) is None for name in model_ids)
        if unknown and time.monotonic() >= self._look_again_at:
            self._look_again_at = time.monotonic() + 1
            self.refresh()

    # -- inside --------------------------------------------------------------------------------------------------------

    def _version(self, name: str) -> object:
        row = self._rows.get(name)
        return None if row is None else row.version

    def _read(self, row: StoredModel, before: StoredModel | None) -> None:
        self._models[row.id] = found, problems = read_row(row)
        if before is None or before.state is not row.state:
            log.info("model changed", action="model_changed", model=row.id, state=row.state, usable=found is not None)
        if row.state is ModelState.READY:
            if self.declares(row.id):
                log.warning("the models file wins over the row", action="model_shadowed", model=row.id)
            for one in problems:
                log.warning(
                    "a model's entry, or a task of it, is left out",
                    action="model_entry_refused",
                    model=row.id,
                    key=one.key,
                    problem=one.message,
                    remedy=one.remedy,
                )

    def _publish(self) -> None:
        """Make the registry of what was read; the lock is held."""
        self._models = {name: self._models[name] for name in self._rows}
        by_state: dict[ModelState, list[Model]] = {state: [] for state in ModelState}
        problems = list(self._declared.problems)
        for name, row in self._rows.items():
            model, found = self._models[name]
            if self.declares(name):
                continue
            if model is not None:
                by_state[row.state].append(model)
            if row.state is ModelState.READY:
                problems += found
        self.current = Registry(
            models=(*self._declared.models, *by_state[ModelState.READY]),
            problems=tuple(problems),
            retired=tuple(by_state[ModelState.REMOVED]),
            refusals={name: reason for name, row in self._rows.items() if (reason := _refusal(row)) is not None},
        )

    def _reload(self) -> None:
        """Read the models file again."""
        try:
            declared = model_registry.load_and_log(self._settings.models_file)
        except SetupError as error:
            log.warning("cannot read the models file", action="registry_unreadable", error=str(error))
            return
        with self._lock:
            self._declared = declared
            self._publish()

    def _follow(self) -> None:
        listener = Listener(Database.direct(self._settings), [MODEL_CHANNEL])
        due = 0.0  # by the monotonic clock
        listens = True
        while not self._stopping.is_set():
            try:
                heard = listens and (listener.connect() or bool(listener.wait(0.5)))
                if heard or time.monotonic() >= due:
                    self.refresh()
                    due = time.monotonic() + (POLL_SECONDS if listens else WITHOUT_NOTICES_SECONDS)
                if not listens:
                    self._stopping.wait(0.5)
            except SetupError as error:  # a pooler that loses notifications
                log.warning("no notifications of models", action="listener_refused", error=str(error))
                listens = False
            except (DatabaseUnavailable, SQLAlchemyError) as error:
                log.info("cannot follow the models", action="models_unreadable", error=str(error)[:200])
                self._stopping.wait(RECONNECT_SECONDS)
        listener.close()
