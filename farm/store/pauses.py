"""What operators have stopped: the whole farm, or one model. A tenant's pause is in its own row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import delete, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from farm.store.tables import PauseRow, TenantRow

FARM: Final = "farm"
MODEL: Final = "model"


@dataclass(frozen=True)
class Stopped:
    """What is paused now."""

    farm: bool
    models: frozenset[str]
    tenants: tuple[str, ...]  #: ids, in the order of their creation


class Pauses:
    """All pauses. A pause stops hand-overs; what is at workers already goes on."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def now(self) -> Stopped:
        """What is paused now."""
        rows = [(row.kind, row.name) for row in self._session.execute(select(PauseRow.kind, PauseRow.name))]
        tenants = self._session.scalars(
            select(TenantRow.id).where(TenantRow.paused_at.is_not(None)).order_by(TenantRow.id)
        )
        return Stopped(
            any(kind == FARM for kind, _ in rows),
            frozenset(name for kind, name in rows if kind == MODEL),
            tuple(tenants),
        )

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
