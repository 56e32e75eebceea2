"""Operators' pauses and drains through the API, and the rule about bad jobs and bad workers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from sqlalchemy import text

from farm import lifecycle
from farm.dispatch.dispatcher import Dispatcher
from farm.domain.job import Job, JobError, NewJob, Output
from farm.domain.queue import Assignment
from farm.domain.states import JobState
from farm.domain.worker import Worker, WorkerState
from farm.settings import Settings
from farm.store.tenants import Scope
from farm.store.unit_of_work import Store
from tests import job_edges
from tests.api_server import Api, running

from .conftest import spec, worker_info

WORKER = "host/cpu0"
BROKEN = JobError("render_failed", "it broke")


@pytest.fixture
def api(farm_env: dict[str, str]) -> Iterator[Api]:
    with running(Settings()) as one:
        yield one


def join(store: Store, name: str = WORKER) -> None:
    with store.begin() as unit:
        lifecycle.join(unit, worker_info(name, slots=100))


def worker(store: Store, name: str) -> Worker:
    with store.begin() as unit:
        found = unit.workers.get(name)
    assert found is not None
    return found


def submit(store: Store, tenant_id: str, max_attempts: int = 9) -> Job:
    with store.begin() as unit:
        return lifecycle.submit(unit, tenant_id, NewJob(spec(), max_attempts=max_attempts))[0]


def claim(store: Store, job_id: str, name: str) -> int:
    with store.begin() as unit:
        unit.session.execute(text("UPDATE job SET available_at = now()"))
        (sent,) = lifecycle.dispatch(unit, [Assignment(job_id, name)], 30)
        job_edges.claim(unit, job_id, sent.epoch, name, 30)
    return sent.epoch


def fail(store: Store, job_id: str, name: str) -> JobState:
    epoch = claim(store, job_id, name)
    with store.begin() as unit:
        return lifecycle.fail(unit, job_id, epoch, BROKEN, retryable=True)


def complete(store: Store, job_id: str, name: str) -> None:
    epoch = claim(store, job_id, name)
    output = Output(0, f"outputs/{job_id}.png", "image/png", 10, "ab" * 32, 1, {"width": 64, "height": 64})
    with store.begin() as unit:
        job_edges.succeed(unit, job_id, epoch, [output], {})


def refute(store: Store, tenant_id: str, bad: str, good: str, times: int) -> None:
    for _ in range(times):
        job = submit(store, tenant_id)
        fail(store, job.id, bad)
        complete(store, job.id, good)


# -- operators -------------------------------------------------------------------------------------------------------


def test_no_job_of_what_is_paused_or_drained_is_dispatched_until_it_is_resumed(api: Api) -> None:
    join(api.store)
    dispatcher = Dispatcher(api.settings)

    def dispatched() -> int:
        with api.store.begin() as unit:
            before = len(unit.jobs.held_by(WORKER))
        dispatcher.round()
        with api.store.begin() as unit:
            return len(unit.jobs.held_by(WORKER)) - before

    paths: dict[str, dict[str, Any]] = {
        "/v1/pauses/farm": {"farm": True},
        "/v1/pauses/models/starter": {"models": ["starter"]},
        f"/v1/pauses/tenants/{api.tenant_id}": {"tenants": [api.tenant_id]},
        f"/v1/workers/{WORKER}/drain": {"state": "draining", "drained_reason": "an operator asked for it"},
    }
    none: dict[str, Any] = {"farm": False, "models": [], "tenants": [], "state": "online", "drained_reason": None}
    try:
        with api.client() as client:
            for path, told in paths.items():
                submit(api.store, api.tenant_id)
                for _ in range(2):
                    answer = client.put(path)
                    assert answer.status_code == 200, answer.text
                    assert answer.json().items() >= told.items()
                if "pauses" in path:
                    assert client.get("/v1/pauses").json().items() >= told.items()
                assert dispatched() == 0, path
                for _ in range(2):
                    answer = client.delete(path)
                    assert answer.status_code == 200, answer.text
                    assert all(none[name] == value for name, value in answer.json().items() if name in told)
                assert dispatched() == 1, path
    finally:
        dispatcher._store.close()
        dispatcher._listener.close()


def test_pauses_need_an_operators_key_and_something_that_exists(api: Api) -> None:
    with api.client() as client:
        assert client.put("/v1/pauses/models/none-such").status_code == 404
        assert client.put("/v1/pauses/tenants/none-such").status_code == 404
        assert client.put("/v1/workers/none/such/drain").status_code == 404
    with api.client(api.new_key(Scope.SUBMIT, Scope.READ)) as client:
        answers: list[httpx2.Response] = [
            client.get("/v1/pauses"),
            client.put("/v1/pauses/farm"),
            client.put(f"/v1/workers/{WORKER}/drain"),
        ]
        assert {answer.status_code for answer in answers} == {403}
    with api.client(api.new_key(Scope.OPERATE)) as client:
        assert client.get("/v1/pauses").json() == {"farm": False, "models": [], "tenants": []}


def test_a_drain_outlives_the_workers_process(store: Store) -> None:
    join(store)
    with store.begin() as unit:
        lifecycle.drain_worker(unit, WORKER, "its fan is broken")
    with store.begin() as unit:
        unit.workers.set_state(WORKER, WorkerState.OFFLINE)
        assert lifecycle.drain_worker(unit, WORKER, "again").state is WorkerState.OFFLINE
    join(store)
    assert worker(store, WORKER).state is WorkerState.DRAINING
    assert worker(store, WORKER).drained_reason == "its fan is broken"
    boot_id = worker(store, WORKER).info.boot_id
    with store.begin() as unit:
        unit.workers.set_state(WORKER, WorkerState.OFFLINE)
        assert unit.workers.record_heartbeat(WORKER, boot_id, ()) == (WorkerState.DRAINING, False)
        assert lifecycle.resume_worker(unit, WORKER).state is WorkerState.ONLINE


# -- the rule --------------------------------------------------------------------------------------------------------


def test_a_job_that_three_workers_failed_fails_although_attempts_are_left(store: Store, tenant: str) -> None:
    job = submit(store, tenant)
    ends = [fail(store, job.id, name) for name in ("a/cpu0", "a/cpu0", "b/cpu0", "b/cpu0", "c/cpu0")]
    assert ends == [JobState.QUEUED] * 4 + [JobState.FAILED]


def test_a_worker_that_fails_three_jobs_that_others_complete_is_drained_and_the_others_are_not(
    store: Store, tenant: str
) -> None:
    for name in ("bad/cpu0", "good/cpu0"):
        join(store, name)
    for _ in range(5):  # nobody completed these
        fail(store, submit(store, tenant).id, "good/cpu0")
    refute(store, tenant, "bad/cpu0", "good/cpu0", lifecycle.MAX_REFUTED - 1)
    refute(store, tenant, "good/cpu0", "good/cpu0", lifecycle.MAX_REFUTED)  # its own second try refutes nobody
    assert worker(store, "bad/cpu0").state is WorkerState.ONLINE
    refute(store, tenant, "bad/cpu0", "good/cpu0", 1)
    drained = worker(store, "bad/cpu0")
    assert drained.state is WorkerState.DRAINING
    assert drained.drained_reason == "it failed 3 jobs that other workers completed"
    assert worker(store, "good/cpu0").state is WorkerState.ONLINE
    with store.begin() as unit:
        assert lifecycle.resume_worker(unit, "bad/cpu0").state is WorkerState.ONLINE
    refute(store, tenant, "bad/cpu0", "good/cpu0", lifecycle.MAX_REFUTED - 1)
    assert worker(store, "bad/cpu0").state is WorkerState.ONLINE  # what was forgiven does not count again
