"""From a spec to one call of a stock pipeline, with the built-in model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from farm.domain.cost import steps_run
from farm.domain.job_spec import JobSpec
from farm.domain.model import Model
from farm.domain.worker import Device
from farm.errors import JobCanceled, ModelUnavailable, UnsuitableInput
from tests.job_specs import STARTER_SCHEDULERS, STARTER_TASKS, job_spec
from workers import numerics, pipelines
from workers.media.artifacts import Artifact
from workers.model_cache import CpuModelCache, ModelCache, weights
from workers.pipelines import LoadedModel
from workers.starter import WEIGHTS

# what torch and diffusers say about each other's insides
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning"),
    pytest.mark.filterwarnings("ignore:`torch_dtype` is deprecated:FutureWarning"),
]

CPU = Device("cpu", "cpu0", "a processor", 2**33, "float32")
STARTER = Model(id="starter", source="builtin:starter", tasks=tuple(STARTER_TASKS), dtype="float32")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    pipelines.silence_libraries()
    numerics.make_deterministic(1)


@pytest.fixture(scope="module")
def starter() -> LoadedModel:
    return pipelines.load(STARTER, CPU)


def spec(task: str = "text-to-image", **changes: Any) -> JobSpec:
    values: dict[str, Any] = {
        "task": task,
        "model": "starter",
        "prompt": "a red sphere on a blue background",
        "negative_prompt": "",
        "num_inference_steps": 3,
        "guidance_scale": 4.0,
        "scheduler": "ddim",
        "seed": 7,
        "num_outputs": 1,
        "width": 64,
        "height": 64,
        "strength": None if task == "text-to-image" else 1.0,
        "output_format": "png",
        "inputs": {},
    }
    return job_spec(values | changes)


def images(task: str, size: tuple[int, int] = (64, 64)) -> dict[str, tuple[Image.Image, ...]]:
    scene = Image.new("RGB", size, (40, 60, 200))
    scene.paste((220, 40, 40), (10, 10, 40, 40))
    found: dict[str, tuple[Image.Image, ...]] = {"image": (scene,)}
    if task == "inpainting":
        mask = Image.new("L", size, 0)
        mask.paste(255, (5, 5, 30, 30))
        found["mask_image"] = (mask,)
    return {} if task == "text-to-image" else found


def render(
    loaded: LoadedModel,
    wanted: JobSpec,
    inputs: Mapping[str, Sequence[Artifact]],
    index: int = 0,
    on_step: Callable[[int], None] = lambda _: None,
) -> Image.Image:
    artifact = pipelines.render(loaded, wanted, index, inputs, on_step, threading.Event())
    assert isinstance(artifact, Image.Image)
    return artifact


def test_the_pipelines_of_a_model_share_their_components(starter: LoadedModel) -> None:
    made = [starter.pipeline(task) for task in STARTER_TASKS]
    for name in ("vae", "text_encoder", "tokenizer"):
        assert len({id(pipeline.components[name]) for pipeline in made}) == 1
    plain = [starter.pipeline(task) for task in STARTER_TASKS if task != "depth-to-image"]
    assert len({id(pipeline.unet) for pipeline in plain}) == 1
    files = sum(path.stat().st_size for path in WEIGHTS.rglob("*.safetensors"))
    assert starter.bytes < 2.5 * files  # float16 in the files, float32 in memory, each once


def test_a_folder_in_the_usual_layout_serves_the_tasks_from_one_set_of_weights() -> None:
    tasks = ("text-to-image", "image-to-image", "inpainting")
    loaded = pipelines.load(Model(id="folder", source=str(WEIGHTS), tasks=tasks), CPU)
    assert len({id(loaded.pipeline(task).unet) for task in tasks}) == 1
    assert all(parameter.dtype is torch.float32 for parameter in loaded.pipeline(tasks[0]).unet.parameters())
    with pytest.raises(
        ModelUnavailable, match="does not support depth-to-image: it does image-to-image, inpainting, text-to-image"
    ):
        loaded.pipeline("depth-to-image")
    for task in tasks:
        assert render(loaded, spec(task), images(task)).size == (64, 64)


@pytest.mark.parametrize("task", STARTER_TASKS)
@pytest.mark.parametrize("scheduler", STARTER_SCHEDULERS)
def test_every_scheduler_renders_every_task(starter: LoadedModel, task: str, scheduler: str) -> None:
    steps: list[int] = []
    wanted = spec(task, scheduler=scheduler, num_inference_steps=5, strength=None if not images(task) else 0.6)
    image = render(starter, wanted, images(task), on_step=steps.append)
    assert (image.mode, image.size) == ("RGB", (64, 64))
    assert steps == sorted(steps)
    assert steps[-1] == steps_run(wanted)
    low, high = image.convert("L").getextrema()
    assert low != high  # black is what a pipeline makes of NaN


@pytest.mark.parametrize("task", STARTER_TASKS)
def test_the_same_spec_gives_the_same_pixels_whatever_ran_before(starter: LoadedModel, task: str) -> None:
    first = render(starter, spec(task), images(task))
    render(starter, spec(scheduler="euler-ancestral", guidance_scale=1.0, seed=99), {})
    assert render(starter, spec(task), images(task)).tobytes() == first.tobytes()


def test_image_i_is_the_image_of_seed_plus_i(starter: LoadedModel) -> None:
    second = render(starter, spec(num_outputs=2), {}, index=1)
    assert second.tobytes() == render(starter, spec(seed=8), {}).tobytes()


@pytest.mark.parametrize("task", [task for task in STARTER_TASKS if task != "text-to-image"])
def test_inputs_are_brought_to_the_size_that_was_asked_for(starter: LoadedModel, task: str) -> None:
    wanted = spec(task, width=48, height=80, num_inference_steps=1)
    assert render(starter, wanted, images(task, (100, 60))).size == (48, 80)


def test_sixteen_and_eight_bits_of_the_same_depth_give_the_same_image(starter: LoadedModel) -> None:
    eight = Image.linear_gradient("L").resize((64, 64))
    sixteen = Image.frombytes("I;16", (64, 64), b"".join(bytes((value, value)) for value in eight.tobytes()))
    made = [
        render(starter, spec("depth-to-image"), images("depth-to-image") | {"depth_map": (depth,)})
        for depth in (eight, sixteen)
    ]
    assert made[0].tobytes() == made[1].tobytes()


def test_a_flat_depth_map_is_refused_and_not_turned_black(starter: LoadedModel) -> None:
    inputs = images("depth-to-image") | {"depth_map": (Image.new("L", (64, 64), 9),)}
    with pytest.raises(UnsuitableInput, match="same value everywhere"):
        render(starter, spec("depth-to-image"), inputs)


def test_a_stopped_job_ends_at_its_next_step(starter: LoadedModel) -> None:
    stop = threading.Event()
    steps: list[int] = []

    def on_step(step: int) -> None:
        steps.append(step)
        if step == 2:
            stop.set()

    with pytest.raises(JobCanceled):
        pipelines.render(starter, spec(num_inference_steps=20), 0, {}, on_step, stop)
    assert steps == [1, 2]


@pytest.mark.parametrize("source", ["./no/such/place", "/no/such/place", "builtin:nothing"])
def test_a_missing_model_is_reported_in_one_sentence(source: str) -> None:
    with pytest.raises(ModelUnavailable, match="model gone") as caught:
        pipelines.load(Model(id="gone", source=source, tasks=("text-to-image",)), CPU)
    assert "\n" not in str(caught.value)


def test_weights_that_can_run_code_are_not_loaded(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ModelUnavailable, match="safetensors"):
        pipelines.load(Model(id="old", source=str(tmp_path), tasks=("text-to-image",)), CPU)


def test_a_damaged_model_is_unavailable_and_not_a_crash(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "NoSuchPipeline"}')
    (tmp_path / "x.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelUnavailable, match="cannot be loaded"):
        pipelines.load(Model(id="odd", source=str(tmp_path), tasks=("text-to-image",)), CPU)


def test_the_fingerprint_is_of_the_weights_content(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(bytes(100))
    first = pipelines.fingerprint(tmp_path)
    (tmp_path / "README.md").write_text("words")
    assert pipelines.fingerprint(tmp_path) == first
    file.write_bytes(bytes(99) + b"\x01")
    assert pipelines.fingerprint(tmp_path) != first


def test_the_least_recently_used_model_is_evicted_first(starter: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []

    def load(model: Model, _device: Device) -> LoadedModel:
        loads.append(model.id)
        return LoadedModel(model, "float32", None, "", 100, SimpleNamespace(components={}))

    monkeypatch.setattr(pipelines, "load", load)
    models = {name: STARTER.model_copy(update={"id": name}) for name in "abc"}
    cache = ModelCache(Device("cpu", "cpu0", "", 500, "float32"))  # half of it is for weights
    for name in "abac":
        cache.load(models[name])
    assert loads == ["a", "b", "c"]
    assert cache.sizes == (("a", 100), ("c", 100))
    cache.load(models["b"])
    assert cache.sizes == (("c", 100), ("b", 100))
    changed = models["b"].model_copy(update={"source": "elsewhere"})  # its registry entry has changed
    assert changed not in cache
    assert cache.load(changed).model == changed


def test_the_cpu_cache_returns_an_evicted_model_with_its_weights_and_keeps_within_its_limit() -> None:
    def loaded(name: str) -> LoadedModel:
        pipeline = SimpleNamespace(components={"unet": torch.nn.Linear(9, 10), "scheduler": None})  # 400 bytes
        model = STARTER.model_copy(update={"id": name})
        return LoadedModel(model, "float32", None, "", 400, pipeline)

    models = {name: loaded(name) for name in "abc"}
    before = {name: [tensor.clone() for tensor in weights(model)] for name, model in models.items()}
    cache = CpuModelCache(Device("cuda", "cuda:0", "a device", 2**30, "float16"), 800)
    cache._torch_device = "cpu"  # this machine may have no other device
    assert all(cache.put(models[name]) for name in "abc")
    assert cache.bytes == 800
    assert cache.take(models["a"].model) is None  # the oldest was removed
    assert cache.take(models["c"].model.model_copy(update={"source": "elsewhere"})) is None
    back = cache.take(models["b"].model)
    assert back is models["b"]
    assert all(torch.equal(here, there) for here, there in zip(weights(back), before["b"], strict=True))
    assert cache.bytes == 0
    assert not CpuModelCache(Device("cuda", "cuda:0", "a device", 2**30, "float16"), 399).put(models["a"])
    assert not CpuModelCache(Device("cpu", "cpu0", "a processor", 2**30, "float32"), 2**30).put(models["a"])
