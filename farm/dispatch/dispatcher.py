"""The dispatcher's loop: wait for a notification, read the state, decide, commit, send the messages.

It keeps nothing between rounds, so a restart costs nothing, and it may be killed anywhere: a job that was dispatched
and whose message was not sent is queued again when its dispatch lease runs out.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Final

import structlog
from celery import Celery

from farm import lifecycle, metrics, tracing
from farm.dispatch import broker
from farm.dispatch.leadership import Leadership
from farm.dispatch.metrics import FarmGauges
from farm.dispatch.policy import Decision, ModelRequirements, Rules, choose
from farm.dispatch.reaper import Reaper
from farm.domain.queue import DispatchedJob, Queue
from farm.domain.worker import WorkerCapacity
from farm.errors import BrokerUnavailable, DatabaseUnavailable
from farm.services.live_registry import LiveRegistry
from farm.settings import Settings
from farm.store.connection import Database
from farm.store.events import QUEUE_CHANNEL
from farm.store.listen import Listener
from farm.store.migrate import wait_for_schema
from farm.store.unit_of_work import Store, UnitOfWork

log = structlog.stdlib.get_logger()

STANDBY_SECONDS: Final = 1.0  #: how often a standby tries to become the leader
LOGGED: Final = 20  #: jobs of a round with a log line each; those of a larger round share one
BACK_OFF_SECONDS: Final = (0.2, 0.5, 1.0, 2.0)  #: between tries while a server is unavailable


class Dispatcher:
    """One dispatcher; any number may run, one of them leads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._store = Store.connect(settings, pool=3)
        self._app: Celery = broker.make_app(settings)
        database = Database.direct(settings)
        self._listener = Listener(database, [QUEUE_CHANNEL])
        self._leadership = Leadership(database)
        self._reaper = Reaper(self._store, settings)
        self._models = LiveRegistry(settings, self._store)
        self._rules = Rules()
        self._stopping = threading.Event()
        self._broker_failures = 0  #: sends that failed in a row
        self._unpublished: list[DispatchedJob] = []  #: sent, and not yet published to Celery's monitors
        self._leads = False
        self.gauges = FarmGauges(self._store, lambda: self._leads)

    def stop(self) -> None:
        """End the loop soon; safe from a signal handler."""
        self._stopping.set()

    def run(self) -> None:
        """Dispatch until stopped. Servers that are unavailable are waited for.

        Raises `SetupError` for a database that it cannot work with: an old schema, or a pooler that keeps no session;
        or for a Redis Cluster.
        """
        wait_for_schema(self._store, self._stopping)
        self._models.start()
        with contextlib.suppress(BrokerUnavailable):  # it may come later
            broker.check(self._app)
        database_failures = 0
        logged: bool | None = None  # whether this one leads, by the log
        while not self._stopping.is_set():
            self._reaper.look_at_clock()
            try:
                leads = self._leadership.hold()
                if leads is not logged:
                    log.info("leading" if leads else "standby", action="leadership", leads=leads)
                logged = leads
                self._leads = leads
                metrics.DISPATCHER_LEADER.set(leads)
                if not leads:
                    self._stopping.wait(STANDBY_SECONDS)
                    continue
                self._listener.connect()  # listen before reading, so that no change is missed
                self._reaper.run()
                began = time.monotonic()
                with metrics.timed(metrics.ROUND_SECONDS):
                    more = self.round() if self._broker_ready() else False
                ended = time.monotonic()
                metrics.LAST_ROUND_TIMESTAMP.set_to_current_time()
                database_failures = 0
                self._publish()
                if not more:
                    self._listener.wait(self._idle_seconds())
                    # When notifications come faster than rounds, half of the time is left to them: the next round then
                    # covers all that came, instead of one round for each. After a longer silence nothing waits.
                    self._stopping.wait(max(0.0, 2 * ended - began - time.monotonic()))
                    self._listener.drop()
            except DatabaseUnavailable as error:
                log.warning("waiting for the database", action="database_unavailable", error=str(error))
                self._stopping.wait(BACK_OFF_SECONDS[min(database_failures, len(BACK_OFF_SECONDS) - 1)])
                database_failures += 1
                self._reaper.hold()
                self._leads, logged = False, None
                metrics.DISPATCHER_LEADER.set(0)
        self._leadership.give_up()
        self._models.stop()
        self._listener.close()
        self._store.close()

    def round(self) -> bool:
        """Dispatch what can be dispatched now; returns whether another round at once may dispatch more.

        Raises `DatabaseUnavailable`.
        """
        try:
            try:
                jobs, decision = self._dispatch(lock_first=False)
            except _CandidatesUnavailable:
                jobs, decision = self._dispatch(lock_first=True)
        except BrokerUnavailable as error:
            self._broker_failures += 1
            log.warning("cannot read the broker's queues", action="broker_unavailable", error=str(error))
            return False
        if not jobs:
            return False
        self._send(jobs, decision.charged)
        return decision.more

    def _dispatch(self, *, lock_first: bool) -> tuple[list[DispatchedJob], Decision]:
        """Decide and dispatch, in one transaction.

        Some of the chosen jobs may be unavailable: a batch that is paused or canceled keeps its jobs from that moment
        on, but they leave their queues later, and the transaction that moves them has locked their rows. Then nothing
        is changed and `_CandidatesUnavailable` is raised: otherwise their tenant would be charged for nothing and
        devices would wait. With ``lock_first`` reading costs more, and finds only jobs that are available.
        """
        with self._store.begin() as unit:
            decision = self._decide(unit, lock_first=lock_first)
            jobs = lifecycle.dispatch(unit, decision.assignments, self._settings.dispatch_lease_seconds)
            if len(jobs) < len(decision.assignments) and not lock_first:
                raise _CandidatesUnavailable
            unit.tenants.save_share_states(decision.share_states)
            unit.queues.save_states(decision.queue_states)
            unit.numerics.choose(decision.chosen_numerics)
        return jobs, decision

    def _decide(self, unit: UnitOfWork, *, lock_first: bool) -> Decision:
        """Read the state, by a few statements whatever the backlog, and apply the policy to it.

        Raises `BrokerUnavailable`.
        """
        workers = unit.workers.with_free_slots(lifecycle.MAX_PREEMPTIONS)
        free = sum(max(0, worker.free_slots) + worker.preemptible for worker in workers if not worker.draining)
        if not free:
            return Decision()
        shares = unit.tenants.shares()
        # twice as many as can be dispatched, so that a tenant that is served often seldom runs out of known jobs
        limit = 2 * min(free, self._rules.max_assignments)
        numerics = {worker.numerics for worker in workers if worker.numerics is not None and not worker.draining}
        queues = unit.queues.read_available(limit, numerics) if lock_first else unit.queues.read(limit, numerics)
        failed_by = unit.job_failures.workers_of([job_id for queue in queues for job_id in queue.failed])
        queues = [_with_failures(queue, failed_by) for queue in queues]
        requirements = self._requirements(queues)
        paused = unit.pauses.now()
        now = unit.now().timestamp()

        def policy(workers: Sequence[WorkerCapacity]) -> Decision:
            return choose(workers, queues, shares, now, requirements=requirements, paused=paused, rules=self._rules)

        decision = policy(workers)
        limited = self._limited_by_broker(workers, decision)
        return decision if limited is None else policy(limited)

    def _requirements(self, queues: Sequence[Queue]) -> dict[str, ModelRequirements]:
        """What the models of the queues need, by id. Raises `DatabaseUnavailable`."""
        self._models.know({queue.model for queue in queues})
        registry = self._models.current
        return {
            model.id: ModelRequirements(model.memory_bytes, frozenset(model.tags))
            for model in (*registry.retired, *registry.models)
        }

    def _limited_by_broker(self, workers: Sequence[WorkerCapacity], decision: Decision) -> list[WorkerCapacity] | None:
        """The workers with no more free slots than their queues in Redis leave them; None: that is no limit.

        Messages of ended epochs lie in these queues, too, for as long as a worker does not read: without this limit
        each lease that ends unread would add another one. Asked for the workers that would get something first; for
        all, if one of them has less. Raises `BrokerUnavailable`.
        """
        by_name = {worker.worker: worker for worker in workers}
        for names in (sorted({one.worker for one in decision.assignments}), sorted(by_name)):
            lengths = broker.queue_lengths(self._app, names) if names else {}
            limited = {name: _limited(by_name[name], length) for name, length in lengths.items()}
            if all(limited[name] == by_name[name] for name in limited):
                return None
        found = [limited.get(worker.worker, worker) for worker in workers]
        return [worker for worker in found if worker.free_slots > 0 or worker.preemptible]

    def _send(self, jobs: list[DispatchedJob], charged: Mapping[str, tuple[str, float]]) -> None:
        try:
            broker.send(self._app, jobs)
            self._broker_failures = 0
            self._unpublished = jobs
            metrics.JOBS_DISPATCHED.inc(len(jobs))
            for one in jobs:
                tracing.job_event("dispatch", one.job_id, worker=one.worker, epoch=one.epoch)
            for one in jobs if len(jobs) <= LOGGED else ():
                log.info("dispatched", action="job_dispatched", job=one.job_id, epoch=one.epoch, worker=one.worker)
            if len(jobs) > LOGGED:
                log.info(
                    "dispatched",
                    action="jobs_dispatched",
                    count=len(jobs),
                    workers=len({one.worker for one in jobs}),
                )
        except BrokerUnavailable as error:
            self._broker_failures += 1
            log.warning("cannot send, requeueing", action="broker_unavailable", error=str(error), jobs=len(jobs))
            # Some messages may have arrived. Unless claimed by now, their epoch ends here, and workers drop them.
            with self._store.begin() as unit:
                for job_id in lifecycle.requeue_unsent(unit, jobs, "broker unavailable"):
                    unit.tenants.refund(*charged[job_id])

    def _publish(self) -> None:
        """Publish what the round sent to Celery's monitors. Nothing waits for that, and nothing is lost with it."""
        jobs, self._unpublished = self._unpublished, []
        if jobs:
            with contextlib.suppress(BrokerUnavailable):
                broker.publish_sent_events(self._app, jobs)

    def _broker_ready(self) -> bool:
        if not self._broker_failures:
            return True
        try:
            broker.check(self._app)
        except BrokerUnavailable:
            self._broker_failures += 1
            return False
        log.info("the broker is available again", action="broker_back")
        self._broker_failures = 0
        return True

    def _idle_seconds(self) -> float:
        """Seconds to wait for a notification."""
        seconds = self._reaper.due_in()
        if self._broker_failures:
            seconds = max(seconds, BACK_OFF_SECONDS[min(self._broker_failures, len(BACK_OFF_SECONDS)) - 1])
        return max(0.01, seconds)


class _CandidatesUnavailable(Exception):
    """Some of the chosen jobs cannot be dispatched now."""


def _limited(worker: WorkerCapacity, length: int) -> WorkerCapacity:
    """The worker with no more free slots than a queue of that length leaves it."""
    return worker._replace(
        free_slots=min(worker.free_slots, worker.capacity - length), preemptible=max(0, worker.preemptible - length)
    )


def _with_failures(queue: Queue, failed_by: Mapping[str, frozenset[str]]) -> Queue:
    """The queue with the workers that failed its candidates."""
    if not queue.failed:
        return queue
    return queue._replace(
        candidates=[job._replace(failed_by=failed_by.get(job.job_id, job.failed_by)) for job in queue.candidates]
    )
