"""A worker on a host of its own, cut off for longer than its lease."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from farm import lifecycle
from farm.domain.states import JobState
from tests.chaos.partition import WHY_NOT, Namespace, allowed
from tests.chaos.proxy import Proxies
from tests.conftest import TestServers
from tests.integration.worker_process import Farm, NoiseWorker, spec
from tests.waiting import wait_until


@pytest.fixture
def farm(servers: TestServers, database_url: str, redis_url: str, tmp_path: Path) -> Iterator[Farm]:
    env = servers.env(database_url=database_url, redis_url=redis_url)
    env |= {"FARM_HEARTBEAT_SECONDS": "0.5", "FARM_RUN_LEASE_SECONDS": "4", "FARM_BATCHING": "on"}
    made = Farm(env, tmp_path)
    yield made
    made.close()


@pytest.mark.skipif(not allowed(), reason=WHY_NOT)
def test_a_worker_cut_off_for_longer_than_its_lease_writes_nothing_when_it_is_back(farm: Farm) -> None:
    """Its job is finished elsewhere meanwhile; the work that it did in the dark is thrown away."""
    proxies = Proxies()
    with Namespace() as host:
        urls = {
            name: proxies.to(farm.env[name], host.gateway).url(farm.env[name])
            for name in ("FARM_DATABASE_URL", "FARM_REDIS_URL", "FARM_S3_ENDPOINT_URL")
        }
        cut_off = NoiseWorker(farm, device="cpu1", env=urls, prefix=host.prefix)
        other = NoiseWorker(farm, device="cpu2")
        try:
            cut_off.start()
            other.start()
            cut_off.wait_online()
            other.wait_online()
            # long enough that the cable is out before it ends, short enough that it ends in the dark
            job = farm.start(spec(num_inference_steps=75, num_outputs=1), cut_off.name)
            wait_until(lambda: (found := farm.job(job.id).progress) and found.step > 0, 20, what="it renders")
            host.unplug()
            back = wait_until(lambda: _reap(farm), 20, every=0.1, what="its lease ran out")
            assert back == [job.id]
            farm.dispatch(farm.job(job.id), other.name)
            done = farm.wait(job, JobState.SUCCEEDED, timeout=30)
            assert done.worker == other.name
            host.plug_in()
            # it is well again: it takes and finishes the next job
            following = farm.start(spec(seed=8), cut_off.name)
            farm.wait(following, JobState.SUCCEEDED, timeout=60)
        finally:
            cut_off.kill()
            other.kill()
            proxies.close()
    assert "action=lease_expired" in cut_off.log()
    after = farm.job(job.id)
    assert (after.state, after.epoch, after.worker) == (JobState.SUCCEEDED, done.epoch, other.name)
    assert [output.sha256 for output in after.outputs] == [output.sha256 for output in done.outputs]
    assert farm.events(job) == ["job.started", "job.requeued", "job.started", "job.succeeded"]


def _reap(farm: Farm) -> list[str]:
    with farm.store.begin() as unit:
        return lifecycle.reap(unit)
