"""The API as tests meet it: a real server on a loopback port, over real Postgres, Redis and S3."""

from __future__ import annotations

import asyncio
import hashlib
import io
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import httpx2
from PIL import Image

from farm import lifecycle
from farm.api.serve import Server, make_server
from farm.dashboard.app import create_app
from farm.domain.job import Job, JobError, Output
from farm.domain.queue import Assignment
from farm.domain.worker import WorkerInfo
from farm.errors import LeaseLost
from farm.objects import keys
from farm.objects.storage import Storage
from farm.settings import Settings
from farm.store.tenants import Scope
from farm.store.unit_of_work import Store
from tests import job_edges
from tests.job_specs import size_of
from tests.queues import candidates
from tests.waiting import wait_until


@dataclass
class Api:
    """A running API, and what a test needs to look behind it."""

    url: str
    settings: Settings
    store: Store
    storage: Storage
    tenant_id: str
    key: str  #: with all scopes
    server: Server

    def client(self, key: str | None = "", timeout: float = 30) -> httpx2.Client:
        """A client with the tenant's key, another one, or (None) without."""
        text = self.key if key == "" else key
        headers = {} if text is None else {"Authorization": f"Bearer {text}"}
        return httpx2.Client(base_url=self.url, headers=headers, timeout=timeout, trust_env=False)

    def job(self, job_id: str) -> Job:
        """A job that exists."""
        with self.store.begin() as unit:
            found = unit.jobs.get(job_id)
        assert found is not None
        return found

    def new_key(self, *scopes: Scope, tenant_id: str | None = None) -> str:
        with self.store.begin() as unit:
            _, text = unit.tenants.create_key(tenant_id or self.tenant_id, "test", frozenset(scopes))
        return text

    def new_tenant(self, name: str) -> str:
        with self.store.begin() as unit:
            return unit.tenants.create(name).id


@contextmanager
def running(settings: Settings) -> Iterator[Api]:
    """The API, served by a thread of this process."""
    store = Store.connect(settings, pool=4)
    with store.begin() as unit:
        tenant = unit.tenants.create("tests")
        _, key = unit.tenants.create_key(tenant.id, "all", frozenset(Scope))
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    server = make_server(create_app(settings), settings, "127.0.0.1", port)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])), name="api")
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive(), 20, what="the API starts")
        assert server.started
        storage = server.config.app.state.context.storage  # type: ignore[union-attr]
        yield Api(f"http://127.0.0.1:{port}", settings, store, storage, tenant.id, key, server)
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()
        store.close()
    assert not thread.is_alive()


def png(width: int = 64, height: int = 64, colour: str = "red") -> bytes:
    """A small image of one colour."""
    out = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(out, "PNG")
    return out.getvalue()


class Hand:
    """A worker's hand: moves jobs along their edges without a device."""

    def __init__(self, api: Api, name: str = "test/cpu0") -> None:
        self.api = api
        self.name = name

    def join(self, info: WorkerInfo) -> None:
        with self.api.store.begin() as unit:
            lifecycle.join(unit, info)

    def begin(self, job_id: str, steps: int = 20) -> Job:
        """queued → running, started on the device."""
        with self.api.store.begin() as unit:
            (sent,) = lifecycle.dispatch(unit, [Assignment(job_id, self.name)], 30)
        with self.api.store.begin() as unit:
            job = job_edges.claim(unit, job_id, sent.epoch, self.name, 30)
        with self.api.store.begin() as unit:
            job_edges.start(unit, job_id, job.epoch, steps)
        return job

    def step(self, job: Job, step: int) -> None:
        with self.api.store.begin() as unit:
            job_edges.progress(unit, job.id, job.epoch, step)

    def succeed(self, job: Job, metadata: Mapping[str, str] | None = None) -> None:
        """``metadata``: of each output, besides its size."""
        width, height = size_of(job.spec)
        data = png(width, height)
        outputs = []
        for index in range(job.spec.num_outputs):
            key = keys.output_key(job.tenant_id, job.id, job.epoch, index, "png")
            self.api.storage.put(key, data, "image/png")
            outputs.append(
                Output(
                    index=index,
                    key=key,
                    sha256=hashlib.sha256(data).hexdigest(),
                    size=len(data),
                    media_type="image/png",
                    metadata={"width": width, "height": height, **(metadata or {})},
                    seed=job.spec.seed_of(index),
                )
            )
        with self.api.store.begin() as unit:
            job_edges.succeed(unit, job.id, job.epoch, outputs, {"dtype": "float32"})

    def fail(self, job: Job) -> None:
        with self.api.store.begin() as unit:
            lifecycle.fail(unit, job.id, job.epoch, JobError("render_failed", "it was not to be"), retryable=False)

    def queued(self) -> list[str]:
        """Jobs that wait."""
        with self.api.store.begin() as unit:
            return [head.job_id for head in candidates(unit, 100)]

    def run_all(self, stopping: threading.Event) -> None:
        """Render whatever comes until stopped; each third job fails."""
        number = 0
        while not stopping.wait(0.02):
            for job_id in self.queued():
                number += 1
                try:
                    job = self.begin(job_id)
                    if number % 3 == 0:
                        self.fail(job)
                    else:
                        self.step(job, 10)
                        self.succeed(job)
                except (LeaseLost, ValueError):  # canceled in between, by the very requests under test
                    continue
