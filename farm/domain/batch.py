"""A batch: many jobs submitted together, how far they are, and the sweep that writes them out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, NamedTuple

from farm.domain.estimate import SecondsRange
from farm.domain.job import NewJob
from farm.domain.parameters import PARAMETERS, stored_name
from farm.domain.resolve import random_seed
from farm.domain.states import Priority
from farm.errors import BadInput, FieldProblem
from farm.fields import MAX_SEED
from farm.tasks.params import Described

MAX_SWEEP: Final = 100_000  #: jobs that one sweep may write out
MILESTONES: Final = (10, 25, 50, 75, 90)  #: percent of a batch's jobs that have finished; one event for each


class BatchState(StrEnum):
    """A batch's state, derived from its counters."""

    IN_PROGRESS = "in_progress"
    CANCELING = "canceling"  #: a cancel was requested, and some jobs still run
    PAUSED = "paused"  #: what waits goes on waiting until it is resumed; what runs goes on
    COMPLETED = "completed"  #: every job has finished
    CANCELED = "canceled"  #: every job has finished, and a cancel was requested


class OnError(StrEnum):
    """What to do with a batch in which some lines cannot be accepted."""

    STOP = "stop"  #: nothing is stored
    SKIP = "skip"  #: the good lines are taken, the bad ones reported


@dataclass(frozen=True)
class NewBatch:
    """A batch about to be submitted."""

    name: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    retry_of: str | None = None  #: the batch whose failed and canceled jobs it repeats
    webhook: str | None = None  #: receives the batch's own events
    one_numerics: bool = False  #: whether all its jobs are rendered in the numerics class of the first
    numerics: str | None = None  #: that class, if it is known already
    request_hash: bytes | None = None  #: of the request that submits it; None: no file or list of jobs did


#: The parameters that the pipeline gets and in which entries of a batch mostly differ.
PER_ENTRY: Final = frozenset(Described.model_fields)


class EntryOverrides(NamedTuple):
    """What one of many alike entries has of its own."""

    common: Mapping[str, str | None]  #: of `PER_ENTRY`
    seed: int
    custom_id: str | None
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class BatchEntry:
    """One job of a batch about to be submitted, and where it was written."""

    line: int  #: 1-based line of the body, or place in the list
    job: NewJob
    overrides: EntryOverrides | None = None  #: what it has instead of the job's, where many entries share one job


@dataclass(frozen=True)
class Staged:
    """What waits in the staging table for its transaction's end."""

    total: int
    cost: float  #: megapixel-steps
    duplicates: int = 0  #: entries that were dropped because their ``custom_id`` had come before
    chained: bool = False  #: whether inputs of them are outputs of other jobs


@dataclass(frozen=True)
class Estimate:
    """What a dry run found."""

    total: int  #: jobs that would be queued
    cost: float  #: megapixel-steps
    seconds: SecondsRange | None  #: for these jobs alone; None while nothing was measured
    refused: int  #: entries that would not be taken
    problems: tuple[FieldProblem, ...]  #: the first of what is wrong with them
    same_as: str | None = None  #: a recent batch of an equal request


@dataclass(frozen=True)
class JobCounts:
    """How many of a batch's jobs are in each state."""

    total: int
    pending: int  #: waiting for the outputs of other jobs
    queued: int
    dispatched: int
    running: int
    succeeded: int
    failed: int
    canceled: int

    @property
    def finished(self) -> int:
        """Finished jobs."""
        return self.succeeded + self.failed + self.canceled

    @property
    def done(self) -> int:
        """Jobs that succeeded or failed: canceled ones were not rendered to their end."""
        return self.succeeded + self.failed

    @property
    def progress(self) -> float:
        """The finished part of the jobs, from 0 to 1."""
        return self.finished / self.total if self.total else 1.0


@dataclass(frozen=True)
class BatchContents:
    """What a batch consists of, and what deleting it removes."""

    jobs: int
    outputs: int
    bytes: int  #: of the outputs


@dataclass(frozen=True)
class Batch:
    """Many jobs submitted together."""

    id: str
    tenant_id: str
    name: str | None
    metadata: Mapping[str, str]
    counts: JobCounts
    cost: float  #: megapixel-steps, of all its jobs
    suspicious: int  #: jobs that succeeded with an output that looks wrong
    skipped: int  #: lines that were refused when it was submitted with ``on_error=skip``
    error_key: str | None  #: the object that reports them
    retry_of: str | None
    created_at: datetime
    first_finished_at: datetime | None  #: when the first of its jobs finished
    finished_at: datetime | None  #: when the last one was
    cancel_requested_at: datetime | None
    webhook: str | None  #: receives the batch's own events
    priority: Priority | None  #: of all its jobs; None: each has its own
    paused_at: datetime | None
    paused_seconds: float  #: that it was paused since its first job ended, but for the pause that lasts
    one_numerics: bool  #: whether all its jobs are rendered in the numerics class of the first
    numerics: str | None  #: that class, once it is known
    propagating: bool  #: whether its jobs still follow a pause, the end of one, a new priority, or a cancel
    read_at: datetime  #: the database's time of this look
    same_as: str | None = None  #: of one just submitted: a recent batch of an equal request

    @property
    def state(self) -> BatchState:
        """Where it stands."""
        if self.finished_at is not None:
            return BatchState.COMPLETED if self.cancel_requested_at is None else BatchState.CANCELED
        if self.cancel_requested_at is not None:
            return BatchState.CANCELING
        return BatchState.IN_PROGRESS if self.paused_at is None else BatchState.PAUSED

    @property
    def jobs_per_second(self) -> float | None:
        """The measured speed since its first job ended, pauses left out; None until two have."""
        if self.first_finished_at is None or self.counts.done < 2:
            return None
        until = self.finished_at or self.paused_at or self.read_at
        seconds = (until - self.first_finished_at).total_seconds() - self.paused_seconds
        return (self.counts.done - 1) / seconds if seconds > 0 else None

    @property
    def eta_seconds(self) -> float | None:
        """Seconds until it finishes at the measured speed; None while there is none, or while it is paused."""
        if self.finished_at is not None:
            return 0.0
        if self.state is BatchState.PAUSED:
            return None
        speed = self.jobs_per_second
        return (self.counts.total - self.counts.finished) / speed if speed else None


# -- sweeps ----------------------------------------------------------------------------------------------------------


class SeedPlan(StrEnum):
    """How the repeats of a combination get their seeds."""

    CONSECUTIVE = "consecutive"  #: the job's seed, or one drawn for the whole sweep, and those that follow it
    RANDOM = "random"  #: each job its own


def sweep_size(groups: Sequence[Mapping[str, Sequence[object]]], repeats: int) -> int:
    """How many jobs a sweep writes out. Raises `BadInput` for lists of one group that differ in length, for a parameter
    that is in two groups, and for more than `MAX_SWEEP` jobs."""  # noqa: D205, D209
    problems: list[FieldProblem] = []
    seen: dict[str, int] = {}
    for number, group in enumerate(groups):
        lengths = {name: len(values) for name, values in group.items()}
        if len(set(lengths.values())) > 1:
            given = ", ".join(f"{name} has {length}" for name, length in lengths.items())
            problems.append(
                FieldProblem(
                    f"sweep.{number}", given, "the lists of one group are zipped, so they must be equally long"
                )
            )
        for name in group:
            stored = stored_name(name)
            if stored in seen:
                problems.append(FieldProblem(f"sweep.{number}.{name}", None, f"is already in group {seen[stored]}"))
            seen.setdefault(stored, number)
    if problems:
        raise BadInput(*problems)
    size = math.prod(len(next(iter(group.values()))) for group in groups) * repeats
    if size > MAX_SWEEP:
        raise BadInput.of("sweep", size, f"writes out {size:,} jobs; at most {MAX_SWEEP:,} are allowed in one sweep")
    return size


def sweep(
    groups: Sequence[Mapping[str, Sequence[object]]],
    repeats: int,
    defaults: Mapping[str, object],
    seeds: SeedPlan,
) -> Iterator[dict[str, Any]]:
    """The requests that a sweep writes out: lists zipped inside a group, multiplied across groups, times ``repeats``.

    The last group changes fastest but for the repeats. With repeats, a ``custom_id`` gets ``-0``, ``-1``… so that it
    stays one of a kind, and so it does with every later group that it is multiplied by.
    """
    sizes = [len(next(iter(group.values()))) for group in groups]
    base = random_seed()
    named = next((number for number, group in enumerate(groups) if "custom_id" in group), None)
    copies = repeats * math.prod(size for number, size in enumerate(sizes) if number != named)
    used: dict[int, int] = {}
    for place in range(math.prod(sizes)):
        request = dict(defaults)
        rest, chosen = place, [0] * len(sizes)
        for number in reversed(range(len(sizes))):
            rest, chosen[number] = divmod(rest, sizes[number])
        for group, index in zip(groups, chosen, strict=True):
            request |= {name: values[index] for name, values in group.items()}
        for repeat in range(repeats):
            one = dict(request)
            seed = one.get("seed")
            if seeds is SeedPlan.CONSECUTIVE and (seed is None or isinstance(seed, int)) and not isinstance(seed, bool):
                # without a seed of its own, each combination gets the same ones, so that combinations can be compared
                first = base if seed is None else seed
                step = _outputs(one)
                one["seed"] = (first + repeat * step) % (MAX_SEED + 1) if first >= 0 else first
            elif seeds is SeedPlan.RANDOM and repeat > 0:
                one["seed"] = None
            if named is not None and copies > 1 and isinstance(one["custom_id"], str):
                number = used.get(chosen[named], 0)
                used[chosen[named]] = number + 1
                one["custom_id"] = f"{one['custom_id']}-{number}"
            yield one


def _outputs(request: Mapping[str, object]) -> int:
    """Outputs of one job, each of which takes a seed; 1 where the count is going to be refused."""
    names = PARAMETERS["num_outputs"].names
    count = next((request[name] for name in names if name in request), None)
    return count if isinstance(count, int) and not isinstance(count, bool) and count > 0 else 1
