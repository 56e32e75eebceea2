"""Why a job waits, from one snapshot: each cause by itself, their order, and the place."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from farm.domain.estimate import Estimator, FinishedWork
from farm.domain.states import Priority
from farm.domain.waiting import (
    FarmSnapshot,
    JobsAhead,
    ModelNeeds,
    Pause,
    QueueLength,
    TenantLoad,
    WaitingJob,
    WaitingWorker,
    eta_seconds,
    jobs_ahead,
    waiting_reason,
)

NOW = datetime(2026, 12, 1, 14, 3, tzinfo=UTC)
PAUSE = Pause(NOW, "ops")
WORKER = WaitingWorker("a/cuda0", 16 * 10**9, frozenset({"fast"}), "num_1", free_slots=1)
FARM = FarmSnapshot(NOW, (WORKER,), {"big": ModelNeeds(24 * 10**9), "tagged": ModelNeeds(tags=frozenset({"h100"}))})
JOB = WaitingJob("ten_1", "starter", Priority.NORMAL, NOW)
NOBODY = JobsAhead()


@pytest.mark.parametrize(
    ("job", "farm", "reason"),
    [
        ({}, {}, None),
        ({"pending_inputs": 2}, {}, "waits for its inputs: 2 jobs not finished"),
        ({}, {"farm_pause": PAUSE}, "the farm is paused by the key 'ops' since 2026-12-01 14:03 UTC"),
        ({}, {"farm_pause": Pause(NOW)}, "the farm is paused since 2026-12-01 14:03 UTC"),
        ({}, {"tenant_pauses": {"ten_1": PAUSE}}, "its tenant is paused by the key 'ops' since 2026-12-01 14:03 UTC"),
        ({}, {"tenant_pauses": {"ten_2": PAUSE}}, None),
        ({"batch_pause": PAUSE}, {}, "its batch is paused by the key 'ops' since 2026-12-01 14:03 UTC"),
        (
            {},
            {"model_pauses": {"starter": PAUSE}},
            "the model starter is paused by the key 'ops' since 2026-12-01 14:03 UTC",
        ),
        ({"available_at": NOW + timedelta(hours=19)}, {}, "not before 2026-12-02 09:03 UTC"),
        (
            {"available_at": NOW + timedelta(seconds=5), "attempts": 1},
            {},
            "its last attempt failed; the next one starts after 2026-12-01 14:03:05 UTC",
        ),
        ({}, {"workers": ()}, "no worker is online"),
        ({"numerics": "num_2"}, {}, "no worker of numerics class num_2 is online"),
        ({"numerics": "num_2"}, {"workers": ()}, "no worker of numerics class num_2 is online"),
        ({"model": "tagged"}, {}, "no worker has the tag h100"),
        ({"model": "big"}, {}, "the model big needs 24 GB; the largest device has 16 GB"),
        ({"model": "big"}, {"workers": (WORKER._replace(memory_bytes=None),)}, None),
        ({}, {"workers": (WORKER._replace(draining=True),)}, "every worker that can render it is draining"),
        (
            {},
            {"loads": {"ten_1": TenantLoad(4, 4)}},
            "its tenant has 4 jobs at workers, and its limit max_running is 4",
        ),
        ({}, {"loads": {"ten_1": TenantLoad(3, 4)}}, None),
        (
            {"wait_for": "num_2", "waits_until": NOW + timedelta(seconds=9)},
            {},
            "its worker was lost; until 2026-12-01 14:03:09 UTC it waits for another one of numerics class num_2",
        ),
        ({"wait_for": "num_1", "waits_until": NOW + timedelta(seconds=9)}, {}, None),
        ({"wait_for": "num_2", "waits_until": NOW}, {}, None),
        (
            {},
            {"workers": (WORKER._replace(free_slots=0),)},
            "it is the next one; every worker that can render it is full",
        ),
    ],
)
def test_each_cause_is_reported(job: dict[str, Any], farm: dict[str, Any], reason: str | None) -> None:
    assert waiting_reason(replace(JOB, **job), replace(FARM, **farm), NOBODY) == reason


def test_what_an_operator_can_end_is_reported_before_what_follows_from_it() -> None:
    """A job of a paused farm without workers waits for the operator first, whatever its turn would be."""
    farm = replace(FARM, workers=(), farm_pause=PAUSE)
    job = replace(JOB, available_at=NOW + timedelta(days=1), pending_inputs=1)
    reasons = [
        waiting_reason(job, farm),
        waiting_reason(replace(job, pending_inputs=0), farm),
        waiting_reason(replace(job, pending_inputs=0), replace(farm, farm_pause=None)),
        waiting_reason(JOB, replace(farm, farm_pause=None)),
    ]
    assert [reason and reason.split()[0] for reason in reasons] == ["waits", "the", "not", "no"]


def test_the_turn_is_reported_only_where_it_was_asked_for() -> None:
    assert waiting_reason(JOB, FARM) is None
    assert waiting_reason(JOB, FARM, JobsAhead(0, 868)) == "behind 868 jobs of equal priority"
    assert waiting_reason(JOB, FARM, JobsAhead(1, 0)) == "behind 1 job of higher priority"
    assert waiting_reason(JOB, FARM, JobsAhead(3, 2000, more=True)) == (
        "behind 3 of higher and more than 2,000 jobs of equal priority"
    )


def queue(jobs: int, tenant: str = "ten_2", weight: float = 1.0, **changes: Any) -> QueueLength:
    made = QueueLength(tenant, "starter", Priority.NORMAL, None, jobs, 2.0 * jobs, weight)
    return replace(made, **changes)


def test_a_flood_of_another_tenant_counts_as_far_as_its_share_goes() -> None:
    own = queue(9, "ten_1")
    assert jobs_ahead(JOB, own, (queue(1_000_000),), 1.0, FARM).jobs == 9 + 10
    assert jobs_ahead(JOB, own, (queue(1_000_000, weight=3.0),), 1.0, FARM).jobs == 9 + 30
    assert jobs_ahead(JOB, own, (queue(4),), 1.0, FARM).jobs == 9 + 4
    higher = jobs_ahead(JOB, own, (queue(50, priority=Priority.INTERACTIVE),), 1.0, FARM)
    assert (higher.higher, higher.equal) == (50, 9)
    assert higher.costs == {"starter": 9 * 2.0 + 50 * 2.0}


def test_what_cannot_take_its_place_is_not_before_it() -> None:
    """Jobs of a paused model, of a paused tenant, and those that need other workers."""
    others = (queue(5, model="paused"), queue(5, "ten_3"), queue(5, model="big"))
    farm = replace(FARM, model_pauses={"paused": PAUSE}, tenant_pauses={"ten_3": PAUSE})
    assert jobs_ahead(JOB, queue(0, "ten_1"), others, 1.0, farm).jobs == 0


def test_the_time_left_counts_what_is_before_it_and_what_devices_hold() -> None:
    done = [FinishedWork("starter", "a", 10.0, float(at), at + 1.0) for at in range(20)]
    estimator = Estimator(done, 1)  # 0.1 s of a device per megapixel-step
    alone = eta_seconds("starter", 10.0, 0.0, None, {}, estimator)
    half = eta_seconds("starter", 10.0, 0.5, None, {}, estimator)
    behind = eta_seconds("starter", 10.0, 0.0, JobsAhead(0, 3, {"starter": 30.0}), {"starter": 20.0}, estimator)
    assert (alone, half, behind) == (1.0, 0.5, 6.0)
    assert eta_seconds("starter", 10.0, 0.0, None, {}, Estimator([], 1)) is None
