"""Hypothesis against the real lifecycle on a real PostgreSQL: any order of any edges keeps every promise.

The clock is the database's and nobody else's, so it is the database that is told another time: a function ``now()`` in
a schema that this database's search path has before the built-in one. Every ``now()`` of the farm's statements is then
that function; stored defaults keep the true time, which is never later.

`make nightly` runs 200 random examples instead of eight.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from farm import lifecycle
from farm.domain import ids
from farm.domain.batch import BatchEntry, NewBatch
from farm.domain.checkpoint import Checkpoint
from farm.domain.job import HeldJob, Job, JobError, NewJob, Output
from farm.domain.job_spec import InputFile, JobSpec
from farm.domain.queue import Assignment, DispatchedJob
from farm.domain.worker import WorkerState
from farm.errors import BadInput, Conflict, LeaseLost
from farm.objects.keys import output_key
from farm.store.unit_of_work import Store, UnitOfWork, make_engine
from tests import job_edges
from tests.chaos.farm import uuid_of
from tests.chaos.history import TERMINAL, History, Sample, Violation, check, look, read
from tests.depth import NIGHTLY
from tests.integration.conftest import spec, worker_info
from tests.queues import candidates

LEASE = 30.0
CAP = 3
NAMES = ("host/cpu0", "host/cpu1")
#: What a worker may write.
HOWS = ("take up", "step", "keep", "succeed", "fail", "retry", "release", "preempt", "canceled")

CLOCK = """
    CREATE SCHEMA clock;
    CREATE TABLE clock.ahead (seconds double precision);
    INSERT INTO clock.ahead VALUES (0);
    CREATE FUNCTION clock.now() RETURNS timestamptz LANGUAGE sql STABLE AS
        $$ SELECT pg_catalog.now() + make_interval(secs => (SELECT seconds FROM clock.ahead)) $$;
"""


def sha_of(key: str) -> str:
    """The SHA-256 of an object: of another one for each key."""
    return hashlib.sha256(key.encode()).hexdigest()


def chained_spec(*parents: str) -> JobSpec:
    """A job with the first outputs of these as inputs."""
    files = [InputFile(sha256="", key="", media_type="image/png", size=0, job=parent) for parent in parents]
    return JobSpec.model_validate(
        spec().model_dump(exclude={"inputs"}) | {"task": "image-to-image", "inputs": {"image": files}}
    )


@dataclass
class Process:
    """A worker process: its boot, and the jobs in its memory."""

    boot: str
    held: dict[HeldJob, Job]


class Farm(RuleBasedStateMachine):
    """The dispatcher, the reaper, two workers and a client, each doing whatever is drawn next."""

    store: Store
    connection: psycopg.Connection[Any]

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[DispatchedJob] = []  # on their way to workers, in the broker
        self.processes: dict[str, Process] = {}
        self.zombies: list[tuple[str, HeldJob, Job]] = []  # what dead or fenced processes may still try to write
        self.samples: list[Sample] = []
        self.accepted: list[str] = []
        self.batches: list[str] = []

    @initialize(hows=st.permutations(HOWS), name=st.sampled_from(NAMES))
    def begin(self, hows: list[str], name: str) -> None:
        """Every example begins with what fences are for; what comes then is drawn."""
        self.connection.execute(
            "TRUNCATE tenant, job, checkpoint, batch, event, output, worker, queue_state, idempotency, delivery,"
            " job_dependency, propagation CASCADE"
        )
        with self.store.begin() as unit:
            self.tenant = unit.tenants.create("acme").id
        self.connection.execute("UPDATE tenant SET max_running = %s", (CAP,))
        for one in NAMES:
            self.join(one)
        for how in hows:
            self.two_have_it(name, how, finish=how == hows[0])
        self.batch_to_its_end(["succeed", "fail"])

    # -- the client ---------------------------------------------------------------------------------------------------

    @rule(attempts=st.integers(1, 3))
    def submit(self, attempts: int) -> None:
        with self.store.begin() as unit:
            self.accepted.append(lifecycle.submit(unit, self.tenant, NewJob(spec(), max_attempts=attempts))[0].id)

    @rule(size=st.integers(1, 3))
    def submit_batch(self, size: int) -> None:
        batch_id = ids.new(ids.BATCH)
        with self.store.begin() as unit:
            staged = unit.batches.stage(BatchEntry(line, NewJob(spec())) for line in range(1, size + 1))
            lifecycle.submit_batch(unit, self.tenant, batch_id, NewBatch(), staged)
        self.batches.append(batch_id)

    @precondition(lambda self: self.accepted)
    @rule(data=st.data(), count=st.integers(1, 3))
    def submit_chained(self, data: st.DataObject, count: int) -> None:
        """Jobs that have outputs of one or two others as inputs; refused if one of these will never have any."""
        parents = data.draw(st.lists(st.sampled_from(self.accepted), min_size=1, max_size=2, unique=True))
        for _ in range(count):
            try:
                with self.store.begin() as unit:
                    self.accepted.append(lifecycle.submit(unit, self.tenant, NewJob(chained_spec(*parents)))[0].id)
            except BadInput:
                assert {self.row(one)[0] for one in parents} & {"failed", "canceled"}

    @rule(size=st.integers(2, 4))
    def submit_chain(self, size: int) -> None:
        """A batch in which each job has an output of the next as an input."""
        batch_id = ids.new(ids.BATCH)
        with self.store.begin() as unit:
            entries = [BatchEntry(1, NewJob(spec(), custom_id="1"))]
            entries += [
                BatchEntry(line, NewJob(chained_spec(f"from:{line - 1}"), custom_id=str(line)))
                for line in range(2, size + 1)
            ]
            staged = unit.batches.stage(reversed(entries))
            unit.staged_chains.collect()
            assert not list(unit.staged_chains.problems())
            lifecycle.submit_batch(unit, self.tenant, batch_id, NewBatch(), replace(staged, chained=True))
        self.batches.append(batch_id)

    @rule(limit=st.integers(1, 3))
    def follow_ends(self, limit: int) -> None:
        """The sweeper lets some jobs follow the end of an input that has many dependents, if there are such."""
        with self.store.begin() as unit:
            lifecycle.propagate_end(unit, limit)

    @precondition(lambda self: self.batches)
    @rule(data=st.data())
    def cancel_batch(self, data: st.DataObject) -> None:
        """From here on none of its jobs is dispatched; they are canceled in steps."""
        with self.store.begin() as unit:
            try:
                lifecycle.cancel_batch(unit, self.tenant, data.draw(st.sampled_from(self.batches)))
            except Conflict:
                return

    @precondition(lambda self: self.batches)
    @rule(data=st.data())
    def follow(self, data: st.DataObject) -> None:
        """The sweeper goes on with what it finds, perhaps nothing."""
        batch_id = data.draw(st.sampled_from(self.batches))
        with self.store.begin() as unit:
            settled = lifecycle.propagate_batch(unit, batch_id)
        found = self.connection.execute(
            "SELECT count(*) FILTER (WHERE state IN ('queued', 'dispatched') OR NOT job.cancel_requested)"
            " FROM job JOIN batch ON batch.id = batch_id WHERE batch_id = %s AND cancel_requested_at IS NOT NULL"
            " AND state IN ('queued', 'dispatched', 'running')",
            (ids.to_uuid(ids.BATCH, batch_id),),
        ).fetchone()
        assert not settled or found == (0,)

    @precondition(lambda self: self.accepted)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        with self.store.begin() as unit:
            try:
                lifecycle.cancel(unit, self.tenant, data.draw(st.sampled_from(self.accepted)))
            except Conflict:
                return

    # -- the dispatcher -----------------------------------------------------------------------------------------------

    def held(self, unit: UnitOfWork) -> int:
        """How many of the tenant's jobs are at workers."""
        return next(share.held for share in unit.tenants.shares() if share.tenant_id == self.tenant)

    @rule(name=st.sampled_from(NAMES), most=st.integers(1, 2))
    def dispatch(self, name: str, most: int) -> None:
        with self.store.begin() as unit:
            held = self.held(unit)
            heads = candidates(unit, 10)[: max(0, min(most, CAP - held))]
            sent = lifecycle.dispatch(unit, [Assignment(head.job_id, name) for head in heads], LEASE)
        ended = self.connection.execute(
            "SELECT count(*) FROM job JOIN batch ON batch.id = batch_id"
            " WHERE job.id = ANY(%s) AND cancel_requested_at IS NOT NULL",
            ([ids.to_uuid(ids.JOB, one.job_id) for one in sent],),
        ).fetchone()
        assert ended == (0,)
        self.messages += sent

    @precondition(lambda self: self.messages)
    @rule(data=st.data())
    def requeue_unsent(self, data: st.DataObject) -> None:
        """The broker did not answer; the message may have arrived all the same."""
        with self.store.begin() as unit:
            lifecycle.requeue_unsent(unit, [data.draw(st.sampled_from(self.messages))], "broker unavailable")

    @rule()
    def reap(self) -> None:
        with self.store.begin() as unit:
            lifecycle.reap(unit)
            lifecycle.expire(unit)

    # -- the broker ---------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.messages)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        self.messages.remove(data.draw(st.sampled_from(self.messages)))

    @rule()
    def wipe(self) -> None:
        self.messages.clear()

    @precondition(lambda self: self.messages)
    @rule(data=st.data(), again=st.booleans(), name=st.sampled_from(NAMES))
    def deliver(self, data: st.DataObject, again: bool, name: str) -> None:
        """A message arrives: in any order, perhaps not for the last time, perhaps at a worker it was not for."""
        one = data.draw(st.sampled_from(self.messages))
        if not again:
            self.messages.remove(one)
        with self.store.begin() as unit:
            try:
                job = job_edges.claim(unit, one.job_id, one.epoch, name, LEASE)
            except LeaseLost:
                return
        assert (name, one.epoch) == (one.worker, job.epoch)
        self.processes[name].held[HeldJob(job.id, job.epoch)] = job

    # -- a worker -----------------------------------------------------------------------------------------------------

    def join(self, name: str) -> None:
        info = worker_info(name)
        with self.store.begin() as unit:
            lifecycle.join(unit, info)
        self.processes[name] = Process(info.boot_id, {})

    @rule(name=st.sampled_from(NAMES))
    def crash(self, name: str) -> None:
        """The process dies and the next one joins; what the dead one did last may reach the database afterwards."""
        self.zombies += [(name, held, job) for held, job in self.processes[name].held.items()]
        self.join(name)

    @rule(name=st.sampled_from(NAMES))
    def leave(self, name: str) -> None:
        process = self.processes[name]
        with self.store.begin() as unit:
            lifecycle.leave(unit, name, process.boot)
        self.zombies += [(name, held, job) for held, job in process.held.items()]
        self.join(name)

    @rule(name=st.sampled_from(NAMES))
    def heartbeat(self, name: str) -> None:
        process = self.processes[name]
        with self.store.begin() as unit:
            heard = lifecycle.heartbeat(unit, name, process.boot, list(process.held), (), LEASE)
        assert heard.state is WorkerState.ONLINE
        for held in [held for held in process.held if held.job_id not in heard.held]:
            self.zombies.append((name, held, process.held.pop(held)))  # told to stop; it may be too late for that

    @precondition(lambda self: any(process.held for process in self.processes.values()))
    @rule(data=st.data(), how=st.sampled_from(HOWS))
    def work(self, data: st.DataObject, how: str) -> None:
        name = data.draw(st.sampled_from([name for name, process in self.processes.items() if process.held]))
        held = data.draw(st.sampled_from(list(self.processes[name].held)))
        job = self.processes[name].held[held]
        if self.write(name, held, job, how) and how not in ("take up", "step", "keep"):
            del self.processes[name].held[held]

    @rule(name=st.sampled_from(NAMES), how=st.sampled_from(HOWS), finish=st.booleans())
    def two_have_it(self, name: str, how: str, finish: bool) -> None:
        """A worker is silent for longer than its lease, and writes at each point of the job's way to the other one."""
        held, job = self.start(name)
        self.write(name, held, job, "take up")
        self.advance(LEASE + 1)
        self.reap()
        self.write(name, held, job, how)  # it waits
        other = NAMES[1 - NAMES.index(name)]
        for sent in self.hand_to(other, held.job_id):
            self.write(name, held, job, how)  # it is on its way
            again = self.claim(sent)
            self.write(name, held, job, how)  # the other one has it
            if finish and self.write(other, again, job, "succeed"):
                del self.processes[other].held[again]
                self.write(name, held, job, how)  # it has finished
        self.zombies.append((name, held, job))

    @rule(name=st.sampled_from(NAMES), how=st.sampled_from(HOWS), again=st.sampled_from(HOWS))
    def write_twice(self, name: str, how: str, again: str) -> None:
        """An answer of the database was lost, and its asker tries again."""
        held, job = self.start(name)
        self.write(name, held, job, how)
        self.write(name, held, job, again)
        self.zombies.append((name, held, job))

    @rule(hows=st.lists(st.sampled_from(("succeed", "fail", "release", "canceled")), min_size=1, max_size=3))
    def batch_to_its_end(self, hows: list[str]) -> None:
        """A batch's jobs get to a worker without a detour, and end in different ways."""
        before = {job.id for job in self.history().jobs}
        self.submit_batch(len(hows))
        made = sorted({job.id for job in self.history().jobs} - before)
        for one, how in zip(made, hows, strict=True):
            self.make_room()
            for sent in self.hand_to(NAMES[0], ids.from_uuid(ids.JOB, UUID(one))):
                held = self.claim(sent)
                if how == "canceled":
                    self.cancel_one(held.job_id)
                if self.write(NAMES[0], held, self.processes[NAMES[0]].held[held], how):
                    del self.processes[NAMES[0]].held[held]

    def start(self, name: str) -> tuple[HeldJob, Job]:
        """A job gets to a worker without a detour."""
        self.make_room()
        with self.store.begin() as unit:
            job = lifecycle.submit(unit, self.tenant, NewJob(spec()))[0]
        self.accepted.append(job.id)
        (sent,) = self.hand_to(name, job.id)
        held = self.claim(sent)
        return held, self.processes[name].held.pop(held)

    def make_room(self) -> None:
        """If the tenant has all that it may have at workers, they lose it."""
        with self.store.begin() as unit:
            held = self.held(unit)
        if held >= CAP:
            self.advance(LEASE + 1)
            self.reap()

    def hand_to(self, name: str, job_id: str) -> list[DispatchedJob]:
        with self.store.begin() as unit:
            return lifecycle.dispatch(unit, [Assignment(job_id, name)], LEASE)

    def claim(self, sent: DispatchedJob) -> HeldJob:
        with self.store.begin() as unit:
            job = job_edges.claim(unit, sent.job_id, sent.epoch, sent.worker, LEASE)
        held = HeldJob(job.id, job.epoch)
        self.processes[sent.worker].held[held] = job
        return held

    def cancel_one(self, job_id: str) -> None:
        with self.store.begin() as unit:
            lifecycle.cancel(unit, self.tenant, job_id)

    @precondition(lambda self: self.zombies)
    @rule(data=st.data(), how=st.sampled_from(HOWS))
    def write_late(self, data: st.DataObject, how: str) -> None:
        """A process that lost its right does not know it yet."""
        self.write(*data.draw(st.sampled_from(self.zombies)), how)

    def write(self, name: str, held: HeldJob, job: Job, how: str) -> bool:
        """One fenced change. It takes effect exactly if the job runs at that epoch, whoever asks."""
        before = self.row(held.job_id)
        ours = before == ("running", held.epoch)
        key = output_key(self.tenant, job.id, held.epoch, 0, "png")
        output = Output(0, key, "image/png", 1, sha_of(key), 1)
        try:
            with self.store.begin() as unit:
                match how:
                    case "take up":
                        job_edges.start(unit, held.job_id, held.epoch, 4)
                    case "step":
                        job_edges.progress(unit, held.job_id, held.epoch, 1)
                    case "succeed":
                        job_edges.succeed(unit, held.job_id, held.epoch, [output], {})
                    case "fail" | "retry":
                        error = JobError("render_failed", "it was not to be")
                        lifecycle.fail(unit, held.job_id, held.epoch, error, retryable=how == "retry")
                    case "release":
                        lifecycle.release(unit, held.job_id, held.epoch, "for the test")
                    case "keep":
                        lifecycle.save_checkpoint(unit, held, Checkpoint().extended(held.epoch, 1, 10, fresh=True))
                    case "preempt":
                        lifecycle.preempt(unit, held.job_id, held.epoch)
                    case "canceled":
                        lifecycle.confirm_cancel(unit, held.job_id, held.epoch)
        except LeaseLost:
            assert not ours or how == "canceled", f"{how} was refused, and {held} is {before}"
            return False
        assert ours, f"{name} changed {held} by {how}, which is {before}"
        return True

    def row(self, job_id: str) -> tuple[str, int]:
        found = self.connection.execute("SELECT state, epoch FROM job WHERE id = %s", (uuid_of(job_id),)).fetchone()
        assert found is not None
        return found[0], found[1]

    # -- time ---------------------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from((1.0, LEASE / 2, LEASE + 1)))
    def advance(self, seconds: float) -> None:
        self.connection.execute("UPDATE clock.ahead SET seconds = seconds + %s", (seconds,))

    # -- the promises -------------------------------------------------------------------------------------------------

    @invariant()
    def promises_are_kept(self) -> None:
        if not hasattr(self, "tenant"):
            return
        self.samples.append(look(self.connection))
        history = self.history()
        over = {job.id for job in history.jobs if job.state in TERMINAL}
        # a job on its way is no broken promise yet
        found = [one for one in check(history) if not (one.promise == "one terminal state" and one.subject not in over)]
        assert found == []

    def teardown(self) -> None:
        """Everybody dies; whoever is left must bring every job to its end."""
        if not hasattr(self, "tenant"):
            return
        for _ in range(40):
            self.advance(LEASE + 1)
            self.reap()
            with self.store.begin() as unit:  # as the sweeper does: only what is noted as unfinished
                unfinished = unit.batches.pending_changes()
            following = True
            while following:
                with self.store.begin() as unit:
                    following = lifecycle.propagate_end(unit)
            for batch_id, _ in unfinished:
                with self.store.begin() as unit:
                    lifecycle.propagate_batch(unit, batch_id)
            self.dispatch(NAMES[0], 2)
            for one in [*self.messages]:
                self.messages.remove(one)
                try:
                    with self.store.begin() as unit:
                        job = job_edges.claim(unit, one.job_id, one.epoch, one.worker, LEASE)
                        job_edges.start(unit, job.id, job.epoch, 4)
                except LeaseLost:
                    continue
                self.write(one.worker, HeldJob(job.id, job.epoch), job, "succeed")
            self.samples.append(look(self.connection))
            if all(state in TERMINAL for state, _ in self.samples[-1].states.values()):
                break
        found: list[Violation] = check(self.history())
        assert found == []
        with self.store.begin() as unit:
            lifecycle.remove_checkpoints(unit)
        assert self.connection.execute("SELECT count(*) FROM checkpoint").fetchone() == (0,)

    def history(self) -> History:
        accepted = frozenset(uuid_of(job) for job in self.accepted)
        return read(self.connection, sha_of, samples=self.samples, accepted=accepted)


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(CLOCK)
        connection.execute(f"ALTER DATABASE {connection.info.dbname} SET search_path = clock, pg_catalog, public")
    made = Store(make_engine(database_url, pool=2))
    yield made
    made.close()


def test_the_database_returns_the_time_that_was_set(store: Store, database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        with store.begin() as unit:
            before = unit.now()
        connection.execute("UPDATE clock.ahead SET seconds = 3600")
        with store.begin() as unit:
            assert 3599 < (unit.now() - before).total_seconds() < 3700


def test_any_order_of_any_edges_keeps_the_promises(
    store: Store, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "FOLLOW_AT_ONCE", 1)  # so that two dependents are many
    with psycopg.connect(database_url, autocommit=True) as connection:
        made = type("FarmOnPostgres", (Farm,), {"store": store, "connection": connection})
        run_state_machine_as_test(
            made,
            settings=settings(
                max_examples=200 if NIGHTLY else 8,
                stateful_step_count=30,
                deadline=None,
                database=None,
                derandomize=False,  # a failure prints the seed and the steps that reproduce it
                print_blob=True,
                phases=(Phase.generate, Phase.shrink) if NIGHTLY else (Phase.generate,),
                suppress_health_check=list(HealthCheck),
            ),
        )
