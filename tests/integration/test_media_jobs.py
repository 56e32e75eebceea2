"""Clips and sounds from tiny models on a real worker: encoded, recorded as they came out, with their recipe."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest

from farm.domain.job_spec import JobSpec
from farm.domain.media import extension_of
from farm.domain.recipe import request_from_recipe
from farm.domain.states import JobState
from farm.objects import clips, containers, recipes, sounds
from farm.objects.limits import Limits
from tests.conftest import TestServers
from tests.contract.families import save
from tests.integration.worker_process import Farm, WorkerProcess
from tests.job_specs import job_spec

MODELS = """
[[model]]
id = "clips"
source = "{folder}/clips"
tasks = ["text-to-video"]
dtype = "float32"

[[model]]
id = "sounds"
source = "{folder}/sounds"
tasks = ["text-to-audio"]
dtype = "float32"
"""


@pytest.fixture(scope="module")
def farm(servers: TestServers, migrated_template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    servers.postgres.create_database("media_jobs", template=migrated_template)
    directory = tmp_path_factory.mktemp("media")
    save("latte", directory / "clips")
    save("audioldm", directory / "sounds")
    (directory / "models.toml").write_text(MODELS.format(folder=directory))
    env = servers.env(database_url=servers.postgres.url("media_jobs"), redis_url=servers.valkey.url(0))
    farm = Farm(env | {"FARM_MODELS_FILE": str(directory / "models.toml")}, directory)
    yield farm
    farm.close()
    servers.postgres.drop_database("media_jobs")


@pytest.fixture(scope="module")
def worker(farm: Farm) -> Iterator[WorkerProcess]:
    worker = WorkerProcess(farm).start()
    try:
        yield worker.wait_online()
    finally:
        worker.kill()


@pytest.mark.parametrize(
    ("values", "media_type"),
    [
        ({"task": "text-to-video", "model": "clips", "num_frames": 4, "output_format": "mp4"}, "video/mp4"),
        ({"task": "text-to-audio", "model": "sounds", "seconds": 0.25, "output_format": "flac"}, "audio/flac"),
    ],
)
def test_what_a_pipeline_gives_is_stored_as_a_file_with_its_recipe(
    farm: Farm, worker: WorkerProcess, values: dict[str, object], media_type: str
) -> None:
    size = {"width": 64, "height": 64} if values["task"] == "text-to-video" else {}
    wanted: JobSpec = job_spec(values | size | {"prompt": "a red ball", "num_inference_steps": 2, "seed": 7})
    first, second = (
        farm.wait(farm.start(wanted, worker.name), JobState.SUCCEEDED, JobState.FAILED, timeout=120) for _ in range(2)
    )
    assert first.error is None, first.error
    (output,), (again,) = first.outputs, second.outputs
    assert (output.sha256, output.media_type) == (again.sha256, media_type), "the same recipe gives the same bytes"
    assert output.key.endswith(f".{extension_of(media_type)}")
    data = farm.storage.get(output.key)
    form = containers.recognise(data)
    assert form is not None
    measure = sounds.measure if values["task"] == "text-to-audio" else clips.measure
    assert measure(data, form, Limits.of(farm.settings), "output") == output.metadata
    text = recipes.read(io.BytesIO(data))
    assert text is not None
    request = request_from_recipe(text)
    assert (request["task"], request["seed"], request["output_format"]) == (values["task"], 7, values["output_format"])
