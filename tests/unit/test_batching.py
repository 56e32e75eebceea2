"""Images that share forwards: what they may and may not notice of each other."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from prometheus_client import REGISTRY

from farm.domain.job_spec import JobSpec
from farm.domain.model import Model
from farm.errors import JobCanceled, NanOutput
from tests.job_specs import STARTER_SCHEDULERS, STARTER_TASKS
from tests.unit.test_pipelines import CPU, images, render, spec
from workers import numerics, pipelines
from workers.batch_profiles import BatchProfile, BatchProfiles
from workers.batching.batcher import ContinuousBatcher
from workers.batching.calls import BatchMode, PipelineRun
from workers.batching.exact import ExactCalls
from workers.batching.row_selection import most_efficient_rows, rows_that_fit_memory
from workers.pipelines import LoadedModel

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


@pytest.fixture(scope="module")
def starter() -> LoadedModel:
    return pipelines.load(EXACT, CPU)


@pytest.fixture
def batchers(starter: LoadedModel) -> Iterator[Callable[..., ContinuousBatcher]]:
    """Makes batchers on the built-in model, and leaves its modules as they were."""
    made: list[ContinuousBatcher] = []

    def make(profiles: BatchProfiles | None = None) -> ContinuousBatcher:
        batcher = ContinuousBatcher(8, profiles)
        for name, module in modules_of(starter):
            batcher.hook(module, name, denoiser=not name.startswith("vae."), check_finite=name == "vae.decoder")
        made.append(batcher)
        return batcher

    yield make
    for batcher in reversed(made):
        for _, module in modules_of(starter):
            batcher.unhook(module)
    for _, hooked in modules_of(starter):
        assert all("forward" not in module.__dict__ for module in hooked.modules())


def modules_of(loaded: LoadedModel) -> list[tuple[str, torch.nn.Module]]:
    """The modules that all tasks of a model call, each once."""
    found = {
        id(parking.module): (parking.name, parking.module)
        for task in STARTER_TASKS
        for parking in loaded.parking_modules(task)
    }
    return list(found.values())


def image_of(
    loaded: LoadedModel, wanted: JobSpec, on_step: Callable[[int], None] = lambda _: None
) -> Callable[[], Image.Image]:
    return lambda: render(loaded, wanted, images(wanted.task), on_step=on_step)


def finish(batcher: ContinuousBatcher) -> None:
    while batcher.advance():
        pass


def mixed() -> list[JobSpec]:
    """Every task and scheduler, with and without guidance, of different lengths."""
    made = []
    for index, scheduler in enumerate(STARTER_SCHEDULERS):
        task = list(STARTER_TASKS)[index % len(STARTER_TASKS)]
        strength = None if task == "text-to-image" else 0.7
        guidance = 1.0 if index % 3 == 2 else 2.0 + index
        made.append(
            spec(
                task,
                scheduler=scheduler,
                num_inference_steps=4 + index % 4,
                guidance_scale=guidance,
                seed=index,
                strength=strength,
                **SMALL,
            )
        )
    return made


def together(
    batcher: ContinuousBatcher,
    loaded: LoadedModel,
    specs: list[JobSpec],
    mode: BatchMode,
    draw: random.Random | None = None,
) -> list[Image.Image]:
    """The specs in one company; one more joins at every second forward, or when it is drawn."""
    runs: list[PipelineRun] = []
    for wanted in specs:
        runs.append(batcher.start(image_of(loaded, wanted), mode))
        for _ in range(2 if draw is None else draw.randrange(5)):
            batcher.advance()
    finish(batcher)
    for run in runs:
        if run.error is not None:
            raise run.error
    return [run.result for run in runs]


@pytest.mark.parametrize("mode", [BatchMode.ALONE, BatchMode.THROUGHPUT])
def test_alone_every_task_gives_the_bytes_of_the_stock_pipeline(
    starter: LoadedModel, batchers: Callable[..., ContinuousBatcher], mode: BatchMode
) -> None:
    schedulers = list(STARTER_SCHEDULERS)
    specs = [
        spec(
            task,
            scheduler=schedulers[(index + turn * 4) % 8],
            num_inference_steps=5,
            strength=None if task == "text-to-image" else 0.8,
            **SMALL,
        )
        for index, task in enumerate(STARTER_TASKS)
        for turn in range(2)
    ]
    stock = [image_of(starter, wanted)() for wanted in specs]
    batcher = batchers()
    for wanted, expected in zip(specs, stock, strict=True):
        run = batcher.start(image_of(starter, wanted), mode)
        finish(batcher)
        assert run.error is None
        assert run.result.tobytes() == expected.tobytes(), wanted


def test_throughput_images_differ_by_rounding_only_when_co_batched(
    starter: LoadedModel, batchers: Callable[..., ContinuousBatcher]
) -> None:
    stock = [image_of(starter, wanted)() for wanted in mixed()]
    batcher = batchers()
    shared = together(batcher, starter, mixed(), BatchMode.THROUGHPUT)
    differences = np.abs(
        np.stack([np.asarray(a, int) - np.asarray(b, int) for a, b in zip(shared, stock, strict=True)])
    )
    assert differences.max() <= 1
    assert (differences.max(-1) > 0).mean() <= 0.001
    assert batcher.rows / batcher.forwards > 2.2  # they did share


def test_exact_images_share_forwards_and_have_the_bytes_of_the_stock_pipeline(
    starter: LoadedModel, batchers: Callable[..., ContinuousBatcher]
) -> None:
    specs = mixed()
    stock = [image_of(starter, wanted)().tobytes() for wanted in specs]
    batcher = batchers()
    for seed in range(3):  # in another order, and arriving at other times; the first round also measures
        draw = random.Random(seed)
        order = draw.sample(range(len(specs)), len(specs))
        before = batcher.forwards, batcher.rows
        images = together(batcher, starter, [specs[place] for place in order], BatchMode.EXACT, draw)
        assert [image.tobytes() for image in images] == [stock[place] for place in order]
    assert (batcher.rows - before[1]) / (
        batcher.forwards - before[0]
    ) > 1.3  # they did share; the calls of the VAE, which run alone, are counted too
    plans = [(exact.plan, exact._hook) for exact in exact_of(batcher) if exact.plan is not None and exact.plan.calls]
    assert plans
    for plan, hook in plans:  # most modules run on all rows
        assert len(plan.modules) < sum(1 for _ in hook.module.modules()) / 2


def exact_of(batcher: ContinuousBatcher) -> list[ExactCalls]:
    """What was measured about exact sharing."""
    states = [state for hook in batcher._hooks.values() for state in hook.signatures.values()]
    return [exact for state in states for exact in state.exact.values() if isinstance(exact, ExactCalls)]


def test_exact_sharing_is_measured_once_for_a_device(
    starter: LoadedModel, batchers: Callable[..., ContinuousBatcher], tmp_path: Path
) -> None:
    specs = [spec(seed=seed, num_inference_steps=30, **SMALL) for seed in range(3)]
    stock = [image_of(starter, wanted)().tobytes() for wanted in specs]
    plans = []
    for _ in range(2):
        batcher = batchers(BatchProfiles(tmp_path))
        images = together(batcher, starter, specs, BatchMode.EXACT)
        assert [image.tobytes() for image in images] == stock
        (exact,) = exact_of(batcher)
        assert exact.plan is not None
        plans.append((exact.plan.calls, exact.plan.modules, exact._known is not None))
        for _, module in modules_of(starter):
            batcher.unhook(module)
    assert plans[0][:2] == plans[1][:2]
    assert [known for *_, known in plans] == [False, True]


def test_jobs_continue_while_exact_sharing_is_measured() -> None:
    """What is measured runs between the jobs' own forwards, so a cancel and other jobs wait for one of them at most."""
    module = Double()
    batcher = toy(module, BatchMode.EXACT)
    runs = [batcher.run(steps(module, value, 200)) for value in (1.0, 2.0)]
    own: list[int] = []
    while batcher.advance():
        own.append(len(module.seen))
        if len(own) == 3:
            assert not batcher._measured or not batcher._measured.exact or not batcher._measured.exact.finished
            batcher.stop(runs[0], JobCanceled("enough"))
            assert runs[0].finished
    assert isinstance(runs[0].error, JobCanceled)
    assert runs[1].result == [4.0 + step for step in range(200)]


def test_a_shared_forward_that_is_found_to_give_other_bits_is_the_last_one(
    starter: LoadedModel, batchers: Callable[..., ContinuousBatcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = [spec(seed=seed, num_inference_steps=40, **SMALL) for seed in range(3)]
    stock = [image_of(starter, wanted)().tobytes() for wanted in specs]
    batcher = batchers()
    real = ExactCalls.run
    shared: list[int] = []

    def wrong(self: ExactCalls, arguments: dict[str, Any], calls: int) -> Any:
        shared.append(calls)
        output = real(self, arguments, calls)
        output[0][0, 0, 0, 0] += 1e-6
        return output

    monkeypatch.setattr(ExactCalls, "run", wrong)
    images = together(batcher, starter, specs, BatchMode.EXACT)
    assert [image.tobytes() for image in images] == stock
    assert len(shared) == 1
    assert "other bits" in (batcher.refusal(starter.pipeline("text-to-image").unet) or "")


def test_a_failing_a_canceled_and_a_nan_image_end_alone(
    starter: LoadedModel, batchers: Callable[..., ContinuousBatcher]
) -> None:
    good = [spec(seed=seed, num_inference_steps=6, **SMALL) for seed in (1, 2)]
    batcher = batchers()
    expected = together(batcher, starter, good, BatchMode.EXACT)

    def fail(step: int) -> None:
        if step == 2:
            raise ValueError("its own mistake")

    def poisoned() -> Any:
        latents = torch.full((1, starter.pipeline("text-to-image").unet.config.in_channels, 8, 8), torch.nan)
        called = starter.pipeline("text-to-image")("a red cube", latents=latents, num_inference_steps=4)
        return called.images[0]

    unwound: list[str] = []

    def canceled() -> Image.Image:
        try:
            return image_of(starter, spec(num_inference_steps=50, **SMALL))()
        finally:
            unwound.append("yes")

    runs = [batcher.start(image_of(starter, wanted), BatchMode.EXACT) for wanted in good]
    failing, nan, stopped = (
        batcher.start(one, BatchMode.EXACT) for one in (image_of(starter, spec(**SMALL), fail), poisoned, canceled)
    )
    for _ in range(3):
        batcher.advance()
    batcher.stop(stopped, JobCanceled("enough"))
    finish(batcher)
    assert isinstance(failing.error, ValueError)
    assert isinstance(nan.error, NanOutput)
    assert isinstance(stopped.error, JobCanceled)
    assert unwound == ["yes"]
    assert [run.result.tobytes() for run in runs] == [image.tobytes() for image in expected]
    assert len(batcher.take_finished()) == 7
    assert not batcher.busy


# -- with a module whose forwards can be counted, refused and spoilt ---------------------------------------------------


def value_of(metric: str) -> float:
    return REGISTRY.get_sample_value(metric) or 0


class Double(torch.nn.Module):
    """Returns twice its sample plus its timestep, and notes the rows of every forward."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[list[float]] = []
        self.room = 100

    def forward(self, sample: torch.Tensor, timestep: Any, extra: Any = None) -> tuple[torch.Tensor]:  # noqa: ARG002
        if len(sample) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if (sample < 0).any():
            raise ValueError("negative")
        self.seen.append(sample[:, 0].tolist())
        time = torch.as_tensor(timestep, dtype=torch.float32).reshape(-1).expand(len(sample))
        return (sample * 2 + time[:, None],)


class Mixing(Double):
    """Its rows see each other."""

    def forward(self, sample: torch.Tensor, timestep: Any, extra: Any = None) -> tuple[torch.Tensor]:  # noqa: ARG002
        return (sample * 0 + super().forward(sample, timestep)[0].sum(),)


class Toy(ContinuousBatcher):
    """A batcher whose pipelines all want the same promise, and which has learnt that all rows pay."""

    def __init__(self, module: Double, mode: BatchMode, most: int) -> None:
        super().__init__(most, Known(most))
        self.hook(module, "toy")
        self.mode = mode

    def run(self, work: Callable[[], Any], *, interactive: bool = False) -> PipelineRun:
        return self.start(work, self.mode, interactive=interactive)


class Known(BatchProfiles):
    """What a device would have learnt on which every row costs nothing."""

    def __init__(self, most: int) -> None:
        super().__init__(None)
        self.most = most

    def load(self, name: str) -> BatchProfile | None:
        return None if BatchMode.EXACT.name in name else BatchProfile(self.most)


def toy(module: Double, mode: BatchMode = BatchMode.THROUGHPUT, most: int = 8) -> Toy:
    return Toy(module, mode, most)


def steps(module: Double, value: float, count: int, rows: int = 1, extra: Any = None) -> Callable[[], list[float]]:
    """A pipeline of ``count`` steps that returns what each gave."""

    @torch.no_grad()  # as diffusers' pipelines
    def run() -> list[float]:
        sample = torch.full((rows, 3), value)
        return [float(module(sample, torch.tensor(step), extra=extra)[0][0, 0]) for step in range(count)]

    return run


def test_each_row_keeps_its_own_timestep_and_late_joiners_share_at_once() -> None:
    module = Double()
    batcher = toy(module)
    first = batcher.run(steps(module, 1.0, 6))
    for _ in range(3):
        batcher.advance()
    late = batcher.run(steps(module, 5.0, 3))
    module.seen.clear()
    batcher.advance()
    batcher.advance()
    assert module.seen[-1] == [1.0, 5.0]
    finish(batcher)
    assert first.result == [2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    assert late.result == [10.0, 11.0, 12.0]


def test_gradients_stay_off_for_those_that_are_parked_and_on_for_the_thread() -> None:
    module = Double()
    batcher = toy(module)

    @torch.no_grad()
    def long() -> bool:
        for step in range(4):
            module(torch.ones(1, 3), step)
        return torch.is_grad_enabled()

    run = batcher.run(long)
    batcher.run(steps(module, 1.0, 1))
    finish(batcher)
    assert run.result is False
    assert torch.is_grad_enabled()


def test_the_oldest_call_leads_the_next_forward() -> None:
    module = Double()
    batcher = toy(module, BatchMode.ALONE)
    for value in (1.0, 2.0, 3.0):
        batcher.run(steps(module, value, 3))
    finish(batcher)
    assert [row for (row,) in module.seen] == [1.0, 2.0, 3.0] * 3


def test_an_interactive_call_waits_for_one_forward_at_most_and_never_leads_twice_in_a_row() -> None:
    module = Double()
    batcher = toy(module, BatchMode.ALONE)
    for value in (1.0, 2.0, 3.0):
        batcher.run(steps(module, value, 6))
    batcher.advance()
    batcher.run(steps(module, 9.0, 5), interactive=True)
    module.seen.clear()
    for _ in range(10):
        batcher.advance()
    assert [row for (row,) in module.seen][::2] == [9.0] * 5
    assert 9.0 not in [row for (row,) in module.seen][1::2]


def test_forwards_keep_within_max_rows_and_prefer_interactive_calls() -> None:
    module = Double()
    batcher = toy(module, most=4)
    for value in (1.0, 2.0, 3.0):
        batcher.run(steps(module, value, 3, rows=2))
    batcher.run(steps(module, 9.0, 1, rows=2), interactive=True)
    batcher.advance()
    assert 9.0 in module.seen[0]
    finish(batcher)
    assert max(len(rows) for rows in module.seen) == 4


def test_gaps_between_forwards_are_measured_while_jobs_are_on_the_device_and_not_between_jobs() -> None:
    module = Double()
    batcher = toy(module)
    before = value_of("farm_forward_gap_seconds_count")
    for gaps in (2, 4):  # three forwards of a job have two gaps
        batcher.run(steps(module, 1.0, 3))
        finish(batcher)
        assert value_of("farm_forward_gap_seconds_count") - before == gaps


def test_calls_with_different_conditions_do_not_share() -> None:
    module = Double()
    batcher = toy(module)
    batcher.run(steps(module, 1.0, 2, extra={"scale": 1.0}))
    batcher.run(steps(module, 2.0, 2, extra={"scale": 0.5}))
    batcher.run(steps(module, 3.0, 2, extra=object()))  # state that is not in tensors
    finish(batcher)
    assert all(len(rows) == 1 for rows in module.seen)


def test_a_forward_that_runs_out_of_memory_is_split_and_later_ones_are_smaller() -> None:
    module = Double()
    module.room = 3
    batcher = toy(module)
    splits = value_of("farm_forward_splits_total")
    runs = [batcher.run(steps(module, float(value), 4)) for value in range(1, 9)]
    finish(batcher)
    assert value_of("farm_forward_splits_total") > splits
    assert [run.result for run in runs] == [[2.0 * value + step for step in range(4)] for value in range(1, 9)]
    too_big = batcher.run(steps(module, 1.0, 1, rows=4))
    finish(batcher)
    assert isinstance(too_big.error, torch.OutOfMemoryError)


def test_a_failing_call_in_a_shared_forward_fails_alone() -> None:
    module = Double()
    batcher = toy(module)
    good, bad = batcher.run(steps(module, 1.0, 3)), batcher.run(steps(module, -1.0, 3))
    finish(batcher)
    assert isinstance(bad.error, ValueError)
    assert good.result == [2.0, 3.0, 4.0]
    batcher.run(steps(module, 1.0, 1))
    batcher.run(steps(module, 2.0, 1))
    module.seen.clear()
    batcher.advance()
    assert [1.0, 2.0] in module.seen  # calls still share forwards


@pytest.mark.parametrize("mode", [BatchMode.THROUGHPUT, BatchMode.EXACT])
def test_a_module_that_mixes_its_rows_is_detected_and_runs_alone(mode: BatchMode) -> None:
    module = Mixing()
    batcher = toy(module, mode)
    runs = [batcher.run(steps(module, value, 4)) for value in (1.0, 2.0)]
    finish(batcher)
    assert [run.result for run in runs] == [[6.0, 9.0, 12.0, 15.0], [12.0, 15.0, 18.0, 21.0]]


def test_the_most_efficient_rows_are_the_fewest_with_about_the_least_time_each() -> None:
    assert most_efficient_rows({1: 1.0, 2: 1.2, 4: 2.0, 8: 3.9, 16: 9.0}) == 4
    assert most_efficient_rows({1: 1.0, 2: 2.1}) == 1


def test_rows_are_limited_by_free_memory() -> None:
    assert rows_that_fit_memory(peak_bytes=200, rows=2, free_bytes=1000) == 8
    assert rows_that_fit_memory(peak_bytes=200, rows=2, free_bytes=10) == 1
    assert rows_that_fit_memory(peak_bytes=0, rows=2, free_bytes=10**12) == 64
