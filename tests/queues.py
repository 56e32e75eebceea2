"""What the tests read of the queues."""

from __future__ import annotations

from farm.domain.queue import QueuedJob
from farm.store.unit_of_work import UnitOfWork


def candidates(unit: UnitOfWork, limit: int) -> list[QueuedJob]:
    """The first jobs of every queue, one queue after the other."""
    return [job for queue in unit.queues.read(limit) for job in queue.candidates]
