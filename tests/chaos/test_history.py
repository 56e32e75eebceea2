"""The history checker finds each broken promise, and none in a history that managed them all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.chaos.history import (
    RULES,
    BatchSeen,
    DeliverySeen,
    EdgeSeen,
    EventSeen,
    History,
    JobSeen,
    OutputSeen,
    Post,
    Sample,
    check,
)

KEPT = History(
    jobs=(
        JobSeen("a", "t", "succeeded", 2, 2, "b"),
        JobSeen("c", "t", "canceled", 0, 0, "b"),
        JobSeen("p", "u", "succeeded", 1, 1),
    ),
    events=(
        EventSeen(-1, "p", "job.started", 1, "u"),
        EventSeen(0, "p", "job.succeeded", 1, "u"),
        EventSeen(1, "a", "job.started", 1, "t"),
        EventSeen(2, "a", "job.requeued", 1, "t"),
        EventSeen(3, "a", "job.started", 2, "t"),
        EventSeen(4, "a", "job.succeeded", 2, "t"),
        EventSeen(5, "c", "job.canceled", 0, "t"),
    ),
    outputs=(
        OutputSeen("a", 0, 2, "outputs/t/a/2/0.png", "f00", "f00"),
        OutputSeen("p", 0, 1, "outputs/u/p/1/0.png", "0dd", "0dd"),
    ),
    edges=(EdgeSeen("p", "a", ("0dd",)),),
    batches=(BatchSeen("b", 2, 1, 0, 1),),
    endpoints={"e": "t"},
    deliveries=(DeliverySeen("m1", "e", 4, "delivered"), DeliverySeen("m2", "e", 5, "delivered")),
    posts=(
        Post("e", "m1", "job.succeeded of a", acknowledged=False),
        Post("e", "m1", "job.succeeded of a", acknowledged=True),
        Post("e", "m2", "job.canceled of c", acknowledged=True),
    ),
    samples=(
        Sample({"a": ("running", 1), "c": ("queued", 0)}, {"t": 1}, {"worker.w": 2}),
        Sample({"a": ("running", 2), "c": ("canceled", 0)}, {"t": 2}, {"worker.w": 1}),
    ),
    accepted=frozenset({"a", "c"}),
    caps={"t": 2},
    window=2,
)


def job(history: History, **changes: object) -> History:
    return replace(history, jobs=(replace(history.jobs[0], **changes), *history.jobs[1:]))  # type: ignore[arg-type]


def event(history: History, *more: EventSeen) -> History:
    return replace(history, events=(*history.events, *more))


def output(history: History, **changes: object) -> History:
    return replace(history, outputs=(replace(history.outputs[0], **changes), history.outputs[1]))  # type: ignore[arg-type]


def sample(history: History, one: Sample) -> History:
    return replace(history, samples=(*history.samples, one))


BROKEN: list[tuple[str, Callable[[History], History]]] = [
    ("one terminal state", lambda h: job(h, state="running")),
    ("one terminal state", lambda h: job(h, state="failed")),
    ("one terminal state", lambda h: event(h, EventSeen(6, "a", "job.failed", 2, "x"))),
    ("one terminal state", lambda h: event(h, EventSeen(6, "a", "job.requeued", 2, "t"))),
    ("one terminal state", lambda h: replace(h, accepted=frozenset({"a", "c", "lost"}))),
    ("terminal never changes", lambda h: sample(h, Sample({"c": ("running", 0)}))),
    ("terminal never changes", lambda h: sample(h, Sample({"a": ("failed", 2)}))),
    ("epochs only grow", lambda h: event(h, EventSeen(6, "a", "job.progress", 1, "t"))),
    ("epochs only grow", lambda h: event(h, EventSeen(6, "c", "job.started", 1), EventSeen(7, "c", "job.started", 1))),
    ("epochs only grow", lambda h: sample(h, Sample({"a": ("running", 1)}))),
    ("only the current epoch wrote", lambda h: output(h, epoch=1, key="outputs/t/a/1/0.png")),
    ("only the current epoch wrote", lambda h: output(h, key="outputs/t/a/1/0.png")),
    ("only the current epoch wrote", lambda h: job(h, epoch=3)),
    ("one set of outputs", lambda h: output(h, stored_sha256="bad")),
    ("one set of outputs", lambda h: output(h, stored_sha256=None)),
    ("one set of outputs", lambda h: replace(h, outputs=())),
    ("one set of outputs", lambda h: replace(h, outputs=h.outputs * 2)),
    ("one set of outputs", lambda h: output(h, job="c")),
    ("chains follow their inputs", lambda h: replace(h, edges=(EdgeSeen("p", "a", ("f00",)),))),
    ("chains follow their inputs", lambda h: replace(h, edges=(EdgeSeen("p", "a", ()),))),
    ("chains follow their inputs", lambda h: replace(h, edges=(EdgeSeen("c", "a", ("0dd",)),))),
    ("chains follow their inputs", lambda h: replace(h, events=(*h.events[2:], replace(h.events[1], id=9)))),
    ("every event is delivered", lambda h: replace(h, deliveries=h.deliveries[:1])),
    ("every event is delivered", lambda h: replace(h, posts=h.posts[:2])),
    ("every event is delivered", lambda h: replace(h, posts=(h.posts[0], h.posts[2]))),
    ("every event is delivered", lambda h: replace(h, posts=(*h.posts, replace(h.posts[0], webhook_id="m3")))),
    (
        "every event is delivered",
        lambda h: replace(h, deliveries=(replace(h.deliveries[0], state="dead"), h.deliveries[1])),
    ),
    ("counters equal rows", lambda h: replace(h, batches=(BatchSeen("b", 2, 2, 0, 0),))),
    ("counters equal rows", lambda h: replace(h, batches=(BatchSeen("b", 3, 1, 0, 1),))),
    ("counters equal rows", lambda h: replace(h, batches=(BatchSeen("b", 2, 1, 0, 1, 1),))),
    ("caps are held", lambda h: sample(h, Sample(held={"t": 3}))),
    ("Redis holds a window", lambda h: sample(h, Sample(lengths={"worker.w": 3}))),
]


def test_a_history_that_kept_its_promises_passes() -> None:
    assert check(KEPT) == []


@pytest.mark.parametrize(("promise", "broken"), BROKEN)
def test_each_broken_promise_is_found(promise: str, broken: Callable[[History], History]) -> None:
    assert promise in {violation.promise for violation in check(broken(KEPT))}


def test_every_promise_is_broken_once() -> None:
    assert {promise for promise, _ in BROKEN} == set(RULES)
