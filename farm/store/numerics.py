"""The numerics classes that workers have joined with. A class stays known when its last worker has left."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from sqlalchemy import select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from farm.domain import ids
from farm.domain.numerics import Numerics
from farm.store.tables import BatchRow, NumericsRow

_ALL: Final = text("""
    SELECT numerics.name, numerics.facts,
           coalesce(array_agg(worker.name ORDER BY worker.name) FILTER (WHERE worker.name IS NOT NULL), '{}') AS workers
    FROM numerics LEFT JOIN worker ON worker.numerics = numerics.name AND worker.state = 'online'
    GROUP BY numerics.name ORDER BY numerics.first_joined_at, numerics.name
""")
#: The numerics class that a pin means: itself, or the one that the first job of its batch chose.
CLASS_OF_PIN: Final = f"""
    CASE WHEN starts_with({{pin}}, '{ids.BATCH}_') THEN (
             SELECT batch.numerics FROM batch WHERE batch.id = CAST(substr({{pin}}, {len(ids.BATCH) + 2}) AS uuid))
         WHEN {{pin}} <> '' THEN {{pin}} END
"""  # noqa: S608 - of constants


@dataclass(frozen=True)
class KnownNumerics:
    """A numerics class and who has it now."""

    numerics: Numerics
    workers: tuple[str, ...]  #: names of the online workers of this class


class NumericsClasses:
    """All numerics classes that any worker ever had."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def record(self, numerics: Numerics) -> None:
        """Remember a class and its facts."""
        values = {"name": numerics.name, "facts": dict(numerics.facts)}
        self._session.execute(insert(NumericsRow).values(values).on_conflict_do_nothing())

    def all(self) -> list[KnownNumerics]:
        """Every class, oldest first."""
        return [KnownNumerics(Numerics(row.name, row.facts), tuple(row.workers)) for row in self._session.execute(_ALL)]

    def choose(self, chosen: Mapping[str, str]) -> None:
        """Store the classes that the first jobs of batches chose, by the batch's id. The first choice stays."""
        for batch_id, name in sorted(chosen.items()):
            self._session.execute(
                update(BatchRow).where(BatchRow.id == batch_id, BatchRow.numerics.is_(None)).values(numerics=name)
            )

    def named(self, names: Collection[str]) -> dict[str, Numerics]:
        """Those of the classes that are known, by name."""
        if not names:
            return {}
        rows = self._session.scalars(select(NumericsRow).where(NumericsRow.name.in_(names)))
        return {row.name: Numerics(row.name, row.facts) for row in rows}
