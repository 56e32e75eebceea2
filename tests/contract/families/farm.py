"""The check of a family with the farm's data plane: what a job with a user's folder goes through on a worker."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from diffusers import ModularPipeline
from PIL import Image

from farm import model_registry
from farm.domain.cost import steps_run
from farm.domain.job_spec import JobSpec
from farm.domain.media import output_formats
from farm.domain.model import Model
from farm.domain.worker import Device
from farm.errors import JobCanceled, UnsupportedParameter
from farm.pipelines.catalogue import catalogue
from farm.pipelines.spec import Kind, Media, PipelineSpec
from farm.tasks import TASKS
from tests.contract.families import stock
from tests.contract.families.family import Family
from workers.batched_renderer import BatchedRenderer
from workers.media.artifacts import Artifact, Clip, Sound
from workers.model_cache import ModelCache
from workers.pipelines.forms import sample_rate_of
from workers.pipelines.isolation import Sharing
from workers.render_request import RenderRequest, RenderResult

CPU: Final = Device("cpu", "cpu0", "a processor", 2**34, "float32")
SEED: Final = 0  #: of `stock.render`
MAX_TRIALS: Final = 6  #: jobs after which a class must be known to share or not

#: Parameters that a job may leave to the pipeline and whose other value changes the output of most classes.
_OWN: Final = (
    ("guidance_rescale", 0.7),
    ("clip_skip", 1),
    ("true_cfg_scale", 2.5),
    ("pag_scale", 1.0),
    ("eta", 0.5),
    ("prior_guidance_scale", 2.0),
    ("controlnet_conditioning_scale", 0.5),
    ("max_sequence_length", 16),
    ("motion_bucket_id", 64),
)


#: What a job cannot give because the worker sets it, as the calls of the families do.
_SET_BY_WORKER: Final = ("output_type", "_auto_resize")


@dataclass(frozen=True)
class Report:
    """What was found about one pipeline class."""

    task: str
    sharing: str  #: "shares", or why its calls run alone
    parameters: tuple[str, ...]  #: that a job may give beside the task's own
    own: str  #: the parameter of its own that was tried; empty where it has none of those that are tried
    left_out: tuple[str, ...] = ()  #: arguments of the stock call that a job cannot give


@dataclass
class Job:
    """The stock call of a family as a job."""

    spec: JobSpec
    inputs: dict[str, tuple[Artifact, ...]]
    left_out: tuple[str, ...]


@dataclass
class Outcome:
    """How a job ended."""

    result: RenderResult | None = None
    error: BaseException | None = None
    steps: list[int] = field(default_factory=list)


def folder_for(family: Family, pipeline_class: str, folder: Path) -> Path:
    """The saved family as a folder whose model renders with the class."""
    spec = catalogue().pipeline(pipeline_class)
    if spec.kind is Kind.MODULAR:
        target = folder.with_name(f"{folder.name}-{pipeline_class}")
        pipeline = ModularPipeline.from_pretrained(str(folder))
        pipeline.save_pretrained(str(target))
        return target
    index = folder / "model_index.json"
    content = json.loads(index.read_text("utf-8"))
    base = catalogue().pipeline(content["_class_name"])
    if pipeline_class == base.name or pipeline_class == base.same_weights.get(spec.tasks[0] if spec.tasks else ""):
        return folder
    target = folder.with_name(f"{folder.name}-{pipeline_class}")
    target.mkdir(exist_ok=True)
    for part in folder.iterdir():
        if part != index and not (target / part.name).exists():
            (target / part.name).symlink_to(part)
    (target / index.name).write_text(json.dumps(content | {"_class_name": pipeline_class}), "utf-8")
    return target


def entry_of(name: str, folder: Path, task: str) -> Model:
    """The entry of a models file that has the folder, with one of its tasks."""
    found = model_registry.parse(f"[[model]]\nid = {json.dumps(name)}\nsource = {json.dumps(str(folder))}\n", "a file")
    assert not found.problems, found.problems[0]
    model = found.get(name)
    assert model is not None
    assert task in model.tasks, f"the folder does {model.tasks}"
    return model.model_copy(update={"tasks": (task,)})


def job_of(spec: PipelineSpec, arguments: Mapping[str, Any], model: str, sample_rate: int = 16_000) -> Job:
    """The arguments of a stock call as a user gives them to the farm; ``sample_rate`` of sounds."""
    task = spec.tasks[0]
    common_names = set(TASKS[task].params.model_fields)
    names = {own: name for name, own in spec.aliases.items()}
    common: dict[str, Any] = {}
    parameters: dict[str, Any] = {}
    inputs: dict[str, tuple[Artifact, ...]] = {}
    left_out = []
    for own, value in arguments.items():
        parameter, name = spec.parameters[own], names.get(own, own)
        if parameter.input is not None:
            inputs[name] = _decoded(parameter.input.media, value, sample_rate)
        elif name in common_names and spec.own_name(name) == own:
            common[name] = value
        elif parameter.offered:
            parameters[own] = list(value) if isinstance(value, tuple) else value
        elif own not in _SET_BY_WORKER:
            left_out.append(own)
    job = JobSpec(
        task=task,
        model=model,
        pipeline=spec.name,
        common=common,
        parameters=parameters,
        seed=SEED,
        num_outputs=1,
        output_format=output_formats(TASKS[task].output)[0].name,
        exact=False,
    )
    return Job(job, inputs, tuple(left_out))


def _decoded(media: Media, value: Any, sample_rate: int) -> tuple[Artifact, ...]:
    """An argument of a stock call as the farm decodes it from a file."""
    if media is Media.AUDIO:
        sound = value[0] if value.ndim == 3 else value
        return (Sound(np.ascontiguousarray(np.atleast_2d(sound.numpy()).T), sample_rate),)
    if isinstance(value, torch.Tensor):  # (1, 3, H, W) or (1, 3, T, H, W), 0 to 1
        frames = value[0].movedim(0, -1)
        frames = frames.expand(*frames.shape[:-1], 3)  # a mask has one channel
        bytes_ = (frames * 255).round().to(torch.uint8).numpy()
        if media is Media.IMAGE:
            return (Image.fromarray(bytes_),)
        return (Clip([Image.fromarray(frame) for frame in bytes_], 8.0),)
    if media is Media.VIDEO:
        return (Clip(value, 8.0),)
    return tuple(value) if isinstance(value, list) else (value,)


def run(
    renderer: BatchedRenderer,
    model: Model,
    jobs: Sequence[JobSpec],
    inputs: Mapping[str, Sequence[Artifact]],
    on_step: Callable[[threading.Event], None] = lambda _: None,
) -> list[Outcome]:
    """Render jobs at the same time; ``on_step`` gets the event that stops the first."""
    outcomes = [Outcome() for _ in jobs]
    requests = []
    for job, outcome in zip(jobs, outcomes, strict=True):
        stop = threading.Event()

        def step(done: int, outcome: Outcome = outcome, stop: threading.Event = stop) -> None:
            outcome.steps.append(done)
            on_step(stop)

        requests.append(RenderRequest(job, model, inputs, lambda _: None, step, stop))
    ended: dict[RenderRequest, Any] = {}
    for request in requests:
        renderer.admit(request)
    while renderer.active:
        ended.update(renderer.advance())
    ended.update(renderer.advance())
    for request, outcome in zip(requests, outcomes, strict=True):
        found = ended[request]
        outcome.result = found if isinstance(found, RenderResult) else None
        outcome.error = None if isinstance(found, RenderResult) else found
    return outcomes


def values_of(artifact: Artifact) -> np.ndarray:
    """An artifact as bytes: images and clips 0 to 255, sounds as they are."""
    if isinstance(artifact, Sound):
        return artifact.samples.T
    values: np.ndarray = np.asarray(artifact if isinstance(artifact, Image.Image) else artifact.frames)
    return values


def expected_values(rendered: stock.Rendered, task: str) -> np.ndarray:
    """The stock output as the farm delivers it: as bytes, a depth map brighter where it is nearer."""
    if rendered.output.media.value == Media.AUDIO:
        return np.asarray(rendered.values[0], np.float32)
    values = rendered.values if rendered.output.media.value == Media.VIDEO else rendered.values[0]
    if task == "normal-estimation":
        values = values / 2 + 0.5
    if values.shape[-1] == 1:
        values = values[..., 0]
    if task == "depth-estimation":
        values = 1 - values
    pixels = (values.clip(0, 1) * 255).round().astype(np.uint8)
    return (
        np.repeat(pixels[..., None], 3, -1) if pixels.ndim == (2 if len(rendered.output.size) == 2 else 3) else pixels
    )


def check(family: Family, pipeline_class: str, folder: Path) -> Report:
    """Render one class of a saved family as jobs of the farm and compare with the stock pipeline.

    Raises:
        AssertionError: The bytes, the size or the length are not those of the stock pipeline called with the same
            arguments; a job's bytes depend on the jobs beside it; a cancel takes more than two denoiser calls; or a
            foreign parameter is not refused.
    """
    spec = catalogue().pipeline(pipeline_class)
    assert spec.tasks, f"refused: {spec.no_task}"
    call = family.calls[pipeline_class]
    path = folder_for(family, pipeline_class, folder)
    model = entry_of(family.name, path, spec.tasks[0])
    cache = ModelCache(CPU)
    renderer = BatchedRenderer(cache, 8)
    pipeline = stock.load(family, pipeline_class, folder)
    job = job_of(spec, call.arguments(), model.id, sample_rate_of(pipeline) or 16_000)
    arguments = {name: value for name, value in call.arguments().items() if name not in job.left_out}
    arguments |= {name: value for name, value in call.arguments().items() if name in _SET_BY_WORKER}

    foreign = job.spec.model_copy(update={"parameters": job.spec.parameters | {"no_such_parameter": 1}})
    (refused,) = run(renderer, model, [foreign], job.inputs)
    assert isinstance(refused.error, UnsupportedParameter), refused.error
    assert not refused.steps

    loaded = cache.load(model)
    assert type(loaded.pipeline(job.spec.task)).__name__ == pipeline_class
    expected = stock.render(pipeline, arguments)
    (alone,) = run(renderer, model, [job.spec], job.inputs)
    _check_equal(alone, expected, job)
    own = _check_own_parameter(renderer, model, job, pipeline, arguments)

    isolation = loaded.isolation_of(job.spec.task)
    for seed in range(MAX_TRIALS):
        if isolation.sharing is not Sharing.UNTRIED:
            break
        run(renderer, model, [job.spec.model_copy(update={"seed": 10 + seed})], job.inputs)
    assert isolation.sharing is not Sharing.UNTRIED
    _check_company(renderer, model, job, expected)
    _check_cancel(renderer, model, job)
    common = set(TASKS[job.spec.task].params.model_fields)
    names = {name for name in spec.offered if name not in {spec.own_name(one) for one in common}}
    reason = isolation.reason if isolation.sharing is Sharing.ALONE else "shares"
    return Report(job.spec.task, reason or "", tuple(sorted(names)), own, job.left_out)


def _check_equal(outcome: Outcome, expected: stock.Rendered, job: Job) -> None:
    assert outcome.result is not None, outcome.error
    (artifact,) = outcome.result.artifacts
    found, wanted = values_of(artifact), expected_values(expected, job.spec.task)
    assert found.shape == wanted.shape, f"{found.shape} instead of {wanted.shape}"
    assert np.array_equal(found, wanted), f"{np.mean(found != wanted):.1%} of the values differ from the stock call's"
    size = (job.spec.width, job.spec.height)
    if not isinstance(artifact, Sound) and None not in size:
        warned = any("pixels" in text for text in outcome.result.warnings)
        assert warned is (artifact.size != size), f"{artifact.size}, asked {size}: {outcome.result.warnings}"
    if isinstance(artifact, Clip) and expected.output.sound is not None:
        assert artifact.sound is not None
        assert np.array_equal(artifact.sound.samples.T, expected.sound)


def _check_own_parameter(
    renderer: BatchedRenderer, model: Model, job: Job, pipeline: Any, arguments: dict[str, Any]
) -> str:
    """A parameter of the class's own has the effect that it has on the stock pipeline."""
    spec = catalogue().pipeline(type(pipeline).__name__)
    known = set(TASKS[job.spec.task].params.model_fields)
    for name, value in _OWN:
        if name in arguments or name in known or name not in spec.offered:
            continue
        try:
            expected = stock.render(pipeline, arguments | {name: value})
        except Exception:  # noqa: BLE001 - this model does not take that value: try another parameter
            continue
        given = job.spec.model_copy(update={"parameters": job.spec.parameters | {name: value}})
        (outcome,) = run(renderer, model, [given], job.inputs)
        _check_equal(outcome, expected, job)
        return name
    return ""


def _check_company(renderer: BatchedRenderer, model: Model, job: Job, expected: stock.Rendered) -> None:
    """An exact job has the stock call's bytes alone and beside others."""
    exact = job.spec.model_copy(update={"exact": True})
    other = exact.model_copy(update={"seed": SEED + 1})
    (alone,) = run(renderer, model, [exact], job.inputs)
    company = run(renderer, model, [exact, other, exact], job.inputs)
    for outcome in (alone, company[0], company[2]):
        _check_equal(outcome, expected, job)
    assert company[1].result is not None, company[1].error


def _check_cancel(renderer: BatchedRenderer, model: Model, job: Job) -> None:
    """A job that is stopped at its first step computes at most two more forwards."""
    forwards: list[int] = []

    def stop(event: threading.Event) -> None:
        if not event.is_set():
            event.set()
            forwards.append(renderer.batcher.forwards)

    (outcome,) = run(renderer, model, [job.spec], job.inputs, stop)
    if job.spec.num_inference_steps == 1 or outcome.steps == [steps_run(job.spec)]:
        return  # its first step was its last
    assert isinstance(outcome.error, JobCanceled), outcome.error
    assert renderer.batcher.forwards - forwards[0] <= 2
