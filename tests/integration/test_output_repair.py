"""Outputs that the storage lost are found, and come back byte for byte, from their recipes alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from farm.domain.states import JobState
from farm.objects.storage import Storage
from farm.services import outputs as services
from farm.services.outputs import TENANT, Damage, RepairState
from farm.settings import settings
from tests.api_server import Api, running
from tests.integration.worker_process import Farm, NoiseWorker, spec
from tests.waiting import wait_until

JOBS = 12
GONE = {"sha256": "0" * 64, "key": "inputs/gone.png", "media_type": "image/png", "size": 1}  #: an input


@pytest.fixture
def farm(farm_env: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[Farm]:
    """A farm with a bucket of its own, one worker and a dispatcher."""
    farm_env["FARM_S3_BUCKET"] = "repairs"
    monkeypatch.setenv("FARM_S3_BUCKET", "repairs")
    settings.cache_clear()
    found = Farm(farm_env, tmp_path)
    found.storage.ensure_bucket()
    worker = NoiseWorker(found, env={"FARM_NOISE_STEP_SECONDS": "0.002"}).start()
    command = "from farm.cli.serve_dispatcher import dispatcher; dispatcher()"
    dispatcher = subprocess.Popen([sys.executable, "-c", command], env=os.environ | farm_env)
    try:
        worker.wait_online()
        yield found
    finally:
        dispatcher.kill()
        dispatcher.wait()
        worker.kill()
        found.close()
        drop_bucket(found.storage)


@pytest.fixture
def api(farm: Farm) -> Iterator[Api]:
    with running(settings()) as found:
        yield found


def drop_bucket(storage: Storage) -> None:
    storage.delete_many([one.key for one in storage.list("")])
    storage._client.delete_bucket(Bucket=storage.bucket)


def rendered(farm: Farm) -> dict[str, bytes]:
    """The objects of some jobs, the first of which has two outputs."""
    jobs = [farm.submit(spec(seed=seed, num_outputs=1 + (seed == 0))) for seed in range(JOBS)]
    found = {}
    for job in jobs:
        for output in farm.wait(job, JobState.SUCCEEDED).outputs:
            found[output.key] = farm.storage.get(output.key)
    return found


def rows(farm: Farm) -> list[Any]:
    """All that is recorded about the jobs' owner."""
    with psycopg.connect(farm.env["FARM_DATABASE_URL"]) as connection:
        tenant = farm.tenant.removeprefix("ten_")
        return [
            connection.execute(f"SELECT * FROM {table} WHERE tenant_id = %s ORDER BY 1, 2", (tenant,)).fetchall()
            for table in ("job", "event", "usage")
        ]


def now(farm: Farm, keys: list[str]) -> dict[str, bytes]:
    return {key: farm.storage.get(key) for key in keys}


def command(api: Api, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "farm.cli", "outputs", "check", *arguments],
        env=os.environ | {"FARM_URL": api.url, "FARM_API_KEY": api.key},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_lost_and_damaged_outputs_are_found_and_come_back_byte_for_byte(farm: Farm, api: Api) -> None:
    objects = rendered(farm)
    keys = list(objects)
    before = rows(farm)
    whole = command(api)
    assert (whole.returncode, whole.stdout) == (0, f"{JOBS + 1} outputs checked, 0 missing or damaged\n")
    farm.storage.delete(keys[0])
    farm.storage.delete(keys[1])  # both outputs of one job
    farm.storage.delete(keys[5])
    farm.storage.put(keys[7], b"short", "image/png")
    farm.storage.put(keys[9], bytes(len(objects[keys[9]])), "image/png")
    shallow = command(api)
    assert shallow.returncode == 1
    assert shallow.stdout.count(": missing  ") == 3
    assert shallow.stdout.count(": size  ") == 1
    deep = command(api, "--deep")
    assert deep.stdout.count(": sha256  ") == 1
    assert now(farm, [keys[7]]) != {keys[7]: objects[keys[7]]}  # nothing was repaired yet
    repaired = command(api, "--deep", "--repair")
    assert repaired.returncode == 0, repaired.stdout + repaired.stderr
    assert repaired.stdout.endswith("5 missing or damaged, 5 repaired\n")
    assert now(farm, keys) == objects
    assert rows(farm) == before
    assert command(api, "--deep").returncode == 0


def test_a_lost_bucket_comes_back_byte_for_byte(farm: Farm, api: Api) -> None:
    objects = rendered(farm)
    before = rows(farm)
    drop_bucket(farm.storage)
    repaired = command(api, "--repair")
    assert repaired.returncode == 0, repaired.stdout + repaired.stderr
    assert now(farm, list(objects)) == objects
    assert rows(farm) == before


def test_what_cannot_be_rendered_again_stays_lost_and_says_why(farm: Farm, api: Api) -> None:
    objects = rendered(farm)
    keys = list(objects)
    for key in keys[2:6]:
        farm.storage.delete(key)
    context = api.server.config.app.state.context  # type: ignore[union-attr]
    damaged = services.check(context).damaged
    assert [one.damage for one in damaged] == [Damage.MISSING] * 4
    other, gone, unknown, elsewhere = (one.recorded.job_id for one in damaged)
    with psycopg.connect(farm.env["FARM_DATABASE_URL"], autocommit=True) as connection:
        connection.execute("UPDATE output SET sha256 = %s WHERE job_id = %s", ("0" * 64, other.removeprefix("job_")))
        connection.execute(
            """UPDATE job SET spec = jsonb_set(spec, '{model}', '"retired"') WHERE id = %s""",
            (gone.removeprefix("job_"),),
        )
        connection.execute(
            "UPDATE job SET spec = jsonb_set(spec, '{inputs}', %s) WHERE id = %s",
            (
                json.dumps({"image": [GONE]}),
                unknown.removeprefix("job_"),
            ),
        )
        connection.execute(
            """UPDATE job SET recipe = recipe || '{"numerics": "cuda-0123456789ab"}' WHERE id = %s""",
            (elsewhere.removeprefix("job_"),),
        )

    def ended() -> dict[str, tuple[RepairState, str | None]] | None:
        found = services.repair(context, "run", [other, gone, unknown, elsewhere, f"job_{'0' * 32}"])
        if any(one.state is RepairState.RENDERING for one in found):
            return None
        return {one.job_id: (one.state, one.reason) for one in found}

    found = wait_until(ended, 30, what="the repairs ended")
    assert {state for state, _ in found.values()} == {RepairState.IMPOSSIBLE}
    assert "other bytes" in str(found[other][1])
    assert "retired" in str(found[gone][1])
    assert "inputs/gone.png" in str(found[unknown][1])
    assert "cuda-0123456789ab" in str(found[elsewhere][1])
    assert not any(farm.storage.exists(key) for key in keys[2:6])
    with farm.store.begin() as unit:  # one rendering, however often it was asked for
        made = unit.tenants.by_name(TENANT)
        assert made is not None
        assert sum(unit.jobs.counts(made.id).values()) == 1


def test_a_check_may_begin_anywhere_and_misses_nothing_that_is_no_longer_recorded(farm: Farm, api: Api) -> None:
    objects = rendered(farm)
    context = api.server.config.app.state.context  # type: ignore[union-attr]
    farm.storage.delete(next(iter(objects)))
    page = services.check(context)
    assert (page.outputs, len(page.damaged), page.last_job) == (JOBS + 1, 1, None)
    with psycopg.connect(farm.env["FARM_DATABASE_URL"], autocommit=True) as connection:
        last = connection.execute("SELECT max(finished_at) FROM job").fetchone()
        assert last is not None
        late = connection.execute(
            "SELECT count(*) FROM output JOIN job ON job.id = job_id WHERE finished_at = %s", last
        ).fetchone()
        assert (services.check(context, since=last[0]).outputs,) == late
        assert services.check(context, after=page.damaged[0].recorded.job_id).outputs == JOBS - 1
        connection.execute("DELETE FROM output")
    assert services.check(context).damaged == ()
