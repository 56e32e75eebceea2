"""What only a CUDA device can show. ``python -m pytest tests/gpu``; skipped, with a sentence, where there is none."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from farm.domain.job_spec import JobSpec
from farm.domain.model import Model
from farm.domain.worker import Device
from tests.job_specs import STARTER_TASKS
from tests.unit.test_pipelines import images, render, spec
from workers import device as devices
from workers import numerics, pipelines
from workers.batched_renderer import BatchedRenderer
from workers.engine import Engine, EngineOptions
from workers.model_cache import ModelCache
from workers.pipelines import LoadedModel
from workers.render_request import RenderRequest, RenderResult

pytestmark = [
    pytest.mark.skipif(
        not torch.cuda.is_available(),
        reason="torch sees no CUDA device: half precision, memory limits and equal rows on a device are not tried here",
    ),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

MODEL = Model(id="starter", source="builtin:starter", tasks=tuple(STARTER_TASKS))


@pytest.fixture(autouse=True)
def deterministic() -> None:
    pipelines.silence_libraries()
    numerics.make_deterministic(1)


def mixed(*, exact: bool) -> list[JobSpec]:
    return [
        spec(
            task,
            num_inference_steps=6 + index,
            guidance_scale=2.0 + index,
            seed=index,
            strength=None if task == "text-to-image" else 0.8,
            exact=exact,
        )
        for index, task in enumerate([*STARTER_TASKS, "text-to-image", "text-to-image"])
    ]


def rendered(renderer: BatchedRenderer, model: Model, specs: list[JobSpec]) -> list[np.ndarray[Any, Any]]:
    jobs = [
        RenderRequest(one, model, images(one.task), lambda _: None, lambda _: None, threading.Event()) for one in specs
    ]
    ended: dict[RenderRequest, Any] = {}
    for job in jobs:
        renderer.admit(job)
        ended.update(renderer.advance())
    while renderer.active:
        ended.update(renderer.advance())
    ended.update(renderer.advance())
    for job in jobs:
        assert isinstance(ended[job], RenderResult), ended[job]
    return [np.asarray(ended[job].artifacts[0], int) for job in jobs]


def test_the_device_is_described_by_what_it_can_do() -> None:
    device = devices.describe(devices.choose("cuda:0"))
    assert device.memory_bytes > 2**30
    assert device.dtype in {"bfloat16", "float16", "float32"}


@pytest.mark.parametrize("dtype", ["float32", "auto"])
def test_exact_images_do_not_depend_on_co_batched_images(dtype: Any) -> None:
    model = MODEL.model_copy(update={"dtype": dtype})
    renderer = BatchedRenderer(ModelCache(devices.describe(devices.choose("cuda:0"))), 8)
    first = rendered(renderer, model, mixed(exact=True))
    other_way = rendered(renderer, model, mixed(exact=True)[::-1])[::-1]
    (alone,) = rendered(renderer, model, mixed(exact=True)[4:5])
    assert [one.tobytes() for one in first] == [one.tobytes() for one in other_way]
    assert alone.tobytes() == first[4].tobytes()


def test_shared_images_differ_by_rounding_alone() -> None:
    model = MODEL.model_copy(update={"dtype": "float32"})
    renderer = BatchedRenderer(ModelCache(devices.describe(devices.choose("cuda:0"))), 8)
    company = np.stack(rendered(renderer, model, mixed(exact=False)))
    alone = np.stack([rendered(renderer, model, [one])[0] for one in mixed(exact=False)])
    differences = np.abs(company - alone)
    assert differences.max() <= 1
    assert (differences.max(-1) > 0).mean() <= 0.001
    assert renderer.batcher.rows > renderer.batcher.forwards


def test_a_model_returns_from_the_cpu_cache_with_the_same_pixels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loads: list[str] = []
    real = pipelines.load

    def load(model: Model, device: Device) -> LoadedModel:
        loads.append(model.id)
        return real(model, device)

    monkeypatch.setattr(pipelines, "load", load)
    device = devices.describe(devices.choose("cuda:0"))
    cache = ModelCache(replace(device, memory_bytes=100_000_000), cpu_bytes=2**30)  # one model fits the device
    models = [MODEL.model_copy(update={"id": name}) for name in ("one", "other")]
    wanted = mixed(exact=True)[0]

    def image(model: Model) -> bytes:
        loaded = cache.load(model)
        return render(loaded, wanted, {}).tobytes()

    first = image(models[0])
    held = torch.cuda.memory_allocated()
    image(models[1])
    assert [name for name, _ in cache.sizes] == ["other"]
    assert torch.cuda.memory_allocated() < 1.5 * held  # the first one's weights are off the device
    assert image(models[0]) == first
    assert loads == ["one", "other"]


def test_only_the_engines_thread_touches_the_device() -> None:
    engine = Engine(EngineOptions(devices.choose("cuda:0"), torch_threads=1, slots=4))
    engine.start()
    work = RenderRequest(mixed(exact=True)[0], MODEL, {}, lambda _: None, lambda _: None, threading.Event())
    assert len(engine.submit(work).result(300).artifacts) == 1
    engine.close()
    engine.join(60)
    assert not engine.is_alive()


def test_cpu_offload_gives_the_same_image_and_restores_the_device() -> None:
    loaded = pipelines.load(MODEL.model_copy(update={"dtype": "float32"}), devices.describe(devices.choose("cuda:0")))
    unet = loaded.pipeline("text-to-image").unet

    def image() -> Any:
        return pipelines.render(loaded, spec("text-to-image"), 0, {}, lambda _: None, threading.Event())

    before = image()
    with pipelines.cpu_offload(loaded, "text-to-image", "cuda:0"):
        assert unet.device.type == "cpu"
        assert image().tobytes() == before.tobytes()
    assert unet.device.type == "cuda"
    assert image().tobytes() == before.tobytes()
