"""A farm that looks lived in: batches, failures, a running job, two tenants, all by the farm's own doors."""

from __future__ import annotations

import hashlib
import io
import uuid
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image
from sqlalchemy import text

from farm import lifecycle
from farm.domain import ids
from farm.domain.batch import BatchEntry, NewBatch
from farm.domain.cost import steps_run
from farm.domain.job import Job, JobError, NewJob, Output
from farm.domain.job_spec import JobSpec
from farm.domain.queue import Assignment
from farm.domain.states import EventType, Priority
from farm.domain.worker import Device, WorkerInfo
from farm.objects import keys
from farm.store.delivery_results import DeliveryResult
from farm.webhooks import signature
from tests import job_edges
from tests.api_server import Api
from tests.job_specs import job_spec
from tools.starter import scenes

GPU = Device(kind="cuda", index="cuda:0", name="NVIDIA H100 80GB HBM3", memory_bytes=80 * 2**30, dtype="bfloat16")


@cache
def scene(seed: int) -> tuple[str, bytes]:
    """A prompt and its image, drawn the way the built-in model learnt it."""
    rng = np.random.default_rng(seed)
    drawn = scenes.sample(rng)
    words = " and ".join(
        f"{'an' if one.colour is scenes.Colour.ORANGE else 'a'} {one.colour.value} {one.shape.value}"
        for one in drawn.things
    )
    out = io.BytesIO()
    Image.fromarray(scenes.draw(drawn, rng, 128).rgb).save(out, "PNG")
    article = "an" if drawn.background is scenes.Colour.ORANGE else "a"
    return f"{words} on {article} {drawn.background.value} background", out.getvalue()


def spec(seed: int) -> JobSpec:
    return job_spec(
        {
            "task": "text-to-image",
            "model": "starter",
            "prompt": scene(seed)[0],
            "negative_prompt": "",
            "num_inference_steps": 20,
            "guidance_scale": 4.0,
            "scheduler": "ddim",
            "seed": seed,
            "num_outputs": 1,
            "width": 128,
            "height": 128,
            "strength": None,
            "output_format": "png",
            "inputs": {},
        }
    )


class Worker:
    """A worker's hand that uploads images worth looking at."""

    def __init__(self, api: Api, name: str, device: Device = GPU, models: tuple[str, ...] = ("starter",)) -> None:
        self.api, self.name = api, name
        boot = uuid.uuid4().hex
        versions = {"torch": "2.13.0", "diffusers": "0.42.0"}
        info = WorkerInfo(name, boot, name.partition("/")[0], device, 4, 2, 1, versions)
        with api.store.begin() as unit:
            lifecycle.join(unit, info)
            lifecycle.heartbeat(unit, name, boot, [], models, 3600)

    def begin(self, job_id: str, step: int = 0) -> Job:
        with self.api.store.begin() as unit:
            (sent,) = lifecycle.dispatch(unit, [Assignment(job_id, self.name)], 3600)
            job = job_edges.claim(unit, job_id, sent.epoch, self.name, 3600)
            job_edges.start(unit, job_id, job.epoch, steps_run(job.spec))
            if step:
                job_edges.progress(unit, job_id, job.epoch, step)
        return job

    def succeed(self, job: Job) -> None:
        data = scene(job.spec.seed)[1]
        key = keys.output_key(job.tenant_id, job.id, job.epoch, 0, "png")
        self.api.storage.put(key, data, "image/png")
        sha256, seed, metadata = hashlib.sha256(data).hexdigest(), job.spec.seed_of(0), {"width": 128, "height": 128}
        output = Output(0, key, "image/png", len(data), sha256, seed, metadata)
        recipe = {"dtype": "bfloat16", "device": "NVIDIA H100 80GB HBM3", "torch": "2.13.0"}
        with self.api.store.begin() as unit:
            job_edges.succeed(unit, job.id, job.epoch, [output], recipe)

    def fail(self, job: Job, code: str, message: str) -> None:
        with self.api.store.begin() as unit:
            lifecycle.fail(unit, job.id, job.epoch, JobError(code, message), retryable=False)


@dataclass(frozen=True)
class Furnished:
    """What stands where."""

    operator: str  #: a key with all scopes
    tenant: str  #: a key of another tenant, which may submit and read
    reader: str  #: a key of the first tenant that may only read
    first_id: str  #: the first tenant
    other_id: str  #: the other one
    batch: str  #: done, with failures
    open_batch: str  #: half done
    succeeded: str
    failed: str
    running: Job
    queued: str
    theirs: str  #: a job of the other tenant
    endpoint: str  #: of webhooks, some of which were given up
    dead: str  #: one of those
    worker: Worker


def batch(
    api: Api, tenant_id: str, name: str, seeds: range, priority: Priority = Priority.NORMAL
) -> tuple[str, list[str]]:
    """A batch of one image per seed, and its jobs in order."""
    made = ids.new(ids.BATCH)
    entries = [
        BatchEntry(line, NewJob(spec(seed), priority, custom_id=f"{name}-{line:03}"))
        for line, seed in enumerate(seeds, 1)
    ]
    with api.store.begin() as unit:
        staged = unit.batches.stage(entries)
        lifecycle.submit_batch(unit, tenant_id, made, NewBatch(name, {"season": "autumn"}), staged)
    with api.store.begin() as unit:
        return made, [job.id for job in unit.jobs.of_batch(made, (), 0, 1_000)]


def webhooks(api: Api) -> tuple[str, str]:
    """An endpoint that answers, one that fails, one that is off; returns the failing one and a delivery that failed."""
    ends = frozenset({EventType.SUCCEEDED, EventType.FAILED})
    with api.store.begin() as unit:
        shop = unit.webhooks.create_endpoint(
            api.tenant_id, "https://shop.example/hooks/renders", signature.new_secret(), ends, "orders"
        ).id
        mail = unit.webhooks.create_endpoint(
            api.tenant_id, "https://mail.example/render-done", signature.new_secret(), ends, "the newsletter"
        ).id
        gone = unit.webhooks.create_endpoint(
            api.tenant_id, "https://old.example/hook", signature.new_secret(), frozenset({EventType.BATCH_COMPLETED})
        ).id
        unit.webhooks.disable(api.tenant_id, gone)
        told = unit.session.execute(
            text("SELECT id FROM event WHERE type IN ('job.succeeded', 'job.failed') ORDER BY id LIMIT 14")
        )
        unit.session.execute(text("UPDATE event SET fanned_out = true"))
        for number, row in enumerate(told):
            unit.outbox.deliver(shop, row.id)
            if number < 5:
                unit.outbox.deliver(mail, row.id)
    outcomes: list[DeliveryResult] = []
    with api.store.begin() as unit:
        for one in unit.delivery_leases.claim(100, 20, {}, 60, 100).claimed:
            fine = one.endpoint.id == shop
            status, error, answer = (200, None, "ok") if fine else (503, "status", "upstream is away for maintenance")
            outcomes.append(
                DeliveryResult(one.id, one.endpoint.id, one.number, fine, status, 0.012 if fine else 0.8, error, answer)
            )
        unit.delivery_results.record(outcomes, 5 * 86_400, 100, lambda _: None)
    return mail, next(one.delivery_id for one in outcomes if not one.delivered)


def furnish(api: Api) -> Furnished:
    """Fill an empty farm."""
    from farm.store.tenants import Scope

    other = api.new_tenant("games")
    first = Worker(api, "render-01/cuda:0")
    second = Worker(api, "render-01/cuda:1")
    Worker(api, "render-02/cuda:0", models=())
    done, jobs = batch(api, api.tenant_id, "catalogue-autumn", range(100, 124))
    for number, job_id in enumerate(jobs):
        job = first.begin(job_id)
        if number in (5, 13, 17):
            first.fail(job, "out_of_memory", "the device has too little memory for 1024 × 1024 at 4 images")
        elif number == 9:
            first.fail(job, "model_unavailable", "the model's files could not be read: unet is missing")
        else:
            first.succeed(job)
    half, rest = batch(api, api.tenant_id, "dataset-cones", range(200, 240), Priority.BULK)
    for job_id in rest[:11]:
        second.succeed(second.begin(job_id))
    running = second.begin(rest[11], 13)
    first.begin(rest[12], 4)
    with api.store.begin() as unit:
        lifecycle.dispatch(unit, [Assignment(rest[13], second.name)], 3600)
        theirs, _ = lifecycle.submit(unit, other, NewJob(spec(301), Priority.INTERACTIVE))
        canceled, _ = lifecycle.submit(unit, other, NewJob(spec(302)))
        lifecycle.cancel(unit, other, canceled.id)
    endpoint, dead = webhooks(api)
    return Furnished(
        operator=api.key,
        tenant=api.new_key(Scope.SUBMIT, Scope.READ, tenant_id=other),
        reader=api.new_key(Scope.READ),
        first_id=api.tenant_id,
        other_id=other,
        batch=done,
        open_batch=half,
        succeeded=jobs[0],
        failed=jobs[5],
        running=running,
        queued=rest[20],
        theirs=theirs.id,
        endpoint=endpoint,
        dead=dead,
        worker=second,
    )
