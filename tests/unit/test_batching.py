"""Images that share forwards: what they may and may not notice of each other."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from farm.domain.model import Model
from farm.domain.states import Priority
from farm.domain.tasks import JobSpec, Scheduler, Task
from farm.errors import JobCanceled, ModelUnavailable, NanOutput, OutOfMemory
from tests.unit.test_pipelines import CPU, images, spec
from workers import pipelines
from workers.batch_profiles import Lesson, Lessons
from workers.batched_renderer import SharedRenderer, parking
from workers.batching import Hub, Run, Sharing, rows_that_fit, rows_that_pay, span_for
from workers.device import choose
from workers.engine import Engine
from workers.pipelines import LoadedModel
from workers.process import slots
from workers.render_request import Rendered, RenderWork

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning"),
    pytest.mark.filterwarnings("ignore:`torch_dtype` is deprecated:FutureWarning"),
]

EXACT = Model(id="starter", source="builtin:starter", tasks=tuple(Task), dtype="float32")
SMALL: dict[str, Any] = {"width": 32, "height": 32}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    pipelines.quiet()
    pipelines.be_deterministic(1)


@pytest.fixture(autouse=True)
def all_rows_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether sharing gains time on a busy machine is no matter of these tests."""
    monkeypatch.setattr("workers.batching.rows_that_pay", max)


@pytest.fixture(scope="module")
def starter() -> LoadedModel:
    return pipelines.load(EXACT, CPU)


def hub_on(pipeline: Any, most: int = 8) -> Hub:
    hub = Hub(most, pipelines.is_out_of_memory)
    for name, module in parking(pipeline):
        hub.hook(module, name, denoiser=not name.startswith("vae."), checked=name == "vae.decoder")
    return hub


@pytest.fixture
def hubs(starter: LoadedModel) -> Iterator[Callable[..., Hub]]:
    """Makes hubs on the built-in model, and leaves its modules as they were."""
    made: list[Hub] = []
    modules = {id(module): (name, module) for task in Task for name, module in parking(starter.pipeline(task))}

    def make(most: int = 8) -> Hub:
        hub = Hub(most, pipelines.is_out_of_memory)
        for name, module in modules.values():
            hub.hook(module, name, denoiser=not name.startswith("vae."), checked=name == "vae.decoder")
        made.append(hub)
        return hub

    yield make
    for hub in reversed(made):
        for _, module in modules.values():
            hub.unhook(module)
    assert all("forward" not in module.__dict__ for _, module in modules.values())


def image_of(
    loaded: LoadedModel, wanted: JobSpec, on_step: Callable[[int], None] = lambda _: None
) -> Callable[[], Image.Image]:
    return lambda: pipelines.render(loaded, wanted, 0, images(wanted.task), on_step, threading.Event())


def finish(hub: Hub) -> None:
    while hub.advance():
        pass


def mixed() -> list[JobSpec]:
    """Every task and scheduler, with and without guidance, of different lengths."""
    made = []
    for index, scheduler in enumerate(Scheduler):
        task = list(Task)[index % len(Task)]
        strength = None if task is Task.TEXT_TO_IMAGE else 0.7
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
    hub: Hub, loaded: LoadedModel, specs: list[JobSpec], sharing: Sharing, draw: random.Random | None = None
) -> list[Image.Image]:
    """The specs in one company; one more joins at every second forward, or when it is drawn."""
    runs: list[Run] = []
    for wanted in specs:
        runs.append(hub.start(image_of(loaded, wanted), sharing))
        for _ in range(2 if draw is None else draw.randrange(5)):
            hub.advance()
    finish(hub)
    for run in runs:
        if run.error is not None:
            raise run.error
    return [run.result for run in runs]


@pytest.mark.parametrize("sharing", [Sharing.ALONE, Sharing.THROUGHPUT])
def test_alone_every_task_gives_the_bytes_of_the_stock_pipeline(
    starter: LoadedModel, hubs: Callable[..., Hub], sharing: Sharing
) -> None:
    schedulers = list(Scheduler)
    specs = [
        spec(
            task,
            scheduler=schedulers[(index + turn * 4) % 8],
            num_inference_steps=5,
            strength=None if task is Task.TEXT_TO_IMAGE else 0.8,
            **SMALL,
        )
        for index, task in enumerate(Task)
        for turn in range(2)
    ]
    stock = [image_of(starter, wanted)() for wanted in specs]
    hub = hubs()
    for wanted, expected in zip(specs, stock, strict=True):
        run = hub.start(image_of(starter, wanted), sharing)
        finish(hub)
        assert run.error is None
        assert run.result.tobytes() == expected.tobytes(), wanted


def test_in_mixed_company_throughput_differs_by_rounding_alone(starter: LoadedModel, hubs: Callable[..., Hub]) -> None:
    stock = [image_of(starter, wanted)() for wanted in mixed()]
    hub = hubs()
    shared = together(hub, starter, mixed(), Sharing.THROUGHPUT)
    differences = np.abs(
        np.stack([np.asarray(a, int) - np.asarray(b, int) for a, b in zip(shared, stock, strict=True)])
    )
    assert differences.max() <= 1
    assert (differences.max(-1) > 0).mean() <= 0.001
    assert hub.rows / hub.forwards > 2.2  # they did share


def test_exact_images_do_not_depend_on_their_neighbours(starter: LoadedModel, hubs: Callable[..., Hub]) -> None:
    sharing = Sharing.EXACT
    specs = mixed()
    hub = hubs()
    first = together(hub, starter, specs, sharing)
    for seed in range(2):  # in another order, and arriving at other times
        draw = random.Random(seed)
        order = draw.sample(range(len(specs)), len(specs))
        again = together(hub, starter, [specs[place] for place in order], sharing, draw)
        assert [image.tobytes() for image in again] == [first[place].tobytes() for place in order]
    for index in (0, 3):
        (alone,) = together(hub, starter, [specs[index]], sharing)
        assert alone.tobytes() == first[index].tobytes()


def test_a_failing_a_canceled_and_a_nan_image_end_alone(starter: LoadedModel, hubs: Callable[..., Hub]) -> None:
    good = [spec(seed=seed, num_inference_steps=6, **SMALL) for seed in (1, 2)]
    hub = hubs()
    expected = together(hub, starter, good, Sharing.EXACT)

    def fail(step: int) -> None:
        if step == 2:
            raise ValueError("its own mistake")

    def poisoned() -> Any:
        latents = torch.full((1, starter.pipeline(Task.TEXT_TO_IMAGE).unet.config.in_channels, 8, 8), torch.nan)
        called = starter.pipeline(Task.TEXT_TO_IMAGE)("a red cube", latents=latents, num_inference_steps=4)
        return called.images[0]

    unwound: list[str] = []

    def canceled() -> Image.Image:
        try:
            return image_of(starter, spec(num_inference_steps=50, **SMALL))()
        finally:
            unwound.append("yes")

    runs = [hub.start(image_of(starter, wanted), Sharing.EXACT) for wanted in good]
    failing, nan, stopped = (
        hub.start(one, Sharing.EXACT) for one in (image_of(starter, spec(**SMALL), fail), poisoned, canceled)
    )
    for _ in range(3):
        hub.advance()
    hub.stop(stopped, JobCanceled("enough"))
    finish(hub)
    assert isinstance(failing.error, ValueError)
    assert isinstance(nan.error, NanOutput)
    assert isinstance(stopped.error, JobCanceled)
    assert unwound == ["yes"]
    assert [run.result.tobytes() for run in runs] == [image.tobytes() for image in expected]
    assert len(hub.take_ended()) == 7
    assert not hub.busy


# -- with a module whose forwards can be counted, refused and spoilt ---------------------------------------------------


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


class Toy(Hub):
    """A hub whose pipelines all want the same promise, and which has learnt that all rows pay."""

    def __init__(self, module: Double, sharing: Sharing, most: int) -> None:
        super().__init__(most, pipelines.is_out_of_memory, Known(most))
        self.hook(module, "toy")
        self.sharing = sharing

    def run(self, work: Callable[[], Any], *, urgent: bool = False) -> Run:
        return self.start(work, self.sharing, urgent=urgent)


class Known(Lessons):
    """What a device would have learnt on which every row costs nothing."""

    def __init__(self, most: int) -> None:
        super().__init__(None)
        self.most = most

    def recall(self, name: str) -> Lesson | None:
        return None if Sharing.EXACT.name in name else Lesson(self.most)


def toy(module: Double, sharing: Sharing = Sharing.THROUGHPUT, most: int = 8) -> Toy:
    return Toy(module, sharing, most)


def steps(module: Double, value: float, count: int, rows: int = 1, extra: Any = None) -> Callable[[], list[float]]:
    """A pipeline of ``count`` steps that returns what each gave."""

    @torch.no_grad()  # as diffusers' pipelines
    def run() -> list[float]:
        sample = torch.full((rows, 3), value)
        return [float(module(sample, torch.tensor(step), extra=extra)[0][0, 0]) for step in range(count)]

    return run


def test_each_row_keeps_its_own_timestep_and_late_joiners_share_at_once() -> None:
    module = Double()
    hub = toy(module)
    first = hub.run(steps(module, 1.0, 6))
    for _ in range(3):
        hub.advance()
    late = hub.run(steps(module, 5.0, 3))
    module.seen.clear()
    hub.advance()
    hub.advance()
    assert module.seen[-1] == [1.0, 5.0]
    finish(hub)
    assert first.result == [2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    assert late.result == [10.0, 11.0, 12.0]


def test_gradients_stay_off_for_those_that_are_parked_and_on_for_the_thread() -> None:
    module = Double()
    hub = toy(module)

    @torch.no_grad()
    def long() -> bool:
        for step in range(4):
            module(torch.ones(1, 3), step)
        return torch.is_grad_enabled()

    run = hub.run(long)
    hub.run(steps(module, 1.0, 1))
    finish(hub)
    assert run.result is False
    assert torch.is_grad_enabled()


def test_the_oldest_call_leads_and_nobody_starves() -> None:
    module = Double()
    hub = toy(module, Sharing.ALONE)
    for value in (1.0, 2.0, 3.0):
        hub.run(steps(module, value, 3))
    finish(hub)
    assert [row for (row,) in module.seen] == [1.0, 2.0, 3.0] * 3


def test_an_urgent_call_waits_for_one_forward_at_most_and_lets_others_through() -> None:
    module = Double()
    hub = toy(module, Sharing.ALONE)
    for value in (1.0, 2.0, 3.0):
        hub.run(steps(module, value, 6))
    hub.advance()
    hub.run(steps(module, 9.0, 5), urgent=True)
    module.seen.clear()
    for _ in range(10):
        hub.advance()
    assert [row for (row,) in module.seen][::2] == [9.0] * 5
    assert 9.0 not in [row for (row,) in module.seen][1::2]


def test_forwards_keep_to_the_limit_of_rows_and_urgent_calls_get_the_places() -> None:
    module = Double()
    hub = toy(module, most=4)
    for value in (1.0, 2.0, 3.0):
        hub.run(steps(module, value, 3, rows=2))
    hub.run(steps(module, 9.0, 1, rows=2), urgent=True)
    hub.advance()
    assert 9.0 in module.seen[0]
    finish(hub)
    assert max(len(rows) for rows in module.seen) == 4


def test_calls_of_other_conditions_do_not_share() -> None:
    module = Double()
    hub = toy(module)
    hub.run(steps(module, 1.0, 2, extra={"scale": 1.0}))
    hub.run(steps(module, 2.0, 2, extra={"scale": 0.5}))
    hub.run(steps(module, 3.0, 2, extra=object()))  # state that is not in tensors
    finish(hub)
    assert all(len(rows) == 1 for rows in module.seen)


def test_a_forward_that_runs_out_of_memory_is_split_and_later_ones_are_smaller() -> None:
    module = Double()
    module.room = 3
    hub = toy(module)
    runs = [hub.run(steps(module, float(value), 4)) for value in range(1, 9)]
    finish(hub)
    assert [run.result for run in runs] == [[2.0 * value + step for step in range(4)] for value in range(1, 9)]
    too_big = hub.run(steps(module, 1.0, 1, rows=4))
    finish(hub)
    assert isinstance(too_big.error, torch.OutOfMemoryError)


def test_one_calls_failure_in_a_shared_forward_is_its_own() -> None:
    module = Double()
    hub = toy(module)
    good, bad = hub.run(steps(module, 1.0, 3)), hub.run(steps(module, -1.0, 3))
    finish(hub)
    assert isinstance(bad.error, ValueError)
    assert good.result == [2.0, 3.0, 4.0]
    hub.run(steps(module, 1.0, 1))
    hub.run(steps(module, 2.0, 1))
    module.seen.clear()
    hub.advance()
    assert [1.0, 2.0] in module.seen  # sharing goes on without it


@pytest.mark.parametrize("sharing", [Sharing.THROUGHPUT, Sharing.EXACT])
def test_a_module_that_mixes_its_rows_is_found_out_and_runs_alone(sharing: Sharing) -> None:
    module = Mixing()
    hub = toy(module, sharing)
    runs = [hub.run(steps(module, value, 4)) for value in (1.0, 2.0)]
    finish(hub)
    assert [run.result for run in runs] == [[6.0, 9.0, 12.0, 15.0], [12.0, 15.0, 18.0, 21.0]]


def test_exact_calls_get_the_longest_span_of_equal_rows_that_pads_them_to_no_more_than_twice() -> None:
    made: dict[int, bytes | None] = {1: b"a", 2: b"b", 3: b"b", 4: b"c", 5: b"c", 6: b"c"}
    assert [span_for(rows, made) for rows in (1, 2, 3, 4)] == [(2, 3), (4, 6), (4, 6), None]
    assert span_for(1, {1: b"a", 2: None, 3: b"a", 4: b"a", 5: None}) is None
    assert span_for(2, {1: b"a", 2: b"a", 3: b"a", 4: b"a", 5: b"e"}) == (1, 4)


def test_the_rows_that_pay_are_the_fewest_that_take_about_the_least_time_each() -> None:
    assert rows_that_pay({1: 1.0, 2: 1.2, 4: 2.0, 8: 3.9, 16: 9.0}) == 4
    assert rows_that_pay({1: 1.0, 2: 2.1}) == 1


def test_rows_are_bounded_by_what_a_row_takes_of_the_free_memory() -> None:
    assert rows_that_fit(peak_bytes=200, rows=2, free_bytes=1000) == 8
    assert rows_that_fit(peak_bytes=200, rows=2, free_bytes=10) == 1
    assert rows_that_fit(peak_bytes=0, rows=2, free_bytes=10**12) == 64


# -- other architectures, tiny and random ------------------------------------------------------------------------------

NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def made_of(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tiny_vae() -> Any:
    torch.manual_seed(1)
    return diffusers.AutoencoderKL(
        block_out_channels=(16, 32),
        layers_per_block=1,
        latent_channels=4,
        shift_factor=0.1,
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()


def sdxl() -> tuple[Any, Callable[[Any, int], Any]]:
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=80,
        cross_attention_dim=64,
        norm_num_groups=8,
    ).eval()
    pipeline = diffusers.StableDiffusionXLPipeline(
        vae=tiny_vae(),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(**NOISE),
        add_watermarker=False,
    )
    return pipeline, lambda pipe, index: pipe(
        prompt_embeds=made_of(1, 77, 64, seed=index),
        negative_prompt_embeds=made_of(1, 77, 64, seed=50),
        pooled_prompt_embeds=made_of(1, 32, seed=index),
        negative_pooled_prompt_embeds=made_of(1, 32, seed=51),
        height=32,
        width=32,
        num_inference_steps=3 + index,
        guidance_scale=5.0 + index,
        generator=torch.Generator().manual_seed(index),
        output_type="np",
    )


def sd3() -> tuple[Any, Callable[[Any, int], Any]]:
    torch.manual_seed(0)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16,
        patch_size=1,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        out_channels=4,
    ).eval()
    pipeline = diffusers.StableDiffusion3Pipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=tiny_vae(),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        text_encoder_3=None,
        tokenizer_3=None,
        transformer=transformer,
    )
    return pipeline, lambda pipe, index: pipe(
        prompt_embeds=made_of(1, 12, 32, seed=index),
        negative_prompt_embeds=made_of(1, 12, 32, seed=8),
        pooled_prompt_embeds=made_of(1, 64, seed=index),
        negative_pooled_prompt_embeds=made_of(1, 64, seed=9),
        height=32,
        width=32,
        num_inference_steps=3 + index,
        guidance_scale=4.0 + index,
        generator=torch.Generator().manual_seed(index),
        output_type="latent",
    )


def flux() -> tuple[Any, Callable[[Any, int], Any]]:
    torch.manual_seed(0)
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=[4, 4, 8],
        guidance_embeds=True,
    ).eval()
    pipeline = diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=tiny_vae(),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=transformer,
    )
    return pipeline, lambda pipe, index: pipe(
        prompt_embeds=made_of(1, 12, 32, seed=index),
        pooled_prompt_embeds=made_of(1, 32, seed=index),
        height=32,
        width=32,
        num_inference_steps=3 + index,
        guidance_scale=3.0 + index,
        generator=torch.Generator().manual_seed(index),
        output_type="latent",
    )


def controlnet() -> tuple[Any, Callable[[Any, int], Any]]:
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(16, 32),
        layers_per_block=1,
        sample_size=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
    ).eval()
    steering = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16)).eval()
    for parameter in steering.controlnet_mid_block.parameters():  # zero at first: it would steer nothing
        torch.nn.init.normal_(parameter)
    pipeline = diffusers.StableDiffusionControlNetPipeline(
        vae=tiny_vae(),
        text_encoder=None,
        tokenizer=None,
        unet=unet,
        controlnet=steering,
        scheduler=diffusers.DDIMScheduler(**NOISE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return pipeline, lambda pipe, index: pipe(
        prompt_embeds=made_of(1, 77, 32, seed=index),
        negative_prompt_embeds=made_of(1, 77, 32, seed=50),
        image=made_of(1, 3, 32, 32, seed=index).clamp(0, 1),
        height=32,
        width=32,
        num_inference_steps=3 + index,
        guidance_scale=5.0 + index,
        controlnet_conditioning_scale=0.8,
        generator=torch.Generator().manual_seed(index),
        output_type="np",
    )


@pytest.mark.parametrize("build", [sdxl, sd3, flux, controlnet])
def test_other_architectures_share_without_code_of_their_own(
    build: Callable[[], tuple[Any, Callable[[Any, int], Any]]],
) -> None:
    import copy

    pipeline, call = build()

    def render(index: int) -> np.ndarray[Any, Any]:
        pipe = copy.copy(pipeline)
        pipe.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
        return np.asarray(call(pipe, index).images)

    stock = [render(index) for index in range(3)]
    hub = hub_on(pipeline)
    alone = hub.start(lambda: render(1), Sharing.THROUGHPUT)
    finish(hub)
    assert np.array_equal(alone.result, stock[1])
    before = hub.forwards, hub.rows
    runs = [hub.start(lambda index=index: render(index), Sharing.THROUGHPUT) for index in range(3)]  # type: ignore[misc]
    finish(hub)
    for run, expected in zip(runs, stock, strict=True):
        assert run.error is None
        np.testing.assert_allclose(run.result, expected, atol=1e-4 * max(1.0, float(np.abs(expected).max())))
    rows = 1 if build is flux else 2
    assert (hub.rows - before[1]) / (hub.forwards - before[0]) > 1.5 * rows


# -- whole jobs --------------------------------------------------------------------------------------------------------


def work(wanted: JobSpec, model: Model = EXACT, priority: Priority = Priority.NORMAL) -> RenderWork:
    done: list[int] = []
    made = RenderWork(
        wanted, model, images(wanted.task), lambda: None, done.append, threading.Event(), priority=priority
    )
    made.__dict__["done"] = done
    return made


def carried_out(renderer: SharedRenderer) -> dict[RenderWork, Any]:
    ended: dict[RenderWork, Any] = {}
    while renderer.active:
        ended.update(renderer.advance())
    return ended | dict(renderer.advance())


def test_the_images_of_jobs_share_forwards_and_each_job_counts_its_own_steps(starter: LoadedModel) -> None:
    renderer = SharedRenderer(CPU, 1, lambda: None, 8)
    jobs = [
        work(spec(num_images_per_prompt=3, seed=4, exact=False, **SMALL)),
        work(spec(num_inference_steps=5, seed=9, exact=False, **SMALL)),
    ]
    for job in jobs:
        assert renderer.takes(job.model)
        renderer.admit(job)
    ended = carried_out(renderer)
    assert renderer.hub.rows / renderer.hub.forwards > 3
    for job in jobs:
        rendered = ended[job]
        assert isinstance(rendered, Rendered)
        assert len(rendered.images) == job.spec.num_images_per_prompt
        for index, image in enumerate(rendered.images):
            alone = pipelines.render(starter, job.spec, index, {}, lambda _: None, threading.Event())
            assert np.abs(np.asarray(image, int) - np.asarray(alone, int)).max() <= 1
        assert job.__dict__["done"] == sorted(job.__dict__["done"])
        assert job.__dict__["done"][-1] == job.spec.num_inference_steps * job.spec.num_images_per_prompt


def test_a_model_that_goes_takes_its_hooks_along() -> None:
    import gc
    import weakref

    renderer = SharedRenderer(CPU, 1, lambda: None, 8)
    renderer.admit(work(spec(num_inference_steps=1, **SMALL)))
    unet = weakref.ref(next(iter(renderer._jobs)).loaded.pipeline(Task.TEXT_TO_IMAGE).unet)
    carried_out(renderer)
    assert renderer._serial._residency.drop_others("another")
    gc.collect()
    assert unet() is None


def test_a_stopped_job_and_one_without_memory_leave_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = SharedRenderer(CPU, 1, lambda: None, 8)
    stopped, short, good = (
        work(spec(num_inference_steps=count, num_images_per_prompt=2, **SMALL)) for count in (50, 4, 6)
    )
    real = pipelines.render

    def render(loaded: Any, wanted: JobSpec, *rest: Any) -> Image.Image:
        if wanted is short.spec:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(loaded, wanted, *rest)

    monkeypatch.setattr(pipelines, "render", render)
    for job in (stopped, good):
        renderer.admit(job)
    renderer.advance()
    renderer.admit(short)
    assert not renderer.takes(EXACT)  # it gets the device for itself once the others are done
    stopped.stop.set()
    ended = carried_out(renderer)
    assert isinstance(ended[stopped], JobCanceled)
    assert isinstance(ended[short], OutOfMemory)
    assert len(ended[good].images) == 2
    assert renderer.takes(EXACT)


# -- the engine's thread -----------------------------------------------------------------------------------------------


def test_the_engine_fills_its_slots_lets_a_waiting_person_in_and_ends_jobs_one_by_one() -> None:
    engine = Engine(choose("cpu0"), 1, slots=2)
    began: list[str] = []
    gate = threading.Event()

    def job(name: str, count: int, priority: Priority = Priority.NORMAL) -> RenderWork:
        made = work(spec(num_inference_steps=count, seed=count, **SMALL), priority=priority)
        made.on_take_up = lambda: began.append(name)
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
    assert len(first.future.result(90).images) == 1
    assert len(person.future.result(60).images) == 1
    assert began[0] == "person" or began.index("person") < began.index("waiting")
    assert len(waiting.future.result(60).images) == 1
    second.stop.set()
    assert isinstance(second.future.exception(60), JobCanceled)
    assert isinstance(odd.future.exception(60), ModelUnavailable)
    assert began[-1] == "odd"  # loading waits until the device is empty
    engine.close()
    engine.join(30)
    assert not engine.is_alive()
    assert engine.idle_seconds == 0


def test_a_device_takes_several_jobs_unless_told_not_to() -> None:
    assert [slots(batching, kind) for batching in ("on", "off") for kind in ("cpu", "cuda")] == [4, 16, 1, 1]


def test_a_suspect_has_the_device_for_itself_until_it_has_left_the_process() -> None:
    engine = Engine(choose("cpu0"), 1, slots=4)
    began: list[str] = []

    def job(name: str, *, suspect: bool = False) -> RenderWork:
        made = work(spec(num_inference_steps=3, **SMALL))
        made.owner, made.suspect = name, suspect
        made.on_take_up = lambda: began.append(name)
        return made

    jobs = {name: job(name, suspect=name == "suspect") for name in ("before", "suspect", "after")}
    for one in jobs.values():
        engine.submit(one)
    engine.start()
    jobs["before"].future.result(60)
    assert began == ["before"]
    assert engine.idle_seconds == 0  # it waits, and does not hang
    engine.leave("before")
    jobs["suspect"].future.result(60)
    assert began == ["before", "suspect"]
    engine.leave("suspect")
    jobs["after"].future.result(60)
    engine.close()
    engine.join(30)
