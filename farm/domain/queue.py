"""Queues as the dispatcher sees them: queued jobs, the state that rounds carry on, and decisions.

All of these are tuples: a round of the dispatcher makes thousands of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from farm.domain.states import Priority

MIN_WEIGHT: Final = 1e-6  #: a tenant of weight 0 is served when no other tenant waits, without a division by zero


class QueuedJob(NamedTuple):
    """A queued job as the policy weighs it; times are seconds since 1970."""

    job_id: str  #: time-ordered, so the smaller is the older
    cost: float  #: megapixel-steps
    queued_at: float = 0.0  #: its place in the queue: when it was submitted, or when it became available
    deadline: float | None = None  #: not dispatched from then on
    failed_by: frozenset[str] = frozenset()  #: workers that failed it: others are preferred
    wait_for: str | None = None  #: the numerics class that it waits for: it began there, and its worker was lost


class Queue(NamedTuple):
    """The first queued jobs of one tenant, priority, model and pin, oldest first, and the queue's state."""

    tenant_id: str
    model: str
    priority: Priority
    candidates: Sequence[QueuedJob]
    more: bool = False  #: whether others may wait behind the candidates
    skips: int = 0  #: dispatched jobs that passed it over since it was last served
    served_at: float | None = None  #: when its last job was dispatched
    failed: frozenset[str] = frozenset()  #: ids of the candidates that a worker failed before
    #: what its jobs are pinned to: a numerics class, the batch whose jobs all get the class of the first, or nothing
    pin: str = ""
    numerics: str | None = None  #: the numerics class that the pin means; None: any, or not chosen yet


class QueueState(NamedTuple):
    """What a queue carries into the next round."""

    tenant_id: str
    model: str
    priority: Priority
    skips: int
    served_at: float | None
    pin: str = ""


class TenantShare(NamedTuple):
    """A tenant in the fair share."""

    tenant_id: str
    weight: float = 1.0
    vtime: float = 0.0  #: virtual time: cost / weight dispatched so far, and the lifts after idle times
    backlogged: bool = False  #: whether the last round left it waiting for a worker, not for a limit
    held: int = 0  #: jobs dispatched or running
    max_running: int | None = None  #: the most that ``held`` may become
    paused: bool = False


class ShareState(NamedTuple):
    """What a tenant carries into the next round."""

    tenant_id: str
    vtime: float
    backlogged: bool
    was: float = 0.0  #: the virtual time that the round began with


class Paused(NamedTuple):
    """What operators have paused."""

    farm: bool = False
    models: frozenset[str] = frozenset()
    tenants: tuple[str, ...] = ()  #: ids, oldest first


class Assignment(NamedTuple):
    """A decision of the policy: this job goes to that worker."""

    job_id: str
    worker: str


class DispatchedJob(NamedTuple):
    """A job that was dispatched; its message may be sent once that is committed."""

    job_id: str
    epoch: int
    worker: str
