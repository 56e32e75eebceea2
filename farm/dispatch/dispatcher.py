"""The dispatcher's loop: hear of a change, look at the real state, hand over, commit, then send.

It keeps nothing between rounds, so a restart costs nothing, and it may be killed anywhere: what was committed and not
sent is offered again when its dispatch lease runs out.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Mapping
from typing import Final

import structlog
from celery import Celery

from farm import lifecycle, metrics, model_registry, tracing
from farm.dispatch import broker
from farm.dispatch.leadership import Leadership
from farm.dispatch.metrics import FarmGauges
from farm.dispatch.policy import Account, Decision, Line, Need, Paused, Rules, Seat, choose
from farm.dispatch.reaper import Reaper
from farm.domain.job import DispatchedJob
from farm.errors import BrokerUnavailable, DatabaseUnavailable, SetupError
from farm.settings import Settings
from farm.store import queue
from farm.store.events import QUEUE_CHANNEL
from farm.store.listen import Listener
from farm.store.queue import Mark
from farm.store.tenants import Standing
from farm.store.unit_of_work import Store, UnitOfWork

log = structlog.stdlib.get_logger()

STANDBY_SECONDS: Final = 1.0  #: how often a standby asks for the lead
LOGGED: Final = 20  #: hand-overs of a round with a line each; those of a larger round share one
BACK_OFF_SECONDS: Final = (0.2, 0.5, 1.0, 2.0)  #: between tries while a server is away


class Dispatcher:
    """One dispatcher; any number may run, one of them leads."""

    def __init__(self, settings: Settings) -> None:
        if settings.database_url is None:
            raise SetupError("FARM_DATABASE_URL is not set")
        self._settings = settings
        self._store = Store.connect(settings, pool=3)
        self._app: Celery = broker.make_app(settings)
        self._listener = Listener(settings.database_url.get_secret_value(), [QUEUE_CHANNEL])
        self._leadership = Leadership(self._store.engine)
        self._reaper = Reaper(self._store, settings)
        self._needs = {
            model.id: Need(model.memory_bytes, frozenset(model.tags))
            for model in model_registry.load(settings.models_file).models
        }
        self._rules = Rules()
        self._stopping = threading.Event()
        self._broker_trouble = 0  #: sends that failed in a row
        self._untold: list[DispatchedJob] = []  #: sent, and Celery's monitors do not know it yet
        self._leads = False
        self.gauges = FarmGauges(self._store, lambda: self._leads)

    def stop(self) -> None:
        """End the loop soon; safe from a signal handler."""
        self._stopping.set()

    def run(self) -> None:
        """Dispatch until stopped. Servers that go away are waited for."""
        database_trouble = 0
        while not self._stopping.is_set():
            try:
                leads = self._leadership.hold()
                if leads != self._leads:
                    log.info("leads" if leads else "stands by", action="leadership", leads=leads)
                self._leads = leads
                metrics.DISPATCHER_LEADER.set(leads)
                if not leads:
                    self._stopping.wait(STANDBY_SECONDS)
                    continue
                self._listener.connect()  # listen before looking, so that nothing falls between
                self._reaper.run()
                begun = time.monotonic()
                with metrics.timed(metrics.ROUND_SECONDS):
                    more = self.round() if self._broker_ready() else False
                ended = time.monotonic()
                metrics.LAST_ROUND_TIMESTAMP.set_to_current_time()
                database_trouble = 0
                self._tell()
                if not more:
                    self._listener.wait(self._nap())
                    # Where news comes faster than rounds go, half of the time is left to it: the next round then takes
                    # all that came, instead of one for each. After a longer silence nothing waits.
                    self._stopping.wait(max(0.0, 2 * ended - begun - time.monotonic()))
                    self._listener.drop()
            except DatabaseUnavailable as error:
                log.warning("waiting for the database", action="database_unavailable", error=str(error))
                self._stopping.wait(BACK_OFF_SECONDS[min(database_trouble, len(BACK_OFF_SECONDS) - 1)])
                database_trouble += 1
                self._reaper.hold()
                self._leads = False
                metrics.DISPATCHER_LEADER.set(0)
        self._leadership.give_up()
        self._listener.close()
        self._store.close()

    def round(self) -> bool:
        """One look and what follows from it; returns whether looking again at once is worth it.

        Raises `DatabaseUnavailable`.
        """
        try:
            try:
                sent, decision = self._dispatch(careful=False)
            except _NotToBeHad:
                sent, decision = self._dispatch(careful=True)
        except BrokerUnavailable as error:
            self._broker_trouble += 1
            log.warning("cannot look at the lists", action="broker_unavailable", error=str(error))
            return False
        if not sent:
            return False
        self._send(sent, decision.charged)
        return decision.more

    def _dispatch(self, *, careful: bool) -> tuple[list[DispatchedJob], Decision]:
        """Decide and hand over, in one transaction.

        Some of the chosen may not be to be had: a batch that is paused or canceled holds its jobs from that moment on,
        but they leave their lines by and by, and whoever moves them holds their rows. Then nothing is changed and
        `_NotToBeHad` raised, or their tenant would be charged for nothing and devices would wait. A ``careful`` look
        costs more, and chooses only among what is to be had.
        """
        with self._store.begin() as unit:
            decision = self._decide(unit, careful=careful)
            sent = lifecycle.dispatch(unit, decision.assignments, self._settings.dispatch_lease_seconds)
            if len(sent) < len(decision.assignments) and not careful:
                raise _NotToBeHad
            unit.tenants.save_share_states(
                [Standing(one.tenant_id, one.vtime, one.backlogged) for one in decision.standings]
            )
            unit.queues.save_states(
                [Mark(one.tenant_id, one.priority, one.model, one.skips, one.served_at) for one in decision.marks]
            )
        return sent, decision

    def _decide(self, unit: UnitOfWork, *, careful: bool) -> Decision:
        """Read the state, few statements whatever the backlog, and apply the policy to it.

        Raises `BrokerUnavailable`.
        """
        rooms = unit.workers.with_free_slots()
        seats = [
            Seat(worker, room, models, prefetch, memory, tags, draining)
            for worker, draining, _, room, prefetch, models, memory, tags in rooms
        ]
        room = sum(seat.room for seat in seats if not seat.draining)
        if not room:
            return Decision()
        accounts = [
            Account(tenant_id, weight, vtime, backlogged, held, max_running, paused)
            for tenant_id, weight, max_running, paused, vtime, backlogged, held in unit.tenants.shares()
        ]
        # twice as many as can go, so that a tenant whose turn comes often seldom runs out of known jobs
        limit = 2 * min(room, self._rules.max_assignments)
        found = unit.queues.read_available(limit) if careful else unit.queues.read(limit)
        failed = unit.job_failures.workers_of([job_id for line in found for job_id in line.failed])
        stopped = unit.pauses.now()
        policy = functools.partial(
            choose,
            lines=_lines(found, failed),
            accounts=accounts,
            now=unit.now().timestamp(),
            needs=self._needs,
            paused=Paused(stopped.farm, stopped.models),
            rules=self._rules,
        )
        decision = policy(seats)
        seats, lessened = self._as_lists_allow(seats, {one.worker: one.window for one in rooms}, decision)
        return policy(seats) if lessened else decision

    def _as_lists_allow(
        self, seats: list[Seat], windows: Mapping[str, int], decision: Decision
    ) -> tuple[list[Seat], bool]:
        """The seats with no more room than their lists in Redis have, and whether that is less for any.

        Messages of dead epochs lie there too, for as long as a worker does not read: without this, each lease that ends
        unread would add another one. Asked of those that would get something first; of all, if one of them has less.
        """
        chosen = sorted({one.worker for one in decision.assignments})
        room = {seat.worker: seat.room for seat in seats}
        for workers in (chosen, sorted(room)):
            unread = broker.unread(self._app, workers) if workers else {}
            less = {
                worker: windows[worker] - count
                for worker, count in unread.items()
                if windows[worker] - count < room[worker]
            }
            if not less:
                return seats, False
        return [
            seat._replace(room=less.get(seat.worker, seat.room)) for seat in seats if less.get(seat.worker, 1) > 0
        ], True

    def _send(self, sent: list[DispatchedJob], charged: Mapping[str, tuple[str, float]]) -> None:
        try:
            broker.send(self._app, sent)
            self._broker_trouble = 0
            self._untold = sent
            metrics.JOBS_DISPATCHED.inc(len(sent))
            for one in sent:
                tracing.job_event("dispatch", one.job_id, worker=one.worker, epoch=one.epoch)
            for one in sent if len(sent) <= LOGGED else ():
                log.info("handed over", action="job_dispatched", job=one.job_id, epoch=one.epoch, worker=one.worker)
            if len(sent) > LOGGED:
                log.info(
                    "handed over",
                    action="jobs_dispatched",
                    count=len(sent),
                    workers=len({one.worker for one in sent}),
                )
        except BrokerUnavailable as error:
            self._broker_trouble += 1
            log.warning("cannot send, giving back", action="broker_unavailable", error=str(error), jobs=len(sent))
            # Some may have arrived all the same; unless claimed by now, their epoch is over and they will be dropped.
            with self._store.begin() as unit:
                for job_id in lifecycle.requeue_unsent(unit, sent, "broker unavailable"):
                    unit.tenants.refund(*charged[job_id])

    def _tell(self) -> None:
        """Tell Celery's monitors what the round sent. Nothing waits for that, and nothing is lost with it."""
        told, self._untold = self._untold, []
        if told:
            with contextlib.suppress(BrokerUnavailable):
                broker.tell(self._app, told)

    def _broker_ready(self) -> bool:
        if not self._broker_trouble:
            return True
        try:
            broker.check(self._app)
        except BrokerUnavailable:
            self._broker_trouble += 1
            return False
        log.info("the broker is back", action="broker_back")
        self._broker_trouble = 0
        return True

    def _nap(self) -> float:
        """Seconds to wait for a notification."""
        nap = self._reaper.due_in()
        if self._broker_trouble:
            nap = max(nap, BACK_OFF_SECONDS[min(self._broker_trouble, len(BACK_OFF_SECONDS)) - 1])
        return max(0.01, nap)


class _NotToBeHad(Exception):
    """Some of the jobs that were chosen."""


def _lines(found: list[queue.Line], failed_by: Mapping[str, frozenset[str]]) -> list[Line]:
    """The lines as the policy takes them, with who failed which job."""
    return [
        Line(
            line.mark.tenant_id,
            line.mark.model,
            line.mark.priority,
            [head._replace(failed_by=failed_by.get(head.job_id, head.failed_by)) for head in line.heads]
            if line.failed
            else line.heads,
            line.more,
            line.mark.skips,
            line.mark.served_at,
        )
        for line in found
    ]
