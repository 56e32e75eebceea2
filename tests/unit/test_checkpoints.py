"""A stopped job goes on from its checkpoint: the same bytes as without the stop, and no step is computed twice."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from diffusers.utils import BaseOutput

from farm.domain.job_spec import JobSpec
from farm.domain.model import Model
from farm.errors import JobCanceled
from tests.depth import NIGHTLY
from tests.job_specs import STARTER_SCHEDULERS, STARTER_TASKS
from tests.unit.test_pipelines import CPU, images, spec
from workers import numerics, pipelines
from workers.batched_renderer import BatchedRenderer
from workers.checkpoints import part_format
from workers.checkpoints.part_format import InvalidPart, NotRecordable
from workers.checkpoints.record import (
    MISSING,
    JobRecord,
    Moment,
    OutputRecord,
    Recording,
    RecordMismatch,
)
from workers.media.artifacts import Artifact
from workers.model_cache import ModelCache
from workers.pipelines.isolation import ClassIsolation, Sharing
from workers.render_request import CheckpointPart, RenderRequest, RenderResult

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning"),
    pytest.mark.filterwarnings("ignore:`torch_dtype` is deprecated:FutureWarning"),
]

STARTER = Model(id="starter", source="builtin:starter", tasks=tuple(STARTER_TASKS), dtype="float32")
SMALL: dict[str, Any] = {"width": 32, "height": 32}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    pipelines.silence_libraries()
    numerics.make_deterministic(1)


@pytest.fixture(autouse=True)
def no_call_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests begin where the calls of every class are known to share."""
    monkeypatch.setattr("workers.pipelines.loaded_model.ClassIsolation", lambda: ClassIsolation(Sharing.SHARES))


@pytest.fixture(scope="module")
def renderer() -> BatchedRenderer:
    return BatchedRenderer(ModelCache(CPU), 8)


class Attempt:
    """One attempt of a job: its request, and what it says about checkpoints."""

    def __init__(
        self,
        wanted: JobSpec,
        parts: Sequence[bytes] = (),
        *,
        stop_at: int | None = None,
        every_seconds: float = 1000.0,
        numerics: str = "cpu-0",
    ) -> None:
        self.parts: list[CheckpointPart] = []
        self.resumed: list[int] = []
        self.void = 0
        self.steps: list[int] = []
        stop = threading.Event()

        def on_step(done: int) -> None:
            self.steps.append(done)
            if stop_at is not None and done >= stop_at:
                stop.set()

        self.request = RenderRequest(
            wanted,
            STARTER,
            images(wanted.task, (32, 32)),
            lambda _: None,
            on_step,
            stop,
            checkpoint_seconds=every_seconds,
            checkpoint_parts=tuple(parts),
            on_checkpoint=self.parts.append,
            on_resumed=self.resumed.append,
            on_void=self.voided,
            numerics=numerics,
        )

    def voided(self) -> None:
        self.void += 1

    @property
    def files(self) -> list[bytes]:
        return [part.to_bytes() for part in self.parts]


def run(renderer: BatchedRenderer, *attempts: Attempt) -> tuple[list[Any], int]:
    """The outcomes of attempts that run beside each other, and how many rows the device computed."""
    before = renderer.batcher.rows
    for attempt in attempts:
        renderer.admit(attempt.request)
    ended: dict[RenderRequest, Any] = {}
    while renderer.active:
        ended.update(renderer.advance())
    ended.update(renderer.advance())
    return [ended[attempt.request] for attempt in attempts], renderer.batcher.rows - before


def same(one: Any, other: Any) -> bool:
    assert isinstance(one, RenderResult), one
    assert isinstance(other, RenderResult), other
    assert len(one.artifacts) == len(other.artifacts)
    return all(map(same_artifact, one.artifacts, other.artifacts))


def same_artifact(one: Artifact, other: Artifact) -> bool:
    return np.array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize("task", STARTER_TASKS)
@pytest.mark.parametrize("scheduler", STARTER_SCHEDULERS)
def test_a_job_that_goes_on_has_the_same_bytes_and_computes_no_step_again(
    renderer: BatchedRenderer, task: str, scheduler: str
) -> None:
    wanted = spec(
        task,
        scheduler=scheduler,
        num_inference_steps=9,
        strength=None if task == "text-to-image" else 0.9,
        **(SMALL if task in ("text-to-image", "inpainting") else {"width": None, "height": None}),
    )
    (whole,), rows = run(renderer, Attempt(wanted))
    first = Attempt(wanted, stop_at=5)
    (stopped,), rows_before = run(renderer, first)
    assert isinstance(stopped, JobCanceled)
    assert len(first.parts) == 1
    again = Attempt(wanted, first.files)
    (ended,), rows_after = run(renderer, again)
    assert again.void == 0
    assert again.resumed == [first.parts[0].steps]
    assert same(ended, whole)
    encodes = rows_before + rows_after - rows  # of the input, which each attempt makes for itself
    assert encodes <= 2
    assert rows_before >= 5


def test_attempts_beside_other_jobs_give_the_bytes_of_the_stock_pipeline_alone(renderer: BatchedRenderer) -> None:
    """Stopped twice, of several outputs, each time with company that comes and goes, kept in many parts."""
    wanted = spec(num_outputs=3, num_inference_steps=12, scheduler="euler-ancestral", seed=31, **SMALL)
    loaded = pipelines.load(STARTER, CPU)
    alone = [pipelines.render(loaded, wanted, index, {}, lambda _: None, threading.Event()) for index in range(3)]
    beside = [Attempt(spec(num_inference_steps=count, seed=count, **SMALL)) for count in (3, 7)]
    first = Attempt(wanted, stop_at=11, every_seconds=1e-9)
    run(renderer, first, *beside)
    second = Attempt(wanted, first.files, stop_at=25, every_seconds=1e-9)
    run(renderer, second, Attempt(spec(num_inference_steps=20, seed=5, exact=False, **SMALL)))
    assert len(first.parts) > 3
    assert len(second.parts) > 3
    assert [part.fresh for part in (*first.parts, *second.parts)].count(True) == 1
    third = Attempt(wanted, [*first.files, *second.files])
    (ended,), rows = run(renderer, third)
    assert isinstance(ended, RenderResult)
    assert third.resumed == [second.parts[-1].steps]
    assert all(map(same_artifact, ended.artifacts, alone))
    assert rows / 2 <= 3 * 12 - second.parts[-1].steps + 3  # two rows a step, and the decoder


@pytest.mark.parametrize(
    "change", [{"seed": 8}, {"guidance_scale": 4.5}, {"prompt": "a blue cube on a red background"}]
)
def test_a_checkpoint_of_another_recipe_is_void_and_the_job_begins_anew(
    renderer: BatchedRenderer, change: dict[str, Any]
) -> None:
    first = Attempt(spec(num_inference_steps=6, **SMALL), stop_at=4)
    run(renderer, first)
    other = spec(**{"num_inference_steps": 6, **SMALL, **change})
    (whole,), _ = run(renderer, Attempt(other))
    again = Attempt(other, first.files)
    (ended,), _ = run(renderer, again)
    assert again.resumed == []
    assert again.void == 1
    assert same(ended, whole)


def test_another_numerics_class_makes_the_checkpoint_of_an_exact_job_void_and_of_no_other(
    renderer: BatchedRenderer,
) -> None:
    for exact in (True, False):
        wanted = spec(num_inference_steps=6, exact=exact, **SMALL)
        first = Attempt(wanted, stop_at=4)
        run(renderer, first)
        again = Attempt(wanted, first.files, numerics="cpu-1")
        (ended,), _ = run(renderer, again)
        assert isinstance(ended, RenderResult)
        assert (again.void, len(again.resumed)) == ((1, 0) if exact else (0, 1))


@pytest.mark.parametrize("damage", ["cut", "noise", "missing part"])
def test_a_damaged_checkpoint_is_void(renderer: BatchedRenderer, damage: str) -> None:
    wanted = spec(num_inference_steps=6, **SMALL)
    first = Attempt(wanted, stop_at=4, every_seconds=1e-9)
    run(renderer, first)
    files = first.files
    assert len(files) > 2
    files = {"cut": [files[0][:-3]], "noise": [b"noise" * 100], "missing part": files[1:]}[damage]
    (whole,), _ = run(renderer, Attempt(wanted))
    again = Attempt(wanted, files)
    (ended,), _ = run(renderer, again)
    assert again.void == 1
    assert same(ended, whole)


def test_a_record_that_does_not_lead_to_the_recorded_input_is_not_used(
    renderer: BatchedRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another release of a scheduler, for instance: the fingerprint is the same, the arithmetic is not."""
    wanted = spec(num_inference_steps=8, num_outputs=2, **SMALL)
    (whole,), _ = run(renderer, Attempt(wanted))
    first = Attempt(wanted, stop_at=9)
    run(renderer, first)
    files = first.files
    header, tensors = part_format.unpack(files[0])
    _, _, names = header["segments"][0]["calls"][1]
    tensors[names[0]] = tensors[names[0]] * 1.001
    again = Attempt(wanted, [part_format.pack(header, tensors)])
    (ended,), _ = run(renderer, again)
    assert again.void == 1
    assert again.resumed[-1] == 0
    assert again.parts == [], "nothing is kept of an attempt that contradicts its checkpoint"
    assert same(ended, whole)


def test_a_quick_job_keeps_nothing(renderer: BatchedRenderer) -> None:
    quick = Attempt(spec(num_inference_steps=4, **SMALL), every_seconds=10.0)
    (ended,), _ = run(renderer, quick)
    assert isinstance(ended, RenderResult)
    assert quick.parts == []


# -- the record --------------------------------------------------------------------------------------------------------


def restored(output: Any, recording: Recording = Recording.VALUES) -> Any:
    """What the call returns when it is answered from a record."""
    written = JobRecord("same", exact=True)
    written.output(0).add("unet", output, recording)
    part = written.snapshot(1, {})
    assert part is not None
    read = JobRecord("same", exact=True)
    assert read.load([part.to_bytes()]) == 1
    return read.output(0).answer("unet", torch.zeros(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_structure_type_values_and_layout_of_an_output_are_kept(dtype: torch.dtype) -> None:
    last = torch.randn(2, 4, 6, 5).to(dtype).contiguous(memory_format=torch.channels_last)
    plain = torch.randn(3, 2).to(dtype)
    found = restored((last, [plain, None]))
    assert type(found) is tuple
    assert torch.equal(found[0], last)
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    assert found[0].dtype is dtype
    assert torch.equal(found[1][0], plain)
    assert found[1][1] is None
    named = restored(UNet2DConditionOutput(sample=last))
    assert isinstance(named, UNet2DConditionOutput)
    assert torch.equal(named.sample, last)


def test_a_controlnet_leaves_only_the_shapes_of_its_outputs() -> None:
    output = ([torch.randn(2, 320, 64, 64)], torch.randn(2, 8))
    record = JobRecord("same", exact=True)
    record.output(0).add("controlnet", output, Recording.SHAPES)
    part = record.snapshot(1, {})
    assert part is not None
    assert len(part.to_bytes()) < 1000
    blocks, middle = restored(output, Recording.SHAPES)
    assert (blocks[0].shape, middle.shape) == (output[0][0].shape, output[1].shape)


def test_a_pipeline_that_changes_what_it_got_changes_no_record() -> None:
    output = torch.ones(4)
    record = OutputRecord(0, exact=True)
    record.add("unet", output, Recording.VALUES)
    output.mul_(0)
    assert record.pending[0].tensors[0].sum() == 4


def test_a_module_that_returns_something_else_is_not_recorded() -> None:
    class Foreign(BaseOutput):  # type: ignore[misc]
        pass

    record = JobRecord("same", exact=True)
    record.output(0).add("unet", object(), Recording.VALUES)
    record.output(1).add("unet", torch.ones(1), Recording.VALUES)
    assert record.snapshot(1, {}) is None
    assert not record.enabled
    with pytest.raises(NotRecordable):
        part_format.describe({1, 2}, lambda _: None)
    with pytest.raises(InvalidPart, match="no output class of diffusers"):
        part_format.rebuild({"class": f"{Foreign.__module__}.Foreign", "fields": {}}, lambda _: torch.ones(1))
    with pytest.raises(InvalidPart, match="no output class of diffusers"):
        part_format.rebuild({"class": "diffusers.pipelines.DiffusionPipeline", "fields": {}}, lambda _: torch.ones(1))


@pytest.mark.parametrize("what", ["sample", "generator", "module"])
def test_the_first_computed_call_must_be_the_recorded_one(what: str) -> None:
    sample = torch.arange(4.0)
    written = JobRecord("same", exact=True)
    written.output(0).add("unet", torch.ones(2), Recording.VALUES)
    part = written.snapshot(1, {0: Moment("unet", sample, torch.get_rng_state())})
    assert part is not None
    read = JobRecord("same", exact=True)
    read.load([part.to_bytes()])
    record = read.output(0)
    assert torch.equal(record.answer("unet", sample), torch.ones(2))
    with torch.random.fork_rng(devices=()):
        if what == "generator":
            torch.rand(1)
        with pytest.raises(RecordMismatch):
            record.answer(
                "other" if what == "module" else "unet",
                torch.nextafter(sample, sample + 1) if what == "sample" else sample,
            )
    read.load([part.to_bytes()])
    record = read.output(0)
    record.answer("unet", sample)
    assert record.answer("unet", sample) is MISSING


@pytest.mark.skipif(not NIGHTLY, reason="measures time")
def test_recording_costs_less_than_one_percent(renderer: BatchedRenderer) -> None:
    wanted = spec(num_inference_steps=30, width=128, height=128, exact=False)

    def seconds(*, recorded: bool) -> float:
        attempt = Attempt(wanted)
        if not recorded:
            attempt.request.checkpoint_seconds = 0
        began = time.thread_time()
        run(renderer, attempt)
        return time.thread_time() - began

    seconds(recorded=True)
    pairs = [(seconds(recorded=True), seconds(recorded=False)) for _ in range(20)]
    ratio = min(one for one, _ in pairs) / min(other for _, other in pairs)
    assert ratio < 1.01, f"{ratio:.4f}"
