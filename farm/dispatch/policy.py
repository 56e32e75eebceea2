"""Which queued job goes to which worker: a pure function of the current state, so that it can be tested and simulated.

Values in, values out: `choose` reads no clock and no database, and keeps nothing. What must outlive a round (the
tenants' virtual times, the queues' states) is part of its input and of its decision, and is stored in the transaction
that dispatches the jobs.

A *queue* holds one tenant's queued jobs of one priority for one model, pinned to the same numerics class or to none.
All of them fit the same workers, so a blocked candidate never hides a job that could run.

The rules, in the order in which they bind:

1. **Eligibility.** A paused farm dispatches nothing; a paused tenant or model is left out; a draining worker gets
   nothing; a tenant at ``max_running`` gets nothing more; a job before its ``not_before`` or past its deadline is no
   candidate.
2. **Priority, aged.** The queue of the highest effective priority goes first. A queue rises by one priority for each
   ``age_seconds`` in which neither its oldest job nor the queue was served. Serving a queue resets it, so an overnight
   backlog of a million jobs gets a trickle under a stream of urgent ones, instead of becoming urgent as a whole.
3. **Fair share.** Within a priority the tenant with the smallest virtual time goes first, and is charged cost / weight
   (start-time fair queueing, Goyal, Vin and Cheng 1996). A tenant that had nothing queued starts at the smallest
   virtual time of those that had: idle time earns no credit.
4. **Within a tenant** the queue with the oldest job of the highest priority goes first.
5. **Placement.** A worker with a free slot and the model loaded; else one with a free slot; else the prefetch of one
   that has the model; else any prefetch. Only workers whose memory holds the model, whose tags include the model's,
   and whose numerics class is the one that the job is pinned to. A worker that failed the job before gets it again
   only if no other eligible one has capacity. A job that lost its worker waits some time for one of the numerics class
   in which it began, and is passed over while none has capacity. The first job of a batch that asks for one numerics
   class chooses it: that of its worker.
6. **Delay scheduling** (Zaharia et al., EuroSys 2010). A queue whose job would make a worker load its model is skipped
   in favour of queues whose models are loaded, but never of a lower priority, for at most ``max_skips`` dispatched
   jobs, counted over rounds, and only of tenants that are ahead of its own by less than ``max_skips`` such jobs.
   Without this limit a tenant whose model is loaded would keep it loaded, and shares would follow models instead of
   weights. Free slots at the end of the round are still used: no slot stays empty while a job fits it.
7. **Preemption.** An interactive job that no worker with free capacity takes goes to a full one that renders bulk jobs:
   one of these steps back with its work kept (`workers.engine` decides which) and returns to its queue. Only
   a job's own priority counts here, not an aged one, and a bulk job steps back a limited number of times.

Cost of a round: O((tenants + queues + workers + assignments) × log).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from farm.domain.model import IMAGE_STEPS
from farm.domain.queue import MIN_WEIGHT, Assignment, Paused, Queue, QueuedJob, QueueState, ShareState, TenantShare
from farm.domain.states import Priority
from farm.domain.worker import WorkerCapacity

HIGHEST: Final = max(priority.rank for priority in Priority)
NOTHING_PAUSED: Final = Paused()


@dataclass(frozen=True)
class Rules:
    """The numbers of the policy."""

    age_seconds: float = 300.0  #: of waiting that raise a queue by one priority
    max_skips: int = 16  #: dispatched jobs that may pass a queue over because their models are loaded
    max_assignments: int = 1_000  #: per round: bounds the transaction, the next round follows at once


@dataclass(frozen=True)
class ModelRequirements:
    """What a model needs of a worker."""

    memory_bytes: int | None = None
    tags: frozenset[str] = frozenset()

    def met_by(self, worker: WorkerCapacity) -> bool:
        """Whether the model runs there."""
        fits = self.memory_bytes is None or worker.memory_bytes is None or self.memory_bytes <= worker.memory_bytes
        return fits and self.tags <= worker.tags


@dataclass(frozen=True)
class Decision:
    """What one round decided: store all of it, or nothing."""

    assignments: tuple[Assignment, ...] = ()  #: in the order in which they should be sent
    share_states: tuple[ShareState, ...] = ()  #: of the tenants where something changed
    queue_states: tuple[QueueState, ...] = ()  #: of the queues where something changed
    charged: Mapping[str, tuple[str, float]] = field(default_factory=dict)  #: by job: (tenant, cost / weight)
    chosen_numerics: Mapping[str, str] = field(default_factory=dict)  #: by pin: the class that its first job chose
    more: bool = False  #: whether another round at once may assign more


def choose(
    workers: Sequence[WorkerCapacity],
    queues: Sequence[Queue],
    shares: Sequence[TenantShare],
    now: float,
    *,
    requirements: Mapping[str, ModelRequirements] | None = None,
    paused: Paused = NOTHING_PAUSED,
    rules: Rules = Rules(),
) -> Decision:
    """Assign queued jobs to workers.

    Args:
        workers: those that are there, with what they can take.
        queues: each with its first jobs, oldest first.
        shares: the tenants. One that is missing has the default weight and no limit.
        now: seconds since 1970, by the database's clock.
        requirements: by model. A model that is missing runs anywhere.
        paused: the farm and the models that are paused; a tenant's pause is in its share.
        rules: the numbers of the policy.
    """
    return _Round(workers, queues, shares, now, requirements or {}, paused, rules).run()


_Key = tuple[int, int, int, str]
_Target = tuple[str, str | None]  #: what a worker must fit: a model, and a numerics class or None for any


class _OpenWorker:
    """A worker while a round fills it."""

    __slots__ = ("key", "models", "name", "numerics", "preemptible", "prefetch", "slots", "targets")

    def __init__(self, worker: WorkerCapacity, targets: frozenset[_Target]) -> None:
        self.name = worker.worker
        self.numerics = worker.numerics
        self.targets = targets  #: that it fits
        self.slots = max(0, worker.free_slots - worker.prefetch)  #: free on the device
        self.prefetch = max(0, worker.free_slots) - self.slots  #: free beside it
        self.preemptible = worker.preemptible  #: interactive jobs that it takes beyond that
        self.models = {*worker.models, IMAGE_STEPS.id}  # which needs no device
        self.key = self._key()

    @property
    def full(self) -> bool:
        """Whether it takes nothing more."""
        return not self.slots and not self.prefetch

    def _key(self) -> _Key:
        """Smaller is better: a free slot, the most capacity, the fewest models that a new one could evict."""
        return (0 if self.slots else 1, -(self.slots + self.prefetch), len(self.models), self.name)

    def take(self, model: str) -> bool:
        """Assign one more job of the model; returns whether the model is new to this worker."""
        if self.slots:
            self.slots -= 1
        else:
            self.prefetch -= 1
        new = model not in self.models
        if new:
            self.models.add(model)
        self.key = self._key()
        return new


class _OpenWorkers:
    """The workers, so that the best one for a target is found in O(log workers).

    Workers that fit the same targets form a kind; a farm has as many kinds as it has sorts of machines. Workers only
    get worse in a round, so a heap's entry may be better than its worker is by now: that is corrected when the entry
    comes to the top. Each worker is in a heap once.
    """

    def __init__(
        self,
        workers: Sequence[WorkerCapacity],
        targets: frozenset[_Target],
        requirements: Mapping[str, ModelRequirements],
    ) -> None:
        self._kinds: dict[frozenset[_Target], list[tuple[_Key, _OpenWorker]]] = {}
        self._warm: dict[_Target, list[tuple[_Key, _OpenWorker]]] = {target: [] for target in targets}
        self._of_model: dict[str, list[_Target]] = {}
        for target in targets:
            self._of_model.setdefault(target[0], []).append(target)
        known: dict[tuple[int | None, frozenset[str], str | None], frozenset[_Target]] = {}
        demanding = {model: requirements[model] for model in self._of_model if model in requirements}
        self.free_slots = 0
        self._preemptible: list[_OpenWorker] = []
        for worker in workers:
            if worker.draining or (worker.free_slots <= 0 and not worker.preemptible):
                continue
            machine = (worker.memory_bytes, worker.tags, worker.numerics)
            kind = known.get(machine)
            if kind is None:
                kind = frozenset(
                    (model, numerics)
                    for model, numerics in targets
                    if numerics in (None, worker.numerics)
                    and (model not in demanding or demanding[model].met_by(worker))
                )
                known[machine] = kind
            if not kind:
                continue
            opened = _OpenWorker(worker, kind)
            if opened.preemptible:
                self._preemptible.append(opened)
            if opened.full:
                continue
            self.free_slots += worker.free_slots
            entry = (opened.key, opened)
            self._kinds.setdefault(kind, []).append(entry)
            for target in kind:
                if target[0] in opened.models:
                    self._warm[target].append(entry)
        for heap in (*self._kinds.values(), *self._warm.values()):
            heapq.heapify(heap)
        self._eligible = {target: [heap for kind, heap in self._kinds.items() if target in kind] for target in targets}

    def best(
        self, target: _Target, avoid: frozenset[str] = frozenset(), wait_for: str | None = None
    ) -> tuple[_OpenWorker | None, bool]:
        """The worker to prefer for a job of the target, and whether it has (or will have) the model loaded.

        Workers to avoid are taken only where no other eligible one has capacity. With ``wait_for``, only workers of
        that numerics class are taken.
        """
        model = target[0]
        if avoid or wait_for is not None:
            # few jobs have failed or lost their worker before, so this may look at every worker
            eligible = [
                worker
                for heap in self._eligible[target]
                for _, worker in heap
                if not worker.full and wait_for in (None, worker.numerics)
            ]
            eligible = [worker for worker in eligible if worker.name not in avoid] or eligible
            if not eligible:
                return None, False
            best = min(eligible, key=lambda one: (not one.slots, model not in one.models, one.key))
            return best, model in best.models
        warm = self._top(self._warm[target])
        if warm is not None and warm.slots:
            return warm, True
        other = None
        for heap in self._eligible[target]:
            top = self._top(heap)
            if top is not None and (other is None or top.key < other.key):
                other = top
        if other is None or (warm is not None and not other.slots):
            return warm, True
        return other, model in other.models

    def best_full(self, target: _Target, avoid: frozenset[str], wait_for: str | None) -> _OpenWorker | None:
        """The full worker to prefer for an interactive job: one with the model, and with the most bulk jobs."""
        eligible = [
            worker
            for worker in self._preemptible
            if worker.full
            and worker.preemptible
            and target in worker.targets
            and worker.name not in avoid
            and wait_for in (None, worker.numerics)
        ]
        return min(eligible, key=lambda one: (target[0] not in one.models, -one.preemptible, one.name), default=None)

    def take(self, worker: _OpenWorker, model: str) -> None:
        """Assign one more job of the model to that worker."""
        self.free_slots -= 1
        if worker.take(model):
            for target in self._of_model[model]:
                if target in worker.targets:
                    heapq.heappush(self._warm[target], (worker.key, worker))

    @staticmethod
    def _top(heap: list[tuple[_Key, _OpenWorker]]) -> _OpenWorker | None:
        while heap:
            key, worker = heap[0]
            if worker.full:
                heapq.heappop(heap)
            elif key == worker.key:
                return worker
            else:
                heapq.heapreplace(heap, (worker.key, worker))
        return None


@dataclass(slots=True)
class _OpenQueue:
    """A queue while a round serves it."""

    queue: Queue
    candidates: Sequence[QueuedJob]
    at: int = 0  #: of ``candidates``
    served: int = 0
    skips: int = 0
    skipped_at: int | None = None  #: assignments that this round had made when the queue was first skipped
    skipped: bool = False  #: whether it is being skipped now
    forced: bool = False  #: whether it may make a worker load its model

    @property
    def exhausted(self) -> bool:
        """Whether its next job is not known: nothing that comes after it may be decided in this round."""
        return self.at >= len(self.candidates)

    def key(self, now: float, age_seconds: float) -> tuple[int, float, str]:
        """Smaller goes first: the effective priority, then the oldest job."""
        job = self.candidates[self.at] if self.at < len(self.candidates) else self.candidates[-1]
        rank = self.queue.priority.rank
        if not self.served:
            served_at = self.queue.served_at
            since = job.queued_at if served_at is None else max(job.queued_at, served_at)
            rank = min(HIGHEST, rank + max(0, int((now - since) / age_seconds)))
        return (-rank, job.queued_at, job.job_id)


@dataclass(slots=True)
class _OpenTenant:
    """A tenant while a round serves it."""

    share: TenantShare
    vtime: float
    left: int  #: how many more jobs its limit allows
    queues: list[tuple[tuple[int, float, str], int]] = field(default_factory=list)  #: a heap: (key, index of the queue)
    version: int = 0

    def charge(self, job: QueuedJob) -> float:
        """What a job adds to the virtual time."""
        return job.cost / max(self.share.weight, MIN_WEIGHT)


class _Round:
    """One call of `choose`."""

    def __init__(
        self,
        workers: Sequence[WorkerCapacity],
        queues: Sequence[Queue],
        shares: Sequence[TenantShare],
        now: float,
        requirements: Mapping[str, ModelRequirements],
        paused: Paused,
        rules: Rules,
    ) -> None:
        self._now = now
        self._rules = rules
        known = {share.tenant_id: share for share in shares}
        for queue in queues:
            known.setdefault(queue.tenant_id, TenantShare(queue.tenant_id))
        self._tenants = {
            name: _OpenTenant(
                share,
                share.vtime,
                2**62 if share.max_running is None else max(0, share.max_running - share.held),
            )
            for name, share in known.items()
        }
        self._queues: list[_OpenQueue] = []
        for queue in queues:
            tenant = self._tenants[queue.tenant_id]
            if paused.farm or tenant.share.paused or queue.model in paused.models or not tenant.left:
                continue
            candidates = [
                job for job in queue.candidates if job.queued_at <= now and (job.deadline is None or now < job.deadline)
            ]
            if candidates:
                opened = _OpenQueue(queue, candidates, skips=queue.skips)
                tenant.queues.append((opened.key(now, rules.age_seconds), len(self._queues)))
                self._queues.append(opened)
        for tenant in self._tenants.values():
            heapq.heapify(tenant.queues)
        self._lift()
        self._chosen_numerics: dict[str, str] = {}
        targets = {(one.queue.model, one.queue.numerics) for one in self._queues}
        # a pin without a class gets one in this round, when its first job is assigned
        targets |= {
            (one.queue.model, worker.numerics)
            for one in self._queues
            if one.queue.pin and one.queue.numerics is None
            for worker in workers
        }
        self._workers = _OpenWorkers(workers, frozenset(targets), requirements)
        self._heap: list[tuple[int, float, float, str, int]] = []
        # the skipped queues, as two heaps; entries of those that are no longer skipped are void
        self._until_made: list[tuple[float, int]] = []  #: (assignments after which it is served, index of the queue)
        self._until_vtime: list[tuple[float, int]] = []  #: (virtual time up to which others pass, index of the queue)
        self._chosen: list[Assignment] = []
        self._charged: dict[str, tuple[str, float]] = {}

    def _lift(self) -> None:
        """Let a tenant that had nothing queued start level with those of its priority, or above, that had."""
        continuing: dict[int, float] = {}  # by effective priority: the smallest virtual time
        for tenant in self._tenants.values():
            if tenant.queues and tenant.share.backlogged:
                rank = -tenant.queues[0][0][0]
                continuing[rank] = min(tenant.vtime, continuing.get(rank, tenant.vtime))
        # without such a tenant, the farm's clock is the largest virtual time
        largest = max((tenant.vtime for tenant in self._tenants.values()), default=0.0)
        for tenant in self._tenants.values():
            if tenant.queues and not tenant.share.backlogged:
                rank = -tenant.queues[0][0][0]
                peers = [vtime for other, vtime in continuing.items() if other >= rank]
                tenant.vtime = max(tenant.vtime, min(peers, default=largest))

    def run(self) -> Decision:
        """Fill the workers."""
        for name in self._tenants:
            self._enter(name)
        stopped = False
        rank = HIGHEST  # of the skipped queues
        while self._workers.free_slots:
            if len(self._chosen) >= self._rules.max_assignments:
                stopped = True
                break
            if self._until_made:
                self._end_skips(self._until_made, len(self._chosen))
            found = self._next()
            if found is None or -found[0] < rank:
                # no job of their priority is left for which they could be skipped
                if self._end_skips(self._until_made, math.inf):
                    continue
            elif self._end_skips(self._until_vtime, found[1]):
                continue
            if found is None:
                break
            rank = -found[0]
            tenant = self._tenants[found[3]]
            _, index = tenant.queues[0]
            queue = self._queues[index]
            if queue.exhausted:
                stopped = True
                break
            job = queue.candidates[queue.at]
            worker, loaded = self._workers.best(self._target(queue.queue), job.failed_by, job.wait_for)
            if worker is None and job.wait_for is not None:
                self._advance(tenant, queue)  # it waits longer; those behind it need not
            elif worker is None:
                heapq.heappop(tenant.queues)  # nothing of it fits anywhere in this round
            elif loaded or queue.forced or queue.skips >= self._rules.max_skips:
                self._assign(tenant, queue, worker)
            else:
                heapq.heappop(tenant.queues)
                queue.skipped, queue.skipped_at = True, len(self._chosen)
                vtime = tenant.vtime + self._rules.max_skips * tenant.charge(job)
                heapq.heappush(self._until_made, (len(self._chosen) + self._rules.max_skips - queue.skips, index))
                heapq.heappush(self._until_vtime, (vtime, index))
            self._enter(found[3])
        stopped = self._preempt() or stopped
        return self._decision(stopped)

    def _preempt(self) -> bool:
        """Give interactive jobs that are left to full workers; returns whether more jobs than known ones may wait."""
        waiting = [
            (queue, self._tenants[queue.queue.tenant_id])
            for queue in self._queues
            if queue.queue.priority is Priority.INTERACTIVE
        ]
        while True:
            left = [(queue, tenant) for queue, tenant in waiting if not queue.exhausted and tenant.left]
            if not left:
                return any(queue.exhausted and queue.queue.more and queue.served for queue, _ in waiting)
            if len(self._chosen) >= self._rules.max_assignments:
                return True
            queue, tenant = min(left, key=lambda one: (one[1].vtime, one[0].key(self._now, self._rules.age_seconds)))
            job = queue.candidates[queue.at]
            worker = self._workers.best_full(self._target(queue.queue), job.failed_by, job.wait_for)
            if worker is None:
                waiting.remove((queue, tenant))
                continue
            worker.preemptible -= 1
            self._record(tenant, queue, worker)
            queue.at += 1

    def _enter(self, name: str) -> None:
        """Put a tenant where it belongs now; its earlier entries are void."""
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
        """The tenant to serve next; it stays in the heap until it enters again."""
        heap, tenants = self._heap, self._tenants
        while heap:
            first = heap[0]
            if first[4] == tenants[first[3]].version:
                return first
            heapq.heappop(heap)
        return None

    def _end_skips(self, skipped: list[tuple[float, int]], reached: float) -> bool:
        """Serve the queues skipped until now, also where a model must be loaded; returns whether any were."""
        any_back = False
        while skipped and skipped[0][0] <= reached:
            _, index = heapq.heappop(skipped)
            queue = self._queues[index]
            if queue.skipped:
                queue.skipped, queue.forced, any_back = False, True, True
                tenant = self._tenants[queue.queue.tenant_id]
                heapq.heappush(tenant.queues, (queue.key(self._now, self._rules.age_seconds), index))
                self._enter(queue.queue.tenant_id)
        return any_back

    def _assign(self, tenant: _OpenTenant, queue: _OpenQueue, worker: _OpenWorker) -> None:
        self._workers.take(worker, queue.queue.model)
        self._record(tenant, queue, worker)
        self._advance(tenant, queue)

    def _record(self, tenant: _OpenTenant, queue: _OpenQueue, worker: _OpenWorker) -> None:
        """The queue's next job goes to that worker."""
        job = queue.candidates[queue.at]
        self._chosen.append(Assignment(job.job_id, worker.name))
        pin = queue.queue.pin
        if pin and queue.queue.numerics is None and worker.numerics is not None:
            self._chosen_numerics.setdefault(pin, worker.numerics)
        charge = tenant.charge(job)
        self._charged[job.job_id] = (tenant.share.tenant_id, charge)
        tenant.vtime += charge
        tenant.left -= 1
        queue.served += 1
        queue.skips = 0
        queue.forced = False
        queue.skipped_at = None

    def _target(self, queue: Queue) -> _Target:
        """What a worker must fit for the queue's jobs."""
        return queue.model, self._chosen_numerics.get(queue.pin, queue.numerics)

    def _advance(self, tenant: _OpenTenant, queue: _OpenQueue) -> None:
        """Go on to the next candidate of the tenant's first queue."""
        queue.at += 1
        if not queue.exhausted or queue.queue.more:
            _, index = tenant.queues[0]
            heapq.heapreplace(tenant.queues, (queue.key(self._now, self._rules.age_seconds), index))
        else:
            heapq.heappop(tenant.queues)

    def _decision(self, stopped: bool) -> Decision:
        made = len(self._chosen)
        waiting: set[str] = set()
        queue_states: list[QueueState] = []
        for opened in self._queues:
            queue = opened.queue
            if not opened.exhausted or queue.more:
                waiting.add(queue.tenant_id)
            skips = opened.skips
            if opened.skipped_at is not None:
                skips = min(self._rules.max_skips, skips + made - opened.skipped_at)
            served_at = self._now if opened.served else queue.served_at
            if opened.served or skips != queue.skips:
                queue_states.append(
                    QueueState(queue.tenant_id, queue.model, queue.priority, skips, served_at, queue.pin)
                )
        share_states: list[ShareState] = []
        for name, tenant in self._tenants.items():
            # one that its own limit keeps waiting earns no credit
            backlogged = name in waiting and tenant.left > 0
            if backlogged != tenant.share.backlogged or tenant.vtime != tenant.share.vtime:
                share_states.append(ShareState(name, tenant.vtime, backlogged, tenant.share.vtime))
        return Decision(
            tuple(self._chosen),
            tuple(share_states),
            tuple(queue_states),
            self._charged,
            self._chosen_numerics,
            more=stopped,
        )
