"""When the device's memory is short, and when the engine dies."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from PIL import Image
from prometheus_client import REGISTRY

from farm.domain.model import Model
from farm.domain.worker import Device
from farm.errors import OutOfMemory
from farm.settings import Settings
from tests.job_specs import STARTER_TASKS, job_spec
from tests.unit.test_pipelines import render
from tests.waiting import wait_until
from workers import pipelines, single_renderer
from workers.device import choose
from workers.engine import Engine, EngineOptions
from workers.heartbeat import is_stalled
from workers.model_cache import ModelCache
from workers.render_request import RenderRequest, RenderResult
from workers.single_renderer import SingleRenderer

CPU = Device("cpu", "cpu0", "a processor", 2**33, "float32")
MODEL = Model(id="starter", source="builtin:starter", tasks=tuple(STARTER_TASKS))


def work() -> RenderRequest:
    spec = job_spec(
        {
            "task": "text-to-image",
            "model": "starter",
            "prompt": "",
            "negative_prompt": "",
            "num_inference_steps": 1,
            "guidance_scale": 1.0,
            "scheduler": "ddim",
            "seed": 1,
            "num_outputs": 1,
            "width": 64,
            "height": 64,
            "strength": None,
            "output_format": "png",
            "inputs": {},
        }
    )
    return RenderRequest(spec, MODEL, {}, lambda _: None, lambda _: None, threading.Event())


def failing(monkeypatch: pytest.MonkeyPatch, *outcomes: BaseException | None) -> list[bool]:
    """Let rendering end in these ways, one after the other; returns whether the VAE was tiled each time."""
    tiled: list[bool] = []
    now = False
    left = list(outcomes)

    def tile(*_: Any, on: bool) -> None:
        nonlocal now
        now = on

    def render(*_: Any, **__: Any) -> Image.Image:
        tiled.append(now)
        outcome = left.pop(0)
        if outcome is not None:
            raise outcome
        return Image.new("RGB", (64, 64))

    monkeypatch.setattr(pipelines, "set_vae_tiling", tile)
    monkeypatch.setattr(pipelines, "render", render)
    return tiled


def outcome_of(request: RenderRequest) -> Any:
    engine = Engine(EngineOptions(choose("cpu0"), torch_threads=1))
    engine.start()
    future = engine.submit(request)
    outcome = future.exception(120) or future.result()
    engine.close()
    engine.join(30)
    return outcome


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory: …")],
    ids=["device", "processor"],
)
def test_a_job_that_does_not_fit_is_tried_once_more_in_tiles_and_its_recipe_says_so(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    tiled = failing(monkeypatch, error, None)
    before = REGISTRY.get_sample_value("farm_low_memory_renders_total") or 0
    rendered = outcome_of(work())
    assert REGISTRY.get_sample_value("farm_low_memory_renders_total") == before + 1
    assert isinstance(rendered, RenderResult)
    assert tiled == [False, True]
    assert rendered.made_with["vae"] == "tiled"


def test_a_job_that_does_not_fit_in_tiles_either_fails_with_its_own_code(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, MemoryError(), MemoryError())
    error = outcome_of(work())
    assert isinstance(error, OutOfMemory)
    assert "64x64" in str(error)


def test_the_last_try_after_out_of_memory_offloads_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = "cuda:0"  # it is asked for, and no more: this machine may have none
    loaded = pipelines.load(MODEL, CPU)
    on_the_device: list[str] = []
    tiled = failing(monkeypatch, torch.OutOfMemoryError(), None)
    cpu_offload = pipelines.cpu_offload

    @contextmanager
    def watched(*given: Any) -> Iterator[None]:
        on_the_device.append(given[2])
        with cpu_offload(loaded, given[1], "cpu"):
            yield

    monkeypatch.setattr(pipelines, "cpu_offload", watched)
    monkeypatch.setattr(single_renderer, "torch_device", lambda _: asked)
    models = ModelCache(Device("cuda", "cuda0", "a device", 2**33, "float16"))
    models._models[MODEL.id] = loaded
    rendered = SingleRenderer(models, lambda: None).render(work())
    assert (len(rendered.artifacts), tiled, on_the_device) == (1, [True, True], [asked])
    assert rendered.made_with["vae"] == "tiled"


def test_cpu_offload_gives_the_same_image_and_restores_the_device() -> None:
    loaded = pipelines.load(MODEL, CPU)
    wanted = work()

    def image() -> Image.Image:
        return render(loaded, wanted.spec, {})

    before = image()
    unet = loaded.pipeline("text-to-image").unet
    with pipelines.cpu_offload(loaded, "text-to-image", "cpu"):
        assert hasattr(unet, "_hf_hook")
        assert image().tobytes() == before.tobytes()
    assert not hasattr(unet, "_hf_hook")
    assert unet.device == torch.device("cpu")
    assert image().tobytes() == before.tobytes()


def test_other_failures_are_not_treated_as_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    tiled = failing(monkeypatch, ValueError("odd"))
    assert isinstance(outcome_of(work()), ValueError)
    assert tiled == [False]


def test_a_failed_engine_ends_the_process() -> None:
    program = """
import threading
from workers import engine
from workers.device import choose
def broken(*_): raise RuntimeError("the device is on fire")
engine.make_renderers = broken
engine.Engine(engine.EngineOptions(choose("cpu0"))).start()
threading.Event().wait(60)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 70
    assert "the device is on fire" in ran.stdout + ran.stderr


def test_an_engine_with_nothing_to_do_has_not_stalled_and_one_that_hangs_has() -> None:
    settings = Settings(step_timeout_seconds=0.05)
    engine = Engine(EngineOptions(choose("cpu0")))  # never started: it takes nothing up, as if it hung
    engine.loading = False
    engine.progress_at = time.monotonic() - 10
    assert not is_stalled(engine, settings)
    waiting = work()
    engine.submit(waiting)
    assert not is_stalled(engine, settings)
    wait_until(lambda: is_stalled(engine, settings), 5)
    engine.loading = True  # a download may take far longer
    assert not is_stalled(engine, settings)


def test_a_waiting_request_is_withdrawn_at_once() -> None:
    engine = Engine(EngineOptions(choose("cpu0")))
    first, second = work(), work()
    future = engine.submit(first)
    engine.submit(second)
    assert engine.withdraw(first)
    assert isinstance(future.exception(0), Exception)
    assert not engine.withdraw(first)
    assert not second.future.done()
