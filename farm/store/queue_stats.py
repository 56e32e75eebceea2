"""How the farm stands: what waits, what is at workers, and who renders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sqlalchemy import text
from sqlalchemy.orm import Session

# one branch for each of the partial indexes of jobs that are not over
_JOBS: Final = text("""
    SELECT 'queued', model, count(*), extract(epoch FROM now() - min(queued_at))
    FROM job WHERE state = 'queued' GROUP BY model
    UNION ALL
    SELECT state, model, count(*), 0 FROM job WHERE state IN ('dispatched', 'running') GROUP BY state, model
""")


@dataclass(frozen=True)
class Line:
    """Jobs of one model in one state."""

    state: str
    model: str
    jobs: int
    oldest_seconds: float


@dataclass(frozen=True)
class Standing:
    """The farm at one moment."""

    lines: tuple[Line, ...]
    workers: Mapping[str, int]  #: by state


def standing(session: Session) -> Standing:
    """Look."""
    lines = tuple(Line(row[0], row[1], int(row[2]), float(row[3])) for row in session.execute(_JOBS))
    workers = session.execute(text("SELECT state, count(*) FROM worker GROUP BY state"))
    return Standing(lines, {row[0]: int(row[1]) for row in workers})
