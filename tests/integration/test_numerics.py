"""Numerics classes: who has them, jobs and batches that ask for one, and the retry after a lost worker."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx2
import pytest
from sqlalchemy import text

from farm import lifecycle
from farm.dispatch.dispatcher import Dispatcher
from farm.domain.numerics import Numerics
from farm.domain.states import JobState
from farm.domain.worker import WorkerState
from farm.settings import Settings
from tests import job_edges
from tests.api_server import Api, running

from .conftest import worker_info

TWO = Numerics.of("cpu", {"threads": "2"})
ONE = Numerics.of("cpu", {"threads": "1"})
NOBODYS = Numerics.of("cpu", {"threads": "64"})
BODY = {"task": "text-to-image", "prompt": "a ball", "model": "starter"}


@pytest.fixture
def api(farm_env: dict[str, str]) -> Iterator[Api]:
    with running(Settings()) as one:
        yield one


@pytest.fixture
def client(api: Api) -> Iterator[httpx2.Client]:
    with api.client() as one:
        yield one


@pytest.fixture
def dispatcher(api: Api) -> Iterator[Dispatcher]:
    one = Dispatcher(api.settings)
    yield one
    one._store.close()
    one._listener.close()


def join(api: Api, name: str, numerics: Numerics, slots: int = 4) -> None:
    with api.store.begin() as unit:
        lifecycle.join(unit, replace(worker_info(name, slots=slots, prefetch=0), numerics=numerics))


def go_offline(api: Api, name: str) -> None:
    with api.store.begin() as unit:
        unit.workers.set_state(name, WorkerState.OFFLINE)


def submit(client: httpx2.Client, **changes: Any) -> str:
    answer = client.post("/v1/jobs", json=BODY | changes)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def look(client: httpx2.Client, job_id: str) -> dict[str, Any]:
    found: dict[str, Any] = client.get(f"/v1/jobs/{job_id}").json()
    return found


def test_the_api_names_the_numerics_class_of_each_worker_and_forgets_none(api: Api, client: httpx2.Client) -> None:
    join(api, "host/cpu0", TWO)
    join(api, "host/cpu1", TWO)
    (first, second) = client.get("/v1/workers").json()["data"]
    assert first["numerics"] == second["numerics"] == {"class": TWO.name, "facts": {"threads": "2"}}
    join(api, "host/cpu1", ONE)
    go_offline(api, "host/cpu0")
    assert client.get("/v1/numerics").json()["data"] == [
        {"class": TWO.name, "facts": {"threads": "2"}, "workers": []},
        {"class": ONE.name, "facts": {"threads": "1"}, "workers": ["host/cpu1"]},
    ]


def test_a_class_that_no_worker_ever_had_is_refused_with_those_that_are_known(api: Api, client: httpx2.Client) -> None:
    join(api, "host/cpu0", TWO)
    one = client.post("/v1/jobs", json=BODY | {"numerics": NOBODYS.name})
    many = client.post("/v1/batches", json={"jobs": [BODY], "numerics": NOBODYS.name})
    for answer in (one, many):
        assert answer.status_code == 422
        (error,) = answer.json()["errors"]
        assert error["field"] == "numerics"
        assert TWO.name in error["message"]
    assert client.post("/v1/jobs", json=BODY | {"numerics": "host/cpu0"}).status_code == 422


def test_a_job_goes_only_to_the_class_it_asks_for_and_says_why_it_waits(
    api: Api, client: httpx2.Client, dispatcher: Dispatcher
) -> None:
    join(api, "host/cpu0", TWO)
    join(api, "host/cpu1", ONE)
    go_offline(api, "host/cpu1")
    job, free = submit(client, numerics=ONE.name), submit(client)
    dispatcher.round()
    assert look(client, free)["worker"] == "host/cpu0"
    found = look(client, job)
    assert (found["state"], found["numerics"]) == ("queued", ONE.name)
    assert found["waiting_reason"] == f"no worker of numerics class {ONE.name} is online"
    join(api, "host/cpu1", ONE)
    assert look(client, job)["waiting_reason"] is None
    dispatcher.round()
    assert look(client, job)["worker"] == "host/cpu1"


def test_a_batch_that_asks_for_one_class_gets_that_of_its_first_job(
    api: Api, client: httpx2.Client, dispatcher: Dispatcher
) -> None:
    join(api, "host/cpu0", TWO, slots=2)
    join(api, "host/cpu1", ONE, slots=1)
    answer = client.post("/v1/batches", params={"numerics": "one"}, json={"jobs": [BODY] * 4})
    assert answer.status_code == 201, answer.text
    batch = answer.json()
    assert (batch["numerics"], batch["numerics_class"]) == ("one", None)
    dispatcher.round()
    jobs = client.get(f"/v1/batches/{batch['id']}/jobs").json()["data"]
    assert [job["worker"] for job in jobs] == ["host/cpu0", "host/cpu0", None, None]
    assert {job["numerics"] for job in jobs} == {"one"}
    assert client.get(f"/v1/batches/{batch['id']}").json()["numerics_class"] == TWO.name
    # the other worker stays free, also when the first one has gone
    go_offline(api, "host/cpu0")
    dispatcher.round()
    waiting = look(client, jobs[2]["id"])
    assert (waiting["state"], waiting["waiting_reason"]) == (
        "queued",
        f"no worker of numerics class {TWO.name} is online",
    )
    # and the batch that repeats what was canceled stays in that class
    client.post(f"/v1/batches/{batch['id']}/cancel").raise_for_status()
    again = client.post(f"/v1/batches/{batch['id']}/retry").raise_for_status().json()
    assert (again["numerics"], again["numerics_class"]) == ("one", TWO.name)
    client.delete(f"/v1/batches/{batch['id']}").raise_for_status()
    dispatcher.round()
    assert {job["state"] for job in client.get(f"/v1/batches/{again['id']}/jobs").json()["data"]} == {"queued"}


def test_a_job_of_a_batch_of_one_class_cannot_name_another(api: Api, client: httpx2.Client) -> None:
    join(api, "host/cpu0", TWO)
    body = {"jobs": [BODY, BODY | {"numerics": TWO.name}], "numerics": "one"}
    (error,) = client.post("/v1/batches", json=body).json()["errors"]
    assert (error["line"], error["field"]) == (2, "numerics")


@pytest.mark.parametrize("place", ["query", "body", "line"])
def test_a_batch_may_name_a_class_for_its_jobs(
    api: Api, client: httpx2.Client, dispatcher: Dispatcher, place: str
) -> None:
    join(api, "host/cpu0", TWO)
    join(api, "host/cpu1", ONE, slots=9)
    query = {"numerics": TWO.name} if place == "query" else {}
    body: dict[str, Any] = {"jobs": [BODY | ({"numerics": TWO.name} if place == "line" else {})] * 2}
    if place == "body":
        body["numerics"] = TWO.name
    batch = client.post("/v1/batches", params=query, json=body).raise_for_status().json()
    dispatcher.round()
    jobs = client.get(f"/v1/batches/{batch['id']}/jobs").json()["data"]
    assert {(job["worker"], job["numerics"]) for job in jobs} == {("host/cpu0", TWO.name)}


def lose(api: Api, job_id: str, worker: str) -> None:
    """The worker starts the job and is never seen again."""
    with api.store.begin() as unit:
        job = unit.jobs.get(job_id)
        assert job is not None
        job_edges.claim(unit, job_id, job.epoch, worker, 30)
        job_edges.start(unit, job_id, job.epoch, 4)
    with api.store.begin() as unit:
        unit.session.execute(text("UPDATE job SET lease_until = now() - interval '1 s' WHERE state = 'running'"))
        unit.workers.set_state(worker, WorkerState.OFFLINE)
        assert lifecycle.reap(unit) == [job_id]


@pytest.mark.parametrize("exact", [True, False])
def test_a_retry_after_a_lost_worker_waits_for_the_class_in_which_it_began(
    api: Api, client: httpx2.Client, dispatcher: Dispatcher, exact: bool
) -> None:
    join(api, "host/cpu0", TWO)
    job = submit(client, exact=exact)
    dispatcher.round()
    lose(api, job, "host/cpu0")
    join(api, "host/cpu1", ONE)
    other = submit(client)
    dispatcher.round()
    assert look(client, other)["worker"] == "host/cpu1", "the job that waits does not hide those behind it"
    if not exact:
        assert look(client, job)["worker"] == "host/cpu1"
        return
    assert look(client, job)["state"] == "queued"
    join(api, "host/cpu2", TWO)
    dispatcher.round()
    assert look(client, job)["worker"] == "host/cpu2"


def test_a_retry_after_a_lost_worker_waits_for_its_class_only_for_some_time(
    api: Api, client: httpx2.Client, dispatcher: Dispatcher
) -> None:
    join(api, "host/cpu0", TWO)
    job = submit(client)
    dispatcher.round()
    lose(api, job, "host/cpu0")
    join(api, "host/cpu1", ONE)
    dispatcher.round()
    assert look(client, job)["state"] == "queued"
    with api.store.begin() as unit:
        unit.session.execute(text("UPDATE job SET waits_until = waits_until - interval '31 s'"))
    dispatcher.round()
    assert look(client, job)["worker"] == "host/cpu1"
    assert api.job(job).state is JobState.DISPATCHED


def test_a_pinned_job_is_retried_in_its_class(api: Api, client: httpx2.Client, dispatcher: Dispatcher) -> None:
    join(api, "host/cpu0", TWO)
    join(api, "host/cpu1", ONE, slots=9)
    job = submit(client, numerics=TWO.name)
    client.post(f"/v1/jobs/{job}/cancel").raise_for_status()
    again = client.post(f"/v1/jobs/{job}/retry").raise_for_status().json()
    assert again["numerics"] == TWO.name
    dispatcher.round()
    assert look(client, again["id"])["worker"] == "host/cpu0"
