"""Promises of the policy."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from farm.dispatch.policy import (
    Account,
    Decision,
    Line,
    Need,
    Paused,
    Rules,
    Seat,
    choose,
)
from farm.domain.job import QueuedJob
from farm.domain.states import Priority

NOW = 1_000.0
MODELS = ["a", "b", "c"]
DEFAULT = Rules()


def waiting(number: int, cost: float = 1.0, since: float = NOW, deadline: float | None = None) -> QueuedJob:
    return QueuedJob(f"job_{number:032x}", cost, since, deadline)


def line(tenant: str, *numbers: int, priority: Priority = Priority.NORMAL, model: str = "a", cost: float = 1.0) -> Line:
    return Line(tenant, model, priority, tuple(waiting(number, cost) for number in numbers))


def workers(decision: Decision) -> list[str]:
    return [one.worker for one in decision.assignments]


def numbers(decision: Decision) -> list[int]:
    return [int(one.job_id[4:], 16) for one in decision.assignments]


class Queues:
    """A farm that never runs dry: plays rounds and carries the policy's memory from one to the next, as a store."""

    def __init__(
        self, *accounts: Account, lines: dict[tuple[str, str, Priority], float], rules: Rules = DEFAULT
    ) -> None:
        self.accounts = {account.tenant_id: account for account in accounts}
        self.lines = dict(lines)  # the cost of each line's jobs
        self.marks: dict[tuple[str, str, Priority], tuple[int, float | None]] = {}
        self.rules = rules
        self.now = NOW
        self.served: dict[str, float] = defaultdict(float)  # cost, by tenant
        self.taken: dict[tuple[str, str, Priority], int] = {}
        self.number = 0

    def round(self, seats: list[Seat], seconds: float = 1.0) -> Decision:
        self.now += seconds
        lines = []
        kind = {}
        for (tenant, model, priority), cost in self.lines.items():
            heads = []
            for _ in range(sum(seat.room for seat in seats) + 1):
                self.number += 1
                heads.append(waiting(self.number, cost, since=NOW))
                kind[heads[-1].job_id] = (tenant, model, priority)
            skips, served_at = self.marks.get((tenant, model, priority), (0, None))
            lines.append(Line(tenant, model, priority, tuple(heads), more=True, skips=skips, served_at=served_at))
        decision = choose(seats, lines, list(self.accounts.values()), self.now, rules=self.rules)
        for one in decision.standings:
            self.accounts[one.tenant_id] = dataclasses.replace(
                self.accounts[one.tenant_id], vtime=one.vtime, backlogged=one.backlogged
            )
        for mark in decision.marks:
            self.marks[mark.tenant_id, mark.model, mark.priority] = (mark.skips, mark.served_at)
        for dispatch in decision.assignments:
            key = kind[dispatch.job_id]
            self.served[key[0]] += self.lines[key]
            self.taken[key] = self.taken.get(key, 0) + 1
        return decision


# -- what always holds -----------------------------------------------------------------------------------------------

seats_ = st.lists(
    st.builds(
        Seat,
        st.sampled_from("vwxyz"),
        st.integers(0, 5),
        st.frozensets(st.sampled_from(MODELS)),
        st.integers(0, 2),
        st.sampled_from([None, 10, 20]),
        st.frozensets(st.sampled_from(["big", "fast"])),
        draining=st.sampled_from([False, False, False, True]),
    ),
    unique_by=lambda seat: seat.worker,
    max_size=5,
)
needs_ = st.dictionaries(
    st.sampled_from(MODELS),
    st.builds(Need, st.sampled_from([None, 10, 15, 30]), st.frozensets(st.sampled_from(["big", "fast"]), max_size=1)),
)
accounts_ = st.tuples(
    *[
        st.builds(
            Account,
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
def lines_(draw: st.DrawFn) -> list[Line]:
    keys = draw(
        st.lists(
            st.tuples(st.sampled_from(["t1", "t2", "t3"]), st.sampled_from(MODELS), st.sampled_from(Priority)),
            unique=True,
            max_size=9,
        )
    )
    lines = []
    for index, (tenant, model, priority) in enumerate(keys):
        count = draw(st.integers(1, 5))
        since = sorted(draw(st.lists(st.floats(0, NOW + 100), min_size=count, max_size=count)))
        heads = tuple(
            QueuedJob(
                f"job_{index}_{number}",
                draw(st.floats(0.1, 50)),
                since[number],
                draw(st.sampled_from([None, None, NOW - 1, NOW + 1])),
            )
            for number in range(count)
        )
        lines.append(
            Line(
                tenant,
                model,
                priority,
                heads,
                draw(st.booleans()),
                draw(st.integers(0, 20)),
                draw(st.none() | st.floats(0, NOW)),
            )
        )
    return lines


paused_ = st.builds(Paused, st.sampled_from([False] * 9 + [True]), st.frozensets(st.sampled_from(MODELS), max_size=1))


@settings(max_examples=60, deadline=None)
@given(seats_, lines_(), accounts_, needs_, paused_)
def test_whatever_the_state_no_rule_is_broken(
    seats: list[Seat], lines: list[Line], accounts: tuple[Account, ...], needs: dict[str, Need], paused: Paused
) -> None:
    decision = choose(seats, lines, accounts, NOW, needs=needs, paused=paused)
    seat_of = {seat.worker: seat for seat in seats}
    line_of = {head.job_id: one for one in lines for head in one.heads}
    job_of = {head.job_id: head for one in lines for head in one.heads}
    to_worker: Counter[str] = Counter()
    to_tenant: Counter[str] = Counter()
    for one in decision.assignments:
        seat, from_line, job = seat_of[one.worker], line_of[one.job_id], job_of[one.job_id]
        to_worker[one.worker] += 1
        to_tenant[from_line.tenant_id] += 1
        assert not seat.draining
        assert needs.get(from_line.model, Need()).met_by(seat)
        assert not paused.farm
        assert from_line.model not in paused.models
        assert job.since <= NOW
        assert job.deadline is None or job.deadline > NOW
    for seat in seats:
        assert to_worker[seat.worker] <= seat.room
    for account in accounts:
        if account.paused:
            assert not to_tenant[account.tenant_id]
        if account.max_running is not None:
            assert to_tenant[account.tenant_id] <= max(0, account.max_running - account.held)
    assert len({one.job_id for one in decision.assignments}) == len(decision.assignments)
    # a line is served from its front
    for from_line in lines:
        able = [head.job_id for head in from_line.heads if head.since <= NOW and (head.deadline or NOW + 1) > NOW]
        sent = [one.job_id for one in decision.assignments if line_of[one.job_id] is from_line]
        assert sent == able[: len(sent)]
    assert all(one.vtime >= 0 for one in decision.standings)
    assert all(0 <= mark.skips <= 20 for mark in decision.marks)


@settings(max_examples=60, deadline=None)
@given(seats_, lines_(), accounts_, needs_)
def test_no_seat_stays_empty_while_a_job_fits_it(
    seats: list[Seat], lines: list[Line], accounts: tuple[Account, ...], needs: dict[str, Need]
) -> None:
    lines = [dataclasses.replace(one, more=False) for one in lines]
    decision = choose(seats, lines, accounts, NOW, needs=needs)
    sent = {one.job_id for one in decision.assignments}
    to_worker = Counter(workers(decision))
    free = [seat for seat in seats if not seat.draining and seat.room > to_worker[seat.worker]]
    of = {account.tenant_id: account for account in accounts}
    for one in lines:
        account = of[one.tenant_id]
        taken = sum(head.job_id in sent for other in lines if other.tenant_id == one.tenant_id for head in other.heads)
        capped = account.max_running is not None and account.held + taken >= account.max_running
        if account.paused or capped:
            continue
        left = [h for h in one.heads if h.since <= NOW and (h.deadline or NOW + 1) > NOW and h.job_id not in sent]
        assert not left or not any(needs.get(one.model, Need()).met_by(seat) for seat in free)


@settings(max_examples=60, deadline=None)
@given(seats_, lines_(), accounts_, needs_)
def test_the_same_state_gives_the_same_decision_in_whatever_order_it_is_told(
    seats: list[Seat], lines: list[Line], accounts: tuple[Account, ...], needs: dict[str, Need]
) -> None:
    first = choose(seats, lines, accounts, NOW, needs=needs)
    again = choose(seats[::-1], lines[::-1], accounts[::-1], NOW, needs=needs)
    assert first.assignments == again.assignments
    assert set(first.standings) == set(again.standings)
    assert set(first.marks) == set(again.marks)


# -- classes and ageing ----------------------------------------------------------------------------------------------


def test_an_interactive_job_overtakes_older_work_of_anybody() -> None:
    lines = [
        line("t1", 1, priority=Priority.BULK),
        line("t1", 2),
        line("t2", 3, priority=Priority.INTERACTIVE),
    ]
    assert numbers(choose([Seat("w", 2)], lines, [], NOW)) == [3, 2]


def test_within_a_tenant_and_class_the_oldest_goes_first_whatever_its_model() -> None:
    lines = [line("t", 1, 4, model="a"), line("t", 2, 3, model="b")]
    assert numbers(choose([Seat("w", 9, frozenset({"a", "b"}))], lines, [], NOW)) == [1, 2, 3, 4]


def test_a_bulk_job_is_chosen_in_the_end_under_an_endless_stream_of_normal_ones() -> None:
    bulk = ("small", "a", Priority.BULK)
    farm = Queues(
        Account("big"),
        Account("small"),
        lines={("big", "a", Priority.NORMAL): 1.0, bulk: 1.0},
        rules=Rules(age_seconds=60),
    )
    for _ in range(59):
        farm.round([Seat("w", 1)])
    assert bulk not in farm.taken
    for _ in range(3):
        farm.round([Seat("w", 1)])
    assert farm.taken[bulk] == 1


def test_an_aged_backlog_does_not_become_urgent_as_a_whole() -> None:
    bulk = ("t", "a", Priority.BULK)
    urgent = ("t", "a", Priority.INTERACTIVE)
    farm = Queues(Account("t"), lines={bulk: 1.0, urgent: 1.0}, rules=Rules(age_seconds=10))
    for _ in range(1_000):
        farm.round([Seat("w", 1)])
    # one job each time the line has waited for two classes, and the rest to the urgent ones
    assert 20 <= farm.taken[bulk] <= 60
    assert farm.taken[urgent] >= 900


# -- fair share ------------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0.2, 8), min_size=2, max_size=4), st.lists(st.floats(0.5, 4), min_size=4, max_size=4))
def test_under_backlog_cost_is_shared_by_weight_within_two_percent(weights: list[float], costs: list[float]) -> None:
    names = [f"t{number}" for number in range(len(weights))]
    farm = Queues(
        *[Account(name, weight) for name, weight in zip(names, weights, strict=True)],
        lines={(name, "a", Priority.NORMAL): cost for name, cost in zip(names, costs, strict=False)},
    )
    for _ in range(150):
        farm.round([Seat("w", 20, frozenset("a")), Seat("x", 10, frozenset("a"))])
    total = sum(farm.served.values())
    for name, weight in zip(names, weights, strict=True):
        # a job is not divisible: what it weighs in the whole is allowed on top
        grain = 2 * max(costs) / total
        assert abs(farm.served[name] / total - weight / sum(weights)) <= 0.02 + grain


def test_a_single_job_of_a_small_tenant_goes_in_the_next_round_whatever_the_others_backlog() -> None:
    farm = Queues(Account("big", weight=100), Account("small"), lines={("big", "a", Priority.NORMAL): 1.0})
    for _ in range(50):
        farm.round([Seat("w", 3)])
    farm.lines["small", "a", Priority.NORMAL] = 5.0
    farm.round([Seat("w", 1)])
    farm.round([Seat("w", 1)])
    assert farm.served["small"] == 5.0


def test_a_tenant_that_was_idle_gets_no_burst_beyond_its_share() -> None:
    stream = ("idle", "a", Priority.NORMAL)
    farm = Queues(Account("busy"), Account("idle"), lines={("busy", "a", Priority.NORMAL): 1.0, stream: 1.0})
    for _ in range(10):
        farm.round([Seat("w", 2)])
    del farm.lines[stream]
    for _ in range(1_000):
        farm.round([Seat("w", 2)])
    farm.lines[stream] = 1.0
    before = farm.served.copy()
    for _ in range(50):
        farm.round([Seat("w", 2)])
    assert abs(farm.served["idle"] - before["idle"] - 50) <= 2


def test_a_tenant_that_its_own_cap_held_back_is_owed_nothing() -> None:
    farm = Queues(
        Account("busy"),
        Account("capped", max_running=1, held=1),
        lines={("busy", "a", Priority.NORMAL): 1.0, ("capped", "a", Priority.NORMAL): 1.0},
    )
    for _ in range(500):
        farm.round([Seat("w", 2)])
    assert farm.served["capped"] == 0
    farm.accounts["capped"] = dataclasses.replace(farm.accounts["capped"], max_running=None)
    before = farm.served.copy()
    for _ in range(50):
        farm.round([Seat("w", 2)])
    assert abs(farm.served["capped"] - before["capped"] - 50) <= 2


def test_shares_do_not_depend_on_how_many_heads_are_read() -> None:
    """A line whose known heads run out ends the round instead of giving its turn away."""
    accounts = [Account("heavy", 9.0, backlogged=True), Account("light", 1.0, backlogged=True)]
    heads = tuple(waiting(number) for number in range(3))
    lines = [Line("heavy", "a", Priority.NORMAL, heads, more=True), line("light", *range(10, 30))]
    decision = choose([Seat("w", 20)], lines, accounts, NOW)
    assert decision.more
    assert len([number for number in numbers(decision) if number >= 10]) <= 1


# -- where -----------------------------------------------------------------------------------------------------------


def test_a_worker_that_has_the_model_is_preferred_while_it_has_a_free_slot() -> None:
    seats = [Seat("cold", 4, prefetch=2), Seat("warm", 3, frozenset("a"), prefetch=2)]
    assert workers(choose(seats, [line("t", 1, 2)], [], NOW)) == ["warm", "cold"]


def test_among_workers_that_have_it_the_freest_is_served_first() -> None:
    seats = [Seat("busy", 1, frozenset("a")), Seat("free", 3, frozenset("a"))]
    assert workers(choose(seats, [line("t", 1)], [], NOW)) == ["free"]


def test_slots_are_filled_before_look_ahead() -> None:
    seats = [Seat(name, 3, frozenset("a"), prefetch=2) for name in "xyz"]
    assert sorted(workers(choose(seats, [line("t", 1, 2, 3)], [], NOW))) == ["x", "y", "z"]


def test_models_are_not_reloaded_while_each_job_can_find_its_own() -> None:
    seats = [Seat("x", 2, frozenset("a")), Seat("y", 2, frozenset("b"))]
    lines = [line("t", 1, 2, model="b"), line("u", 3, 4, model="a")]
    decision = choose(seats, lines, [], NOW)
    place: dict[str, set[int]] = {one.worker: set() for one in decision.assignments}
    for one, number in zip(decision.assignments, numbers(decision), strict=True):
        place[one.worker].add(number)
    assert place == {"x": {3, 4}, "y": {1, 2}}


def test_a_line_is_passed_over_for_loaded_models_at_most_so_often() -> None:
    farm = Queues(
        Account("hot"),
        Account("cold"),
        lines={("hot", "a", Priority.NORMAL): 1.0, ("cold", "b", Priority.NORMAL): 1.0},
        rules=Rules(max_skips=5),
    )
    for _ in range(5):
        farm.round([Seat("w", 1, frozenset("a"))])
    assert farm.served["cold"] == 0
    farm.round([Seat("w", 1, frozenset("a"))])
    assert farm.served["cold"] == 1


def test_skips_are_bounded_within_one_round_too() -> None:
    lines = [line("cold", 1, model="b"), line("hot", *range(2, 60), model="a")]
    decision = choose([Seat("w", 40, frozenset("a"))], lines, [], NOW, rules=Rules(max_skips=5))
    assert numbers(decision).index(1) == 5


def test_nobody_is_passed_over_for_a_lower_class() -> None:
    lines = [line("t", 1, model="b", priority=Priority.INTERACTIVE), line("u", 2, model="a")]
    assert numbers(choose([Seat("w", 1, frozenset("a"))], lines, [], NOW)) == [1]


def test_shares_hold_when_every_tenant_uses_another_model() -> None:
    weights = {"t1": 1.0, "t2": 2.0, "t3": 5.0}
    farm = Queues(
        *[Account(name, weight) for name, weight in weights.items()],
        lines={(name, model, Priority.NORMAL): 1.0 for name, model in zip(weights, MODELS, strict=True)},
    )
    loaded = dict.fromkeys("vwxyz", "a")
    for number in range(6_000):
        name = "vwxyz"[number % 5]
        decision = farm.round([Seat(name, 1, frozenset(loaded[name]))], seconds=0.1)
        newest = max(farm.marks.items(), key=lambda item: item[1][1] or 0)[0]
        assert len(decision.assignments) == 1
        loaded[name] = newest[1]
    total = sum(farm.served.values())
    for name, weight in weights.items():
        assert abs(farm.served[name] / total - weight / 8) <= 0.02


def test_a_blocked_model_hides_no_other_job() -> None:
    lines = [line("t", *range(1, 9), model="huge"), line("t", 9, model="a")]
    decision = choose([Seat("w", 2, memory_bytes=10)], lines, [], NOW, needs={"huge": Need(memory_bytes=99)})
    assert numbers(decision) == [9]


def test_a_model_that_asks_for_tags_goes_to_workers_that_have_them_all() -> None:
    seats = [Seat("plain", 5), Seat("half", 5, tags=frozenset({"eu"})), Seat("both", 1, tags=frozenset({"eu", "x"}))]
    decision = choose(seats, [line("t", 1, 2)], [], NOW, needs={"a": Need(tags=frozenset({"eu", "x"}))})
    assert workers(decision) == ["both"]


def test_a_job_goes_to_a_worker_that_failed_it_only_if_no_other_takes_it() -> None:
    failed = waiting(1)._replace(failed_by=frozenset({"w"}))
    lines = [Line("t", "a", Priority.NORMAL, (failed, waiting(2)))]
    warm = Seat("w", 1, frozenset({"a"}))
    seats = [warm, Seat("v", 1)]
    decision = choose(seats, lines, [], NOW)
    assert {one.job_id: one.worker for one in decision.assignments} == {failed.job_id: "v", waiting(2).job_id: "w"}
    assert workers(choose([warm], lines, [], NOW)) == ["w"]
    unfit = {"a": Need(memory_bytes=10)}
    small = Seat("v", 1, memory_bytes=5)
    assert workers(choose([warm, small], lines, [], NOW, needs=unfit)) == ["w"]


def test_paused_and_drained_get_nothing() -> None:
    lines = [line("t", 1)]
    assert choose([Seat("w", 1)], lines, [], NOW).assignments
    assert not choose([Seat("w", 1, draining=True)], lines, [], NOW).assignments
    assert not choose([Seat("w", 1)], lines, [Account("t", paused=True)], NOW).assignments
    assert not choose([Seat("w", 1)], lines, [], NOW, paused=Paused(farm=True)).assignments
    assert not choose([Seat("w", 1)], lines, [], NOW, paused=Paused(models=frozenset("a"))).assignments


def test_too_early_and_too_late_are_no_candidates() -> None:
    lines = [Line("t", "a", Priority.NORMAL, (waiting(1, deadline=NOW), waiting(2), waiting(3, since=NOW + 1)))]
    assert numbers(choose([Seat("w", 5)], lines, [], NOW)) == [2]


def test_a_round_is_bounded_and_says_that_more_can_go() -> None:
    decision = choose([Seat("w", 50)], [line("t", *range(50))], [], NOW, rules=Rules(max_assignments=10))
    assert len(decision.assignments) == 10
    assert decision.more
