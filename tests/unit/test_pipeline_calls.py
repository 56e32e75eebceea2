"""One call of a pipeline: what it shares, what its errors mean, what it reports."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from farm.errors import InvalidParameters, JobCanceled, MissingPackage, UnsupportedParameter
from tests.contract.families.tokenizers import t5_tokenizer
from tests.unit.test_pipelines import CPU, STARTER, images, spec
from workers import numerics, pipelines
from workers.pipelines import LoadedModel
from workers.pipelines.failures import before_first_step
from workers.pipelines.model_index import only_variant
from workers.pipelines.private_copy import private_copy
from workers.pipelines.prompts import cut_prompts
from workers.pipelines.running_call import RunningCall

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`torch_dtype` is deprecated:FutureWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    pipelines.silence_libraries()
    numerics.make_deterministic(1)


@pytest.fixture(scope="module")
def starter() -> LoadedModel:
    return pipelines.load(STARTER, CPU)


def bare(kind: Any, **attributes: Any) -> Any:
    """A pipeline without weights."""
    made = kind.__new__(kind)
    made.__dict__.update(attributes)
    return made


def test_the_schedulers_of_a_pipeline_and_of_those_inside_are_copied_and_stay_the_same_object() -> None:
    scheduler, prior = diffusers.DDIMScheduler(), diffusers.UnCLIPScheduler()
    unet = torch.nn.Linear(1, 1)
    inner = bare(diffusers.KandinskyV22Pipeline, scheduler=scheduler, unet=unet)
    first = bare(diffusers.KandinskyV22PriorPipeline, scheduler=prior)
    combined = bare(
        diffusers.KandinskyV22CombinedPipeline,
        scheduler=scheduler,
        prior_scheduler=prior,
        decoder_pipe=inner,
        prior_pipe=first,
    )
    copied = private_copy(combined)
    assert copied.scheduler is copied.decoder_pipe.scheduler is not scheduler
    assert copied.prior_scheduler is copied.prior_pipe.scheduler is not prior
    assert copied.decoder_pipe.unet is unet
    chosen = diffusers.DDPMScheduler()
    copied = private_copy(combined, chosen)
    assert copied.scheduler is copied.decoder_pipe.scheduler is chosen
    assert combined.decoder_pipe.scheduler is scheduler


def test_the_steps_of_a_prior_are_not_the_job_s() -> None:
    steps: list[int] = []
    combined = bare(
        diffusers.KandinskyV22CombinedPipeline,
        decoder_pipe=bare(diffusers.KandinskyV22Pipeline),
        prior_pipe=bare(diffusers.KandinskyV22PriorPipeline),
    )
    copied = private_copy(combined, run=RunningCall(4, steps.append, threading.Event()))
    assert list(copied.prior_pipe.progress_bar(torch.tensor([9, 5]))) == [9, 5]
    assert steps == []
    for _ in copied.decoder_pipe.progress_bar(range(4)):
        pass
    assert steps == [1, 2, 3, 4]


def test_steps_are_counted_by_the_pipeline_s_own_bar_or_by_denoiser_calls() -> None:
    steps: list[int] = []
    run = RunningCall(2, steps.append, threading.Event())
    run.after_forward()
    assert steps == [1]
    with run.progress_bar(total=4) as bar:  # two updates for each step
        bar.update()
        run.after_forward()
        assert steps == [1]
        bar.update(3)
    assert steps == [1, 2]
    run.finish()
    assert steps == [1, 2]


def test_a_stopped_call_ends_before_its_next_denoiser_call() -> None:
    stop = threading.Event()
    run = RunningCall(2, lambda _: None, stop)
    run.before_forward()
    stop.set()
    with pytest.raises(JobCanceled):
        run.before_forward()


@pytest.mark.parametrize(
    ("error", "expected", "text"),
    [
        (
            TypeError("unexpected keyword"),
            InvalidParameters,
            "FluxPipeline refuses the job: TypeError: unexpected keyword",
        ),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), InvalidParameters, "mat1 and mat2"),
        (
            ImportError("FluxPipeline requires the librosa library but it was not found"),
            MissingPackage,
            "pip install librosa",
        ),
        (ModuleNotFoundError("No module named 'librosa'", name="librosa.core"), MissingPackage, "pip install librosa"),
        (NameError("name 'librosa' is not defined", name="librosa"), MissingPackage, "pip install librosa"),
        (torch.AcceleratorError("CUDA error: device-side assert triggered"), torch.AcceleratorError, "CUDA error"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), RuntimeError, "CUDA error"),
        (torch.OutOfMemoryError("CUDA out of memory"), torch.OutOfMemoryError, "out of memory"),
        (JobCanceled("stopped"), JobCanceled, "stopped"),
    ],
)
def test_an_error_before_the_first_step_is_final_unless_the_device_made_it(
    error: Exception, expected: type[Exception], text: str
) -> None:
    found = before_first_step("FluxPipeline", error)
    assert type(found) is expected
    assert text in str(found)


def test_a_value_that_the_pipeline_cannot_use_is_final_and_says_why(starter: LoadedModel) -> None:
    wanted = spec(scheduler="euler-ancestral", parameters={"timesteps": [3, 2, 1]})
    with pytest.raises(InvalidParameters, match="StableDiffusionPipeline refuses the job: ValueError") as caught:
        pipelines.render(starter, wanted, 0, {}, lambda _: None, threading.Event())
    assert not caught.value.retryable


def test_a_scheduler_that_does_not_fit_is_refused_with_those_that_do(starter: LoadedModel) -> None:
    wanted = spec(scheduler="flow-match-euler")
    with pytest.raises(UnsupportedParameter, match=r"it runs with .*euler-ancestral"):
        pipelines.render(starter, wanted, 0, {}, lambda _: None, threading.Event())
    wanted = spec(scheduler="euler", scheduler_options={"use_karras": True})
    with pytest.raises(UnsupportedParameter, match=r"scheduler_options\.use_karras: EulerDiscreteScheduler takes"):
        pipelines.render(starter, wanted, 0, {}, lambda _: None, threading.Event())


def test_scheduler_options_change_the_image(starter: LoadedModel) -> None:
    plain, karras = (
        pipelines.render(
            starter,
            spec(scheduler="dpm-solver", scheduler_options=options, num_inference_steps=4),
            0,
            {},
            lambda _: None,
            threading.Event(),
        )
        for options in ({}, {"use_karras_sigmas": True})
    )
    assert plain.tobytes() != karras.tobytes()  # type: ignore[union-attr]


def test_what_is_odd_about_an_output_is_said(starter: LoadedModel) -> None:
    said: list[str] = []

    def render(**changes: Any) -> None:
        said.clear()
        wanted = spec("image-to-image", strength=0.5, num_inference_steps=2, **changes)
        pipelines.render(
            starter, wanted, 0, images("image-to-image"), lambda _: None, threading.Event(), on_warning=said.append
        )

    render()
    assert said == []
    render(prompt="a red sphere " * 60)
    assert len(said) == 1
    assert "truncated" in said[0]


@pytest.mark.parametrize(
    ("names", "variant"),
    [
        (("model.safetensors",), None),
        (("model.fp16.safetensors", "unet.fp16-00001-of-00002.safetensors"), "fp16"),
        (("model.fp16.safetensors", "model.safetensors"), None),
    ],
)
def test_weights_of_only_one_variant_are_found(names: tuple[str, ...], variant: str | None, tmp_path: Path) -> None:
    for name in names:
        path = tmp_path / "component" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    assert only_variant(tmp_path) == variant


class Reader:
    """A pipeline whose text encoder reads a part of its prompt."""

    def __init__(self) -> None:
        self.components = {"tokenizer": t5_tokenizer(), "tokenizer_2": None}

    def __call__(self, prompt: str, negative_prompt: str | None = None, max_sequence_length: int = 8) -> None:
        """As diffusers declares it."""


def test_a_prompt_that_is_longer_than_the_window_is_named_with_both_lengths() -> None:
    long = "a red cube on a blue table beside a green sphere"
    (text,) = cut_prompts(Reader(), {"prompt": long, "negative_prompt": "a cube"})
    assert text.startswith("prompt has ")
    assert "tokenizer reads 8" in text
    assert list(cut_prompts(Reader(), {"prompt": long, "max_sequence_length": 64})) == []
