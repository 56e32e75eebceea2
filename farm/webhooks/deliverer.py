"""The deliverer: events become deliveries, deliveries become signed POSTs, until each is acknowledged or given up.

Any number of deliverers may run. What one has in hand is leased in the database, so a killed one loses nothing: its
deliveries are due again, under the same ``webhook-id``, when the lease ends. The loop sleeps until a notification says
that there are new events, until the next delivery is due, or until a try that ended makes room for what waited.
"""

from __future__ import annotations

import asyncio
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

import httpx2
import structlog
from pydantic import ValidationError

from farm import __version__
from farm.domain.job import Job
from farm.errors import DatabaseUnavailable, FarmError, SetupError
from farm.settings import Settings
from farm.store.claims import Claim, Claimed
from farm.store.events import EVENT_CHANNEL
from farm.store.listen import Listener
from farm.store.outcomes import Outcome
from farm.store.unit import Store, Unit
from farm.webhooks import attempt, guard, signature
from farm.webhooks.attempt import Answer, Failure
from farm.webhooks.body import body, plain
from farm.webhooks.schedule import Schedule

log = structlog.stdlib.get_logger()

BACK_OFF_SECONDS: Final = (0.2, 0.5, 1.0, 2.0, 5.0)  #: between tries while the database is away
IDLE_SECONDS: Final = 30.0  #: a look without being told, in case a notification got lost
FAN_OUT: Final = 500  #: events per transaction
SHARES: Final = 64  #: HTTP clients, each for a share of the endpoints


@dataclass(frozen=True)
class Limits:
    """How much a deliverer does at once, and for how long. Times in seconds."""

    at_once: int = 64  #: tries in their first second
    lingering: int = 192  #: tries beyond it: slow endpoints queue for these, not for the ones above
    lingers_after: float = 1.0
    per_endpoint: int = 4
    deadline: float = 20.0  #: of one try
    body_deadline: float = 5.0  #: of an answer's body, within the deadline
    lease: float = 45.0  #: longer than a try and its recording
    grace: float = 5.0  #: for tries in flight when the deliverer is stopped


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
        self._resolver = resolver
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
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(one) for one in self._clients()]
            trouble = 0
            while not self._stopping.is_set():
                self._hand.woken.clear()
                try:
                    nap = await self._round(clients)
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

    def _clients(self) -> list[httpx2.AsyncClient]:
        """One for each share of the endpoints: a pool looks at all its idle connections at each request."""
        tls = httpx2.create_ssl_context(trust_env=False)
        return [
            guard.async_client(
                self._settings,
                timeout=self._limits.deadline,
                resolver=self._resolver,
                verify=tls,
                max_connections=self._limits.at_once + self._limits.lingering,
            )
            for _ in range(SHARES)
        ]

    async def _round(self, clients: list[httpx2.AsyncClient]) -> float:
        """Fan out, claim, send; returns the seconds to rest unless woken."""
        hand, limits = self._hand, self._limits
        if self._news.is_set() or time.monotonic() - hand.fanned_out_at > IDLE_SECONDS:
            self._news.clear()
            hand.fanned_out_at = time.monotonic()
            if await asyncio.to_thread(self._fan_out) == FAN_OUT:
                self._news.set()
        nap = 0.0 if self._news.is_set() else IDLE_SECONDS
        room = min(limits.at_once - hand.young, limits.at_once + limits.lingering - len(hand.tries))
        if room <= 0:
            hand.hungry = True  # a try that ends wakes us
            return nap
        hand.freed.clear()
        claim, bodies = await asyncio.to_thread(self._claim, room, dict(hand.busy))
        for one, content in zip(claim.claimed, bodies, strict=True):
            self._start(clients[zlib.crc32(one.endpoint.id.encode()) % len(clients)], one, content)
        hand.hungry = len(claim.claimed) >= room
        hand.starved = claim.starved
        if hand.starved & hand.freed:
            return 0.0  # room was made while the database was asked
        if claim.due_in is not None and not hand.hungry:
            # what is due and was not taken is in another deliverer's hands for a moment
            nap = min(nap, max(claim.due_in, 0.05))
        return nap

    def _fan_out(self) -> int:
        with self._store.begin() as unit:
            return unit.outbox.fan_out(signature.new_secret, FAN_OUT)

    def _claim(self, room: int, busy: dict[str, int]) -> tuple[Claim, list[bytes | None]]:
        """Deliveries to send, and their bodies (None: it cannot be built)."""
        with self._store.begin() as unit:
            claim = unit.claims.take(
                room,
                self._limits.per_endpoint,
                {one: self._limits.per_endpoint - count for one, count in busy.items()},
                self._limits.lease,
                self._schedule.break_after,
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

    # -- one try ------------------------------------------------------------------------------------------------------

    def _start(self, client: httpx2.AsyncClient, one: Claimed, content: bytes | None) -> None:
        hand = self._hand
        hand.busy[one.endpoint.id] += 1
        hand.young += 1
        task = asyncio.create_task(self._try(client, one, content))
        hand.tries.add(task)
        young = True

        def grown() -> None:
            nonlocal young
            if young:
                young = False
                hand.young -= 1
                if hand.hungry:
                    hand.woken.set()

        def ended(task: asyncio.Task[None]) -> None:
            ageing.cancel()
            grown()
            hand.tries.discard(task)
            hand.freed.add(one.endpoint.id)
            if hand.hungry or one.endpoint.id in hand.starved:
                hand.woken.set()
            hand.busy[one.endpoint.id] -= 1
            if not hand.busy[one.endpoint.id]:
                del hand.busy[one.endpoint.id]

        ageing = asyncio.get_running_loop().call_later(self._limits.lingers_after, grown)
        task.add_done_callback(ended)

    async def _try(self, client: httpx2.AsyncClient, one: Claimed, content: bytes | None) -> None:
        started = time.monotonic()
        try:
            answer = await self._send(client, one, content)
        except asyncio.CancelledError:  # the end of this process, which its outcome must not miss
            answer = Answer(None, Failure.INTERRUPTED, time.monotonic() - started)
        except Exception:  # whatever it was, it must not end the others
            log.exception("a try failed in itself", action="webhook_try_failed", delivery=one.id)
            answer = Answer(None, Failure.INTERNAL, time.monotonic() - started)
        self._hand.outcomes.append(self._outcome(one, answer))
        self._hand.ended.set()
        log.info(
            "delivered" if answer.error is None else "not delivered",
            action="webhook_tried",
            delivery=one.id,
            endpoint=one.endpoint.id,
            job=one.job_id,
            number=one.number,
            status=answer.status,
            error=answer.error,
            seconds=round(answer.seconds, 3),
        )

    async def _send(self, client: httpx2.AsyncClient, one: Claimed, content: bytes | None) -> Answer:
        if content is None:
            return Answer(None, Failure.INTERNAL, 0.0)
        headers = signature.headers(one.endpoint.secrets, one.id, int(time.time()), content)
        headers |= {"Content-Type": "application/json", "User-Agent": f"render-farm/{__version__}"}
        limits = self._limits
        return await attempt.post(
            client, one.endpoint.url, headers, content, deadline=limits.deadline, body_deadline=limits.body_deadline
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
        while not (self._stopping.is_set() and not hand.tries and not hand.outcomes):
            if not hand.outcomes:
                hand.ended.clear()
                await hand.ended.wait()
                continue
            batch = hand.outcomes[:FAN_OUT]
            try:
                await asyncio.to_thread(self._write, batch)
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

    async def _write_singly(self, batch: list[Outcome]) -> None:
        """One that cannot be written must not take the others with it; its lease brings it back."""
        for one in batch:
            try:
                await asyncio.to_thread(self._write, [one])
            except Exception:
                log.exception("an outcome is not recorded", action="webhook_record_failed", delivery=one.delivery_id)

    def _write(self, batch: list[Outcome]) -> None:
        with self._store.begin() as unit:
            schedule = self._schedule
            verdict = unit.outcomes.record(batch, schedule.give_up_after, schedule.break_after, schedule.pause)
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


@dataclass
class _Hand:
    """What a deliverer has in hand; touched by the event loop's thread only."""

    tries: set[asyncio.Task[None]] = field(default_factory=set)
    young: int = 0  #: tries in their first second
    busy: Counter[str] = field(default_factory=Counter)  #: tries by endpoint
    fanned_out_at: float = float("-inf")  #: `time.monotonic`
    hungry: bool = False  #: there may be more to claim than there was room for
    starved: frozenset[str] = frozenset()  #: endpoints with more to claim than one endpoint may have
    freed: set[str] = field(default_factory=set)  #: endpoints of tries that ended since the last claim began
    outcomes: list[Outcome] = field(default_factory=list)  #: not recorded yet
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)


def _jobs(unit: Unit, job_ids: set[str]) -> dict[str, Job]:
    """The jobs that can be read; one that cannot costs only itself."""
    try:
        return unit.jobs.many(job_ids)
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
