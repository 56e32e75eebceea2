"""Whole jobs in the batched renderer, and the engine's thread: slots, interactive and isolated jobs, memory."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from prometheus_client import REGISTRY

from farm.domain.cost import steps_run
from farm.domain.job_spec import JobSpec
from farm.domain.model import Model
from farm.domain.states import Priority
from farm.errors import DeviceFailed, JobCanceled, ModelUnavailable, OutOfMemory
from tests.job_specs import STARTER_TASKS
from tests.unit.test_pipelines import CPU, images, spec
from tests.waiting import wait_until
from workers import numerics, pipelines, preemption
from workers.batched_renderer import BatchedRenderer
from workers.device import choose
from workers.engine import Engine, EngineOptions
from workers.media.artifacts import Artifact
from workers.model_cache import ModelCache
from workers.pipelines.isolation import ClassIsolation, Sharing
from workers.process import slots
from workers.render_request import CheckpointPart, RenderRequest, RenderResult
from workers.speed import Speed

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning"),
    pytest.mark.filterwarnings("ignore:`torch_dtype` is deprecated:FutureWarning"),
]

EXACT = Model(id="starter", source="builtin:starter", tasks=tuple(STARTER_TASKS), dtype="float32")
SMALL: dict[str, Any] = {"width": 32, "height": 32}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    pipelines.silence_libraries()
    numerics.make_deterministic(1)


@pytest.fixture(autouse=True)
def all_rows_are_efficient(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests do not depend on which row counts are efficient on a busy machine."""
    monkeypatch.setattr("workers.batching.row_selection.most_efficient_rows", max)


@pytest.fixture(autouse=True)
def no_call_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests begin where the calls of every class are known to share."""
    monkeypatch.setattr("workers.pipelines.loaded_model.ClassIsolation", lambda: ClassIsolation(Sharing.SHARES))


def request(wanted: JobSpec, model: Model = EXACT, priority: Priority = Priority.NORMAL) -> RenderRequest:
    done: list[int] = []
    made = RenderRequest(
        wanted, model, images(wanted.task), lambda _: None, done.append, threading.Event(), priority=priority
    )
    made.__dict__["done"] = done
    return made


def render_all(renderer: BatchedRenderer) -> dict[RenderRequest, Any]:
    ended: dict[RenderRequest, Any] = {}
    while renderer.active:
        ended.update(renderer.advance())
    return ended | dict(renderer.advance())


def test_the_images_of_jobs_share_forwards_and_each_job_counts_its_own_steps() -> None:
    starter = pipelines.load(EXACT, CPU)
    renderer = BatchedRenderer(ModelCache(CPU), 8)
    jobs = [
        request(spec(num_outputs=3, seed=4, exact=False, **SMALL)),
        request(spec(num_inference_steps=5, seed=9, exact=False, **SMALL)),
    ]
    timed = REGISTRY.get_sample_value("farm_forward_duration_seconds_count") or 0
    for job in jobs:
        renderer.admit(job)
    ended = render_all(renderer)
    assert renderer.batcher.rows / renderer.batcher.forwards > 3
    assert (REGISTRY.get_sample_value("farm_forward_duration_seconds_count") or 0) - timed == renderer.batcher.forwards
    for job in jobs:
        rendered = ended[job]
        assert isinstance(rendered, RenderResult)
        assert len(rendered.artifacts) == job.spec.num_outputs
        for index, image in enumerate(rendered.artifacts):
            alone = pipelines.render(starter, job.spec, index, {}, lambda _: None, threading.Event())
            assert np.abs(np.asarray(image, int) - np.asarray(alone, int)).max() <= 1
        assert job.__dict__["done"] == sorted(job.__dict__["done"])
        assert job.__dict__["done"][-1] == steps_run(job.spec) * job.spec.num_outputs


def test_an_evicted_model_leaves_no_hooks() -> None:
    models = ModelCache(CPU)
    renderer = BatchedRenderer(models, 8)
    renderer.admit(request(spec(num_inference_steps=1, **SMALL)))
    unet = weakref.ref(models.load(EXACT).pipeline("text-to-image").unet)
    render_all(renderer)
    assert models.evict_others("another")
    gc.collect()
    assert unet() is None


def test_a_stopped_job_and_one_without_memory_leave_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(EngineOptions(choose("cpu0"), torch_threads=1, slots=4))
    stopped, large, good, late = (
        request(spec(num_inference_steps=count, seed=count, **SMALL)) for count in (200, 4, 6, 5)
    )
    names = {stopped.spec.seed: "stopped", large.spec.seed: "large", good.spec.seed: "good", late.spec.seed: "late"}
    rendered: list[str] = []
    failed = threading.Event()
    real = pipelines.render

    def render(loaded: Any, wanted: JobSpec, *rest: Any, **named: Any) -> Artifact:
        rendered.append(names[wanted.seed])
        if wanted is large.spec:
            failed.set()
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(loaded, wanted, *rest, **named)

    monkeypatch.setattr(pipelines, "render", render)
    for job in (stopped, good, large):
        engine.submit(job)
    assert engine.waiting == 3
    engine.start()
    assert failed.wait(60)
    wait_until(lambda: engine._out_of_memory, 60, every=0.001, what="the engine knows that the large job does not fit")
    engine.submit(late)  # there is a free slot, but the device must be empty for the large job first
    assert len(good.future.result(60).artifacts) == 1
    stopped.stop.set()
    assert isinstance(stopped.future.exception(60), JobCanceled)
    assert isinstance(large.future.exception(60), OutOfMemory)
    assert len(late.future.result(60).artifacts) == 1
    assert engine.waiting == 0
    assert late.future.result().made_with["numerics"] == engine.numerics.result().name
    assert rendered == ["stopped", "good", "large", "large", "late"]
    engine.close()
    engine.join(30)


ASSERT_TRIGGERED = torch.AcceleratorError("CUDA error: device-side assert triggered")


@pytest.mark.parametrize("place", ["forward", "pipeline", "loading"])
def test_a_failed_device_fails_every_job_and_is_used_no_more(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    device_failed = threading.Event()
    engine = Engine(EngineOptions(choose("cpu0"), torch_threads=1, slots=2), device_failed.set)
    first, second, waiting, late = (request(spec(num_inference_steps=30, seed=seed, **SMALL)) for seed in range(4))
    used_after: list[str] = []

    def use(*_: Any, **__: Any) -> Any:
        if device_failed.is_set():
            used_after.append(place)
        raise ASSERT_TRIGGERED

    def break_device(done: int) -> None:
        if done != 2:
            return
        if place == "pipeline":
            use()
        assert engine._renderers is not None
        unet = engine._renderers.models.load(EXACT).pipeline("text-to-image").unet
        unet.conv_in.forward = use

    if place == "loading":
        monkeypatch.setattr("workers.pipelines.loading._load_builtin", use)
    first.on_step = break_device
    for job in (first, second, waiting):
        engine.submit(job)
    engine.start()
    errors = [job.future.exception(60) for job in (first, second, waiting)]
    assert device_failed.wait(60)
    engine.submit(late)
    errors.append(late.future.exception(1))
    assert all(isinstance(error, DeviceFailed) and "device-side assert" in str(error) for error in errors)
    started = [error.started for error in errors if isinstance(error, DeviceFailed)]
    assert started == ([True, False, False, False] if place == "loading" else [True, True, False, False])
    assert engine.seconds_without_progress == 0  # so that leases are renewed until the jobs are released
    engine.join(30)
    assert not engine.is_alive()
    assert not used_after


# -- the engine's thread -----------------------------------------------------------------------------------------------


def test_the_engine_fills_its_slots_admits_interactive_jobs_and_ends_jobs_one_by_one() -> None:
    engine = Engine(EngineOptions(choose("cpu0"), torch_threads=1, slots=2))
    began: list[str] = []
    gate = threading.Event()

    def job(name: str, count: int, priority: Priority = Priority.NORMAL) -> RenderRequest:
        made = request(spec(num_inference_steps=count, seed=count, **SMALL), priority=priority)
        made.on_start = lambda _: began.append(name)
        return made

    def hold(_: int) -> None:
        assert gate.wait(60)

    first, second = job("first", 6), job("second", 100)
    first.on_step = hold  # until all are there
    waiting, person, odd = job("waiting", 4), job("person", 5, Priority.INTERACTIVE), job("odd", 3)
    odd.model = EXACT.model_copy(update={"id": "odd", "source": "builtin:nothing"})
    for one in (first, second, waiting, person, odd):
        engine.submit(one)
    engine.start()
    gate.set()
    assert len(first.future.result(90).artifacts) == 1
    assert len(person.future.result(60).artifacts) == 1
    assert began[0] == "person" or began.index("person") < began.index("waiting")
    assert len(waiting.future.result(60).artifacts) == 1
    second.stop.set()
    assert isinstance(second.future.exception(60), JobCanceled)
    assert isinstance(odd.future.exception(60), ModelUnavailable)
    assert began[-1] == "odd"  # loading waits until the device is empty
    engine.close()
    engine.join(30)
    assert not engine.is_alive()
    assert engine.seconds_without_progress == 0


def test_a_device_has_one_slot_if_batching_is_off() -> None:
    assert [slots(batching, kind) for batching in ("on", "off") for kind in ("cpu", "cuda")] == [4, 16, 1, 1]


def test_an_isolated_job_runs_alone_until_it_has_left_the_process() -> None:
    engine = Engine(EngineOptions(choose("cpu0"), torch_threads=1, slots=4))
    began: list[str] = []

    def job(name: str, *, isolated: bool = False) -> RenderRequest:
        made = request(spec(num_inference_steps=3, **SMALL))
        made.owner, made.isolated = name, isolated
        made.on_start = lambda _: began.append(name)
        return made

    jobs = {name: job(name, isolated=name == "isolated") for name in ("before", "isolated", "after")}
    for one in jobs.values():
        engine.submit(one)
    engine.start()
    jobs["before"].future.result(60)
    assert began == ["before"]
    assert engine.seconds_without_progress == 0  # it waits, and does not hang
    engine.job_left("before")
    jobs["isolated"].future.result(60)
    assert began == ["before", "isolated"]
    engine.job_left("isolated")
    jobs["after"].future.result(60)
    engine.close()
    engine.join(30)


# -- preemption --------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_job_ends_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small jobs of these tests are as long as those of users."""
    monkeypatch.setattr("workers.preemption.MIN_SECONDS_LEFT", 0.0)


class Bulk:
    """A bulk job that steps back when the engine asks, as the job runner lets it."""

    def __init__(self, seed: int, steps: int = 150, model: Model = EXACT) -> None:
        self.parts: list[CheckpointPart] = []
        self.done = 0
        self.on_step: list[Callable[[int], object]] = []
        made = request(spec(num_inference_steps=steps, seed=seed, **SMALL), model, Priority.BULK)
        made.checkpoint_seconds = 1000
        made.on_checkpoint = self.parts.append
        made.on_step_back = lambda: None
        made.on_step = self.step
        self.request = made

    def step(self, done: int) -> None:
        self.done = done
        for one in self.on_step:
            one(done)


def interactive(model: Model = EXACT) -> tuple[RenderRequest, threading.Event]:
    began = threading.Event()
    made = request(spec(num_inference_steps=3, seed=99, **SMALL), model, Priority.INTERACTIVE)
    made.on_start = lambda _: began.set()
    return made, began


@pytest.mark.usefixtures("no_job_ends_soon")
def test_the_bulk_job_with_the_least_work_steps_back_within_two_steps_of_an_interactive_one() -> None:
    engine = Engine(EngineOptions(choose("cpu0"), torch_threads=1, slots=2))
    first, second = Bulk(1), Bulk(2)
    person, began = interactive()
    asked_at: list[int] = []

    def ask(done: int) -> None:
        if done == 20 and not asked_at:
            engine.submit(second.request)
        if done == 40 and not asked_at:
            asked_at.append(second.done)
            engine.submit(person)

    first.on_step.append(ask)
    engine.submit(first.request)
    engine.start()
    assert isinstance(second.request.future.exception(90), JobCanceled)
    assert began.is_set()
    assert second.parts[-1].steps <= asked_at[0] + 2
    assert second.parts[-1].steps == second.done, "no step is lost"
    assert len(person.future.result(60).artifacts) == 1
    assert len(first.request.future.result(60).artifacts) == 1, "the other one has a slot"
    assert first.parts == []
    engine.close()
    engine.join(30)


@pytest.mark.usefixtures("no_job_ends_soon")
def test_all_bulk_jobs_step_back_for_an_interactive_one_whose_model_is_not_loaded() -> None:
    engine = Engine(EngineOptions(choose("cpu0"), torch_threads=1, slots=2))
    other = EXACT.model_copy(update={"id": "other"})
    jobs = Bulk(1), Bulk(2)
    person, _ = interactive(other)
    asked_at: list[int] = []

    def ask(done: int) -> None:
        if done >= 20 and jobs[1].done >= 5 and not asked_at:
            asked_at.extend(job.done for job in jobs)
            engine.submit(person)

    jobs[0].on_step.append(ask)
    for job in jobs:
        engine.submit(job.request)
    engine.start()
    for job in jobs:
        assert isinstance(job.request.future.exception(90), JobCanceled)
        assert job.parts[-1].steps == job.done
    assert [job.done - at for job, at in zip(jobs, asked_at, strict=True)] <= [2, 2]
    assert len(person.future.result(60).artifacts) == 1
    engine.close()
    engine.join(30)


class SoonOver(Speed):
    """Of a job that ends soon."""

    @property
    def seconds_left(self) -> float:
        return 1.0


def test_what_steps_back_is_chosen_by_priority_work_and_time_left() -> None:
    jobs = [Bulk(seed).request for seed in range(4)]
    normal = request(spec(**SMALL))
    person, _ = interactive()
    for done, job in zip((40, 10, 20, 5), jobs, strict=True):
        job.steps_done, job.recorded = done, True
    assert preemption.choose([*jobs, person], 5, held_up=False) == []
    assert preemption.choose([*jobs, person], 4, held_up=False) == [jobs[3]]
    assert preemption.choose([*jobs, normal], 4, held_up=False) == [], "nobody interactive took a slot"
    jobs[3].speed = SoonOver()
    assert preemption.choose([*jobs, person], 4, held_up=False) == [jobs[1]], "one that ends soon stays"
    jobs[1].recorded = False
    assert preemption.choose([*jobs, person], 4, held_up=False) == [jobs[2]], "work that cannot be kept is not lost"
    jobs[2].on_step_back = None
    assert preemption.choose([*jobs, person], 4, held_up=False) == [jobs[0]], "one stepped back often enough"
    jobs[0].stop.set()
    assert preemption.choose([*jobs, person], 4, held_up=False) == [], "one is on its way already"
    fresh = [Bulk(seed).request for seed in range(2)]
    assert preemption.choose(fresh, 4, held_up=True) == fresh
    assert preemption.choose([*fresh, normal], 4, held_up=True) == [], "the device would not become empty"
    normal.speed = SoonOver()
    assert preemption.choose([*fresh, normal], 4, held_up=True) == fresh
