"""Models that are added, changed and removed while the farm runs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, delete, func, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from farm.domain.model import ModelEntry, ModelFacts, ModelState
from farm.errors import Conflict, NotFound
from farm.store.events import MODEL_CHANNEL, Events
from farm.store.tables import ModelRow, WorkerRow

FILES_LOCK: Final = 7_214_013  #: advisory lock: files are not removed while a model that names them is added

#: Removed ones that no unfinished job names; each condition of a job has a partial index. A request that began before
#: the removal may still submit a job, so they stay for a while.
_UNUSED: Final = text("""
    SELECT id FROM model WHERE state = 'removed' AND changed_at < now() - make_interval(secs => :seconds)
    AND NOT EXISTS (SELECT FROM job WHERE job.model = model.id AND job.state = 'pending')
    AND NOT EXISTS (SELECT FROM job WHERE job.model = model.id AND job.state = 'queued')
    AND NOT EXISTS (SELECT FROM job WHERE job.model = model.id AND job.state IN ('dispatched', 'running'))
    FOR UPDATE SKIP LOCKED
""")


def _may_check(worker: str) -> ColumnElement[bool]:
    """Whether a worker may begin to check a row: nobody does, or an earlier process of its own did."""
    return or_(ModelRow.checker.is_(None), ModelRow.checker == worker, ModelRow.checked_until < func.now())


def _in(seconds: float) -> ColumnElement[datetime]:
    return func.now() + func.make_interval(0, 0, 0, 0, 0, 0, seconds)


@dataclass(frozen=True)
class StoredModel:
    """The row of a model."""

    id: str
    state: ModelState
    revision: int
    entry: Mapping[str, Any]  #: of a `ModelEntry`, as JSON
    facts: Mapping[str, Any]  #: of `ModelFacts`, as JSON
    report: Mapping[str, Any]  #: of its check on a worker
    created_at: datetime
    changed_at: datetime

    @property
    def version(self) -> tuple[datetime, int]:
        """What changes whenever the row does, also when it was removed and added again."""
        return self.created_at, self.revision


def _model(row: ModelRow) -> StoredModel:
    return StoredModel(
        row.id,
        ModelState(row.state),
        row.revision,
        row.entry,
        row.facts,
        row.report,
        row.created_at,
        row.changed_at,
    )


class Models:
    """The rows of all models; each change is notified when it commits."""

    def __init__(self, session: Session, events: Events) -> None:
        self._session = session
        self._events = events

    def get(self, model_id: str) -> StoredModel | None:
        """The row of that id."""
        row = self._session.get(ModelRow, model_id, populate_existing=True)
        return None if row is None else _model(row)

    def all(self) -> list[StoredModel]:
        """Every row, oldest first."""
        return [_model(row) for row in self._session.scalars(select(ModelRow).order_by(*_ORDER))]

    def versions(self) -> dict[str, tuple[datetime, int]]:
        """`StoredModel.version` of every row by its id, oldest first."""
        rows = self._session.execute(select(ModelRow.id, ModelRow.created_at, ModelRow.revision).order_by(*_ORDER))
        return {row.id: (row.created_at, row.revision) for row in rows}

    def named(self, model_ids: Collection[str]) -> list[StoredModel]:
        """The rows of these ids."""
        return [_model(row) for row in self._session.scalars(select(ModelRow).where(ModelRow.id.in_(model_ids)))]

    def lock_files(self, *, wait: bool) -> bool:
        """Let nobody else add models or remove their files until this transaction ends; False: somebody else does."""
        lock = func.pg_advisory_xact_lock if wait else func.pg_try_advisory_xact_lock
        return self._session.scalar(select(lock(FILES_LOCK))) is not False

    def add(self, entry: ModelEntry, facts: ModelFacts, state: ModelState) -> StoredModel:
        """Add a model, or add one again that was removed or failed its check.

        Raises:
            Conflict: there is one of that id.
        """
        values = {
            "id": entry.id,
            "state": state.value,
            "entry": entry.model_dump(mode="json", exclude_unset=True),
            "facts": facts.model_dump(mode="json"),
            "report": {},
        }
        fresh = {"revision": 1, "created_at": func.now(), "changed_at": func.now(), "checker": None}
        added = self._session.execute(
            insert(ModelRow)
            .values(values)
            .on_conflict_do_update(
                index_elements=["id"],
                set_=values | fresh | {"checked_until": None},
                where=ModelRow.state.in_(_REPLACED),
            )
            .returning(ModelRow.id)
        )
        if added.first() is None:
            raise Conflict(f"there is a model {entry.id} already: remove it first, or choose another id")
        return self._changed(entry.id)

    def change(self, model_id: str, **values: Any) -> StoredModel:
        """Set columns of a row that is not removed. Raises `NotFound`."""
        found = self._session.execute(
            update(ModelRow)
            .where(ModelRow.id == model_id, ModelRow.state != ModelState.REMOVED.value)
            .values(**values, revision=ModelRow.revision + 1, changed_at=func.now())
            .returning(ModelRow.id)
            .execution_options(synchronize_session=False)
        )
        if found.first() is None:
            raise NotFound("model", model_id)
        return self._changed(model_id)

    def remove(self, model_id: str) -> StoredModel:
        """Let no new job name a model; accepted ones still end with it. Raises `NotFound`."""
        return self.change(model_id, state=ModelState.REMOVED.value)

    # -- checks on workers ---------------------------------------------------------------------------------------------

    def unchecked(self, worker: str) -> list[StoredModel]:
        """Models that wait for a worker to check them, oldest first.

        Args:
            worker: who asks; what an earlier process of this worker began counts as waiting.
        """
        works = select(WorkerRow.name).where(
            WorkerRow.name == worker, WorkerRow.state == "online", WorkerRow.drained_reason.is_(None)
        )
        rows = select(ModelRow).where(ModelRow.state == ModelState.CHECKING.value, _may_check(worker), works.exists())
        return [_model(row) for row in self._session.scalars(rows.order_by(*_ORDER))]

    def begin_check(self, model_id: str, worker: str, report: Mapping[str, Any], seconds: float) -> bool:
        """Check a model for so many seconds; False if another worker does, or it waits no more."""
        return self._check(
            model_id, _may_check(worker), checker=worker, checked_until=_in(seconds), report=dict(report)
        )

    def renew_check(self, model_id: str, worker: str, report: Mapping[str, Any], seconds: float) -> bool:
        """Go on with a check, and show how far it is; False if it is no longer this worker's."""
        return self._check(model_id, ModelRow.checker == worker, checked_until=_in(seconds), report=dict(report))

    def release_check(self, model_id: str, worker: str, report: Mapping[str, Any]) -> bool:
        """Let another worker check a model; False if it is no longer this worker's to say."""
        return self._check(model_id, ModelRow.checker == worker, checker=None, checked_until=None, report=dict(report))

    def end_check(
        self, model_id: str, worker: str, state: ModelState, facts: ModelFacts, report: Mapping[str, Any]
    ) -> bool:
        """Write what a check found; False if it is no longer this worker's to say."""
        return self._check(
            model_id,
            ModelRow.checker == worker,
            state=state.value,
            facts=facts.model_dump(mode="json"),
            report=dict(report),
            checker=None,
            checked_until=None,
        )

    def _check(self, model_id: str, condition: ColumnElement[bool], **values: Any) -> bool:
        found = self._session.execute(
            update(ModelRow)
            .where(ModelRow.id == model_id, ModelRow.state == ModelState.CHECKING.value, condition)
            .values(**values, revision=ModelRow.revision + 1, changed_at=func.now())
            .returning(ModelRow.id)
            .execution_options(synchronize_session=False)
        )
        if found.first() is None:
            return False
        self._events.notify(MODEL_CHANNEL, model_id)
        return True

    # -- removal -------------------------------------------------------------------------------------------------------

    def delete_unused(self, seconds: float) -> list[StoredModel]:
        """Delete the rows of models that were removed so long ago and that no unfinished job names; returns them."""
        names = list(self._session.scalars(_UNUSED, {"seconds": seconds}))
        if not names:
            return []
        gone = self.named(names)
        self._session.execute(
            delete(ModelRow).where(ModelRow.id.in_(names)).execution_options(synchronize_session=False)
        )
        return gone

    def _changed(self, model_id: str) -> StoredModel:
        self._events.notify(MODEL_CHANNEL, model_id)
        found = self.get(model_id)
        assert found is not None  # written above, in this transaction
        return found


_REPLACED: Final = (ModelState.REMOVED.value, ModelState.FAILED.value)
_ORDER: Final = (ModelRow.created_at, ModelRow.id)
