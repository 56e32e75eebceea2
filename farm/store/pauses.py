"""What operators have stopped: the whole farm, or one model. A tenant's pause is in its own row."""

from __future__ import annotations

from typing import Final

from sqlalchemy import delete
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from farm.domain.queue import Paused
from farm.store.tables import PauseRow

FARM: Final = "farm"
MODEL: Final = "model"
TENANT: Final = "tenant"  #: whose pause is in its own row

_NOW: Final = """
    SELECT kind, name FROM pause
    UNION ALL
    SELECT 'tenant', 'ten_' || translate(id::text, '-', '') FROM tenant WHERE paused_at IS NOT NULL
"""


class Pauses:
    """All pauses. A pause stops dispatch; jobs that workers already have go on."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def now(self) -> Paused:
        """What is paused now."""
        names: dict[str, list[str]] = {FARM: [], MODEL: [], TENANT: []}
        for kind, name in self._session.connection().exec_driver_sql(_NOW):
            names[kind].append(name)
        return Paused(bool(names[FARM]), frozenset(names[MODEL]), tuple(sorted(names[TENANT])))

    def pause(self, model: str | None = None) -> None:
        """Stop a model, or the farm; a second time changes nothing."""
        kind, name = (FARM, "") if model is None else (MODEL, model)
        self._session.execute(insert(PauseRow).values(kind=kind, name=name).on_conflict_do_nothing())

    def resume(self, model: str | None = None) -> bool:
        """Let a model, or the farm, go on; False if it was not paused."""
        kind, name = (FARM, "") if model is None else (MODEL, model)
        gone = self._session.scalar(
            delete(PauseRow).where(PauseRow.kind == kind, PauseRow.name == name).returning(PauseRow.name)
        )
        return gone is not None
