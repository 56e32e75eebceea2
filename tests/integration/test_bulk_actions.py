"""One action on many jobs, by name or by filter: all that is meant, nothing else, and each with its event."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import text

from farm.client import ApiError, Farm
from farm.settings import Settings
from farm.store.tenants import Scope
from tests.api_server import Api, Hand, running
from tests.integration.conftest import worker_info

SIZE: dict[str, Any] = {"task": "text-to-image", "width": 64, "height": 64, "num_inference_steps": 2}


@pytest.fixture
def api(farm_env: dict[str, str]) -> Iterator[Api]:
    with running(Settings()) as one:
        yield one


@pytest.fixture
def farm(api: Api) -> Iterator[Farm]:
    with Farm(api.url, api.key) as one:
        yield one


@pytest.fixture
def hand(api: Api) -> Hand:
    one = Hand(api)
    one.join(worker_info(one.name, slots=8))
    return one


def submit(farm: Farm, count: int, **fields: Any) -> list[str]:
    return [farm.submit_body(SIZE | {"prompt": f"ball {n}", "seed": n} | fields).id for n in range(count)]


def test_a_filter_cancels_what_matches_and_nothing_else(api: Api, farm: Farm, hand: Hand) -> None:
    waiting = submit(farm, 3, custom_id="red")
    running_one, over = submit(farm, 2, custom_id="red")
    others = submit(farm, 2, custom_id="blue")
    hand.begin(running_one)
    hand.succeed(hand.begin(over))

    counted = farm.cancel_jobs(custom_id="red", dry_run=True)
    assert (counted.matched, counted.canceled, counted.stopping) == (4, 0, 0)
    assert all(not farm.get(one).over for one in waiting)

    done = farm.cancel_jobs(custom_id="red")
    assert (done.matched, done.canceled, done.stopping, done.complete) == (4, 3, 1, True)
    assert [farm.get(one).state for one in waiting] == ["canceled"] * 3
    assert farm.get(running_one).raw["cancel_requested"]
    assert farm.get(over).succeeded
    assert [farm.get(one).state for one in others] == ["queued"] * 2
    with api.store.begin() as unit:
        told = unit.session.execute(
            text("SELECT count(*), count(DISTINCT job_id) FROM event WHERE type = 'job.canceled'")
        ).one()
    assert tuple(told) == (3, 3)
    # what was asked once is not asked again
    assert farm.cancel_jobs(custom_id="red").stopping == 0


def test_ids_of_other_tenants_are_ignored(api: Api, farm: Farm) -> None:
    mine = submit(farm, 2)
    with Farm(api.url, api.new_key(*Scope, tenant_id=api.new_tenant("stranger"))) as theirs:
        (foreign,) = submit(theirs, 1)
        done = farm.cancel_jobs([*mine, foreign, "job_" + "0" * 32])
        assert (done.matched, done.canceled) == (2, 2)
        assert theirs.get(foreign).state == "queued"
        assert theirs.cancel_jobs(everything=True).canceled == 1


def test_a_batch_counts_what_a_filter_cancels_in_it(farm: Farm) -> None:
    batch = farm.submit_batch([SIZE | {"prompt": f"ball {n}", "model": "starter"} for n in range(5)])
    loose = submit(farm, 1)
    assert farm.cancel_jobs(batch_id=batch.id).canceled == 5
    found = farm.batch(batch.id)
    assert found.raw["request_counts"]["canceled"] == 5
    assert found.over
    assert farm.get(loose[0]).state == "queued"


def test_what_failed_is_retried_once_however_often_it_is_asked(api: Api, farm: Farm, hand: Hand) -> None:
    failed = submit(farm, 3, custom_id="again", metadata={"who": "me"})
    for one in failed:
        hand.fail(hand.begin(one))
    fine = submit(farm, 1)
    hand.succeed(hand.begin(fine[0]))

    assert farm.retry_jobs(state="failed", dry_run=True).matched == 3
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: farm.retry_jobs(state="failed").submitted, range(4)))
    assert sorted(done) == [0, 0, 0, 3]
    again = list(farm.list(state="queued"))
    assert sorted(one.retry_of or "" for one in again) == sorted(failed)
    assert {(one.custom_id, one.metadata["who"]) for one in again} == {("again", "me")}
    # in the order of the old ones, so that the first to be asked for is the first to come
    assert [one.retry_of for one in reversed(again)] == failed
    # the new one failed as well: the last of the line is retried, not the first again
    hand.fail(hand.begin(again[0].id))
    assert farm.retry_jobs(error_code="render_failed").submitted == 1
    (newest,) = [one for one in farm.list(state="queued") if one.retry_of == again[0].id]
    assert newest.attempts == 0


def test_a_retry_beyond_the_quota_makes_nothing(api: Api, farm: Farm) -> None:
    submit(farm, 4)
    farm.cancel_jobs(everything=True)
    with api.store.begin() as unit:
        unit.session.execute(text("UPDATE tenant SET max_queued = 3"))
    with pytest.raises(ApiError) as refused:
        farm.retry_jobs(state="canceled")
    assert refused.value.status == 429
    assert not list(farm.list(state="queued"))


@pytest.mark.parametrize("body", [{}, {"dry_run": True}, {"ids": [], "filter": {}}, {"ids": ["job_1"]}, {"ids": []}])
def test_a_selection_is_names_or_a_filter(api: Api, body: dict[str, Any]) -> None:
    with api.client() as client:
        for action in ("cancel", "retry"):
            answer = client.post(f"/v1/jobs/{action}", json=body)
            assert answer.status_code == 422, answer.text


def test_a_hundred_thousand_waiting_jobs_are_canceled_in_seconds(api: Api, farm: Farm) -> None:
    lines = b"".join(json.dumps(SIZE | {"prompt": f"ball {n}"}).encode() + b"\n" for n in range(1_000))
    farm.submit_batch(lines)
    with api.store.begin() as unit:
        unit.batches.allow_long_statements()
        # the same rows a hundred times, without a batch
        unit.session.execute(
            text(
                "INSERT INTO job (id, tenant_id, state, task, model, priority, spec, cost, max_attempts)"
                " SELECT gen_random_uuid(), tenant_id, state, task, model, priority, spec, cost, max_attempts"
                " FROM job CROSS JOIN generate_series(1, 99)"
            )
        )
    begun = time.monotonic()
    canceled, complete = 0, False
    while not complete:  # one request, unless the machine is so busy that the request's own time limit ends it
        done = farm.cancel_jobs(state=["queued"])
        canceled, complete = canceled + done.canceled, done.complete
    print(f"100,000 jobs canceled in {time.monotonic() - begun:.1f} s")
    assert canceled == 100_000
    assert time.monotonic() - begun < 60
    assert not list(farm.list(state="queued", limit=1))


def test_the_command_asks_before_it_touches_many(api: Api, farm: Farm) -> None:
    jobs = submit(farm, 3, custom_id="cli")

    def run(*words: str) -> tuple[int, str, str]:
        program = [sys.executable, "-m", "farm.cli", *words, "--url", api.url, "--api-key", api.key]
        done = subprocess.run(program, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
        return done.returncode, done.stdout.strip(), done.stderr.strip()

    code, _, said = run("cancel", "--all", "--custom-id", "cli")
    assert (code, "would cancel 3 jobs" in said) == (2, True), said
    assert farm.get(jobs[0]).state == "queued"
    assert run("cancel", jobs[0], "--all", "--yes")[0] == 2
    assert run("cancel", "--all", "--custom-id", "cli", "--yes")[:2] == (0, "3 canceled")
    assert run("retry", "--all", "--state", "canceled", "--yes")[:2] == (0, "3 submitted again")
    assert run("retry", "--all", "--state", "canceled", "--yes") == (0, "", "no job to retry")
