"""Who gets what, decided late and from the real state alone: a pure function, so that it can be tested and simulated.

Oldest first within a class of priority, to the worker with the most room; among equals, one that has the model loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from farm.domain.job import HandOver
from farm.domain.states import Priority


@dataclass(frozen=True)
class Candidate:
    """A waiting job."""

    job_id: str  #: ids are time-ordered, so the smaller is the older
    tenant_id: str
    model: str
    priority: Priority


@dataclass(frozen=True)
class Seat:
    """A worker that may be handed jobs."""

    worker: str
    room: int  #: how many more jobs it takes: slots + look-ahead, less what it holds
    models: frozenset[str]  #: in its memory


def choose(seats: Sequence[Seat], waiting: Sequence[Candidate]) -> list[HandOver]:
    """The hand-overs to make now, in the order they should be sent."""
    room = {seat.worker: seat.room for seat in seats}
    loaded = {seat.worker: seat.models for seat in seats}
    chosen: list[HandOver] = []
    for job in sorted(waiting, key=lambda job: (-job.priority.rank, job.job_id)):
        best = max(room, key=lambda worker: (room[worker], job.model in loaded[worker], worker), default=None)
        if best is None or room[best] <= 0:
            break
        room[best] -= 1
        chosen.append(HandOver(job.job_id, best))
    return chosen
