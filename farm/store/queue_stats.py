"""Counts of jobs and workers by state, for the metrics of the whole farm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sqlalchemy import text
from sqlalchemy.orm import Session

# one branch for each of the partial indexes of jobs that are not finished
_JOBS: Final = text("""
    SELECT kind, model, count(*), coalesce(extract(epoch FROM now() - min(queued_at)), 0)
    FROM (
        SELECT model, queued_at,
            CASE WHEN paused THEN 'paused' WHEN available_at > now() THEN 'scheduled' ELSE 'queued' END AS kind
        FROM job WHERE state = 'queued'
    ) AS waiting
    GROUP BY kind, model
    UNION ALL
    SELECT state, model, count(*), 0 FROM job WHERE state IN ('dispatched', 'running') GROUP BY state, model
""")


@dataclass(frozen=True)
class JobStats:
    """Jobs of one model in one state."""

    state: str  #: of queued ones ``queued`` are due, ``scheduled`` are due later, ``paused`` are in a paused batch
    model: str
    jobs: int
    oldest_seconds: float  #: age of the oldest queued one


@dataclass(frozen=True)
class QueueStats:
    """The farm at one moment."""

    jobs: tuple[JobStats, ...]
    workers: Mapping[str, int]  #: by state


def queue_stats(session: Session) -> QueueStats:
    """Count unfinished jobs by state and model, and workers by state."""
    jobs = tuple(JobStats(row[0], row[1], int(row[2]), float(row[3])) for row in session.execute(_JOBS))
    workers = session.execute(text("SELECT state, count(*) FROM worker GROUP BY state"))
    return QueueStats(jobs, {row[0]: int(row[1]) for row in workers})
