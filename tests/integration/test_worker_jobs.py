"""Real jobs on a real worker process: PostgreSQL, Valkey, S3, Celery, torch."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from farm import lifecycle
from farm.dispatch import broker
from farm.domain.job_spec import JobSpec
from farm.domain.recipe import request_from_recipe
from farm.domain.states import JobState
from farm.objects import recipes
from farm.objects.keys import job_prefix
from farm.store.connection import Database
from farm.store.events import PREVIEW_CHANNEL
from farm.store.listen import Listener
from tests.conftest import TestServers
from tests.integration.worker_process import Farm, WorkerProcess, depth, mask, scene, spec
from tests.job_specs import STARTER_TASKS, job_spec
from tests.waiting import wait_until
from workers.process import SLOTS

BROKEN = """
[[model]]
id = "starter"
source = "builtin:starter"
tasks = ["text-to-image", "image-to-image", "inpainting", "depth-to-image"]
dtype = "float32"

[[model]]
id = "broken"
source = "./no/such/directory"
tasks = ["text-to-image"]
"""


@pytest.fixture(scope="module")
def farm(servers: TestServers, migrated_template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    servers.postgres.create_database("worker_jobs", template=migrated_template)
    directory = tmp_path_factory.mktemp("worker")
    (directory / "models.toml").write_text(BROKEN)
    env = servers.env(database_url=servers.postgres.url("worker_jobs"), redis_url=servers.valkey.url(0))
    env |= {
        "FARM_MODELS_FILE": str(directory / "models.toml"),
        "FARM_HEARTBEAT_SECONDS": "0.5",
        "FARM_MAX_PREFETCH": "2",
    }
    farm = Farm(env, directory)
    yield farm
    farm.close()
    servers.postgres.drop_database("worker_jobs")


@pytest.fixture(scope="module")
def worker(farm: Farm) -> Iterator[WorkerProcess]:
    worker = WorkerProcess(farm).start()
    try:
        yield worker.wait_online()
    finally:
        worker.kill()


def inputs_of(farm: Farm, task: str) -> dict[str, object]:
    match task:
        case "text-to-image":
            return {}
        case "inpainting":
            return {"image": farm.store_input(scene()), "mask_image": farm.store_input(mask())}
        case _:
            return {"image": farm.store_input(scene())}


def rendered(farm: Farm, worker: WorkerProcess, wanted: JobSpec) -> list[bytes]:
    """The files of a job that succeeds; each matches what its row says."""
    job = farm.wait(farm.start(wanted, worker.name), JobState.SUCCEEDED, JobState.FAILED, timeout=120)
    assert job.state is JobState.SUCCEEDED, (job.error, worker.log())
    assert len(job.outputs) == wanted.num_outputs
    files = [farm.storage.get(output.key) for output in job.outputs]
    for file, output in zip(files, job.outputs, strict=True):
        assert hashlib.sha256(file).hexdigest() == output.sha256
        assert len(file) == output.size
        assert output.media_type == wanted.format.media_type
        assert farm.storage.head(output.key).content_type == output.media_type
    return files


@pytest.mark.parametrize("task", STARTER_TASKS)
def test_each_task_renders_and_its_recipe_renders_the_same_bytes_again(
    farm: Farm, worker: WorkerProcess, task: str
) -> None:
    inputs = inputs_of(farm, task)
    (first,) = rendered(farm, worker, spec(task, inputs=inputs))
    text = recipes.read(io.BytesIO(first))
    assert text is not None
    parameters = request_from_recipe(text)
    by_content = {f"sha256:{image.sha256}": image for image in inputs.values()}  # type: ignore[attr-defined]
    named = {name: by_content[parameters.pop(name)] for name in inputs}
    (again,) = rendered(farm, worker, job_spec({"strength": None, **parameters, "inputs": named}))
    assert again == first


def test_a_given_depth_map_is_followed(farm: Farm, worker: WorkerProcess) -> None:
    image = farm.store_input(scene())
    (estimated,) = rendered(farm, worker, spec("depth-to-image", inputs={"image": image}))
    (given,) = rendered(
        farm, worker, spec("depth-to-image", inputs={"image": image, "depth_map": farm.store_input(depth())})
    )
    assert estimated != given


def test_each_image_of_a_job_can_be_rendered_alone(farm: Farm, worker: WorkerProcess) -> None:
    files = rendered(farm, worker, spec(num_outputs=3, seed=20))
    (alone,) = rendered(farm, worker, spec(seed=22))
    assert files[2] == alone
    assert len(set(files)) == 3


@pytest.mark.parametrize("kind", ["webp", "jpeg"])
def test_other_formats_carry_the_recipe_too(farm: Farm, worker: WorkerProcess, kind: str) -> None:
    (file,) = rendered(farm, worker, spec(output_format=kind))
    text = recipes.read(io.BytesIO(file))
    assert text is not None
    body = json.loads(text)
    assert body["parameters"]["output_format"] == kind
    assert body["made_with"]["weights"].startswith("sha256:")


def test_the_row_tells_how_the_job_went(farm: Farm, worker: WorkerProcess) -> None:
    job = farm.wait(farm.start(spec(), worker.name), JobState.SUCCEEDED)
    assert job.worker == worker.name
    assert job.attempts == 1
    assert job.progress is not None
    assert (job.progress.step, job.progress.steps) == (4, 4)
    assert job.started_at is not None
    assert job.recipe is not None
    assert job.recipe["device"] == "cpu"
    assert farm.events(job) == ["job.started", "job.succeeded"]


def test_a_stale_epoch_message_is_dropped(farm: Farm, worker: WorkerProcess) -> None:
    job = farm.submit(spec())
    stale = farm.dispatch(job, worker.name, send=False)
    with farm.store.begin() as unit:
        lifecycle.requeue_unsent(unit, [stale], "for the test")
    fresh = farm.dispatch(job, worker.name, send=False)
    broker.send(farm.app, [stale])
    # a later job on the same queue is done: the stale message has been looked at
    rendered(farm, worker, spec())
    assert farm.job(job.id).state is JobState.DISPATCHED
    broker.send(farm.app, [fresh, fresh])
    done = farm.wait(job, JobState.SUCCEEDED)
    assert done.attempts == 1
    assert [one.key for one in farm.storage.list(job_prefix(farm.tenant, job.id))] == [done.outputs[0].key]


def test_a_message_of_another_version_is_left_unclaimed(farm: Farm, worker: WorkerProcess) -> None:
    job = farm.submit(spec())
    sent = farm.dispatch(job, worker.name, send=False)
    farm.app.send_task(
        broker.RENDER,
        kwargs={"job": sent.job_id, "epoch": sent.epoch, "version": 99, "more": True},
        queue=broker.queue_of(worker.name),
    )
    rendered(farm, worker, spec())
    assert farm.job(job.id).state is JobState.DISPATCHED


def test_a_running_job_stops_at_the_next_steps_when_canceled(farm: Farm, worker: WorkerProcess) -> None:
    job = farm.start(spec(num_inference_steps=150, num_outputs=8), worker.name)
    wait_until(lambda: (progress := farm.job(job.id).progress) and progress.step > 0, 60, what="it renders")
    with farm.store.begin() as unit:
        lifecycle.cancel(unit, farm.tenant, job.id)
    done = farm.wait(job, JobState.CANCELED, timeout=10)
    assert done.progress is not None
    assert done.progress.step < 150 * 8
    assert done.outputs == ()
    assert list(farm.storage.list(job_prefix(farm.tenant, job.id))) == []
    assert farm.events(job) == ["job.started", "job.canceled"]


def test_a_job_that_waits_for_the_device_is_canceled_at_once(farm: Farm, worker: WorkerProcess) -> None:
    long: dict[str, Any] = {"num_inference_steps": 150, "num_outputs": 8}
    busy = [farm.start(spec(**long, seed=seed), worker.name) for seed in range(SLOTS["cpu"])]
    wait_until(lambda: all(farm.job(job.id).progress for job in busy), 60, what="the device has no place")
    waiting = farm.start(spec(), worker.name)
    farm.wait(waiting, JobState.RUNNING)
    with farm.store.begin() as unit:
        lifecycle.cancel(unit, farm.tenant, waiting.id)
    farm.wait(waiting, JobState.CANCELED, timeout=10)
    assert farm.job(waiting.id).progress is None
    assert all(farm.job(job.id).state is JobState.RUNNING for job in busy)
    with farm.store.begin() as unit:
        for job in busy:
            lifecycle.cancel(unit, farm.tenant, job.id)
    for job in busy:
        farm.wait(job, JobState.CANCELED, timeout=10)


def test_a_broken_model_fails_its_job_and_nothing_else(farm: Farm, worker: WorkerProcess) -> None:
    job = farm.wait(farm.start(spec(model="broken"), worker.name), JobState.FAILED)
    assert job.error is not None
    assert job.error.code == "model_unavailable"
    assert "there is no directory" in job.error.message
    assert job.attempts == 1
    unknown = farm.wait(farm.start(spec(model="nowhere"), worker.name), JobState.FAILED)
    assert unknown.error is not None
    assert unknown.error.code == "model_unavailable"
    rendered(farm, worker, spec())


def test_a_lost_input_fails_its_job_without_another_try(farm: Farm, worker: WorkerProcess) -> None:
    image = farm.store_input(scene().rotate(90))
    farm.storage.delete(image.key)
    job = farm.wait(farm.start(spec("image-to-image", inputs={"image": image}), worker.name), JobState.FAILED)
    assert job.error is not None
    assert job.error.code == "input_unavailable"


def test_an_input_that_is_not_what_was_recorded_fails_its_job(farm: Farm, worker: WorkerProcess) -> None:
    image, other = farm.store_input(scene().rotate(90)), farm.store_input(scene().rotate(270))
    farm.storage.put(image.key, farm.storage.get(other.key), image.media_type)
    job = farm.wait(farm.start(spec("image-to-image", inputs={"image": image}), worker.name), JobState.FAILED)
    assert job.error is not None
    assert job.error.code == "input_unavailable"
    assert "SHA-256" in job.error.message


def test_the_worker_tells_what_it_is(farm: Farm, worker: WorkerProcess) -> None:
    rendered(farm, worker, spec())
    wait_until(lambda: (found := farm.worker(worker.name)) and found.models == ("starter",), 10)
    found = farm.worker(worker.name)
    assert found is not None
    assert found.info.device.kind == "cpu"
    assert found.info.device.dtype == "float32"
    assert found.info.device.memory_bytes > 2**28
    assert {"torch", "diffusers", "transformers", "celery", "farm"} <= set(found.info.versions)
    assert (found.info.slots, found.info.prefetch) == (4, 2)


def test_flower_would_show_the_worker_by_its_device(farm: Farm, worker: WorkerProcess) -> None:
    answers = farm.app.control.inspect(timeout=5).active_queues()
    assert list(answers) == ["cpu0@testhost"]
    assert [queue["name"] for queue in answers["cpu0@testhost"]] == [f"worker.{worker.name}"]


def test_jobs_are_on_the_device_together_and_exact_ones_keep_their_bytes(farm: Farm, worker: WorkerProcess) -> None:
    (exact,) = rendered(farm, worker, spec(seed=3))
    long = spec(num_inference_steps=150, num_outputs=8, exact=False)
    first, second = (farm.start(long.model_copy(update={"seed": seed}), worker.name) for seed in (1, 2))
    third = farm.start(spec(num_inference_steps=60, num_outputs=4, seed=3, exact=False), worker.name)
    wait_until(lambda: all(begun(farm, job.id) for job in (first, second, third)), 60, what="all are on the device")
    assert rendered(farm, worker, spec(seed=3)) == [exact]
    assert begun(farm, second.id)  # it did not wait for the others
    for job in (first, second):
        with farm.store.begin() as unit:
            lifecycle.cancel(unit, farm.tenant, job.id)
        farm.wait(job, JobState.CANCELED)
    assert len(farm.wait(third, JobState.SUCCEEDED, timeout=120).outputs) == 4


def test_a_job_shows_what_its_image_looks_like_on_the_way(farm: Farm, worker: WorkerProcess) -> None:
    listener = Listener(Database.direct(farm.settings), [PREVIEW_CHANNEL])
    listener.connect()
    job = farm.start(spec(num_inference_steps=150, preview=True), worker.name)
    heard = wait_until(lambda: listener.wait(1), 60, what="a preview is sent")
    listener.close()
    name, _, shown = heard[0].payload.partition(" ")
    assert name == job.id
    mark, _, data = shown.partition(",")
    assert mark == "data:image/jpeg;base64"
    assert len(heard[0].payload) < 8_000  # a notification of PostgreSQL is no larger
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (96, 96)
    done = farm.wait(job, JobState.SUCCEEDED, timeout=60)
    plain = rendered(farm, worker, spec(num_inference_steps=150))
    assert [farm.storage.get(output.key) for output in done.outputs] == plain  # whoever looks changes nothing


def begun(farm: Farm, job_id: str) -> bool:
    job = farm.job(job_id)
    return job.state is JobState.RUNNING and job.progress is not None and job.progress.step > 0
