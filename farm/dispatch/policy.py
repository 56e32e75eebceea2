"""Who gets what, decided late and from the real state alone: a pure function, so that it can be tested and simulated.

Values in, values out: `choose` reads no clock, no database and no memory of its own. What must outlive a round (the
tenants' virtual times, the marks of the lines) goes in with the state and comes out with the decision, to be stored in
the transaction of the hand-overs.

The rules, in the order in which they bind:

1. **Who may play.** A paused farm hands over nothing; a paused tenant or model is left out; a draining worker gets
   nothing; a tenant at its cap gets nothing more; a job before its ``not_before`` or past its deadline is no candidate.
2. **Class, aged.** Of all heads the highest effective class goes first. A head rises one class for each
   ``age_seconds`` that it and its line went unserved. Being served resets the line, so an overnight backlog of a
   million jobs gets a trickle under a stream of urgent ones instead of becoming urgent as a whole.
3. **Fair share.** Within a class the tenant with the smallest virtual time goes first, and is charged cost / weight
   (start-time fair queueing, Goyal, Vin and Cheng 1996). A tenant that had nothing waiting starts at the smallest
   virtual time of those that had: idleness saves up nothing.
4. **Within a tenant** the oldest head of the highest class goes first.
5. **Where.** A worker with a free slot and the model loaded; else one with a free slot; else the model's own queue for
   prefetch; else any prefetch. Only workers whose memory holds the model and whose tags include the model's.
   A worker that failed the job before gets it again only if no other one with room fits.
6. **Passing over.** A job that would make a worker load its model steps aside for jobs that find theirs loaded, but
   never for a lower class, at most ``max_skips`` hand-overs long, counted over rounds, and only for tenants that are
   ahead of its own by less than ``max_skips`` such jobs: without this, whoever has a model loaded would keep it loaded,
   and shares would follow models instead of weights. What is free at the end of the round is used all the same: no
   seat stays empty while a job fits it.

A *line* is one tenant's waiting jobs of one class for one model: all of them fit the same workers, so a blocked head
never hides a job that could run. Cost of a round: O((tenants + lines + workers + hand-overs) × log).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from farm.domain.job import Assignment, QueuedJob
from farm.domain.states import Priority

HIGHEST: Final = max(priority.rank for priority in Priority)
LEAST_WEIGHT: Final = 1e-6  #: a tenant of weight 0 is served when nobody else waits, and divides nothing by zero


@dataclass(frozen=True)
class Rules:
    """The numbers of the policy."""

    age_seconds: float = 300.0  #: of waiting that raise a head by one class
    max_skips: int = 16  #: hand-overs that a line may be passed over for the sake of loaded models
    max_assignments: int = 1_000  #: per round: bounds the transaction, the next round follows at once


@dataclass(frozen=True)
class Line:
    """The first waiting jobs of one tenant, class and model, oldest first."""

    tenant_id: str
    model: str
    priority: Priority
    heads: Sequence[QueuedJob]
    more: bool = False  #: whether others may wait behind these
    skips: int = 0  #: hand-overs since it was last served that passed it over
    served_at: float | None = None  #: its last hand-over


@dataclass(frozen=True)
class Account:
    """A tenant's standing."""

    tenant_id: str
    weight: float = 1.0
    vtime: float = 0.0  #: cost / weight handed over so far, with the lifts for idle times
    backlogged: bool = False  #: whether jobs were left waiting for a worker, not for a cap, after the last round
    held: int = 0  #: jobs dispatched or running
    max_running: int | None = None  #: the most that ``held`` may become
    paused: bool = False


class Seat(NamedTuple):
    """A worker that may be handed jobs. A tuple: each round makes one for each worker."""

    worker: str
    room: int  #: how many more jobs it takes: slots + prefetch, less what it holds
    models: frozenset[str] = frozenset()  #: in its memory, or of the jobs that it holds
    prefetch: int = 0  #: the last so many of ``room`` wait at the worker instead of running
    memory_bytes: int | None = None  #: of its device; None: unknown, and taken to be enough
    tags: frozenset[str] = frozenset()
    draining: bool = False


@dataclass(frozen=True)
class Need:
    """What a model asks of a worker."""

    memory_bytes: int | None = None
    tags: frozenset[str] = frozenset()

    def met_by(self, seat: Seat) -> bool:
        """Whether the model runs there."""
        fits = self.memory_bytes is None or seat.memory_bytes is None or self.memory_bytes <= seat.memory_bytes
        return fits and self.tags <= seat.tags


@dataclass(frozen=True)
class Paused:
    """What operators have stopped, besides single tenants."""

    farm: bool = False
    models: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Mark:
    """What a line carries into the next round."""

    tenant_id: str
    model: str
    priority: Priority
    skips: int
    served_at: float | None


@dataclass(frozen=True)
class Standing:
    """What a tenant carries into the next round."""

    tenant_id: str
    vtime: float
    backlogged: bool


@dataclass(frozen=True)
class Decision:
    """What one round decided: store all of it, or nothing."""

    assignments: tuple[Assignment, ...] = ()  #: in the order in which they should be sent
    standings: tuple[Standing, ...] = ()  #: of the tenants where something changed
    marks: tuple[Mark, ...] = ()  #: of the lines where something changed
    charged: Mapping[str, tuple[str, float]] = field(default_factory=dict)  #: by job: (tenant, cost / weight)
    more: bool = False  #: whether another round at once may hand over more


def choose(
    seats: Sequence[Seat],
    lines: Sequence[Line],
    accounts: Sequence[Account],
    now: float,
    *,
    needs: Mapping[str, Need] | None = None,
    paused: Paused = Paused(),
    rules: Rules = Rules(),
) -> Decision:
    """The hand-overs to make now. A line without an account, or a model without a need, asks for nothing special."""
    return _Round(seats, lines, accounts, now, needs or {}, paused, rules).run()


_Key = tuple[int, int, int, str]


class _Place:
    """A seat while a round fills it."""

    __slots__ = ("ahead", "free", "key", "models", "worker")

    def __init__(self, seat: Seat) -> None:
        self.worker = seat.worker
        self.free = max(0, seat.room - seat.prefetch)  #: slots
        self.ahead = seat.room - self.free  #: prefetch
        self.models = set(seat.models)
        self.key = self._key()

    def _key(self) -> _Key:
        """Smaller is better: a free slot, the most room, the fewest models that a new one could push out."""
        return (0 if self.free else 1, -(self.free + self.ahead), len(self.models), self.worker)

    def take(self, model: str) -> bool:
        """One more job of the model goes here; returns whether the model is new here."""
        if self.free:
            self.free -= 1
        else:
            self.ahead -= 1
        new = model not in self.models
        if new:
            self.models.add(model)
        self.key = self._key()
        return new


class _Places:
    """The workers, so that the best one for a model is found in O(log workers).

    Workers that the same models fit form a kind; a farm has as many kinds as it has sorts of machines. Places only get
    worse in a round, so a heap's entry may be better than its place is by now: that is put right when it comes to the
    top, and each place is in a heap once.
    """

    def __init__(self, seats: Sequence[Seat], models: frozenset[str], needs: Mapping[str, Need]) -> None:
        self._kinds: dict[frozenset[str], list[tuple[_Key, _Place]]] = {}
        self._warm: dict[str, list[tuple[_Key, _Place]]] = {model: [] for model in models}
        alike: dict[tuple[int | None, frozenset[str]], frozenset[str]] = {}
        asking = {model: needs[model] for model in models if model in needs}
        self.room = 0
        for seat in seats:
            if seat.draining or seat.room <= 0:
                continue
            sort = (seat.memory_bytes, seat.tags)
            kind = alike.get(sort)
            if kind is None:
                kind = frozenset(m for m in models if m not in asking or asking[m].met_by(seat))
                alike[sort] = kind
            if not kind:
                continue
            place = _Place(seat)
            self.room += seat.room
            entry = (place.key, place)
            self._kinds.setdefault(kind, []).append(entry)
            for model in place.models & kind:
                self._warm[model].append(entry)
        for heap in (*self._kinds.values(), *self._warm.values()):
            heapq.heapify(heap)
        self._fitting = {model: [heap for kind, heap in self._kinds.items() if model in kind] for model in models}

    def best(self, model: str, avoid: frozenset[str] = frozenset()) -> tuple[_Place | None, bool]:
        """The place to prefer for a job of the model, and whether it has (or will have) the model loaded.

        The workers to avoid count only where no other one has room for it.
        """
        if avoid:
            # few jobs have failed before, so this may look at every place
            others = [
                place
                for heap in self._fitting[model]
                for _, place in heap
                if (place.free or place.ahead) and place.worker not in avoid
            ]
            if others:
                best = min(others, key=lambda one: (not one.free, model not in one.models, one.key))
                return best, model in best.models
        warm = self._top(self._warm[model])
        if warm is not None and warm.free:
            return warm, True
        other = None
        for heap in self._fitting[model]:
            top = self._top(heap)
            if top is not None and (other is None or top.key < other.key):
                other = top
        if other is None or (warm is not None and not other.free):
            return warm, True
        return other, model in other.models

    def take(self, place: _Place, model: str) -> None:
        """One more job of the model goes there."""
        self.room -= 1
        if place.take(model):
            heapq.heappush(self._warm[model], (place.key, place))

    @staticmethod
    def _top(heap: list[tuple[_Key, _Place]]) -> _Place | None:
        while heap:
            key, place = heap[0]
            if not place.free and not place.ahead:
                heapq.heappop(heap)
            elif key == place.key:
                return place
            else:
                heapq.heapreplace(heap, (place.key, place))
        return None


@dataclass(slots=True)
class _Queue:
    """A line while a round walks it."""

    line: Line
    heads: Sequence[QueuedJob]  #: candidates only
    at: int = 0  #: of ``heads``
    served: int = 0
    skips: int = 0
    aside_at: int | None = None  #: hand-overs made in this round when it stepped aside
    aside: bool = False  #: whether it stands aside now
    forced: bool = False  #: whether it may make a worker load its model

    @property
    def wall(self) -> bool:
        """Whether its next job is not known: nothing that comes after it may be decided in this round."""
        return self.at >= len(self.heads)

    def key(self, now: float, age_seconds: float) -> tuple[int, float, str]:
        """Smaller goes first: the effective class, then the oldest head."""
        head = self.heads[self.at] if self.at < len(self.heads) else self.heads[-1]
        rank = self.line.priority.rank
        if not self.served:
            since = head.since if self.line.served_at is None else max(head.since, self.line.served_at)
            rank = min(HIGHEST, rank + max(0, int((now - since) / age_seconds)))
        return (-rank, head.since, head.job_id)


@dataclass(slots=True)
class _Tenant:
    """A tenant while a round serves it."""

    account: Account
    vtime: float
    left: int  #: how many more jobs its cap allows
    queues: list[tuple[tuple[int, float, str], int]] = field(default_factory=list)  #: a heap: (key, index of the queue)
    version: int = 0

    def charge(self, job: QueuedJob) -> float:
        """What a job adds to the virtual time."""
        return job.cost / max(self.account.weight, LEAST_WEIGHT)


class _Round:
    """One call of `choose`."""

    def __init__(
        self,
        seats: Sequence[Seat],
        lines: Sequence[Line],
        accounts: Sequence[Account],
        now: float,
        needs: Mapping[str, Need],
        paused: Paused,
        rules: Rules,
    ) -> None:
        self._now = now
        self._rules = rules
        known = {account.tenant_id: account for account in accounts}
        for line in lines:
            known.setdefault(line.tenant_id, Account(line.tenant_id))
        self._tenants = {
            name: _Tenant(
                account,
                account.vtime,
                2**62 if account.max_running is None else max(0, account.max_running - account.held),
            )
            for name, account in known.items()
        }
        self._queues: list[_Queue] = []
        for line in lines:
            tenant = self._tenants[line.tenant_id]
            if paused.farm or tenant.account.paused or line.model in paused.models or not tenant.left:
                continue
            heads = [h for h in line.heads if h.since <= now and (h.deadline is None or now < h.deadline)]
            if heads:
                queue = _Queue(line, heads, skips=line.skips)
                tenant.queues.append((queue.key(now, rules.age_seconds), len(self._queues)))
                self._queues.append(queue)
        for tenant in self._tenants.values():
            heapq.heapify(tenant.queues)
        self._lift()
        self._places = _Places(seats, frozenset(queue.line.model for queue in self._queues), needs)
        self._heap: list[tuple[int, float, float, str, int]] = []
        # the queues that stand aside, as two heaps; entries of those that came back are void
        self._until_made: list[tuple[float, int]] = []  #: (hand-overs made when its patience ends, index of the queue)
        self._until_ahead: list[tuple[float, int]] = []  #: (virtual time it makes way for, index of the queue)
        self._chosen: list[Assignment] = []
        self._charged: dict[str, tuple[str, float]] = {}

    def _lift(self) -> None:
        """A tenant that had nothing waiting starts level with those of its class, or above, that had."""
        continuing: dict[int, float] = {}  # by effective class: the smallest virtual time
        for tenant in self._tenants.values():
            if tenant.queues and tenant.account.backlogged:
                rank = -tenant.queues[0][0][0]
                continuing[rank] = min(tenant.vtime, continuing.get(rank, tenant.vtime))
        # with nobody to be level with, the farm's clock is the furthest that anybody got
        furthest = max((tenant.vtime for tenant in self._tenants.values()), default=0.0)
        for tenant in self._tenants.values():
            if tenant.queues and not tenant.account.backlogged:
                rank = -tenant.queues[0][0][0]
                peers = [vtime for other, vtime in continuing.items() if other >= rank]
                tenant.vtime = max(tenant.vtime, min(peers, default=furthest))

    def run(self) -> Decision:
        """Fill the places."""
        for name in self._tenants:
            self._enter(name)
        stopped = False
        rank = HIGHEST  # of the queues that stepped aside
        while self._places.room:
            if len(self._chosen) >= self._rules.max_assignments:
                stopped = True
                break
            if self._until_made:
                self._end_patience(self._until_made, len(self._chosen))
            found = self._next()
            if found is None or -found[0] < rank:
                # nobody of their class is left to step aside for
                if self._end_patience(self._until_made, math.inf):
                    continue
            elif self._end_patience(self._until_ahead, found[1]):
                continue
            if found is None:
                break
            rank = -found[0]
            tenant = self._tenants[found[3]]
            _, index = tenant.queues[0]
            queue = self._queues[index]
            if queue.wall:
                stopped = True
                break
            place, loaded = self._places.best(queue.line.model, queue.heads[queue.at].failed_by)
            if place is None:
                heapq.heappop(tenant.queues)  # nothing of it fits anywhere in this round
            elif loaded or queue.forced or queue.skips >= self._rules.max_skips:
                self._assign(tenant, queue, place)
            else:
                heapq.heappop(tenant.queues)
                queue.aside, queue.aside_at = True, len(self._chosen)
                ahead = tenant.vtime + self._rules.max_skips * tenant.charge(queue.heads[queue.at])
                heapq.heappush(self._until_made, (len(self._chosen) + self._rules.max_skips - queue.skips, index))
                heapq.heappush(self._until_ahead, (ahead, index))
            self._enter(found[3])
        return self._decision(stopped)

    def _enter(self, name: str) -> None:
        """Put a tenant where it belongs now; earlier entries of it are void."""
        tenant = self._tenants[name]
        tenant.version += 1
        if tenant.queues and tenant.left:
            (rank, since, _), _ = tenant.queues[0]
            entry = (rank, tenant.vtime, since, name, tenant.version)
            if self._heap and self._heap[0][3] == name:
                heapq.heapreplace(self._heap, entry)
            else:
                heapq.heappush(self._heap, entry)

    def _next(self) -> tuple[int, float, float, str, int] | None:
        """The tenant whose turn it is; it stays in the heap until it enters again."""
        heap, tenants = self._heap, self._tenants
        while heap:
            first = heap[0]
            if first[4] == tenants[first[3]].version:
                return first
            heapq.heappop(heap)
        return None

    def _end_patience(self, aside: list[tuple[float, int]], reached: float) -> bool:
        """Bring back, to be served next at any price, the queues that stood aside until now; whether there were any."""
        any_back = False
        while aside and aside[0][0] <= reached:
            _, index = heapq.heappop(aside)
            queue = self._queues[index]
            if queue.aside:
                queue.aside, queue.forced, any_back = False, True, True
                tenant = self._tenants[queue.line.tenant_id]
                heapq.heappush(tenant.queues, (queue.key(self._now, self._rules.age_seconds), index))
                self._enter(queue.line.tenant_id)
        return any_back

    def _assign(self, tenant: _Tenant, queue: _Queue, place: _Place) -> None:
        head = queue.heads[queue.at]
        self._chosen.append(Assignment(head.job_id, place.worker))
        self._places.take(place, queue.line.model)
        charge = tenant.charge(head)
        self._charged[head.job_id] = (tenant.account.tenant_id, charge)
        tenant.vtime += charge
        tenant.left -= 1
        queue.at += 1
        queue.served += 1
        queue.skips = 0
        queue.forced = False
        queue.aside_at = None
        if not queue.wall or queue.line.more:
            _, index = tenant.queues[0]
            heapq.heapreplace(tenant.queues, (queue.key(self._now, self._rules.age_seconds), index))
        else:
            heapq.heappop(tenant.queues)

    def _decision(self, stopped: bool) -> Decision:
        made = len(self._chosen)
        waiting: set[str] = set()
        marks: list[Mark] = []
        for queue in self._queues:
            line = queue.line
            if not queue.wall or line.more:
                waiting.add(line.tenant_id)
            skips = queue.skips
            if queue.aside_at is not None:
                skips = min(self._rules.max_skips, skips + made - queue.aside_at)
            served_at = self._now if queue.served else line.served_at
            if queue.served or skips != line.skips:
                marks.append(Mark(line.tenant_id, line.model, line.priority, skips, served_at))
        standings: list[Standing] = []
        for name, tenant in self._tenants.items():
            # one that its own cap keeps waiting is not owed anything
            backlogged = name in waiting and tenant.left > 0
            if backlogged != tenant.account.backlogged or tenant.vtime != tenant.account.vtime:
                standings.append(Standing(name, tenant.vtime, backlogged))
        return Decision(tuple(self._chosen), tuple(standings), tuple(marks), self._charged, more=stopped)
