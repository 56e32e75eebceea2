"""What a farm did, read from its event table, its storage and a receiver's log, and held against its promises.

`check` is pure: it gets a `History` and returns every `Violation`. `read` makes a history of a farm that has come to
rest. What the tables cannot tell afterwards (that a terminal state never changed, that a cap was never passed, how long
a list in Redis became) is told by samples that somebody took while it ran.
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg

TERMINAL = ("succeeded", "failed", "canceled")
ENDS = {f"job.{state}": state for state in TERMINAL}
WEBHOOK_EVENTS = tuple(ENDS)  #: what an endpoint gets that asks for nothing else


@dataclass(frozen=True)
class JobSeen:
    """A job's row."""

    id: str
    tenant: str
    state: str
    epoch: int
    attempts: int
    batch: str | None = None
    accepted: bool = True  #: whether the submitter got a 2xx for it


@dataclass(frozen=True)
class EventSeen:
    """A row of the event table; ``id`` is their order."""

    id: int
    job: str | None
    type: str
    epoch: int
    tenant: str = ""


@dataclass(frozen=True)
class OutputSeen:
    """A recorded output, and what the storage says of its object."""

    job: str
    index: int
    epoch: int
    key: str
    sha256: str
    stored_sha256: str | None  #: of the object's bytes, read back; None: there is no such object


@dataclass(frozen=True)
class BatchSeen:
    """A batch's counters."""

    id: str
    total: int
    succeeded: int
    failed: int
    canceled: int
    pending: int = 0


@dataclass(frozen=True)
class EdgeSeen:
    """A job that has an output of another one as an input."""

    parent: str
    job: str
    used: tuple[str, ...]  #: the SHA-256 of the parent's outputs that its spec has as inputs


@dataclass(frozen=True)
class DeliverySeen:
    """A delivery's row."""

    id: str  #: the ``webhook-id``
    endpoint: str
    event: int
    state: str


@dataclass(frozen=True)
class Post:
    """What a receiver got and how it answered."""

    endpoint: str
    webhook_id: str
    about: str  #: type and subject of the event: the same for every try of one event, and for no other
    acknowledged: bool


@dataclass(frozen=True)
class Sample:
    """A look while the farm ran."""

    states: dict[str, tuple[str, int]] = field(default_factory=dict)  #: by job: state and epoch
    held: dict[str, int] = field(default_factory=dict)  #: by tenant: jobs dispatched or running
    lengths: dict[str, int] = field(default_factory=dict)  #: by worker's list in Redis


@dataclass(frozen=True)
class History:
    """Everything that `check` looks at."""

    jobs: tuple[JobSeen, ...] = ()
    events: tuple[EventSeen, ...] = ()
    outputs: tuple[OutputSeen, ...] = ()
    batches: tuple[BatchSeen, ...] = ()
    edges: tuple[EdgeSeen, ...] = ()
    endpoints: dict[str, str] = field(default_factory=dict)  #: by endpoint: its tenant
    deliveries: tuple[DeliverySeen, ...] = ()
    posts: tuple[Post, ...] = ()
    samples: tuple[Sample, ...] = ()
    accepted: frozenset[str] = frozenset()  #: jobs for which the submitter got a 2xx
    caps: dict[str, int] = field(default_factory=dict)  #: by tenant
    window: int = 10**9  #: messages that may wait for one worker


@dataclass(frozen=True)
class Violation:
    """A promise that was not managed."""

    promise: str
    subject: str
    what: str

    def __str__(self) -> str:
        return f"{self.promise}: {self.subject}: {self.what}"


def check(history: History) -> list[Violation]:
    """Every promise that the history breaks."""
    return [Violation(promise, subject, what) for promise, rule in RULES.items() for subject, what in rule(history)]


Found = Iterator[tuple[str, str]]


def one_terminal_state(history: History) -> Found:
    """Every accepted job exists, has finished, and its history has exactly that terminal event, as the last one."""
    events = _by_job(history.events)
    known = {job.id for job in history.jobs}
    for job_id in sorted(history.accepted - known):
        yield job_id, "was accepted and is gone"
    for job in history.jobs:
        told = [event for event in events[job.id] if event.type in HISTORY_TYPES]
        ends = [ENDS[event.type] for event in told if event.type in ENDS]
        if job.state not in TERMINAL:
            yield job.id, f"is still {job.state}"
        if ends != [job.state] and job.state in TERMINAL:
            yield job.id, f"is {job.state}, its events tell of {ends}"
        if ends and told[-1].type not in ENDS:
            yield job.id, f"has {told[-1].type} after its end"


def terminal_never_changes(history: History) -> Found:
    """What was once seen over stays as it was seen."""
    seen: dict[str, str] = {}
    last = Sample(states={job.id: (job.state, job.epoch) for job in history.jobs})
    for sample in (*history.samples, last):
        for job, (state, _) in sample.states.items():
            if job in seen and seen[job] != state:
                yield job, f"was {seen[job]} and became {state}"
            if state in TERMINAL:
                seen[job] = state


def epochs_only_grow(history: History) -> Found:
    """No later event, and no later look, has an earlier epoch; one epoch is claimed once."""
    for job, events in _by_job(history.events).items():
        for before, after in itertools.pairwise(events):
            if after.epoch < before.epoch:
                yield job, f"{after.type} at epoch {after.epoch} after {before.type} at {before.epoch}"
        reservations = [event.epoch for event in events if event.type == "job.started"]
        for epoch in sorted({one for one in reservations if reservations.count(one) > 1}):
            yield job, f"was claimed {reservations.count(epoch)} times at epoch {epoch}"
    highest: dict[str, int] = {}
    for sample in history.samples:
        for job, (_, epoch) in sample.states.items():
            if epoch < highest.get(job, 0):
                yield job, f"was at epoch {highest[job]} and then at {epoch}"
            highest[job] = max(highest.get(job, 0), epoch)


def only_the_current_epoch_wrote(history: History) -> Found:
    """Outputs, their keys and the end carry the epoch that the job ended in."""
    epochs = {job.id: job.epoch for job in history.jobs}
    for output in history.outputs:
        if output.epoch != epochs.get(output.job):
            yield output.job, f"output {output.index} is of epoch {output.epoch}, the job of {epochs.get(output.job)}"
        if f"/{output.epoch}/" not in output.key:
            yield output.job, f"output {output.index} of epoch {output.epoch} lies at {output.key}"
    for event in history.events:
        if event.type in ENDS and event.job is not None and event.epoch != epochs.get(event.job):
            yield event.job, f"{event.type} at epoch {event.epoch}, the job is at {epochs.get(event.job)}"


def one_set_of_outputs(history: History) -> Found:
    """Succeeded jobs alone have outputs, one set of them, and each is in the storage as recorded."""
    outputs: dict[str, list[OutputSeen]] = defaultdict(list)
    for output in history.outputs:
        outputs[output.job].append(output)
        if output.stored_sha256 is None:
            yield output.job, f"object {output.key} is not in the storage"
        elif output.stored_sha256 != output.sha256:
            yield output.job, f"object {output.key} has SHA-256 {output.stored_sha256}, recorded is {output.sha256}"
    for job in history.jobs:
        found = outputs[job.id]
        if (job.state == "succeeded") != bool(found):
            yield job.id, f"is {job.state} and has {len(found)} outputs"
        if sorted(one.index for one in found) != list(range(len(found))) or len({one.epoch for one in found}) > 1:
            yield job.id, f"has outputs {sorted((one.epoch, one.index) for one in found)}"


def chains_follow_their_inputs(history: History) -> Found:
    """A job starts after all its inputs exist, with their bytes; one whose input failed never starts."""
    events = _by_job(history.events)
    states = {job.id: job.state for job in history.jobs}
    outputs: dict[str, set[str]] = defaultdict(set)
    for output in history.outputs:
        outputs[output.job].add(output.sha256)
    for edge in history.edges:
        started = [event.id for event in events[edge.job] if event.type == "job.started"]
        ended = [event for event in events[edge.parent] if event.type in ENDS]
        if started and not any(end.type == "job.succeeded" and end.id < started[0] for end in ended):
            yield edge.job, f"started before its input {edge.parent} had succeeded"
        if states.get(edge.job) == "succeeded" and not (edge.used and set(edge.used) <= outputs[edge.parent]):
            yield edge.job, f"used {edge.used}, its input {edge.parent} made {sorted(outputs[edge.parent])}"


def every_event_is_delivered(history: History) -> Found:
    """Each endpoint got each end of its tenant at least once and acknowledged it, always under one webhook-id."""
    posts: dict[tuple[str, str], list[Post]] = defaultdict(list)
    for post in history.posts:
        posts[post.endpoint, post.webhook_id].append(post)
    delivery = {(one.endpoint, one.event): one for one in history.deliveries}
    for endpoint, tenant in history.endpoints.items():
        for event in history.events:
            if event.tenant != tenant or event.type not in WEBHOOK_EVENTS:
                continue
            subject = f"{event.type} of {event.job} to {endpoint}"
            made = delivery.get((endpoint, event.id))
            if made is None:
                yield subject, "no delivery was made"
                continue
            got = posts[endpoint, made.id]
            if not got:
                yield subject, f"never arrived; the delivery is {made.state}"
            elif made.state == "delivered" and not any(post.acknowledged for post in got):
                yield subject, "counts as delivered and was never acknowledged"
            elif made.state != "delivered":
                yield subject, f"arrived and the delivery is {made.state}"
    by_event: dict[tuple[str, str], set[str]] = defaultdict(set)
    for post in history.posts:
        by_event[post.endpoint, post.about].add(post.webhook_id)
    for (endpoint, about), used in by_event.items():
        if len(used) > 1:
            yield f"{about} to {endpoint}", f"came under {len(used)} ids: {', '.join(sorted(used))}"


def counters_equal_rows(history: History) -> Found:
    """A batch's counters are the counts of its jobs."""
    states: dict[str, list[str]] = defaultdict(list)
    for job in history.jobs:
        if job.batch is not None:
            states[job.batch].append(job.state)
    for batch in history.batches:
        rows = states[batch.id]
        counted = (len(rows), *(rows.count(state) for state in (*TERMINAL, "pending")))
        says = (batch.total, batch.succeeded, batch.failed, batch.canceled, batch.pending)
        if counted != says:
            yield batch.id, f"counts (total, succeeded, failed, canceled, pending) {says}, its rows {counted}"


def caps_are_held(history: History) -> Found:
    """No look found more of a tenant's jobs at workers than it may have there."""
    for tenant, cap in history.caps.items():
        most = max((sample.held.get(tenant, 0) for sample in history.samples), default=0)
        if most > cap:
            yield tenant, f"had {most} jobs at workers, its cap is {cap}"


def redis_holds_a_window(history: History) -> Found:
    """No worker's list was ever longer than the window."""
    longest: dict[str, int] = {}
    for sample in history.samples:
        for worker, length in sample.lengths.items():
            longest[worker] = max(longest.get(worker, 0), length)
    for worker, length in longest.items():
        if length > history.window:
            yield worker, f"had {length} messages waiting, the window is {history.window}"


HISTORY_TYPES = ("job.started", "job.requeued", *ENDS)

RULES: dict[str, Callable[[History], Found]] = {
    "one terminal state": one_terminal_state,
    "terminal never changes": terminal_never_changes,
    "epochs only grow": epochs_only_grow,
    "only the current epoch wrote": only_the_current_epoch_wrote,
    "one set of outputs": one_set_of_outputs,
    "chains follow their inputs": chains_follow_their_inputs,
    "every event is delivered": every_event_is_delivered,
    "counters equal rows": counters_equal_rows,
    "caps are held": caps_are_held,
    "Redis holds a window": redis_holds_a_window,
}


def _by_job(events: Iterable[EventSeen]) -> dict[str, list[EventSeen]]:
    found: dict[str, list[EventSeen]] = defaultdict(list)
    for event in sorted(events, key=lambda one: one.id):
        if event.job is not None:
            found[event.job].append(event)
    return found


# -- reading -----------------------------------------------------------------------------------------------------------


_EDGES = """
    SELECT edge.parent_id::text, edge.job_id::text, array(
        SELECT file ->> 'sha256'
        FROM job, jsonb_each(job.spec -> 'inputs') AS role, jsonb_array_elements(role.value) AS file
        WHERE job.id = edge.job_id AND file ->> 'job' = 'job_' || encode(uuid_send(edge.parent_id), 'hex'))
    FROM job_dependency AS edge
"""


def read(
    connection: psycopg.Connection[Any],
    sha256_of: Callable[[str], str | None],
    *,
    endpoints: Sequence[str] = (),
    posts: Sequence[Post] = (),
    samples: Sequence[Sample] = (),
    accepted: frozenset[str] = frozenset(),
    window: int = 10**9,
) -> History:
    """The history of a farm at rest. Ids are UUIDs as text; ``sha256_of`` reads an object back by its key."""

    def rows(query: str) -> list[tuple[Any, ...]]:
        return connection.execute(query).fetchall()

    jobs = tuple(
        JobSeen(*row)
        for row in rows("SELECT id::text, tenant_id::text, state, epoch, attempts, batch_id::text FROM job")
    )
    return History(
        jobs=jobs,
        events=tuple(
            EventSeen(*row)
            for row in rows(
                "SELECT id, coalesce(job_id, batch_id)::text, type, epoch, tenant_id::text FROM event ORDER BY id"
            )
        ),
        outputs=tuple(
            OutputSeen(job, index, epoch, key, sha256, sha256_of(key))
            for job, index, epoch, key, sha256 in rows('SELECT job_id::text, "index", epoch, key, sha256 FROM output')
        ),
        batches=tuple(
            BatchSeen(*row) for row in rows("SELECT id::text, total, succeeded, failed, canceled, pending FROM batch")
        ),
        edges=tuple(EdgeSeen(parent, job, tuple(used)) for parent, job, used in rows(_EDGES)),
        endpoints={
            row[0]: row[1] for row in rows("SELECT id::text, tenant_id::text FROM endpoint") if row[0] in endpoints
        },
        deliveries=tuple(
            DeliverySeen(*row) for row in rows("SELECT id::text, endpoint_id::text, event_id, state FROM delivery")
        ),
        posts=tuple(posts),
        samples=tuple(samples),
        accepted=accepted,
        caps={row[0]: row[1] for row in rows("SELECT id::text, max_running FROM tenant WHERE max_running IS NOT NULL")},
        window=window,
    )


def look(connection: psycopg.Connection[Any]) -> Sample:
    """A sample of the database, in one statement, so that all of it is of one moment."""
    states: dict[str, tuple[str, int]] = {}
    held: dict[str, int] = defaultdict(int)
    for job, tenant, state, epoch in connection.execute("SELECT id::text, tenant_id::text, state, epoch FROM job"):
        states[job] = (state, epoch)
        held[tenant] += state in ("dispatched", "running")
    return Sample(states, dict(held))


def about(body: bytes) -> str:
    """What an event is about, from a webhook's body."""
    event = json.loads(body)
    return f"{event['type']} of {event['data'].get('id')}"
