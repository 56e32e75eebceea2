"""Renders one output of a job by one call of an unmodified pipeline."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from farm.domain.cost import steps_run
from farm.domain.job_spec import JobSpec
from farm.errors import JobCanceled, NanOutput
from farm.pipelines import prompt_weighting
from workers.checkpoints.record import RecordMismatch
from workers.media.artifacts import Artifact, Clip, Sound
from workers.pipelines.binding import BoundCall, bind
from workers.pipelines.failures import before_first_step
from workers.pipelines.loaded_model import LoadedModel
from workers.pipelines.private_copy import private_copy
from workers.pipelines.prompt_weighting import weigh_prompts
from workers.pipelines.prompts import cut_prompts
from workers.pipelines.results import read_artifact
from workers.pipelines.running_call import RunningCall, running


def render(
    loaded: LoadedModel,
    job: JobSpec,
    index: int,
    inputs: Mapping[str, Sequence[Artifact]],
    on_step: Callable[[int], None],
    stop: threading.Event,
    on_latents: Callable[[int, torch.Tensor], None] | None = None,
    on_progress: Callable[[], None] = lambda: None,
    on_warning: Callable[[str], None] = lambda _: None,
    *,
    recorded: bool = False,
) -> Artifact:
    """Render one output of a job.

    Args:
        loaded: The model.
        job: The job.
        index: Of the output; its seed is ``job.seed + index``.
        inputs: The decoded inputs by role.
        on_step: Gets the denoising steps done, 1 to `steps_run`.
        stop: Ends the run before its next denoiser call.
        on_latents: Gets the steps done and the latents, (1, C, H/8, W/8) where the pipeline does not pack them.
        on_progress: Called after every denoiser call.
        on_warning: Gets what is wrong with the result although it is one: a cut prompt, another size than asked for.
        recorded: Whether the hooked denoisers record their calls, see `RunningCall`.

    Returns:
        The output with the size and length that it came out with.

    Raises:
        UnsupportedParameter: The pipeline lacks a parameter or an input that the job gives, or needs another one.
        InvalidParameters: The pipeline refused the job before its first step.
        MissingPackage: The pipeline needs a package that is not installed.
        NanOutput: The arithmetic overflowed.
        JobCanceled: ``stop`` was set.
        RecordMismatch: The call is not the one that was recorded.
    """
    if stop.is_set():
        raise JobCanceled("the job was stopped")
    pipeline, spec = loaded.pipeline(job.task), loaded.spec(job.task)
    seed = job.seed_of(index)
    total = steps_run(job)
    call = bind(spec, pipeline, job.common, job.parameters, inputs, seed)
    run = RunningCall(total, on_step, stop, on_progress, recorded)
    own = private_copy(pipeline, loaded.scheduler(job.task, job.scheduler, job.scheduler_options), run)
    if on_latents is not None and spec.takes("callback_on_step_end"):
        call.arguments["callback_on_step_end"] = _to_preview(on_latents, total)
    # pixels that no decoder makes are checked where NumPy casts them
    with running(run), np.errstate(invalid="warn" if spec.decoders else "raise"):
        torch.manual_seed(seed)  # a few pipelines draw from torch's own generator
        try:
            if job.common.get(prompt_weighting.NAME) == "a1111":
                weigh_prompts(own, call)
            result = own(**call.arguments)
        except FloatingPointError as error:
            raise NanOutput("the output contains NaN") from error
        except RecordMismatch:
            raise
        except Exception as error:
            final = error if run.steps_done else before_first_step(spec.name, error)
            if final is error:
                raise
            raise final from error
        artifact = read_artifact(spec, own, result, job.task, {**call.arguments, **job.common})
    run.finish()
    cut = [] if any("truncated" in text for text in run.warnings) else cut_prompts(pipeline, call.arguments)
    said = [text for text in run.warnings if _is_about(call, text)]
    for text in (*call.warnings, *said, *cut, *_differences(call, artifact)):
        on_warning(text)
    return artifact


def _to_preview(on_latents: Callable[[int, torch.Tensor], None], total: int) -> Callable[..., dict[str, Any]]:
    def after_step(pipe: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        latents = tensors.get("latents")
        if latents is not None:
            # some schedulers call the denoiser twice for one step: count the requested steps
            on_latents(min(total, (step + 1) * total // max(1, pipe.num_timesteps)), latents)
        return {}

    return after_step


def _is_about(call: BoundCall, warning: str) -> bool:
    """Whether a warning of the library concerns this job: not one that names only parameters left open."""
    named = set(re.findall(r"[a-z_0-9]+", warning)) & {name for name in call.spec.parameters if "_" in name}
    return not named or bool(named & set(call.arguments))


def _differences(call: BoundCall, artifact: Artifact) -> list[str]:
    """How the output differs from the size and length that the job gives."""
    found = []
    name = call.spec.name
    if isinstance(artifact, Sound):
        wanted = call.common.get("seconds")
        if wanted and abs(artifact.seconds - wanted) > max(0.1, 0.05 * wanted):
            found.append(f"the output has {artifact.seconds:g} seconds: {name} does not render {wanted:g}")
        return found
    if call.size is not None and artifact.size != call.size:
        width, height = artifact.size
        found.append(f"the output has {width}x{height} pixels: {name} does not render {call.size[0]}x{call.size[1]}")
    frames = call.common.get("num_frames")
    if isinstance(artifact, Clip) and frames and len(artifact) != frames:
        found.append(f"the output has {len(artifact)} frames: {name} does not render {frames}")
    return found
