"""Promises of the policy."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from farm.dispatch.policy import Candidate, Seat, choose
from farm.domain.states import Priority


def job(number: int, priority: Priority = Priority.NORMAL, model: str = "starter") -> Candidate:
    return Candidate(f"job_{number:032x}", "ten", model, priority)


candidates = st.lists(
    st.builds(job, st.integers(0, 10_000), st.sampled_from(Priority), st.sampled_from(["a", "b"])),
    unique_by=lambda one: one.job_id,
    max_size=40,
)
seats = st.lists(
    st.builds(Seat, st.sampled_from("vwxyz"), st.integers(0, 5), st.frozensets(st.sampled_from(["a", "b"]))),
    unique_by=lambda seat: seat.worker,
    max_size=5,
)


@given(seats, candidates)
def test_no_worker_gets_more_than_its_room_and_no_job_goes_twice(places: list[Seat], waiting: list[Candidate]) -> None:
    chosen = choose(places, waiting)
    for seat in places:
        assert sum(one.worker == seat.worker for one in chosen) <= seat.room
    assert len({one.job_id for one in chosen}) == len(chosen)
    assert len(chosen) == min(len(waiting), sum(seat.room for seat in places))


@given(seats, candidates)
def test_what_is_left_waiting_comes_after_what_was_chosen(places: list[Seat], waiting: list[Candidate]) -> None:
    chosen = {one.job_id for one in choose(places, waiting)}
    order = [one.job_id for one in sorted(waiting, key=lambda one: (-one.priority.rank, one.job_id))]
    assert set(order[: len(chosen)]) == chosen


def test_the_freest_worker_is_served_first() -> None:
    chosen = choose([Seat("busy", 1, frozenset()), Seat("free", 3, frozenset())], [job(1)])
    assert [one.worker for one in chosen] == ["free"]


def test_among_equals_the_one_with_the_model_is_chosen() -> None:
    places = [Seat("z-cold", 2, frozenset()), Seat("a-warm", 2, frozenset({"starter"}))]
    assert choose(places, [job(1)])[0].worker == "a-warm"


def test_an_interactive_job_overtakes_older_bulk_work() -> None:
    waiting = [job(1, Priority.BULK), job(2, Priority.NORMAL), job(3, Priority.INTERACTIVE)]
    chosen = choose([Seat("w", 2, frozenset())], waiting)
    assert [one.job_id for one in chosen] == [waiting[2].job_id, waiting[1].job_id]
