"""The states of a job and the edges between them. ``farm/lifecycle.py`` has one function per edge."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class JobState(StrEnum):
    """A job's state."""

    PENDING = "pending"  #: accepted, waiting for the outputs of other jobs
    QUEUED = "queued"  #: accepted, waiting in Postgres
    DISPATCHED = "dispatched"  #: dispatched to one worker, which has not claimed it yet
    RUNNING = "running"  #: claimed: the worker holds a run lease
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def terminal(self) -> bool:
        """Whether the job has finished: a terminal state never changes."""
        return self in TERMINAL


TERMINAL: Final = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELED})

#: Every edge that exists. A retry of a finished job is a new job, so terminal states have no way out.
EDGES: Final[dict[JobState, frozenset[JobState]]] = {
    JobState.PENDING: frozenset({JobState.QUEUED, JobState.FAILED, JobState.CANCELED}),
    JobState.QUEUED: frozenset({JobState.DISPATCHED, JobState.FAILED, JobState.CANCELED}),
    JobState.DISPATCHED: frozenset({JobState.RUNNING, JobState.QUEUED, JobState.CANCELED}),
    JobState.RUNNING: frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.QUEUED, JobState.CANCELED}),
    JobState.SUCCEEDED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELED: frozenset(),
}


class Priority(StrEnum):
    """A job's priority."""

    BULK = "bulk"  #: overnight work: after everything else
    NORMAL = "normal"
    INTERACTIVE = "interactive"  #: a person is waiting

    @property
    def rank(self) -> int:
        """Higher goes first."""
        return _RANKS[self]

    @classmethod
    def of_rank(cls, rank: int) -> Priority:
        """The class of a stored rank."""
        return _BY_RANK[rank]


# the dispatcher asks for every head of every round
_BY_RANK: Final = tuple(Priority)
_RANKS: Final = {priority: rank for rank, priority in enumerate(_BY_RANK)}


class EventType(StrEnum):
    """The type of an event; each event is recorded in the transaction of the change that it reports."""

    STARTED = "job.started"
    REQUEUED = "job.requeued"
    SUCCEEDED = "job.succeeded"
    FAILED = "job.failed"
    CANCELED = "job.canceled"
    PROGRESS = "job.progress"  #: written only where a webhook endpoint asks for it
    BATCH_PROGRESS = "batch.progress"  #: of no job: a batch passed one of its milestones
    BATCH_COMPLETED = "batch.completed"  #: of no job: every job of a batch has finished
    ENDPOINT_DISABLED = "endpoint.disabled"  #: of no job: a webhook endpoint gets nothing more
    TEST = "farm.test"  #: of no job: a tenant tries one endpoint


#: A job's own history, whether or not an endpoint subscribes to it.
HISTORY: Final = (EventType.STARTED, EventType.REQUEUED, EventType.SUCCEEDED, EventType.FAILED, EventType.CANCELED)
#: What a batch tells of itself.
BATCH_EVENTS: Final = (EventType.BATCH_PROGRESS, EventType.BATCH_COMPLETED)
