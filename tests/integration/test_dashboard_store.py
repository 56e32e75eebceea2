"""What the dashboard asks of the store: right for a small farm, and bounded for a large one."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from farm import lifecycle
from farm.domain.job import JobError, JobFilter, NewJob, Output, Selection
from farm.domain.queue import Assignment
from farm.domain.states import JobState
from farm.store import activity_stats, dashboard_queries
from farm.store.unit_of_work import Store
from tests import job_edges
from tests.integration.conftest import Submit, spec, worker_info


def _end(store: Store, job_id: str, code: str | None = None) -> None:
    with store.begin() as unit:
        (sent,) = lifecycle.dispatch(unit, [Assignment(job_id, "host/cpu0")], 60)
        job_edges.claim(unit, job_id, sent.epoch, "host/cpu0", 60)
        job_edges.start(unit, job_id, sent.epoch, 4)
    with store.begin() as unit:  # later: one transaction has one time
        if code is None:
            outputs = [Output(n, f"outputs/{job_id}/{n}", "image/png", 1, "0" * 64, n) for n in range(2)]
            job_edges.succeed(unit, job_id, sent.epoch, outputs, {})
        else:
            lifecycle.fail(unit, job_id, sent.epoch, JobError(code, "no"), retryable=False)


def test_what_ended_is_counted_by_its_time_and_its_tenant(
    store: Store, tenant: str, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store.begin() as unit:
        assert unit.activity.counts(3600, 4).outputs == 0  # of an empty farm, too
        other = unit.tenants.create("other").id
        lifecycle.join(unit, worker_info())
    for number in range(12):
        _end(store, submit(tenant_id=other if number % 4 == 3 else tenant).id, "broken" if number in (1, 2) else None)
    with store.begin() as unit:
        # two events per job, an hour between jobs: the first of them eleven hours ago
        unit.session.execute(
            text(
                "UPDATE event SET created_at = now() - interval '1 hour' * ((top - id) / 2) - interval '1 second' "
                "FROM (SELECT max(id) AS top FROM event) AS last"
            )
        )
    with store.begin() as unit:
        day = unit.activity.counts(24 * 3600, 24)
        assert day.exact
        assert [one.outputs for one in day.buckets[:13]] == [2, 2, 2, 2, 2, 2, 2, 2, 2, 0, 0, 2, 0]
        assert day.failed == {"broken": 2}
        assert unit.activity.counts(3.5 * 3600, 7).outputs == 8
        assert unit.activity.counts(24 * 3600, 24, other).outputs == 6
        assert len(unit.activity.latest_outputs(5)) == 5
        assert {one.job_id for one in unit.activity.latest_outputs(50, other)} == {
            job.id for job in unit.dashboard_queries.jobs(other, JobFilter(), None, 50)[0]
        }
    monkeypatch.setattr(activity_stats, "SAMPLE", 8)
    with store.begin() as unit:
        sampled = unit.activity.counts(24 * 3600, 24)
    assert not sampled.exact
    assert 0 < sampled.outputs <= 48


def test_a_flood_of_canceled_jobs_hides_no_image_and_no_failure(
    store: Store, tenant: str, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activity_stats, "SAMPLE", 100)
    with store.begin() as unit:
        other = unit.tenants.create("other").id
        lifecycle.join(unit, worker_info())
    ended = [submit(tenant_id=other if number == 4 else tenant).id for number in range(5)]
    for number, job_id in enumerate(ended):
        _end(store, job_id, "broken" if number == 0 else None)
    with store.begin() as unit:
        unit.jobs.insert(tenant, [NewJob(spec(seed=seed)) for seed in range(2_000)])
    with store.begin() as unit:
        assert lifecycle.cancel_selected(unit, tenant, Selection(wanted=JobFilter()))[0] == 2_000
    with store.begin() as unit:
        unit.jobs.insert(tenant, [NewJob(spec(seed=seed)) for seed in range(500)])  # and what waits hides none either
        for whose, images in ((None, 8), (tenant, 6), (other, 2)):
            tally = unit.activity.counts(3600, 6, whose)
            assert (tally.outputs, tally.exact) == (images, True), whose
            assert tally.failed == ({} if whose == other else {"broken": 1})
            latest = list(dict.fromkeys(one.job_id for one in unit.activity.latest_outputs(50, whose)))
            assert latest == [
                job for job in reversed(ended[1:]) if whose is None or (job == ended[4]) == (whose == other)
            ]
        assert unit.activity.estimator().seconds({"starter": 1.0}) is not None


def test_a_search_looks_through_a_window_and_goes_on_behind_it(
    store: Store, tenant: str, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dashboard_queries, "WINDOW", 5)
    with store.begin() as unit:
        lifecycle.join(unit, worker_info())
    jobs = [submit().id for _ in range(17)]
    for job_id in (jobs[0], jobs[1], jobs[9]):
        _end(store, job_id, "broken")
    found: list[str] = []
    cursor: str | None = None
    pages = 0
    wanted = JobFilter(state=(JobState.FAILED,), error_code="broken")
    while True:
        with store.begin() as unit:
            page, cursor = unit.dashboard_queries.jobs(tenant, wanted, cursor, 2)
        found += [job.id for job in page]
        pages += 1
        if cursor is None:
            break
    assert found == [jobs[9], jobs[1], jobs[0]]
    assert pages >= 4  # most of them short, and none of them long
    with store.begin() as unit:
        queue = unit.dashboard_queries.queue_totals()
        oldest = unit.jobs.get(jobs[2])
        assert (queue.jobs, queue.more) == (5, True)
        assert oldest is not None
        assert queue.oldest == oldest.created_at
        new, _ = lifecycle.submit(unit, tenant, NewJob(spec()))
        (sent,) = lifecycle.dispatch(unit, [Assignment(jobs[2], "host/cpu0")], 60)
    with store.begin() as unit:
        # what is at workers has an index of its own: it is found however many jobs are newer
        (held,), _ = unit.dashboard_queries.jobs(None, JobFilter(state=(JobState.DISPATCHED,)), None, 2)
        assert held.id == sent.job_id
        assert [one.job_id for one in unit.dashboard_queries.held_jobs()] == [sent.job_id]
        assert new.id == unit.dashboard_queries.jobs(tenant, JobFilter(), None, 1)[0][0].id
