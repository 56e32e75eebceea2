"""The deliverer: turns events into deliveries and sends each as signed POSTs until it is acknowledged or dead.

Any number of deliverers may run. What one has claimed is leased in the database, so a killed one loses nothing: its
deliveries are due again, under the same ``webhook-id``, when the lease ends. The loop sleeps until a notification says
that there are new events, until the next delivery is due, or until an attempt ends and frees capacity.
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
from farm.store.connection import Database
from farm.store.delivery_leases import ClaimedDelivery, ClaimResult, Recipient
from farm.store.delivery_results import DeliveryResult
from farm.store.events import EVENT_CHANNEL
from farm.store.listen import Listener
from farm.store.migrate import wait_for_schema
from farm.store.unit_of_work import Store, UnitOfWork
from farm.webhooks import fal, prediction, signature
from farm.webhooks.payload import event_payload, in_progress, job_payload
from farm.webhooks.prediction import BASE
from farm.webhooks.retry_policy import RetryPolicy
from farm.webhooks.sender import IDLE_CONNECTION_SECONDS, AttemptResult, ConnectionBudget, EndpointClient, FailureReason

log = structlog.stdlib.get_logger()

BACK_OFF_SECONDS: Final = (0.2, 0.5, 1.0, 2.0, 5.0)  #: between attempts while the database is unavailable
IDLE_SECONDS: Final = 30.0  #: between two looks without a notification, in case one was lost
FAN_OUT: Final = 500  #: events per transaction
LINGER_SECONDS: Final = 0.025  #: a result waits this long for others, to be written in one transaction
RECORD: Final = 1_000  #: outcomes per transaction
FORGET_SECONDS: Final = 120.0  #: the state of an endpoint without deliveries is kept for this long
KEPT: Final = 256  #: idle connections to all endpoints


@dataclass(frozen=True)
class DelivererLimits:
    """Concurrency and time limits of a deliverer. Times in seconds."""

    fast_concurrency: int = 64  #: attempts in their first second
    slow_concurrency: int = 192  #: attempts beyond it: slow endpoints queue for these, not for the ones above
    slow_after: float = 1.0
    per_endpoint: int = 4  #: attempts at once
    max_claimed: int = 512  #: claimed deliveries that wait here for their turn
    #: the same for one endpoint that answers quickly; for others ``per_endpoint``
    per_endpoint_claimed: int = 64
    fast_seconds: float = 0.25  #: a response within this time is fast
    deadline: float = 20.0  #: of one attempt
    body_deadline: float = 5.0  #: of a response's body, within the deadline
    lease: float = 45.0  #: longer than an attempt, the wait before it and its recording
    grace: float = 5.0  #: for attempts in flight when the deliverer is stopped

    @property
    def max_wait(self) -> float:
        """How long a claimed delivery may wait, so that its lease still covers a whole attempt."""
        return max((self.lease - self.deadline) / 2, self.lease / 4)


class Deliverer:
    """One deliverer process: claims deliveries, sends them concurrently, records the results."""

    def __init__(
        self,
        settings: Settings,
        presign: Callable[[str], str],
        *,
        retry_policy: RetryPolicy | None = None,
        limits: DelivererLimits | None = None,
        resolver: guard.Resolver | None = None,
    ) -> None:
        """``presign`` gives the URL of an output's object key, valid for ``settings.presign_seconds``."""
        self._settings = settings
        self._presign = presign
        self._retry_policy = retry_policy or RetryPolicy()
        self._limits = limits or DelivererLimits()
        self._connector = guard.PinnedConnector(settings, resolver=resolver)
        self._budget = ConnectionBudget(KEPT)
        self._store = Store.connect(settings, pool=3)
        self._database = Database.direct(settings)
        self._stopping = threading.Event()
        self._has_events = threading.Event()  # there may be events that were not fanned out
        self._has_events.set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._in_flight = _InFlight()

    def stop(self) -> None:
        """Stop soon, after the attempts in flight; safe from a signal handler and from any thread."""
        self._stopping.set()
        self._wake()

    def run(self) -> None:
        """Deliver until stopped. Waits for a database that is unreachable. Raises `SchemaOutdated`."""
        wait_for_schema(self._store, self._stopping)
        asyncio.run(self._serve())

    # -- the loop -----------------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        listening = threading.Thread(target=self._listen, name="webhook listener", daemon=True)
        listening.start()
        recorder = asyncio.create_task(self._record())
        failures = 0
        while not self._stopping.is_set():
            self._in_flight.woken.clear()
            try:
                delay = await self._round()
                failures = 0
            except DatabaseUnavailable as error:
                log.warning("waiting for the database", action="database_unavailable", error=str(error))
                delay, failures = self._back_off(failures)
            except Exception:  # the service continues after an unexpected error
                log.exception("a round failed", action="round_failed")
                delay, failures = self._back_off(failures)
            if failures:
                self._has_events.set()  # the round may have ended before it fanned out
            await self._sleep(delay)
        await self._shut_down(recorder)
        await asyncio.to_thread(listening.join, 2.0)
        self._store.close()

    async def _round(self) -> float:
        """Fan out, claim, send; returns the seconds to rest unless woken."""
        state, limits = self._in_flight, self._limits
        if self._has_events.is_set() or time.monotonic() - state.fanned_out_at > IDLE_SECONDS:
            self._has_events.clear()
            state.fanned_out_at = time.monotonic()
            if await asyncio.to_thread(self._fan_out) == FAN_OUT:
                self._has_events.set()
        delay = 0.0 if self._has_events.is_set() else IDLE_SECONDS
        self._close_idle()
        room = limits.max_claimed - state.waiting
        state.wants_more = room < limits.max_claimed / 2
        if state.wants_more:  # an attempt that ends wakes the loop
            return delay
        left = {name: queue.depth - queue.held for name, queue in state.queues.items()}
        claim, bodies = await asyncio.to_thread(self._claim, room, left)
        now = time.monotonic()
        for one, content in zip(claim.claimed, bodies, strict=True):
            queue = self._queue_of(one.endpoint)
            queue.waiting.append(_Ready(one, content, now))
            state.waiting += 1
            self._enqueue(queue)
        self._send()
        state.wants_more = len(claim.claimed) >= room
        state.throttled = claim.starved
        if any(state.queues[one].wants_more_claims for one in claim.starved if one in state.queues):
            return 0.0  # room was made while the database was asked
        if claim.due_in is not None and not state.wants_more:
            # due deliveries that were not claimed are claimed by another deliverer at this moment
            delay = min(delay, max(claim.due_in, 0.05))
        return delay

    def _fan_out(self) -> int:
        with self._store.begin() as unit:
            return unit.outbox.fan_out(signature.new_secret, FAN_OUT)

    def _claim(self, free: int, left: dict[str, int]) -> tuple[ClaimResult, list[bytes | None]]:
        """Deliveries to send, and their bodies (None: it cannot be built)."""
        with self._store.begin() as unit:
            claim = unit.delivery_leases.claim(
                free, self._limits.per_endpoint, left, self._limits.lease, self._retry_policy.break_after
            )
        if not claim.claimed:
            return claim, []
        # Apart from the claim: one job that cannot be read must not undo the others' claims for ever.
        with self._store.begin() as unit:
            jobs = _jobs(unit, {one.job_id for one in claim.claimed if one.job_id is not None})
        return claim, [self._body(one, jobs) for one in claim.claimed]

    def _body(self, one: ClaimedDelivery, jobs: Mapping[str, Job]) -> bytes | None:
        if one.job_id is None:
            return event_payload(one.type, one.occurred_at, one.sequence, one.data)
        job = jobs.get(one.job_id)
        if job is None:
            return None
        expires_at = datetime.now(UTC) + timedelta(seconds=self._settings.presign_seconds)
        try:
            if BASE in job.metadata and one.endpoint.url == job.webhook:
                shown = in_progress(job, one.data) if one.type is EventType.STARTED else job
                return prediction.encoded(shown, [self._presign(output.key) for output in shown.outputs])
            if fal.MARK in job.metadata and one.endpoint.url == job.webhook:
                return fal.encoded(job, [self._presign(output.key) for output in job.outputs])
            return job_payload(one.type, one.occurred_at, one.sequence, job, self._presign, expires_at, one.data)
        except FarmError:
            log.exception("cannot build the body", action="webhook_body_failed", delivery=one.id, job=one.job_id)
            return None

    def _back_off(self, failures: int) -> tuple[float, int]:
        return BACK_OFF_SECONDS[min(failures, len(BACK_OFF_SECONDS) - 1)], failures + 1

    async def _sleep(self, seconds: float) -> None:
        if seconds <= 0 or self._stopping.is_set():
            return
        try:
            async with asyncio.timeout(seconds):
                await self._in_flight.woken.wait()
        except TimeoutError:
            return

    # -- scheduling --------------------------------------------------------------------------------------------------

    def _queue_of(self, endpoint: Recipient) -> _EndpointQueue:
        """The queue of an endpoint, with its newest URL and keys."""
        state = self._in_flight
        queue = state.queues.get(endpoint.id)
        if queue is None:
            queue = state.queues[endpoint.id] = _EndpointQueue(
                endpoint, self._client(endpoint), self._limits.per_endpoint
            )
        elif queue.endpoint != endpoint:
            queue.signer = None
            if queue.endpoint.url != endpoint.url:
                queue.client.close()
                queue.client = self._client(endpoint)
            queue.endpoint = endpoint
        return queue

    def _client(self, endpoint: Recipient) -> EndpointClient:
        return EndpointClient.for_url(endpoint.url, self._settings, self._connector, self._budget)

    def _enqueue(self, queue: _EndpointQueue) -> None:
        """Schedule a queue if it has deliveries and is below its concurrency."""
        if queue.waiting and not queue.queued and queue.attempting < self._limits.per_endpoint:
            queue.queued = True
            (self._in_flight.slow if queue.slow else self._in_flight.ready).append(queue)

    def _send(self) -> None:
        """Start as many attempts as the limits allow, round-robin over the queues."""
        state, limits = self._in_flight, self._limits
        late = time.monotonic() - limits.max_wait
        while (
            state.fresh < limits.fast_concurrency
            and len(state.attempts) < limits.fast_concurrency + limits.slow_concurrency
        ):
            if state.ready:
                queue = state.ready.popleft()
            elif state.slow and state.slow_attempts < limits.slow_concurrency:
                queue = state.slow.popleft()
            else:
                return
            queue.queued = False
            while queue.waiting and queue.waiting[0].since < late:
                self._release(queue, 1)
            if queue.waiting:
                state.waiting -= 1
                self._start(queue, queue.waiting.popleft())
            self._enqueue(queue)

    def _release(self, queue: _EndpointQueue, count: int) -> None:
        """Release the oldest deliveries of a queue for the next claim."""
        for _ in range(count):
            self._in_flight.unattempted.append(queue.waiting.popleft().claimed)
        self._in_flight.waiting -= count
        self._in_flight.ended.set()

    def _close_idle(self) -> None:
        """Close connections that are idle for long, and drop the state of unused endpoints."""
        state, now = self._in_flight, time.monotonic()
        if now - state.closed_idle_at < IDLE_CONNECTION_SECONDS / 2:
            return
        state.closed_idle_at = now
        for name, queue in list(state.queues.items()):
            queue.client.close(now - IDLE_CONNECTION_SECONDS)
            if not queue.held and now - queue.used_at > FORGET_SECONDS:
                queue.client.close()
                del state.queues[name]

    # -- one attempt ---------------------------------------------------------------------------------------------------

    def _start(self, queue: _EndpointQueue, ready: _Ready) -> None:
        state, limits = self._in_flight, self._limits
        queue.attempting += 1
        state.fresh += 1
        slow = queue.slow
        state.slow_attempts += slow
        task = asyncio.create_task(self._attempt(queue, ready))
        state.attempts.add(task)
        fresh = True

        def became_slow() -> None:
            nonlocal fresh
            if fresh:
                fresh = False
                state.fresh -= 1
                self._send()

        def ended(task: asyncio.Task[AttemptResult]) -> None:
            ageing.cancel()
            state.attempts.discard(task)
            state.slow_attempts -= slow
            queue.attempting -= 1
            queue.used_at = time.monotonic()
            if not task.cancelled():  # before it began: its lease brings the delivery back
                self._adapt(queue, task.result())
            self._enqueue(queue)
            if fresh:
                became_slow()
            else:
                self._send()
            if (state.wants_more and state.waiting <= limits.max_claimed / 2) or (
                queue.endpoint.id in state.throttled and queue.wants_more_claims
            ):
                state.woken.set()

        ageing = asyncio.get_running_loop().call_later(limits.slow_after, became_slow)
        task.add_done_callback(ended)

    def _adapt(self, queue: _EndpointQueue, result: AttemptResult) -> None:
        """Let an endpoint that answers quickly have more deliveries claimed; release those of a slow one."""
        limits = self._limits
        queue.slow = result.seconds > limits.slow_after
        if result.error is None and result.seconds <= limits.fast_seconds:
            queue.depth = min(queue.depth + 1, max(limits.per_endpoint, limits.per_endpoint_claimed))
        else:
            queue.depth = limits.per_endpoint
            self._release(queue, len(queue.waiting))

    async def _attempt(self, queue: _EndpointQueue, ready: _Ready) -> AttemptResult:
        one = ready.claimed
        started = time.monotonic()
        try:
            if one.job_id is None:
                result = await self._post(queue, ready)
            else:
                with tracing.job_span("webhook", one.job_id, delivery=one.id, event=one.type.value, number=one.number):
                    result = await self._post(queue, ready)
        except asyncio.CancelledError:  # this process ends; the result is still recorded
            result = AttemptResult(None, FailureReason.INTERRUPTED, time.monotonic() - started)
        except Exception:  # an unexpected error must not end the other attempts
            log.exception("attempt failed with an internal error", action="webhook_try_failed", delivery=one.id)
            result = AttemptResult(None, FailureReason.INTERNAL, time.monotonic() - started)
        metrics.WEBHOOK_ATTEMPT_SECONDS.labels(result.error or "delivered").observe(result.seconds)
        self._in_flight.outcomes.append(self._outcome(one, result))
        self._in_flight.ended.set()
        if result.error is not None:
            log.info(
                "not delivered",
                action="webhook_tried",
                delivery=one.id,
                endpoint=one.endpoint.id,
                job=one.job_id,
                number=one.number,
                status=result.status,
                error=result.error,
                seconds=round(result.seconds, 3),
            )
        return result

    async def _post(self, queue: _EndpointQueue, ready: _Ready) -> AttemptResult:
        if ready.body is None:
            return AttemptResult(None, FailureReason.INTERNAL, 0.0)
        if queue.signer is None:
            queue.signer = signature.Signer(queue.endpoint.secrets, queue.endpoint.keys)
        signed = queue.signer.headers(ready.claimed.id, int(time.time()), ready.body)
        return await queue.client.post(
            signed, ready.body, deadline=self._limits.deadline, body_deadline=self._limits.body_deadline
        )

    def _outcome(self, one: ClaimedDelivery, result: AttemptResult) -> DeliveryResult:
        retry_in: float | None = None
        if result.error is FailureReason.INTERRUPTED:
            retry_in = 0.0
        elif result.error is not None:
            retry_in = self._retry_policy.delay(one.turn, result.retry_after)
        return DeliveryResult(
            delivery_id=one.id,
            endpoint_id=one.endpoint.id,
            number=one.number,
            delivered=result.error is None,
            status=result.status,
            seconds=result.seconds,
            error=result.error,
            response=result.text,
            retry_in=retry_in,
            pause=result.retry_after,
            probe=one.probe,
            blames=result.error not in (FailureReason.INTERRUPTED, FailureReason.INTERNAL),
            gone=result.error is FailureReason.GONE,
        )

    # -- the log of attempts -------------------------------------------------------------------------------------------

    async def _record(self) -> None:
        """Record results as they arrive, all available ones in one transaction; returns when stopped and done."""
        state = self._in_flight
        failures = 0
        while not (self._stopping.is_set() and not state.attempts and not state.outcomes and not state.unattempted):
            if not state.outcomes and not state.unattempted:
                state.ended.clear()
                await state.ended.wait()
                await asyncio.sleep(0 if self._stopping.is_set() else LINGER_SECONDS)
                continue
            batch, unattempted = state.outcomes[:RECORD], state.unattempted[:RECORD]
            try:
                await asyncio.to_thread(self._write, batch, unattempted)
                failures = 0
            except DatabaseUnavailable:
                # They wait here. If their leases end first they are sent again, which "at least once" allows.
                delay, failures = self._back_off(failures)
                await asyncio.sleep(delay)
                continue
            except Exception:
                log.exception("outcomes not recorded", action="webhook_record_failed", outcomes=len(batch))
                await self._write_singly(batch)
            del state.outcomes[: len(batch)]
            del state.unattempted[: len(unattempted)]

    async def _write_singly(self, batch: list[DeliveryResult]) -> None:
        """Record one by one, so that one failing result does not block the others; its lease brings it back."""
        for one in batch:
            try:
                await asyncio.to_thread(self._write, [one], [])
            except Exception:
                log.exception("an outcome is not recorded", action="webhook_record_failed", delivery=one.delivery_id)

    def _write(self, batch: list[DeliveryResult], unattempted: list[ClaimedDelivery]) -> None:
        with self._store.begin() as unit:
            retry_policy = self._retry_policy
            verdict = unit.delivery_results.record(
                batch, retry_policy.give_up_after, retry_policy.break_after, retry_policy.pause
            )
        if unattempted:
            with self._store.begin() as unit:
                unit.delivery_leases.release(unattempted)
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
            loop.call_soon_threadsafe(self._in_flight.woken.set)
            loop.call_soon_threadsafe(self._in_flight.ended.set)
        except RuntimeError:  # the loop is closed
            return

    def _listen(self) -> None:
        """In a thread of its own: wake the loop at each notification, and after each reconnection."""
        listener = Listener(self._database, [EVENT_CHANNEL])
        failures = 0
        while not self._stopping.is_set():
            try:
                # a new connection may have missed some; `wait` waits on the socket, and the second is for being stopped
                if listener.connect() or listener.wait(1.0):
                    self._has_events.set()
                    self._wake()
                failures = 0
            except DatabaseUnavailable:
                delay, failures = self._back_off(failures)
                self._stopping.wait(delay)
            except SetupError as error:  # a pooler that loses notifications: events are found by looking for them
                log.error("no notifications", action="listener_refused", error=str(error))  # noqa: TRY400
                return
        listener.close()

    async def _shut_down(self, recorder: asyncio.Task[None]) -> None:
        """Wait for attempts in flight, cancel those that take too long, and record all results."""
        for queue in self._in_flight.queues.values():
            self._release(queue, len(queue.waiting))
        if self._in_flight.attempts:
            _, late = await asyncio.wait(set(self._in_flight.attempts), timeout=self._limits.grace)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
        self._in_flight.ended.set()
        try:
            async with asyncio.timeout(self._limits.grace):
                await recorder
        except TimeoutError:
            log.warning(
                "outcomes left to their leases", action="webhook_outcomes_left", outcomes=len(self._in_flight.outcomes)
            )
        for queue in self._in_flight.queues.values():
            queue.client.close()
        await asyncio.sleep(0)  # a transport closes in the loop's next turn


@dataclass(frozen=True, slots=True)
class _Ready:
    """A claimed delivery that waits for an attempt."""

    claimed: ClaimedDelivery
    body: bytes | None  #: None: it cannot be built
    since: float  #: `time.monotonic`


@dataclass(eq=False)
class _EndpointQueue:
    """The deliveries of one endpoint and its connection state."""

    endpoint: Recipient
    client: EndpointClient
    depth: int  #: deliveries that may be claimed for it
    signer: signature.Signer | None = None
    waiting: deque[_Ready] = field(default_factory=deque)
    attempting: int = 0
    queued: bool = False  #: whether it is scheduled
    slow: bool = False  #: whether its last attempt was slow
    used_at: float = field(default_factory=time.monotonic)

    @property
    def held(self) -> int:
        """Its claimed deliveries."""
        return len(self.waiting) + self.attempting

    @property
    def wants_more_claims(self) -> bool:
        """Whether to claim more deliveries for it."""
        return self.held * 2 <= self.depth


@dataclass
class _InFlight:
    """The deliverer's state; used by the event loop's thread only."""

    queues: dict[str, _EndpointQueue] = field(default_factory=dict)
    ready: deque[_EndpointQueue] = field(default_factory=deque)  #: queues that may start an attempt
    slow: deque[_EndpointQueue] = field(default_factory=deque)  #: the same, of endpoints whose last attempt was slow
    waiting: int = 0  #: claimed deliveries that wait for an attempt
    attempts: set[asyncio.Task[AttemptResult]] = field(default_factory=set)
    fresh: int = 0  #: attempts in their first second
    slow_attempts: int = 0  #: attempts of endpoints that were slow when they began
    fanned_out_at: float = float("-inf")  #: `time.monotonic`
    closed_idle_at: float = float("-inf")  #: `time.monotonic`
    wants_more: bool = False  #: more deliveries may be due than could be claimed
    throttled: frozenset[str] = frozenset()  #: endpoints with more to claim than one endpoint may have
    outcomes: list[DeliveryResult] = field(default_factory=list)  #: not recorded yet
    unattempted: list[ClaimedDelivery] = field(default_factory=list)  #: to be released
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)


def _jobs(unit: UnitOfWork, job_ids: set[str]) -> dict[str, Job]:
    """The jobs that can be read; a job that cannot be read is left out."""
    try:
        return unit.delivery_leases.jobs(job_ids)
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
