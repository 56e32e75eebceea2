"""What operators have stopped: the whole farm, or one model. A tenant's pause is in its own row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy import delete
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from farm.domain.queue import Paused
from farm.domain.waiting import Pause
from farm.store.tables import PauseRow

FARM: Final = "farm"
MODEL: Final = "model"
TENANT: Final = "tenant"  #: whose pause is in its own row

_NOW: Final = """
    SELECT kind, name, paused_at, paused_by FROM pause
    UNION ALL
    SELECT 'tenant', 'ten_' || translate(id::text, '-', ''), paused_at, paused_by
    FROM tenant WHERE paused_at IS NOT NULL
"""


@dataclass(frozen=True)
class PauseDetails:
    """What is paused, since when and by whom."""

    farm: Pause | None = None
    models: Mapping[str, Pause] = field(default_factory=dict)
    tenants: Mapping[str, Pause] = field(default_factory=dict)  #: by id


class Pauses:
    """All pauses. A pause stops dispatch; jobs that workers already have go on."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def now(self) -> Paused:
        """What is paused now."""
        found = self.details()
        return Paused(found.farm is not None, frozenset(found.models), tuple(sorted(found.tenants)))

    def details(self) -> PauseDetails:
        """What is paused now, since when and by whom."""
        found: dict[str, dict[str, Pause]] = {FARM: {}, MODEL: {}, TENANT: {}}
        for kind, name, since, by in self._session.connection().exec_driver_sql(_NOW):
            found[kind][name] = Pause(since, by)
        return PauseDetails(found[FARM].get(""), found[MODEL], found[TENANT])

    def pause(self, model: str | None = None, by: str | None = None) -> None:
        """Stop a model, or the farm; a second time changes nothing. ``by``: the name of the key that asks for it."""
        kind, name = (FARM, "") if model is None else (MODEL, model)
        values = {"kind": kind, "name": name, "paused_by": by}
        self._session.execute(insert(PauseRow).values(values).on_conflict_do_nothing())

    def resume(self, model: str | None = None) -> bool:
        """Let a model, or the farm, go on; False if it was not paused."""
        kind, name = (FARM, "") if model is None else (MODEL, model)
        gone = self._session.scalar(
            delete(PauseRow).where(PauseRow.kind == kind, PauseRow.name == name).returning(PauseRow.name)
        )
        return gone is not None
