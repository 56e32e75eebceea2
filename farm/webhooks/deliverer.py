"""The deliverer: events become deliveries, deliveries become signed POSTs, until each is acknowledged or given up.

Any number of deliverers may run. What one has in hand is leased in the database, so a killed one loses nothing: its
deliveries are due again, under the same ``webhook-id``, when the lease ends. The loop sleeps until a notification says
that there are new events, until the next delivery is due, or until a try that ended makes room for what waited.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog
from pydantic import ValidationError

from farm import metrics, tracing
from farm.domain.job import Job
from farm.domain.states import EventType
from farm.egress import guard
from farm.errors import DatabaseUnavailable, FarmError, SetupError
from farm.settings import Settings
from farm.store.delivery_leases import Claim, Claimed, Recipient
from farm.store.delivery_results import Outcome
from farm.store.events import EVENT_CHANNEL
from farm.store.listen import Listener
from farm.store.unit_of_work import Store, Unit
from farm.webhooks import prediction, signature
from farm.webhooks.payload import body, on_its_way, plain
from farm.webhooks.prediction import EVENTS
from farm.webhooks.retry_policy import Schedule
from farm.webhooks.sender import KEEP_SECONDS, Answer, Failure, Keeper, Route

log = structlog.stdlib.get_logger()

BACK_OFF_SECONDS: Final = (0.2, 0.5, 1.0, 2.0, 5.0)  #: between tries while the database is away
IDLE_SECONDS: Final = 30.0  #: a look without being told, in case a notification got lost
FAN_OUT: Final = 500  #: events per transaction
LINGER_SECONDS: Final = 0.025  #: outcomes wait so long for others, to be written with them
RECORD: Final = 1_000  #: outcomes per transaction
FORGET_SECONDS: Final = 120.0  #: what is known of an endpoint that nothing is sent to is kept for so long
KEPT: Final = 256  #: idle connections to all endpoints


@dataclass(frozen=True)
class Limits:
    """How much a deliverer does at once, and for how long. Times in seconds."""

    at_once: int = 64  #: tries in their first second
    lingering: int = 192  #: tries beyond it: slow endpoints queue for these, not for the ones above
    lingers_after: float = 1.0
    per_endpoint: int = 4  #: tries at once
    in_hand: int = 512  #: claimed deliveries that wait here for their turn
    #: the same of one endpoint, once it has shown that it answers quickly; till then what it may be tried with at once
    per_endpoint_in_hand: int = 64
    quick: float = 0.25  #: an answer within this time is quick
    deadline: float = 20.0  #: of one try
    body_deadline: float = 5.0  #: of an answer's body, within the deadline
    lease: float = 45.0  #: longer than a try, what waits before it and its recording
    grace: float = 5.0  #: for tries in flight when the deliverer is stopped

    @property
    def patience(self) -> float:
        """How long a claimed delivery waits for its turn, so that its lease still covers a whole try."""
        return max((self.lease - self.deadline) / 2, self.lease / 4)


class Deliverer:
    """One deliverer."""

    def __init__(
        self,
        settings: Settings,
        presign: Callable[[str], str],
        *,
        schedule: Schedule | None = None,
        limits: Limits | None = None,
        resolver: guard.Resolver | None = None,
    ) -> None:
        """``presign`` gives the URL of an output's object key, valid for ``settings.presign_seconds``."""
        if settings.database_url is None:
            raise SetupError("FARM_DATABASE_URL is not set")
        self._settings = settings
        self._presign = presign
        self._schedule = schedule or Schedule()
        self._limits = limits or Limits()
        self._door = guard.Door(settings, resolver=resolver)
        self._keeper = Keeper(KEPT)
        self._store = Store.connect(settings, pool=3)
        self._database_url = settings.database_url.get_secret_value()
        self._stopping = threading.Event()
        self._news = threading.Event()  # there may be events that were not fanned out
        self._news.set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._hand = _Hand()

    def stop(self) -> None:
        """End soon, with what is in flight; safe from a signal handler and from any thread."""
        self._stopping.set()
        self._wake()

    def run(self) -> None:
        """Deliver until stopped. A database that goes away is waited for."""
        asyncio.run(self._serve())

    # -- the loop -----------------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        listening = threading.Thread(target=self._listen, name="webhook listener", daemon=True)
        listening.start()
        recorder = asyncio.create_task(self._record())
        trouble = 0
        while not self._stopping.is_set():
            self._hand.woken.clear()
            try:
                nap = await self._round()
                trouble = 0
            except DatabaseUnavailable as error:
                log.warning("waiting for the database", action="database_unavailable", error=str(error))
                nap, trouble = self._back_off(trouble)
            except Exception:  # a service that ends by its own mistake helps nobody
                log.exception("a round failed", action="round_failed")
                nap, trouble = self._back_off(trouble)
            if trouble:
                self._news.set()  # the round may have ended before it fanned out
            await self._rest(nap)
        await self._land(recorder)
        await asyncio.to_thread(listening.join, 2.0)
        self._store.close()

    async def _round(self) -> float:
        """Fan out, claim, send; returns the seconds to rest unless woken."""
        hand, limits = self._hand, self._limits
        if self._news.is_set() or time.monotonic() - hand.fanned_out_at > IDLE_SECONDS:
            self._news.clear()
            hand.fanned_out_at = time.monotonic()
            if await asyncio.to_thread(self._fan_out) == FAN_OUT:
                self._news.set()
        nap = 0.0 if self._news.is_set() else IDLE_SECONDS
        self._tidy()
        room = limits.in_hand - hand.waiting
        hand.hungry = room < limits.in_hand / 2
        if hand.hungry:  # a try that ends wakes us
            return nap
        left = {name: line.depth - line.held for name, line in hand.lines.items()}
        claim, bodies = await asyncio.to_thread(self._claim, room, left)
        now = time.monotonic()
        for one, content in zip(claim.claimed, bodies, strict=True):
            line = self._line(one.endpoint)
            line.waiting.append(_Ready(one, content, now))
            hand.waiting += 1
            self._queue(line)
        self._send()
        hand.hungry = len(claim.claimed) >= room
        hand.starved = claim.starved
        if any(hand.lines[one].has_room for one in claim.starved if one in hand.lines):
            return 0.0  # room was made while the database was asked
        if claim.due_in is not None and not hand.hungry:
            # what is due and was not taken is in another deliverer's hands for a moment
            nap = min(nap, max(claim.due_in, 0.05))
        return nap

    def _fan_out(self) -> int:
        with self._store.begin() as unit:
            return unit.outbox.fan_out(signature.new_secret, FAN_OUT)

    def _claim(self, room: int, left: dict[str, int]) -> tuple[Claim, list[bytes | None]]:
        """Deliveries to send, and their bodies (None: it cannot be built)."""
        with self._store.begin() as unit:
            claim = unit.claims.take(
                room, self._limits.per_endpoint, left, self._limits.lease, self._schedule.break_after
            )
        if not claim.claimed:
            return claim, []
        # Apart from the claim: one job that cannot be read must not undo the others' claims for ever.
        with self._store.begin() as unit:
            jobs = _jobs(unit, {one.job_id for one in claim.claimed if one.job_id is not None})
        return claim, [self._body(one, jobs) for one in claim.claimed]

    def _body(self, one: Claimed, jobs: Mapping[str, Job]) -> bytes | None:
        if one.job_id is None:
            return plain(one.type, one.occurred_at, one.sequence, one.data)
        job = jobs.get(one.job_id)
        if job is None:
            return None
        expires_at = datetime.now(UTC) + timedelta(seconds=self._settings.presign_seconds)
        try:
            if EVENTS in job.metadata and one.endpoint.url == job.webhook:
                shown = on_its_way(job, one.data) if one.type is EventType.STARTED else job
                return prediction.encoded(shown, [self._presign(output.key) for output in shown.outputs])
            return body(one.type, one.occurred_at, one.sequence, job, self._presign, expires_at, one.data)
        except FarmError:
            log.exception("no body", action="webhook_body_failed", delivery=one.id, job=one.job_id)
            return None

    def _back_off(self, trouble: int) -> tuple[float, int]:
        return BACK_OFF_SECONDS[min(trouble, len(BACK_OFF_SECONDS) - 1)], trouble + 1

    async def _rest(self, seconds: float) -> None:
        if seconds <= 0 or self._stopping.is_set():
            return
        try:
            async with asyncio.timeout(seconds):
                await self._hand.woken.wait()
        except TimeoutError:
            return

    # -- whose turn it is ---------------------------------------------------------------------------------------------

    def _line(self, endpoint: Recipient) -> _Line:
        """What waits for an endpoint, under its newest URL and keys."""
        hand = self._hand
        line = hand.lines.get(endpoint.id)
        if line is None:
            line = hand.lines[endpoint.id] = _Line(endpoint, self._route(endpoint), self._limits.per_endpoint)
        elif line.endpoint != endpoint:
            line.signer = None
            if line.endpoint.url != endpoint.url:
                line.route.close()
                line.route = self._route(endpoint)
            line.endpoint = endpoint
        return line

    def _route(self, endpoint: Recipient) -> Route:
        return Route.to(endpoint.url, self._settings, self._door, self._keeper)

    def _queue(self, line: _Line) -> None:
        """Let a line have a turn, if it has something to send and a place to send it."""
        if line.waiting and not line.queued and line.trying < self._limits.per_endpoint:
            line.queued = True
            (self._hand.slow if line.slow else self._hand.turns).append(line)

    def _send(self) -> None:
        """Begin as many tries as there are places, the lines in turn."""
        hand, limits = self._hand, self._limits
        late = time.monotonic() - limits.patience
        while hand.young < limits.at_once and len(hand.tries) < limits.at_once + limits.lingering:
            if hand.turns:
                line = hand.turns.popleft()
            elif hand.slow and hand.slow_tries < limits.lingering:
                line = hand.slow.popleft()
            else:
                return
            line.queued = False
            while line.waiting and line.waiting[0].since < late:
                self._give_back(line, 1)
            if line.waiting:
                hand.waiting -= 1
                self._start(line, line.waiting.popleft())
            self._queue(line)

    def _give_back(self, line: _Line, count: int) -> None:
        """Leave what waits longest in a line to whoever claims it next."""
        for _ in range(count):
            self._hand.untried.append(line.waiting.popleft().claimed)
        self._hand.waiting -= count
        self._hand.ended.set()

    def _tidy(self) -> None:
        """Close what is idle for long, and forget endpoints that nothing is sent to."""
        hand, now = self._hand, time.monotonic()
        if now - hand.tidied_at < KEEP_SECONDS / 2:
            return
        hand.tidied_at = now
        for name, line in list(hand.lines.items()):
            line.route.close(now - KEEP_SECONDS)
            if not line.held and now - line.used_at > FORGET_SECONDS:
                line.route.close()
                del hand.lines[name]

    # -- one try ------------------------------------------------------------------------------------------------------

    def _start(self, line: _Line, ready: _Ready) -> None:
        hand, limits = self._hand, self._limits
        line.trying += 1
        hand.young += 1
        slow = line.slow
        hand.slow_tries += slow
        task = asyncio.create_task(self._try(line, ready))
        hand.tries.add(task)
        young = True

        def grown() -> None:
            nonlocal young
            if young:
                young = False
                hand.young -= 1
                self._send()

        def ended(task: asyncio.Task[Answer]) -> None:
            ageing.cancel()
            hand.tries.discard(task)
            hand.slow_tries -= slow
            line.trying -= 1
            line.used_at = time.monotonic()
            if not task.cancelled():  # before it began: its lease brings the delivery back
                self._learn(line, task.result())
            self._queue(line)
            if young:
                grown()
            else:
                self._send()
            if (hand.hungry and hand.waiting <= limits.in_hand / 2) or (
                line.endpoint.id in hand.starved and line.has_room
            ):
                hand.woken.set()

        ageing = asyncio.get_running_loop().call_later(limits.lingers_after, grown)
        task.add_done_callback(ended)

    def _learn(self, line: _Line, answer: Answer) -> None:
        """An endpoint that answers quickly may have more of its deliveries in hand; of another one, none wait here."""
        limits = self._limits
        line.slow = answer.seconds > limits.lingers_after
        if answer.error is None and answer.seconds <= limits.quick:
            line.depth = min(line.depth + 1, max(limits.per_endpoint, limits.per_endpoint_in_hand))
        else:
            line.depth = limits.per_endpoint
            self._give_back(line, len(line.waiting))

    async def _try(self, line: _Line, ready: _Ready) -> Answer:
        one = ready.claimed
        started = time.monotonic()
        try:
            if one.job_id is None:
                answer = await self._post(line, ready)
            else:
                with tracing.job_span("webhook", one.job_id, delivery=one.id, event=one.type.value, number=one.number):
                    answer = await self._post(line, ready)
        except asyncio.CancelledError:  # the end of this process, which its outcome must not miss
            answer = Answer(None, Failure.INTERRUPTED, time.monotonic() - started)
        except Exception:  # whatever it was, it must not end the others
            log.exception("a try failed in itself", action="webhook_try_failed", delivery=one.id)
            answer = Answer(None, Failure.INTERNAL, time.monotonic() - started)
        metrics.WEBHOOK_ATTEMPT_SECONDS.labels(answer.error or "delivered").observe(answer.seconds)
        self._hand.outcomes.append(self._outcome(one, answer))
        self._hand.ended.set()
        if answer.error is not None:
            log.info(
                "not delivered",
                action="webhook_tried",
                delivery=one.id,
                endpoint=one.endpoint.id,
                job=one.job_id,
                number=one.number,
                status=answer.status,
                error=answer.error,
                seconds=round(answer.seconds, 3),
            )
        return answer

    async def _post(self, line: _Line, ready: _Ready) -> Answer:
        if ready.body is None:
            return Answer(None, Failure.INTERNAL, 0.0)
        if line.signer is None:
            line.signer = signature.Signer(line.endpoint.secrets, line.endpoint.keys)
        signed = line.signer.headers(ready.claimed.id, int(time.time()), ready.body)
        return await line.route.post(
            signed, ready.body, deadline=self._limits.deadline, body_deadline=self._limits.body_deadline
        )

    def _outcome(self, one: Claimed, answer: Answer) -> Outcome:
        retry_in: float | None = None
        if answer.error is Failure.INTERRUPTED:
            retry_in = 0.0
        elif answer.error is not None:
            retry_in = self._schedule.after(one.turn, answer.retry_after)
        return Outcome(
            delivery_id=one.id,
            endpoint_id=one.endpoint.id,
            number=one.number,
            delivered=answer.error is None,
            status=answer.status,
            seconds=answer.seconds,
            error=answer.error,
            answer=answer.text,
            retry_in=retry_in,
            pause=answer.retry_after,
            probe=one.probe,
            blames=answer.error not in (Failure.INTERRUPTED, Failure.INTERNAL),
            gone=answer.error is Failure.GONE,
        )

    # -- the log of tries ---------------------------------------------------------------------------------------------

    async def _record(self) -> None:
        """Write outcomes as they come, all that are there in one transaction; returns when stopped and done."""
        hand = self._hand
        trouble = 0
        while not (self._stopping.is_set() and not hand.tries and not hand.outcomes and not hand.untried):
            if not hand.outcomes and not hand.untried:
                hand.ended.clear()
                await hand.ended.wait()
                await asyncio.sleep(0 if self._stopping.is_set() else LINGER_SECONDS)
                continue
            batch, untried = hand.outcomes[:RECORD], hand.untried[:RECORD]
            try:
                await asyncio.to_thread(self._write, batch, untried)
                trouble = 0
            except DatabaseUnavailable:
                # They wait here. If their leases end first they are sent again, which "at least once" allows.
                nap, trouble = self._back_off(trouble)
                await asyncio.sleep(nap)
                continue
            except Exception:
                log.exception("outcomes not recorded", action="webhook_record_failed", outcomes=len(batch))
                await self._write_singly(batch)
            del hand.outcomes[: len(batch)]
            del hand.untried[: len(untried)]

    async def _write_singly(self, batch: list[Outcome]) -> None:
        """One that cannot be written must not take the others with it; its lease brings it back."""
        for one in batch:
            try:
                await asyncio.to_thread(self._write, [one], [])
            except Exception:
                log.exception("an outcome is not recorded", action="webhook_record_failed", delivery=one.delivery_id)

    def _write(self, batch: list[Outcome], untried: list[Claimed]) -> None:
        with self._store.begin() as unit:
            schedule = self._schedule
            verdict = unit.outcomes.record(batch, schedule.give_up_after, schedule.break_after, schedule.pause)
        if untried:
            with self._store.begin() as unit:
                unit.claims.give_back(untried)
            self._wake()
        delivered = sum(one.delivered for one in batch)
        if delivered:
            log.info("delivered", action="webhooks_delivered", deliveries=delivered)
        for endpoint in verdict.disabled:
            log.warning("endpoint disabled", action="endpoint_disabled", endpoint=endpoint)
        for one in batch:
            if not one.delivered and one.retry_in is None:
                log.warning("given up", action="delivery_dead", delivery=one.delivery_id, endpoint=one.endpoint_id)
        if verdict.rescheduled:
            self._wake()

    # -- waking and ending --------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        loop = self._loop
        if loop is None:
            return
        try:
            loop.call_soon_threadsafe(self._hand.woken.set)
            loop.call_soon_threadsafe(self._hand.ended.set)
        except RuntimeError:  # the loop is closed: there is nobody to wake
            return

    def _listen(self) -> None:
        """In a thread of its own: wake the loop at each notification, and after each reconnection."""
        listener = Listener(self._database_url, [EVENT_CHANNEL])
        trouble = 0
        while not self._stopping.is_set():
            try:
                if listener.wait(1.0):  # waits on the socket; the second is for being stopped
                    self._news.set()
                    self._wake()
                trouble = 0
            except DatabaseUnavailable:
                nap, trouble = self._back_off(trouble)
                self._stopping.wait(nap)
                self._news.set()  # some were missed meanwhile
                self._wake()
        listener.close()

    async def _land(self, recorder: asyncio.Task[None]) -> None:
        """Let what is in flight end, cut short what takes too long, and note how all of it went."""
        for line in self._hand.lines.values():
            self._give_back(line, len(line.waiting))
        if self._hand.tries:
            _, late = await asyncio.wait(set(self._hand.tries), timeout=self._limits.grace)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
        self._hand.ended.set()
        try:
            async with asyncio.timeout(self._limits.grace):
                await recorder
        except TimeoutError:
            log.warning(
                "outcomes left to their leases", action="webhook_outcomes_left", outcomes=len(self._hand.outcomes)
            )
        for line in self._hand.lines.values():
            line.route.close()
        await asyncio.sleep(0)  # a transport closes in the loop's next turn


@dataclass(frozen=True, slots=True)
class _Ready:
    """A claimed delivery that waits for its turn."""

    claimed: Claimed
    body: bytes | None  #: None: it cannot be built
    since: float  #: `time.monotonic`


@dataclass(eq=False)
class _Line:
    """What a deliverer has in hand for one endpoint, and knows of it."""

    endpoint: Recipient
    route: Route
    depth: int  #: deliveries that it may have in hand
    signer: signature.Signer | None = None
    waiting: deque[_Ready] = field(default_factory=deque)
    trying: int = 0
    queued: bool = False  #: whether it waits for a turn
    slow: bool = False  #: whether its last try lingered
    used_at: float = field(default_factory=time.monotonic)

    @property
    def held(self) -> int:
        """Its deliveries in hand."""
        return len(self.waiting) + self.trying

    @property
    def has_room(self) -> bool:
        """Whether it is worth while to claim more for it."""
        return self.held * 2 <= self.depth


@dataclass
class _Hand:
    """What a deliverer has in hand; touched by the event loop's thread only."""

    lines: dict[str, _Line] = field(default_factory=dict)
    turns: deque[_Line] = field(default_factory=deque)  #: lines with something to send and a place for it
    slow: deque[_Line] = field(default_factory=deque)  #: the same, of endpoints whose last try lingered
    waiting: int = 0  #: claimed deliveries that wait for their turn
    tries: set[asyncio.Task[Answer]] = field(default_factory=set)
    young: int = 0  #: tries in their first second
    slow_tries: int = 0  #: tries of endpoints that were slow when they began
    fanned_out_at: float = float("-inf")  #: `time.monotonic`
    tidied_at: float = float("-inf")  #: `time.monotonic`
    hungry: bool = False  #: there may be more to claim than there was room for
    starved: frozenset[str] = frozenset()  #: endpoints with more to claim than one endpoint may have
    outcomes: list[Outcome] = field(default_factory=list)  #: not recorded yet
    untried: list[Claimed] = field(default_factory=list)  #: to be given back
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)


def _jobs(unit: Unit, job_ids: set[str]) -> dict[str, Job]:
    """The jobs that can be read; one that cannot costs only itself."""
    try:
        return unit.claims.jobs(job_ids)
    except ValidationError:
        found: dict[str, Job] = {}
        for job_id in job_ids:
            try:
                job = unit.jobs.get(job_id)
            except ValidationError:
                log.exception("a job cannot be read", action="job_unreadable", job=job_id)
                continue
            if job is not None:
                found[job_id] = job
        return found
