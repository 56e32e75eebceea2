"""What a tenant keeps no longer goes, rows and objects; what lost attempts left goes too, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import text

from farm import lifecycle
from farm.domain.job import Job, Output
from farm.domain.queue import Assignment
from farm.domain.states import JobState
from farm.objects import keys
from farm.objects.storage import Storage
from farm.services.cleanup import CleanupThread
from farm.settings import Settings
from farm.store.unit_of_work import Store
from tests import job_edges

from .conftest import Submit, worker_info

WORKER = "host/cpu0"


@pytest.fixture
def storage(farm_env: dict[str, str]) -> Iterator[Storage]:
    made = Storage(Settings())
    yield made
    made.close()


def attempt(store: Store, storage: Storage, job: Job) -> Output:
    """Claim the job and store an image under the new epoch, which nobody has recorded yet."""
    with store.begin() as unit:
        (sent,) = lifecycle.dispatch(unit, [Assignment(job.id, WORKER)], 30)
        job_edges.claim(unit, job.id, sent.epoch, WORKER, 30)
    key = keys.output_key(job.tenant_id, job.id, sent.epoch, 0, "png")
    storage.put(key, b"an image", "image/png")
    return Output(0, key, "image/png", 9, "0" * 64, 1, {"width": 64, "height": 64})


def stored(storage: Storage, job: Job) -> set[str]:
    return {one.key for one in storage.list(keys.job_prefix(job.tenant_id, job.id))}


def test_lost_attempts_are_cleaned_up_after_and_old_jobs_are_forgotten(
    store: Store, storage: Storage, tenant: str, submit: Submit
) -> None:
    with store.begin() as unit:
        lifecycle.join(unit, worker_info(WORKER))
    good, bad, waiting = submit(), submit(), submit()
    lost = attempt(store, storage, good)
    with store.begin() as unit:
        lifecycle.release(unit, good.id, 1, "its worker is gone")
        unit.session.execute(text("UPDATE job SET available_at = now()"))
    kept = attempt(store, storage, good)
    half = attempt(store, storage, bad)
    with store.begin() as unit:
        job_edges.succeed(unit, good.id, 2, [kept], {})
        lifecycle.cancel(unit, tenant, bad.id)
        lifecycle.confirm_cancel(unit, bad.id, 1)
    cleanup = CleanupThread(store, storage)

    with store.begin() as unit:
        assert lifecycle.collect_orphans(unit) == 0  # too early: somebody may still be writing
    cleanup.run_once()
    assert stored(storage, good) == {lost.key, kept.key}
    with store.begin() as unit:
        assert lifecycle.collect_orphans(unit, grace_seconds=0) == 2
    # whoever removes the objects may be another process, after a restart
    CleanupThread(store, storage).run_once()
    assert stored(storage, good) == {kept.key}
    assert stored(storage, bad) == set()
    assert half.key not in stored(storage, bad)
    with store.begin() as unit:
        assert lifecycle.collect_orphans(unit, grace_seconds=0) == 0  # each is looked at once

    with store.begin() as unit:
        unit.tenants.change(tenant, retention_days=7)
        unit.session.execute(text("UPDATE job SET finished_at = finished_at - interval '6 days 23 hours'"))
        assert lifecycle.delete_expired(unit) == 0
        unit.session.execute(text("UPDATE job SET finished_at = finished_at - interval '2 hours'"))
        assert lifecycle.delete_expired(unit) == 2
    cleanup.run_once()
    assert stored(storage, good) == set()
    with store.begin() as unit:
        assert unit.jobs.get(good.id) is None
        assert unit.jobs.get(waiting.id).state is JobState.QUEUED  # type: ignore[union-attr]
