"""The dispatcher as a process: it dispatches, it survives failures of its servers, and another one takes over."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest
import redis
from sqlalchemy import text

from farm import lifecycle
from farm.dispatch import broker
from farm.dispatch.reaper import Reaper
from farm.domain import ids
from farm.domain.job import Job
from farm.domain.queue import Assignment, DispatchedJob
from farm.domain.states import JobState
from farm.domain.worker import WorkerState
from farm.settings import Settings
from farm.store.unit_of_work import Store
from tests import job_edges
from tests.waiting import wait_until

from .conftest import Submit, worker_info

WORKER = "host/cpu0"
Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(farm_env: dict[str, str]) -> Iterator[Start]:
    """Starts dispatcher processes; ends those that still run."""
    running: list[subprocess.Popen[bytes]] = []

    def one(log: IO[bytes] | None = None, **settings: str) -> subprocess.Popen[bytes]:
        command = "from farm.cli.serve_dispatcher import dispatcher; dispatcher()"
        env = os.environ | farm_env | settings
        child = subprocess.Popen([sys.executable, "-c", command], env=env, stderr=log)
        running.append(child)
        return child

    yield one
    for child in running:
        child.kill()
        child.wait()


@pytest.fixture
def queue(redis_url: str) -> Iterator[Callable[[], list[tuple[str, int]]]]:
    """Reads what waits in the worker's queue: (job, epoch) pairs, oldest first."""
    with redis.Redis.from_url(redis_url) as client:

        def read() -> list[tuple[str, int]]:
            found = []
            for raw in reversed(client.lrange(f"worker.{WORKER}", 0, -1)):
                _, kwargs, _ = json.loads(base64.b64decode(json.loads(raw)["body"]))
                found.append((kwargs["job"], kwargs["epoch"]))
            return found

        yield read


@pytest.fixture
def worker(store: Store) -> str:
    with store.begin() as unit:
        lifecycle.join(unit, worker_info(WORKER, slots=1, prefetch=2))
    return WORKER


def state(store: Store, job: Job) -> JobState:
    with store.begin() as unit:
        found = unit.jobs.get(job.id)
    assert found is not None
    return found.state


def test_jobs_reach_the_workers_own_queue_oldest_first_and_never_more_than_its_window(
    start: Start,
    queue: Callable[[], list[tuple[str, int]]],
    worker: str,
    store: Store,
    submit: Submit,
    redis_url: str,
) -> None:
    jobs = [submit() for _ in range(5)]
    start()
    wait_until(lambda: len(queue()) == 3, 15, what="three messages in the queue")
    assert queue() == [(job.id, 1) for job in jobs[:3]]
    assert [state(store, job) for job in jobs[3:]] == [JobState.QUEUED, JobState.QUEUED]
    # room again: the next one comes without waiting for a tick
    with redis.Redis.from_url(redis_url) as client:
        client.rpop(f"worker.{WORKER}")
    with store.begin() as unit:
        job_edges.claim(unit, jobs[0].id, 1, worker, 30)
        lifecycle.release(unit, jobs[0].id, 1, "test")
    expected = [(jobs[1].id, 1), (jobs[2].id, 1), (jobs[0].id, 2)]
    wait_until(lambda: queue() == expected, 5, what="a message in the place of the one read")


@pytest.fixture
def beating(store: Store) -> Iterator[None]:
    """The worker lives for as long as the test, however long the machine needs for it."""
    info, ended = worker_info(WORKER, slots=1, prefetch=2), threading.Event()
    with store.begin() as unit:
        lifecycle.join(unit, info)

    def beat() -> None:
        while not ended.wait(1):
            with store.begin() as unit:
                lifecycle.heartbeat(unit, info.name, info.boot_id, [], (), 30)

    thread = threading.Thread(target=beat)
    thread.start()
    yield
    ended.set()
    thread.join()


def test_messages_of_dead_epochs_pile_up_no_further_than_the_window(
    start: Start, queue: Callable[[], list[tuple[str, int]]], beating: None, store: Store, submit: Submit
) -> None:
    """A worker that beats and reads nothing: its leases end again and again, and its list stays as short as it is."""
    jobs = [submit() for _ in range(3)]
    start(FARM_DISPATCH_LEASE_SECONDS="1", FARM_HEARTBEAT_SECONDS="4")
    wait_until(lambda: len(queue()) == 3, 15, what="three messages in the queue")
    unread = queue()
    wait_until(lambda: all(state(store, job) is JobState.QUEUED for job in jobs), 20, what="all leases ran out")
    with store.begin() as unit:
        lifecycle.join(unit, worker_info("host/cpu1", slots=4))

    def moved() -> bool:
        with store.begin() as unit:
            return {one.job_id for one in unit.jobs.held_by("host/cpu1")} == {job.id for job in jobs}

    wait_until(moved, 15, what="all jobs at the worker with room")
    assert queue() == unread


def test_a_wiped_broker_loses_no_job(
    start: Start, queue: Callable[[], list[tuple[str, int]]], worker: str, submit: Submit, redis_url: str
) -> None:
    start(FARM_DISPATCH_LEASE_SECONDS="1")
    job = submit()
    wait_until(lambda: queue() == [(job.id, 1)], 15, what="the message")
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    wait_until(lambda: (job.id, 2) in queue(), 10, what="the same job again, one epoch later")


def test_a_standby_takes_over_within_three_seconds_of_a_kill(
    start: Start, queue: Callable[[], list[tuple[str, int]]], beating: None, submit: Submit, tmp_path: Path
) -> None:
    leader = start()
    first = submit()
    wait_until(lambda: queue() == [(first.id, 1)], 15, what="the first message")
    log = tmp_path / "standby.log"
    with log.open("wb") as written:
        standby = start(written)
    wait_until(lambda: "action=leadership leads=False" in log.read_text(), 15, what="the second dispatcher stands by")
    second_epoch_jobs = [submit()]
    wait_until(lambda: len(queue()) == 2, 5, what="the second message")
    leader.kill()
    leader.wait()
    third = submit()
    wait_until(lambda: (third.id, 1) in queue(), 3, what="a message from the standby")
    assert queue() == [(first.id, 1), (second_epoch_jobs[0].id, 1), (third.id, 1)]
    standby.send_signal(signal.SIGTERM)
    assert standby.wait(10) == 0


def test_no_job_is_dispatched_while_the_broker_is_away(
    start: Start, worker: str, store: Store, submit: Submit, queue: Callable[[], list[tuple[str, int]]]
) -> None:
    child = start(FARM_REDIS_URL="redis://127.0.0.1:1/0")
    job, late = submit(), submit()
    with store.begin() as unit:  # a leading dispatcher ends it, once it is overdue
        unit.session.execute(
            text("UPDATE job SET deadline = now() WHERE id = :id"), {"id": ids.to_uuid(ids.JOB, late.id)}
        )
    wait_until(lambda: state(store, late) is JobState.FAILED, 20, what="a dispatcher that leads")
    child.terminate()
    assert child.wait(10) == 0
    with store.begin() as unit:
        assert unit.events.of_job(job.id) == []
        # on a slow machine it was silent for so long that it gets nothing
        unit.workers.set_state(worker, WorkerState.ONLINE)
        unit.session.execute(text("UPDATE worker SET heartbeat_at = now()"))
    start()
    wait_until(lambda: queue() == [(job.id, 1)], 15, what="the message, once the broker is there")


def test_jobs_are_given_back_while_the_broker_takes_nothing(
    start: Start,
    worker: str,
    store: Store,
    submit: Submit,
    queue: Callable[[], list[tuple[str, int]]],
    full_redis: Callable[[], None],
) -> None:
    full_redis()
    child = start()
    job = submit()

    def given_back() -> bool:
        with store.begin() as unit:
            return any(event.data.get("reason") == "broker unavailable" for event in unit.events.of_job(job.id))

    wait_until(given_back, 20, what="an unsent assignment requeued")
    child.terminate()
    assert child.wait(10) == 0
    assert state(store, job) is JobState.QUEUED
    assert queue() == []


def test_a_message_says_job_and_epoch_and_is_named_after_them(redis_url: str) -> None:
    app = broker.make_app(Settings(redis_url=redis_url))
    broker.send(app, [DispatchedJob("job_x", 3, WORKER)])
    with redis.Redis.from_url(redis_url) as client:
        assert client.keys("*") == [f"worker.{WORKER}".encode()]  # no bindings that a wipe could lose
        (raw,) = client.lrange(f"worker.{WORKER}", 0, -1)
        assert json.loads(raw)["headers"]["id"] == "job_x.3"
    assert broker.purge(app, WORKER) == 1


def test_celerys_monitors_see_what_was_sent(redis_url: str, start: Start, worker: str, submit: Submit) -> None:
    """As `celery events` and Flower receive it: which task, with which arguments, in whose list."""
    app = broker.make_app(Settings(redis_url=redis_url))
    heard: list[dict[str, object]] = []
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"task-sent": heard.append})
        with receiver.consumer_context(wakeup=False) as (listening, _, _):
            with contextlib.suppress(TimeoutError):
                listening.drain_events(timeout=0.5)  # it subscribes when it first looks
            broker.publish_sent_events(app, [DispatchedJob("job_x", 3, 'odd"/cpu0')])
            job = submit()
            start()
            while len(heard) < 2:
                listening.drain_events(timeout=20)
    said = [(one["uuid"], one["name"], one["kwargs"], one["queue"]) for one in heard]
    assert said == [
        ("job_x.3", "farm.render", "{'job': 'job_x', 'epoch': 3, 'version': 1}", 'worker.odd"/cpu0'),
        (f"{job.id}.1", "farm.render", f"{{'job': '{job.id}', 'epoch': 1, 'version': 1}}", f"worker.{worker}"),
    ]


def test_after_an_outage_of_the_database_workers_may_send_heartbeats_before_jobs_are_requeued(
    store: Store, worker: str, submit: Submit
) -> None:
    job = submit()
    with store.begin() as unit:
        lifecycle.dispatch(unit, [Assignment(job.id, worker)], 30)
        job_edges.claim(unit, job.id, 1, worker, 0.001)
    reaper = Reaper(store, Settings(heartbeat_seconds=0.4))
    with store.begin() as unit:
        assert unit.database_uptime() > 0
    reaper.hold()
    reaper.run()
    assert state(store, job) is JobState.RUNNING

    def taken_back() -> bool:
        reaper.run()
        return state(store, job) is JobState.QUEUED

    wait_until(taken_back, 5, what="the job requeued, once the workers had their time")
