"""Promises of the policy about interactive jobs that find every worker full of bulk jobs."""

from __future__ import annotations

from typing import Any

from farm.dispatch.policy import ModelRequirements, choose
from farm.domain.queue import Paused, TenantShare
from farm.domain.states import Priority
from farm.domain.worker import WorkerCapacity
from tests.unit.test_policy import NOW, numbers, queue, workers


def full(name: str, preemptible: int, **more: Any) -> WorkerCapacity:
    """A worker without capacity that renders so many bulk jobs."""
    return WorkerCapacity(name, 0, frozenset("a"), preemptible=preemptible, capacity=6)._replace(**more)


def test_an_interactive_job_goes_to_a_full_worker_whose_bulk_jobs_step_back_and_no_other_does() -> None:
    waiting_jobs = [
        queue("x", 1, 2, 3, priority=Priority.INTERACTIVE),
        queue("y", 4, priority=Priority.NORMAL),
        queue("z", 5, priority=Priority.BULK),
    ]
    decision = choose([full("v", 2), full("w", 0)], waiting_jobs, [], NOW)
    assert numbers(decision) == [1, 2], "one for each bulk job"
    assert workers(decision) == ["v", "v"]
    assert {one.tenant_id: one.vtime for one in decision.share_states}["x"] == 2.0
    # one that has become urgent by waiting is not interactive
    old = queue("y", 4, priority=Priority.BULK)
    assert not choose([full("v", 2)], [old], [], NOW + 10_000).assignments


def test_free_capacity_is_used_before_anything_steps_back() -> None:
    free = WorkerCapacity("free", 1, frozenset())
    decision = choose([full("v", 3), free], [queue("x", 1, 2, priority=Priority.INTERACTIVE)], [], NOW)
    assert workers(decision) == ["free", "v"]


def test_a_preemption_respects_limits_pauses_drains_requirements_and_numerics() -> None:
    interactive = queue("x", 1, priority=Priority.INTERACTIVE)
    assert choose([full("v", 1)], [interactive], [], NOW).assignments
    assert not choose([full("v", 1, draining=True)], [interactive], [], NOW).assignments
    assert not choose([full("v", 1)], [interactive], [TenantShare("x", max_running=1, held=1)], NOW).assignments
    assert not choose([full("v", 1)], [interactive], [], NOW, paused=Paused(models=frozenset("a"))).assignments
    large = {"a": ModelRequirements(memory_bytes=20)}
    assert not choose([full("v", 1, memory_bytes=10)], [interactive], [], NOW, requirements=large).assignments
    pinned = interactive._replace(pin="cpu-1", numerics="cpu-1")
    assert workers(choose([full("v", 1, numerics="cpu-0"), full("w", 1, numerics="cpu-1")], [pinned], [], NOW)) == ["w"]


def test_the_tenant_with_the_smallest_virtual_time_is_first_to_preempt_and_the_model_in_memory_is_preferred() -> None:
    waiting_jobs = [
        queue("x", 1, 2, priority=Priority.INTERACTIVE, model="b"),
        queue("y", 3, 4, priority=Priority.INTERACTIVE, model="b"),
    ]
    shares = [TenantShare("x", vtime=5.0, backlogged=True), TenantShare("y", vtime=4.5, backlogged=True)]
    capacities = [full("v", 9), full("w", 2, models=frozenset("b"))]
    decision = choose(capacities, waiting_jobs, shares, NOW)
    assert numbers(decision) == [3, 1, 4, 2]
    assert workers(decision) == ["w", "w", "v", "v"]
