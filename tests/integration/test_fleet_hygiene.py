"""Workers that are gone are forgotten, and gauges count what could run now."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy import text

from farm import lifecycle
from farm.domain.job import NewJob
from farm.domain.worker import WorkerState
from farm.store.queue_stats import queue_stats
from farm.store.unit_of_work import Store

from .conftest import Submit, spec, worker_info


def test_a_worker_that_is_gone_for_long_is_forgotten_unless_it_was_drained(store: Store) -> None:
    with store.begin() as unit:
        for name in ("host/gone", "host/drained", "host/lately", "host/here"):
            lifecycle.join(unit, worker_info(name))
        unit.workers.drain("host/drained", "a bad fan")
        for name in ("host/gone", "host/drained", "host/lately"):
            unit.workers.set_state(name, WorkerState.OFFLINE)
        unit.session.execute(
            text("UPDATE worker SET heartbeat_at = now() - interval '8 days' WHERE name <> 'host/lately'")
        )
    with store.begin() as unit:
        assert unit.workers.forget_gone(7 * 24 * 3600) == ["host/gone"]
    with store.begin() as unit:
        assert [worker.info.name for worker in unit.workers.all()] == ["host/drained", "host/here", "host/lately"]


def test_gauges_tell_jobs_that_are_due_from_those_that_are_not(store: Store, tenant: str, submit: Submit) -> None:
    submit()
    with store.begin() as unit:
        tomorrow = datetime.now(UTC) + timedelta(days=1)
        lifecycle.submit(unit, tenant, NewJob(spec(), not_before=tomorrow))
    with store.begin() as unit:
        found = {one.state: one for one in queue_stats(unit.session).jobs}
    assert {state: one.jobs for state, one in found.items()} == {"queued": 1, "scheduled": 1}
    assert 0 <= found["queued"].oldest_seconds < 60
