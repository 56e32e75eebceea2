"""What the integration tests share: a store over a database of their own, and jobs to put into it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import pytest
import redis

from farm import lifecycle
from farm.domain.job import Job, NewJob
from farm.domain.job_spec import JobSpec
from farm.domain.states import Priority
from farm.domain.worker import Device, WorkerInfo
from farm.store.unit_of_work import Store, make_engine
from tests.job_specs import job_spec

CPU = Device(kind="cpu", index="cpu0", name="a processor", memory_bytes=2**30, dtype="float32")


def spec(prompt: str = "a red ball on a blue background", seed: int = 1) -> JobSpec:
    return job_spec(
        {
            "task": "text-to-image",
            "model": "starter",
            "prompt": prompt,
            "negative_prompt": "",
            "num_inference_steps": 4,
            "guidance_scale": 4.0,
            "scheduler": "ddim",
            "seed": seed,
            "num_outputs": 1,
            "width": 64,
            "height": 64,
            "strength": None,
            "output_format": "png",
            "inputs": {},
        }
    )


def worker_info(name: str = "host/cpu0", *, slots: int = 1, prefetch: int = 2) -> WorkerInfo:
    return WorkerInfo(
        name=name, boot_id=uuid.uuid4().hex, host="host", device=CPU, slots=slots, prefetch=prefetch, pid=1
    )


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    made = Store(make_engine(database_url, pool=25))
    yield made
    made.close()


@pytest.fixture
def tenant(store: Store) -> str:
    with store.begin() as unit:
        return unit.tenants.create("acme").id


Submit = Callable[..., Job]


@pytest.fixture
def submit(store: Store, tenant: str) -> Submit:
    def one(*, priority: Priority = Priority.NORMAL, tenant_id: str = tenant, max_attempts: int = 3) -> Job:
        with store.begin() as unit:
            new = NewJob(spec(), priority=priority, max_attempts=max_attempts)
            return lifecycle.submit(unit, tenant_id, new)[0]

    return one


@pytest.fixture
def full_redis(redis_url: str) -> Iterator[Callable[[], None]]:
    """Call it, and Redis answers and takes nothing in, until the test ends."""
    with redis.Redis.from_url(redis_url) as client:
        before = client.config_get("maxmemory")["maxmemory"]
        yield lambda: client.config_set("maxmemory", 1)
        client.config_set("maxmemory", before)
