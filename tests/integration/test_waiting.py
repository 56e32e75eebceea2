"""Why a job waits, as the API says it: the snapshot, the place in the queue and the time left, from a real database."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest
from sqlalchemy import text

from farm import lifecycle
from farm.domain.job import NewJob
from farm.domain.states import Priority
from farm.settings import Settings
from farm.store.tenants import Scope
from tests.api_server import Api, Hand, running

from .conftest import spec, worker_info

BODY = {"task": "text-to-image", "prompt": "a ball", "model": "starter"}


@pytest.fixture
def api(farm_env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    monkeypatch.setenv("FARM_COMPAT_FAL", "1")
    monkeypatch.setenv("FARM_COMPAT_REPLICATE", "1")
    with running(Settings()) as one:
        yield one


@pytest.fixture
def client(api: Api) -> Iterator[httpx2.Client]:
    with api.client() as one:
        yield one


def submit(client: httpx2.Client, **changes: Any) -> dict[str, Any]:
    answer = client.post("/v1/jobs", json=BODY | changes)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def look(client: httpx2.Client, job: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = client.get(f"/v1/jobs/{job['id']}").raise_for_status().json()
    return found


def test_a_job_says_what_blocks_it_in_every_answer(api: Api, client: httpx2.Client) -> None:
    job = submit(client)
    assert job["waiting_reason"] == "no worker is online"
    (listed,) = client.get("/v1/jobs").json()["data"]
    assert listed["waiting_reason"] == look(client, job)["waiting_reason"] == "no worker is online"
    Hand(api).join(worker_info("test/cpu0"))
    assert look(client, job)["waiting_reason"] is None
    assert look(client, job)["position"] == 1
    client.put("/v1/pauses/farm").raise_for_status()
    reason = look(client, job)["waiting_reason"]
    assert reason.startswith("the farm is paused by the key 'all' since 20")
    assert look(client, job)["position"] is None
    client.delete("/v1/pauses/farm").raise_for_status()
    client.put("/v1/pauses/models/starter").raise_for_status()
    assert look(client, job)["waiting_reason"].startswith("the model starter is paused by the key 'all'")
    client.delete("/v1/pauses/models/starter").raise_for_status()
    client.put(f"/v1/pauses/tenants/{api.tenant_id}").raise_for_status()
    assert look(client, job)["waiting_reason"].startswith("its tenant is paused by the key 'all'")
    client.delete(f"/v1/pauses/tenants/{api.tenant_id}").raise_for_status()
    later = submit(client, not_before=(datetime.now(UTC) + timedelta(days=1)).isoformat())
    assert later["waiting_reason"].startswith("not before ")
    batch = client.post("/v1/batches", json={"jobs": [BODY]}).raise_for_status().json()
    client.post(f"/v1/batches/{batch['id']}/pause").raise_for_status()
    (held,) = client.get(f"/v1/batches/{batch['id']}/jobs").json()["data"]
    assert held["waiting_reason"].startswith("its batch is paused by the key 'all' since 20")


def test_a_place_and_a_time_come_from_the_jobs_before_it(api: Api, client: httpx2.Client) -> None:
    hand = Hand(api, "test/cpu0")
    hand.join(worker_info("test/cpu0", slots=4))
    first = submit(client)
    running_job = hand.begin(first["id"])
    hand.succeed(running_job)
    with api.store.begin() as unit:  # it took a second on the device
        unit.session.execute(text("UPDATE job SET started_at = finished_at - interval '1 s'"))
    jobs = [submit(client, seed=seed) for seed in range(5)]
    with api.store.begin() as unit:
        other = unit.tenants.create("flood").id
        unit.jobs.insert(other, [NewJob(spec(seed=seed)) for seed in range(100)])
        unit.jobs.insert(other, [NewJob(spec(seed=1), Priority.INTERACTIVE)])
    third = look(client, jobs[2])
    # one of higher priority, its own two, and of the flood as many as its equal share gives
    assert third["waiting_reason"] == "behind 1 of higher and 5 jobs of equal priority"
    assert third["position"] == 7
    last = look(client, jobs[4])
    assert last["position"] > third["position"]
    assert last["eta_seconds"] > third["eta_seconds"] > 0
    begun = hand.begin(jobs[0]["id"])
    now = look(client, jobs[0])
    assert (now["waiting_reason"], now["position"]) == (None, None)
    assert now["eta_seconds"] > 0
    hand.succeed(begun)
    assert look(client, jobs[0])["eta_seconds"] is None


def test_another_tenant_learns_who_paused_the_farm_and_no_more(api: Api, client: httpx2.Client) -> None:
    other = api.new_tenant("other")
    client.put("/v1/pauses/farm").raise_for_status()
    with api.client(api.new_key(Scope.SUBMIT, Scope.READ, tenant_id=other)) as theirs:
        job = submit(theirs)
        assert "paused by the key 'all'" in look(theirs, job)["waiting_reason"]


def test_the_shapes_of_other_apis_say_it_too(api: Api, client: httpx2.Client) -> None:
    with api.store.begin() as unit:
        lifecycle.join(unit, replace(worker_info("test/cpu0", slots=1, prefetch=0)))
    submit(client)
    key = {"Authorization": f"Key {api.key}"}
    queued = client.post("/compat/fal/x/starter", json={"prompt": "a ball"}, headers=key).json()
    assert queued["queue_position"] == 1
    where = f"/compat/fal/x/starter/requests/{queued['request_id']}/status"
    status = client.get(where, headers=key).json()
    assert status["queue_position"] == 1
    assert status["waiting_reason"] == "behind 1 job of equal priority"
    prediction = client.get(f"/compat/replicate/v1/predictions/{queued['request_id']}").json()
    assert prediction["logs"] == "Waits: behind 1 job of equal priority.\n"
