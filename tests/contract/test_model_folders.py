"""Folders as people have them, in shards, with variants, without optional parts; and those that are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from farm import model_registry
from farm.domain.model import Model, Registry
from farm.pipelines.catalogue import catalogue
from tests.contract.families import FAMILIES, farm, save, stock
from workers import numerics, pipelines
from workers.batched_renderer import BatchedRenderer
from workers.model_cache import ModelCache

pytestmark = pytest.mark.filterwarnings("ignore")
Change = Callable[[Path, Any], None]


@pytest.fixture(scope="module", autouse=True)
def _deterministic() -> None:
    pipelines.silence_libraries()
    numerics.make_deterministic(1)


def resaved(**options: Any) -> Change:
    """The model written anew, with options of ``save_pretrained``."""

    def change(folder: Path, pipeline: Any) -> None:
        shutil.rmtree(folder)
        pipeline.save_pretrained(folder, **options)

    return change


def indexed(**entries: Any) -> Change:
    """Other entries in the index."""

    def change(folder: Path, pipeline: Any) -> None:
        index = folder / "model_index.json"
        index.write_text(json.dumps(json.loads(index.read_text("utf-8")) | entries), "utf-8")

    return change


def one_variant(folder: Path, pipeline: Any) -> None:
    """The UNet has half-precision files alone, everything else plain ones."""
    shutil.rmtree(folder / "unet")
    pipeline.unet.save_pretrained(folder / "unet", variant="fp16")


def linked(folder: Path, pipeline: Any) -> None:
    """Links to folders that lie elsewhere."""
    moved = folder.rename(folder.with_name("blobs"))
    folder.mkdir()
    for part in moved.iterdir():
        (folder / part.name).symlink_to(part)


def other_files(folder: Path, pipeline: Any) -> None:
    """What repositories have beside the model: other formats, variants, a single file, a text."""
    (folder / "README.md").write_text("x")
    (folder / "v1-5-pruned.safetensors").write_bytes(b"")
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"")
    pipeline.vae.save_pretrained(folder / "vae", variant="fp16")


def without_t5(folder: Path, pipeline: Any) -> None:
    """Stable Diffusion 3 as diffusers saves it without its third text encoder."""
    pipeline.text_encoder_3 = pipeline.tokenizer_3 = None
    shutil.rmtree(folder)
    pipeline.register_modules(text_encoder_3=None, tokenizer_3=None)
    pipeline.save_pretrained(folder)


LOADED = {
    "shards": ("stable-diffusion", resaved(max_shard_size="100KB")),
    "shards of a variant": ("stable-diffusion", resaved(max_shard_size="100KB", variant="fp16")),
    "one component of a variant": ("stable-diffusion", one_variant),
    "links": ("stable-diffusion", linked),
    "other files": ("stable-diffusion", other_files),
    "a class of transformers 4": (
        "stable-diffusion",
        indexed(feature_extractor=["transformers", "CLIPFeatureExtractor"]),
    ),
    "a safety checker that is not there": (
        "stable-diffusion",
        indexed(safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"], requires_safety_checker=True),
    ),
    "nulls": ("stable-diffusion", indexed(image_encoder=[None, None], feature_extractor=[None, None])),
    "a text encoder less": ("stable-diffusion-3", without_t5),
}


def registered(folder: Path) -> Registry:
    return model_registry.parse(f'[[model]]\nid = "m"\nsource = "{folder}"\n', "a file")


def the_model(registry: Registry) -> Model:
    model = registry.get("m")
    assert model is not None
    return model


@pytest.mark.parametrize(("family", "change"), LOADED.values(), ids=LOADED)
def test_a_folder_renders_as_its_pipeline_does(family: str, change: Change, tmp_path: Path) -> None:
    known, folder = FAMILIES[family], save(family, tmp_path / "model")
    name = known.pipeline_class
    pipeline = stock.load(known, name, folder)
    change(folder, pipeline)
    expected = stock.render(pipeline, known.calls[name].arguments())
    registry = registered(folder)
    assert registry.problems == ()
    job = farm.job_of(catalogue().pipeline(name), known.calls[name].arguments(), "m")
    renderer = BatchedRenderer(ModelCache(farm.CPU), 8)
    (outcome,) = farm.run(renderer, the_model(registry), [job.spec], job.inputs)
    assert outcome.result is not None, outcome.error
    found = farm.values_of(outcome.result.artifacts[0])
    assert np.array_equal(found, farm.expected_values(expected, job.spec.task))


def removed(part: str, pattern: str) -> Change:
    def change(folder: Path, pipeline: Any) -> None:
        for path in (folder / part).glob(pattern):
            path.unlink()

    return change


def own_component(folder: Path, pipeline: Any) -> None:
    indexed(unet=["my_unet", "MyUNet"])(folder, pipeline)
    (folder / "unet" / "my_unet.py").write_text("raise SystemExit")


def pickled(folder: Path, pipeline: Any) -> None:
    removed("vae", "*.safetensors")(folder, pipeline)
    torch.save(pipeline.vae.state_dict(), folder / "vae" / "diffusion_pytorch_model.bin")


REFUSED = {
    "weights that can contain code": (pickled, "has no .safetensors files in vae"),
    "no weights": (removed("text_encoder", "*.safetensors"), "has no .safetensors files in text_encoder"),
    "a component's code": (own_component, "has code of its own for unet"),
    "a pipeline's code": (
        indexed(_class_name=["pipeline_mine", "Mine"]),
        "a class of its own, pipeline_mine.Mine",
    ),
    "an unknown scheduler": (indexed(scheduler=["diffusers", "NoScheduler"]), "has no scheduler NoScheduler"),
    "an unknown class": (indexed(_class_name="NoPipeline"), "has no class NoPipeline"),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("stable-diffusion", tmp_path_factory.mktemp("saved") / "model")


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_a_folder_that_cannot_be_loaded_is_reported(change: Change, message: str, saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved, tmp_path / "model")
    change(folder, stock.load(FAMILIES["stable-diffusion"], "StableDiffusionPipeline", folder))
    registry = registered(folder)
    assert registry.get("m") is None
    (problem,) = registry.problems
    assert message in problem.message
    assert problem.remedy


def test_packages_that_a_model_needs_are_named() -> None:
    def lacking(pipeline: str, **facts: Any) -> dict[str, str]:
        model = Model(id="m", source="some/model", pipeline=pipeline, **facts)
        model = model.model_copy(update={"tasks": model.capable()})
        return {one.key: one.message for one in model_registry.lacking(model)}

    assert lacking("StableDiffusionPipeline") == {}
    assert set(lacking("OnnxStableDiffusionPipeline").values()) == {"needs the package onnxruntime"}
    configs = {"transformer": {"quantization_config": {"quant_method": "quanto"}}}
    assert lacking("FluxPipeline", configs=configs) == {"transformer": "needs the package optimum-quanto"}


TASKS_OF = {
    "stable-diffusion": {"text-to-image", "image-to-image", "inpainting"},
    "stable-diffusion-inpainting": {"inpainting"},
    "stable-diffusion-xl-refiner": {"image-to-image", "inpainting"},
    "kandinsky-2.2": {"text-to-image", "image-to-image"},
    "kandinsky-2.2-inpainting": {"inpainting"},
    "controlnet-sd3": {"text-to-image"},
    "controlnet-sd3-inpainting": {"inpainting"},
    "wan": {"text-to-video", "video-to-video"},
    "wan-2.2": {"text-to-video"},  # two transformers: the class for videos would use one
    "wan-2.2-5b": {"text-to-video"},
}


@pytest.mark.parametrize(("family", "tasks"), TASKS_OF.items())
def test_a_folder_offers_the_tasks_that_its_weights_are_made_for(family: str, tasks: set[str], tmp_path: Path) -> None:
    registry = registered(save(family, tmp_path / "model"))
    assert registry.problems == ()
    assert set(the_model(registry).tasks) == tasks


def test_a_task_that_the_weights_are_not_made_for_is_refused_with_the_reason(tmp_path: Path) -> None:
    folder = save("stable-diffusion-inpainting", tmp_path / "model")
    stated = model_registry.parse(f'[[model]]\nid = "m"\nsource = "{folder}"\ntasks = ["text-to-image"]\n', "a file")
    assert any("made for inpainting" in problem.message for problem in stated.problems)
