"""Promises of the policy."""

from __future__ import annotations

from collections import Counter, defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from farm.dispatch.policy import Decision, ModelRequirements, Rules, choose
from farm.domain.queue import Paused, Queue, QueuedJob, TenantShare
from farm.domain.states import Priority
from farm.domain.worker import WorkerCapacity

NOW = 1_000.0
MODELS = ["a", "b", "c"]
DEFAULT = Rules()


def waiting(number: int, cost: float = 1.0, queued_at: float = NOW, deadline: float | None = None) -> QueuedJob:
    return QueuedJob(f"job_{number:032x}", cost, queued_at, deadline)


def queue(
    tenant: str, *numbers: int, priority: Priority = Priority.NORMAL, model: str = "a", cost: float = 1.0
) -> Queue:
    return Queue(tenant, model, priority, tuple(waiting(number, cost) for number in numbers))


def workers(decision: Decision) -> list[str]:
    return [one.worker for one in decision.assignments]


def numbers(decision: Decision) -> list[int]:
    return [int(one.job_id[4:], 16) for one in decision.assignments]


class RunningFarm:
    """A farm that never runs dry: plays rounds and carries the policy's memory from one to the next, as a store."""

    def __init__(
        self, *shares: TenantShare, queues: dict[tuple[str, str, Priority], float], rules: Rules = DEFAULT
    ) -> None:
        self.shares = {share.tenant_id: share for share in shares}
        self.queues = dict(queues)  # the cost of each queue's jobs
        self.states: dict[tuple[str, str, Priority], tuple[int, float | None]] = {}
        self.rules = rules
        self.now = NOW
        self.served: dict[str, float] = defaultdict(float)  # cost, by tenant
        self.taken: dict[tuple[str, str, Priority], int] = {}
        self.number = 0

    def round(self, capacities: list[WorkerCapacity], seconds: float = 1.0) -> Decision:
        self.now += seconds
        queues = []
        kind = {}
        for (tenant, model, priority), cost in self.queues.items():
            candidates = []
            for _ in range(sum(capacity.free_slots for capacity in capacities) + 1):
                self.number += 1
                candidates.append(waiting(self.number, cost, queued_at=NOW))
                kind[candidates[-1].job_id] = (tenant, model, priority)
            skips, served_at = self.states.get((tenant, model, priority), (0, None))
            queues.append(
                Queue(tenant, model, priority, tuple(candidates), more=True, skips=skips, served_at=served_at)
            )
        decision = choose(capacities, queues, list(self.shares.values()), self.now, rules=self.rules)
        for one in decision.share_states:
            self.shares[one.tenant_id] = self.shares[one.tenant_id]._replace(vtime=one.vtime, backlogged=one.backlogged)
        for state in decision.queue_states:
            self.states[state.tenant_id, state.model, state.priority] = (state.skips, state.served_at)
        for dispatch in decision.assignments:
            key = kind[dispatch.job_id]
            self.served[key[0]] += self.queues[key]
            self.taken[key] = self.taken.get(key, 0) + 1
        return decision


# -- what always holds -----------------------------------------------------------------------------------------------

capacities_ = st.lists(
    st.builds(
        WorkerCapacity,
        st.sampled_from("vwxyz"),
        st.integers(0, 5),
        st.frozensets(st.sampled_from(MODELS)),
        st.integers(0, 2),
        st.sampled_from([None, 10, 20]),
        st.frozensets(st.sampled_from(["big", "fast"])),
        draining=st.sampled_from([False, False, False, True]),
        numerics=st.sampled_from([None, "x", "y"]),
        preemptible=st.sampled_from([0, 0, 1, 3]),
    ),
    unique_by=lambda capacity: capacity.worker,
    max_size=5,
)
requirements_ = st.dictionaries(
    st.sampled_from(MODELS),
    st.builds(
        ModelRequirements,
        st.sampled_from([None, 10, 15, 30]),
        st.frozensets(st.sampled_from(["big", "fast"]), max_size=1),
    ),
)
shares_ = st.tuples(
    *[
        st.builds(
            TenantShare,
            st.just(name),
            st.floats(0.1, 10),
            st.floats(0, 100),
            st.booleans(),
            st.integers(0, 5),
            st.none() | st.integers(0, 8),
            st.sampled_from([False, False, False, True]),
        )
        for name in ("t1", "t2", "t3")
    ]
)


@st.composite
def queues_(draw: st.DrawFn) -> list[Queue]:
    keys = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["t1", "t2", "t3"]),
                st.sampled_from(MODELS),
                st.sampled_from(Priority),
                st.sampled_from(["", "", "x", "batch_1", "batch_2"]),
            ),
            unique=True,
            max_size=9,
        )
    )
    queues = []
    class_of = {"x": "x", "batch_1": None, "batch_2": draw(st.sampled_from([None, "y"]))}
    for index, (tenant, model, priority, pin) in enumerate(keys):
        count = draw(st.integers(1, 5))
        since = sorted(draw(st.lists(st.floats(0, NOW + 100), min_size=count, max_size=count)))
        candidates = tuple(
            QueuedJob(
                f"job_{index}_{number}",
                draw(st.floats(0.1, 50)),
                since[number],
                draw(st.sampled_from([None, None, NOW - 1, NOW + 1])),
                wait_for=draw(st.sampled_from([None, None, None, "x"])),
            )
            for number in range(count)
        )
        queues.append(
            Queue(
                tenant,
                model,
                priority,
                candidates,
                draw(st.booleans()),
                draw(st.integers(0, 20)),
                draw(st.none() | st.floats(0, NOW)),
                pin=pin,
                numerics=class_of.get(pin),
            )
        )
    return queues


def has_class(capacity: WorkerCapacity, one: Queue, job: QueuedJob, decision: Decision) -> bool:
    """Whether a worker has the numerics class that the job needs at the end of the round."""
    wanted = decision.chosen_numerics.get(one.pin, one.numerics)
    return wanted in (None, capacity.numerics) and job.wait_for in (None, capacity.numerics)


paused_ = st.builds(Paused, st.sampled_from([False] * 9 + [True]), st.frozensets(st.sampled_from(MODELS), max_size=1))


@settings(max_examples=60, deadline=None)
@given(capacities_, queues_(), shares_, requirements_, paused_)
def test_whatever_the_state_no_rule_is_broken(
    capacities: list[WorkerCapacity],
    queues: list[Queue],
    shares: tuple[TenantShare, ...],
    requirements: dict[str, ModelRequirements],
    paused: Paused,
) -> None:
    decision = choose(capacities, queues, shares, NOW, requirements=requirements, paused=paused)
    capacity_of = {capacity.worker: capacity for capacity in capacities}
    queue_of = {job.job_id: one for one in queues for job in one.candidates}
    job_of = {job.job_id: job for one in queues for job in one.candidates}
    to_worker: Counter[str] = Counter()
    to_tenant: Counter[str] = Counter()
    for one in decision.assignments:
        capacity, from_queue, job = capacity_of[one.worker], queue_of[one.job_id], job_of[one.job_id]
        to_worker[one.worker] += 1
        to_tenant[from_queue.tenant_id] += 1
        assert not capacity.draining
        assert requirements.get(from_queue.model, ModelRequirements()).met_by(capacity)
        assert not paused.farm
        assert from_queue.model not in paused.models
        assert job.queued_at <= NOW
        assert job.deadline is None or job.deadline > NOW
        assert from_queue.numerics in (None, capacity.numerics)
        assert job.wait_for in (None, capacity.numerics)
    # all jobs of a batch that asks for one numerics class get the same one
    for pin in ("batch_1", "batch_2"):
        classes = {
            capacity_of[one.worker].numerics for one in decision.assignments if queue_of[one.job_id].pin == pin
        } - {None}
        bound = decision.chosen_numerics.get(pin)
        assert classes <= ({bound} if bound else {"y"} if pin == "batch_2" else set())
    interactive = Counter(
        one.worker for one in decision.assignments if queue_of[one.job_id].priority is Priority.INTERACTIVE
    )
    for capacity in capacities:
        beyond = to_worker[capacity.worker] - max(0, capacity.free_slots)
        assert beyond <= min(capacity.preemptible, interactive[capacity.worker]), "only for whom bulk jobs step back"
    for share in shares:
        if share.paused:
            assert not to_tenant[share.tenant_id]
        if share.max_running is not None:
            assert to_tenant[share.tenant_id] <= max(0, share.max_running - share.held)
    assert len({one.job_id for one in decision.assignments}) == len(decision.assignments)
    # a queue is served from its front
    for from_queue in queues:
        able = [job.job_id for job in from_queue.candidates if job.queued_at <= NOW and (job.deadline or NOW + 1) > NOW]
        sent = [one.job_id for one in decision.assignments if queue_of[one.job_id] is from_queue]
        waiting_jobs = [job_id for job_id in able if job_of[job_id].wait_for and job_id not in sent]
        assert sent == [job_id for job_id in able if job_id not in waiting_jobs][: len(sent)]
    assert all(one.vtime >= 0 for one in decision.share_states)
    assert all(0 <= state.skips <= 20 for state in decision.queue_states)


@settings(max_examples=60, deadline=None)
@given(capacities_, queues_(), shares_, requirements_)
def test_no_slot_stays_empty_while_a_job_fits_it(
    capacities: list[WorkerCapacity],
    queues: list[Queue],
    shares: tuple[TenantShare, ...],
    requirements: dict[str, ModelRequirements],
) -> None:
    queues = [one._replace(more=False) for one in queues]
    decision = choose(capacities, queues, shares, NOW, requirements=requirements)
    sent = {one.job_id for one in decision.assignments}
    to_worker = Counter(workers(decision))
    free = [
        capacity
        for capacity in capacities
        if not capacity.draining and capacity.free_slots > to_worker[capacity.worker]
    ]
    of = {share.tenant_id: share for share in shares}
    for one in queues:
        share = of[one.tenant_id]
        taken = sum(
            job.job_id in sent for other in queues if other.tenant_id == one.tenant_id for job in other.candidates
        )
        capped = share.max_running is not None and share.held + taken >= share.max_running
        if share.paused or capped:
            continue
        left = [
            h for h in one.candidates if h.queued_at <= NOW and (h.deadline or NOW + 1) > NOW and h.job_id not in sent
        ]
        assert not any(
            requirements.get(one.model, ModelRequirements()).met_by(capacity)
            and has_class(capacity, one, job, decision)
            for capacity in free
            for job in left
        )


@settings(max_examples=60, deadline=None)
@given(capacities_, queues_(), shares_, requirements_)
def test_the_same_state_gives_the_same_decision_in_whatever_order_it_is_given(
    capacities: list[WorkerCapacity],
    queues: list[Queue],
    shares: tuple[TenantShare, ...],
    requirements: dict[str, ModelRequirements],
) -> None:
    first = choose(capacities, queues, shares, NOW, requirements=requirements)
    again = choose(capacities[::-1], queues[::-1], shares[::-1], NOW, requirements=requirements)
    assert first.assignments == again.assignments
    assert set(first.share_states) == set(again.share_states)
    assert set(first.queue_states) == set(again.queue_states)


# -- priorities and ageing -------------------------------------------------------------------------------------------


def test_an_interactive_job_overtakes_older_work_of_anybody() -> None:
    queues = [
        queue("t1", 1, priority=Priority.BULK),
        queue("t1", 2),
        queue("t2", 3, priority=Priority.INTERACTIVE),
    ]
    assert numbers(choose([WorkerCapacity("w", 2)], queues, [], NOW)) == [3, 2]


def test_within_a_tenant_and_priority_the_oldest_goes_first_whatever_its_model() -> None:
    queues = [queue("t", 1, 4, model="a"), queue("t", 2, 3, model="b")]
    assert numbers(choose([WorkerCapacity("w", 9, frozenset({"a", "b"}))], queues, [], NOW)) == [1, 2, 3, 4]


def test_a_bulk_job_is_chosen_in_the_end_under_an_endless_stream_of_normal_ones() -> None:
    bulk = ("small", "a", Priority.BULK)
    farm = RunningFarm(
        TenantShare("big"),
        TenantShare("small"),
        queues={("big", "a", Priority.NORMAL): 1.0, bulk: 1.0},
        rules=Rules(age_seconds=60),
    )
    for _ in range(59):
        farm.round([WorkerCapacity("w", 1)])
    assert bulk not in farm.taken
    for _ in range(3):
        farm.round([WorkerCapacity("w", 1)])
    assert farm.taken[bulk] == 1


def test_an_aged_backlog_does_not_become_urgent_as_a_whole() -> None:
    bulk = ("t", "a", Priority.BULK)
    urgent = ("t", "a", Priority.INTERACTIVE)
    farm = RunningFarm(TenantShare("t"), queues={bulk: 1.0, urgent: 1.0}, rules=Rules(age_seconds=10))
    for _ in range(1_000):
        farm.round([WorkerCapacity("w", 1)])
    # one job each time the queue has waited for two priorities, and the rest to the urgent ones
    assert 20 <= farm.taken[bulk] <= 60
    assert farm.taken[urgent] >= 900


# -- fair share ------------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0.2, 8), min_size=2, max_size=4), st.lists(st.floats(0.5, 4), min_size=4, max_size=4))
def test_under_backlog_cost_is_shared_by_weight_within_two_percent(weights: list[float], costs: list[float]) -> None:
    names = [f"t{number}" for number in range(len(weights))]
    farm = RunningFarm(
        *[TenantShare(name, weight) for name, weight in zip(names, weights, strict=True)],
        queues={(name, "a", Priority.NORMAL): cost for name, cost in zip(names, costs, strict=False)},
    )
    for _ in range(150):
        farm.round([WorkerCapacity("w", 20, frozenset("a")), WorkerCapacity("x", 10, frozenset("a"))])
    total = sum(farm.served.values())
    for name, weight in zip(names, weights, strict=True):
        # a job is not divisible: what it weighs in the whole is allowed on top
        grain = 2 * max(costs) / total
        assert abs(farm.served[name] / total - weight / sum(weights)) <= 0.02 + grain


def test_a_single_job_of_a_small_tenant_goes_in_the_next_round_whatever_the_others_backlog() -> None:
    farm = RunningFarm(
        TenantShare("big", weight=100), TenantShare("small"), queues={("big", "a", Priority.NORMAL): 1.0}
    )
    for _ in range(50):
        farm.round([WorkerCapacity("w", 3)])
    farm.queues["small", "a", Priority.NORMAL] = 5.0
    farm.round([WorkerCapacity("w", 1)])
    farm.round([WorkerCapacity("w", 1)])
    assert farm.served["small"] == 5.0


def test_a_tenant_that_was_idle_gets_no_burst_beyond_its_share() -> None:
    stream = ("idle", "a", Priority.NORMAL)
    farm = RunningFarm(
        TenantShare("busy"), TenantShare("idle"), queues={("busy", "a", Priority.NORMAL): 1.0, stream: 1.0}
    )
    for _ in range(10):
        farm.round([WorkerCapacity("w", 2)])
    del farm.queues[stream]
    for _ in range(1_000):
        farm.round([WorkerCapacity("w", 2)])
    farm.queues[stream] = 1.0
    before = farm.served.copy()
    for _ in range(50):
        farm.round([WorkerCapacity("w", 2)])
    assert abs(farm.served["idle"] - before["idle"] - 50) <= 2


def test_a_tenant_that_its_own_limit_held_back_earns_no_credit() -> None:
    farm = RunningFarm(
        TenantShare("busy"),
        TenantShare("capped", max_running=1, held=1),
        queues={("busy", "a", Priority.NORMAL): 1.0, ("capped", "a", Priority.NORMAL): 1.0},
    )
    for _ in range(500):
        farm.round([WorkerCapacity("w", 2)])
    assert farm.served["capped"] == 0
    farm.shares["capped"] = farm.shares["capped"]._replace(max_running=None)
    before = farm.served.copy()
    for _ in range(50):
        farm.round([WorkerCapacity("w", 2)])
    assert abs(farm.served["capped"] - before["capped"] - 50) <= 2


def test_shares_do_not_depend_on_how_many_candidates_are_read() -> None:
    """A queue whose known candidates run out ends the round instead of giving its turn away."""
    shares = [TenantShare("heavy", 9.0, backlogged=True), TenantShare("light", 1.0, backlogged=True)]
    candidates = tuple(waiting(number) for number in range(3))
    queues = [Queue("heavy", "a", Priority.NORMAL, candidates, more=True), queue("light", *range(10, 30))]
    decision = choose([WorkerCapacity("w", 20)], queues, shares, NOW)
    assert decision.more
    assert len([number for number in numbers(decision) if number >= 10]) <= 1


# -- where -----------------------------------------------------------------------------------------------------------


def test_a_worker_that_has_the_model_is_preferred_while_it_has_a_free_slot() -> None:
    capacities = [WorkerCapacity("cold", 4, prefetch=2), WorkerCapacity("warm", 3, frozenset("a"), prefetch=2)]
    assert workers(choose(capacities, [queue("t", 1, 2)], [], NOW)) == ["warm", "cold"]


def test_among_workers_that_have_it_the_freest_is_served_first() -> None:
    capacities = [WorkerCapacity("busy", 1, frozenset("a")), WorkerCapacity("free", 3, frozenset("a"))]
    assert workers(choose(capacities, [queue("t", 1)], [], NOW)) == ["free"]


def test_slots_are_filled_before_prefetch() -> None:
    capacities = [WorkerCapacity(name, 3, frozenset("a"), prefetch=2) for name in "xyz"]
    assert sorted(workers(choose(capacities, [queue("t", 1, 2, 3)], [], NOW))) == ["x", "y", "z"]


def test_models_are_not_reloaded_while_each_job_can_find_its_own() -> None:
    capacities = [WorkerCapacity("x", 2, frozenset("a")), WorkerCapacity("y", 2, frozenset("b"))]
    queues = [queue("t", 1, 2, model="b"), queue("u", 3, 4, model="a")]
    decision = choose(capacities, queues, [], NOW)
    place: dict[str, set[int]] = {one.worker: set() for one in decision.assignments}
    for one, number in zip(decision.assignments, numbers(decision), strict=True):
        place[one.worker].add(number)
    assert place == {"x": {3, 4}, "y": {1, 2}}


def test_a_queue_is_skipped_for_loaded_models_at_most_max_skips_times() -> None:
    farm = RunningFarm(
        TenantShare("hot"),
        TenantShare("cold"),
        queues={("hot", "a", Priority.NORMAL): 1.0, ("cold", "b", Priority.NORMAL): 1.0},
        rules=Rules(max_skips=5),
    )
    for _ in range(5):
        farm.round([WorkerCapacity("w", 1, frozenset("a"))])
    assert farm.served["cold"] == 0
    farm.round([WorkerCapacity("w", 1, frozenset("a"))])
    assert farm.served["cold"] == 1


def test_skips_are_bounded_within_one_round_too() -> None:
    queues = [queue("cold", 1, model="b"), queue("hot", *range(2, 60), model="a")]
    decision = choose([WorkerCapacity("w", 40, frozenset("a"))], queues, [], NOW, rules=Rules(max_skips=5))
    assert numbers(decision).index(1) == 5


def test_no_queue_is_skipped_for_a_lower_priority() -> None:
    queues = [queue("t", 1, model="b", priority=Priority.INTERACTIVE), queue("u", 2, model="a")]
    assert numbers(choose([WorkerCapacity("w", 1, frozenset("a"))], queues, [], NOW)) == [1]


def test_shares_hold_when_every_tenant_uses_another_model() -> None:
    weights = {"t1": 1.0, "t2": 2.0, "t3": 5.0}
    farm = RunningFarm(
        *[TenantShare(name, weight) for name, weight in weights.items()],
        queues={(name, model, Priority.NORMAL): 1.0 for name, model in zip(weights, MODELS, strict=True)},
    )
    loaded = dict.fromkeys("vwxyz", "a")
    for number in range(6_000):
        name = "vwxyz"[number % 5]
        decision = farm.round([WorkerCapacity(name, 1, frozenset(loaded[name]))], seconds=0.1)
        newest = max(farm.states.items(), key=lambda item: item[1][1] or 0)[0]
        assert len(decision.assignments) == 1
        loaded[name] = newest[1]
    total = sum(farm.served.values())
    for name, weight in weights.items():
        assert abs(farm.served[name] / total - weight / 8) <= 0.02


def test_a_blocked_model_hides_no_other_job() -> None:
    queues = [queue("t", *range(1, 9), model="huge"), queue("t", 9, model="a")]
    decision = choose(
        [WorkerCapacity("w", 2, memory_bytes=10)],
        queues,
        [],
        NOW,
        requirements={"huge": ModelRequirements(memory_bytes=99)},
    )
    assert numbers(decision) == [9]


def test_a_model_that_asks_for_tags_goes_to_workers_that_have_them_all() -> None:
    capacities = [
        WorkerCapacity("plain", 5),
        WorkerCapacity("half", 5, tags=frozenset({"eu"})),
        WorkerCapacity("both", 1, tags=frozenset({"eu", "x"})),
    ]
    decision = choose(
        capacities, [queue("t", 1, 2)], [], NOW, requirements={"a": ModelRequirements(tags=frozenset({"eu", "x"}))}
    )
    assert workers(decision) == ["both"]


def test_a_job_goes_to_a_worker_that_failed_it_only_if_no_other_takes_it() -> None:
    failed = waiting(1)._replace(failed_by=frozenset({"w"}))
    queues = [Queue("t", "a", Priority.NORMAL, (failed, waiting(2)))]
    warm = WorkerCapacity("w", 1, frozenset({"a"}))
    capacities = [warm, WorkerCapacity("v", 1)]
    decision = choose(capacities, queues, [], NOW)
    assert {one.job_id: one.worker for one in decision.assignments} == {failed.job_id: "v", waiting(2).job_id: "w"}
    assert workers(choose([warm], queues, [], NOW)) == ["w"]
    unfit = {"a": ModelRequirements(memory_bytes=10)}
    small = WorkerCapacity("v", 1, memory_bytes=5)
    assert workers(choose([warm, small], queues, [], NOW, requirements=unfit)) == ["w"]


def test_paused_and_drained_get_nothing() -> None:
    queues = [queue("t", 1)]
    assert choose([WorkerCapacity("w", 1)], queues, [], NOW).assignments
    assert not choose([WorkerCapacity("w", 1, draining=True)], queues, [], NOW).assignments
    assert not choose([WorkerCapacity("w", 1)], queues, [TenantShare("t", paused=True)], NOW).assignments
    assert not choose([WorkerCapacity("w", 1)], queues, [], NOW, paused=Paused(farm=True)).assignments
    assert not choose([WorkerCapacity("w", 1)], queues, [], NOW, paused=Paused(models=frozenset("a"))).assignments


def test_too_early_and_too_late_are_no_candidates() -> None:
    queues = [Queue("t", "a", Priority.NORMAL, (waiting(1, deadline=NOW), waiting(2), waiting(3, queued_at=NOW + 1)))]
    assert numbers(choose([WorkerCapacity("w", 5)], queues, [], NOW)) == [2]


def test_a_round_is_bounded_and_says_that_more_can_go() -> None:
    decision = choose([WorkerCapacity("w", 50)], [queue("t", *range(50))], [], NOW, rules=Rules(max_assignments=10))
    assert len(decision.assignments) == 10
    assert decision.more


# -- numerics classes --------------------------------------------------------------------------------------------------


def test_a_pinned_job_goes_to_its_numerics_class_even_if_another_worker_has_the_model() -> None:
    queues = [Queue("t", "a", Priority.NORMAL, (waiting(1),), pin="x", numerics="x")]
    warm, other = WorkerCapacity("w1", 5, frozenset("a"), numerics="y"), WorkerCapacity("w2", 1, numerics="x")
    assert workers(choose([warm, other], queues, [], NOW)) == ["w2"]
    assert not choose([warm], queues, [], NOW).assignments


def test_a_pinned_job_without_a_worker_does_not_hide_the_others_of_its_model() -> None:
    pinned = Queue("t", "a", Priority.NORMAL, (waiting(1),), pin="x", numerics="x")
    assert numbers(choose([WorkerCapacity("w", 5, numerics="y")], [pinned, queue("t", 2)], [], NOW)) == [2]


def test_the_first_job_of_a_batch_chooses_the_numerics_class_of_all() -> None:
    capacities = [WorkerCapacity("w1", 2, numerics="x"), WorkerCapacity("w2", 9, numerics="y")]
    one = [
        Queue("t", model, Priority.NORMAL, tuple(map(waiting, jobs)), pin="batch_1")
        for model, jobs in (("a", range(1, 6)), ("b", range(6, 12)))
    ]
    first = choose(capacities, one, [], NOW)
    assert first.chosen_numerics == {"batch_1": "y"}
    assert set(workers(first)) == {"w2"}
    assert len(first.assignments) == 9
    later = [queue._replace(numerics="y") for queue in one]
    again = choose(capacities, later, [], NOW)
    assert set(workers(again)) == {"w2"}
    assert not again.chosen_numerics, "it is chosen once"


def test_a_job_that_lost_its_worker_waits_for_its_numerics_class_and_the_others_pass_it() -> None:
    lost = waiting(1)._replace(wait_for="x")
    queues = [Queue("t", "a", Priority.NORMAL, (lost, waiting(2), waiting(3)))]
    assert numbers(choose([WorkerCapacity("w", 5, numerics="y")], queues, [], NOW)) == [2, 3]
    both = [WorkerCapacity("w", 5, frozenset("a"), numerics="y"), WorkerCapacity("v", 1, numerics="x")]
    assignments = {int(one.job_id[4:], 16): one.worker for one in choose(both, queues, [], NOW).assignments}
    assert assignments[1] == "v"
    assert set(assignments) == {1, 2, 3}
