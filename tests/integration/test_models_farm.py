"""A model reaches workers that have no file of it, while the farm runs: a dispatcher and two workers as processes."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from diffusers import StableDiffusionPipeline
from PIL import Image

from farm.client import ApiError
from farm.client import Farm as Client
from farm.objects.storage import Storage
from farm.settings import Settings, settings
from tests.api_server import running
from tests.conftest import TestServers
from tests.contract.families import stable_diffusion
from tests.ldm_layout import save_single_file

from .worker_process import Farm, WorkerProcess

MINUTE = 60


@dataclass
class Running:
    """A farm of two hosts."""

    client: Client
    workers: tuple[WorkerProcess, WorkerProcess]
    hosts: tuple[Path, Path]  #: their data directories
    key: str

    def renders(self, model: str, **parameters: object) -> None:
        """Render a job with the model on each worker."""
        names = [worker.name for worker in self.workers]
        for name, other in (names, names[::-1]):
            self.client.drain_worker(other)
            try:
                rendered = self.client.run("a fox", model=model, num_inference_steps=2, timeout=MINUTE, **parameters)  # type: ignore[arg-type]
                assert rendered.job.worker == name
            finally:
                self.client.resume_worker(other)

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command line against this farm."""
        command = [sys.executable, "-m", "farm.cli", *arguments, "--url", self.client.url, "--api-key", self.key]
        return subprocess.run(command, capture_output=True, text=True, timeout=2 * MINUTE)


class HostWorker(WorkerProcess):
    """A worker on a host of its own."""

    @property
    def name(self) -> str:
        return f"{self.env['FARM_WORKER_HOST']}/{self.device}"


@pytest.fixture(scope="module")
def farm(servers: TestServers, migrated_template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    servers.postgres.create_database("models_farm", template=migrated_template)
    env = servers.env(database_url=servers.postgres.url("models_farm"), redis_url=servers.valkey.url(1))
    env |= {"FARM_HEARTBEAT_SECONDS": "1", "HF_HUB_OFFLINE": "1"}
    hosts = (tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        settings.cache_clear()
        behind = Farm(env, tmp_path_factory.mktemp("logs"))
        workers = [
            HostWorker(behind, f"cpu{number}", {"FARM_WORKER_HOST": f"host{number}", "FARM_DATA_DIR": str(host)})
            for number, host in enumerate(hosts)
        ]
        dispatcher = subprocess.Popen(
            [sys.executable, "-c", "from farm.cli.serve_dispatcher import dispatcher; dispatcher()"],
            env=os.environ | env,
        )
        try:
            for worker in workers:
                worker.start()
            with running(Settings()) as api, Client(api.url, api.key) as client:
                for worker in workers:
                    worker.wait_online()
                yield Running(client, (workers[0], workers[1]), hosts, api.key)
        finally:
            for worker in workers:
                worker.kill()
            dispatcher.kill()
            dispatcher.wait()
            behind.close()
    settings.cache_clear()
    servers.postgres.drop_database("models_farm")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion in diffusers' layout."""
    made = tmp_path_factory.mktemp("models") / "tiny-sd"
    with warnings.catch_warnings(action="ignore"):  # diffusers would like another scheduler's option
        StableDiffusionPipeline(**stable_diffusion.components(), **stable_diffusion.UNCHECKED).save_pretrained(made)
    return made


def test_a_pushed_model_renders_within_a_minute_on_workers_that_had_no_file_of_it(farm: Running, folder: Path) -> None:
    began = time.monotonic()
    pushed = farm.cli("models", "push", str(folder), "--description", "a tiny one")
    assert pushed.stdout.startswith("tiny-sd is ready: text-to-image, ")
    assert "tiny-sd: rendering on host" in pushed.stderr  # progress
    ready = farm.client.model("tiny-sd")
    assert {one["task"]: one["state"] for one in ready.report["tasks"]} == dict.fromkeys(ready.tasks, "rendered")
    assert (ready.report["dtype"], ready.report["runs_alone"]) == ("float32", None)
    farm.renders("tiny-sd", width=32, height=32)
    assert time.monotonic() - began < MINUTE
    for host in farm.hosts:
        (fetched,) = (path for path in (host / "models").iterdir() if path.is_dir())
        assert {path.name for path in fetched.iterdir()} == {path.name for path in folder.iterdir()}

    farm.client.pause()
    accepted = farm.client.submit("a fox", model="tiny-sd", num_inference_steps=2, width=32, height=32)
    farm.client.remove_model("tiny-sd")
    with pytest.raises(ApiError, match="this model was removed; for this task: starter"):
        farm.client.submit("a fox", model="tiny-sd")
    farm.client.resume()
    assert farm.client.wait(accepted, timeout=MINUTE).succeeded


def test_a_model_that_cannot_be_rendered_is_never_offered(farm: Running, folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"these are no weights")
    pushed = farm.client.push_model(broken)
    failed = farm.client.wait_model(pushed, timeout=MINUTE)
    assert failed.state == "failed"
    assert str(failed.report["message"]).startswith("model broken cannot be loaded")
    with pytest.raises(ApiError, match="this model failed its check: model broken cannot be loaded"):
        farm.client.submit("a fox", model="broken")


def test_a_checkpoint_in_one_file_renders_what_its_folder_renders(farm: Running, folder: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "from-civitai.safetensors"
    save_single_file(StableDiffusionPipeline.from_pretrained(folder), checkpoint)
    alone = farm.client.wait_model(farm.client.push_model(checkpoint, "alone"), timeout=MINUTE)
    assert alone.state == "failed"
    assert "configs and tokenizers would come from stable-diffusion-v1-5/stable-diffusion-v1-5, which cannot be " in (
        message := str(alone.report["message"])
    )
    assert message.endswith("state config, a folder or a model of the farm of the same family")
    base = farm.client.wait_model(farm.client.push_model(folder, "base"), timeout=MINUTE)
    assert base.state == "ready", base.report
    began = time.monotonic()
    single = farm.client.wait_model(farm.client.push_model(checkpoint, config="base"), timeout=MINUTE)
    assert (single.id, single.state) == ("from-civitai", "ready"), single.report
    farm.client.remove_model("base")  # what was taken from it stays
    farm.renders("from-civitai", width=32, height=32)
    assert time.monotonic() - began < MINUTE

    farm.client.wait_model(farm.client.push_model(folder, "base"), timeout=MINUTE)
    parameters: Any = {"seed": 1, "num_inference_steps": 2, "width": 32, "height": 32, "timeout": MINUTE}
    one, other = (
        Image.open(io.BytesIO(farm.client.run("a fox", model=model, **parameters).images[0].data)).tobytes()
        for model in ("base", "from-civitai")
    )
    assert one == other


def test_a_model_in_another_bucket_is_copied_and_stays_as_it_was_checked(
    farm: Running, folder: Path, storage: Storage
) -> None:
    other = storage.of_bucket("elsewhere")
    other.ensure_bucket()
    for path in folder.rglob("*"):
        if path.is_file():
            other.put_file(f"weights/tiny/{path.relative_to(folder).as_posix()}", path, "application/octet-stream")
    other.put("weights/tiny/unet/model.bin", b"code", "application/octet-stream")
    other.put("weights/tiny-other/model_index.json", b"{}", "application/json")
    empty = farm.client.wait_model(farm.client.add_model("empty", "s3://elsewhere/nothing"), timeout=MINUTE)
    assert "s3://elsewhere/nothing has no .safetensors files" in str(empty.report["message"])
    copied = farm.client.wait_model(farm.client.add_model("copied", "s3://elsewhere/weights/tiny"), timeout=MINUTE)
    assert copied.state == "ready", copied.report
    for one in list(other.list("weights/")):
        other.delete(one.key)
    farm.renders("copied", width=32, height=32)


@pytest.fixture
def storage(servers: TestServers, monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    for name, value in servers.env().items():
        monkeypatch.setenv(name, value)
    made = Storage(Settings())
    yield made
    made.close()
