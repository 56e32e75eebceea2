"""What a job costs: the currency of fair shares and quotas."""

from __future__ import annotations

import math
from typing import Any, Final

from farm.domain.job_spec import JobSpec
from farm.domain.own_names import default_of
from farm.pipelines.catalogue import catalogue
from farm.pipelines.spec import Media
from farm.tasks.spec import Workload

#: What is assumed where neither the job, its inputs, nor the pipeline's signature says it.
_ASSUMED: Final[dict[str, Any]] = {
    "num_inference_steps": 50,
    "strength": 0.8,
    "width": 1024,
    "height": 1024,
    "num_frames": 81,
    "seconds": 10.0,
}


def effective(spec: JobSpec, name: str) -> Any:
    """A common parameter as the pipeline will have it: given, by the class's default, or assumed."""
    value = spec.common.get(name)
    if value is None:
        value = default_of(None if spec.pipeline is None else catalogue().pipeline(spec.pipeline), name)
    return _ASSUMED[name] if value is None else value


def steps_run(spec: JobSpec) -> int:
    """Denoising steps that the pipeline really takes: strength shortens the schedule (diffusers, ``get_timesteps``).

    An estimate where the job leaves them open and the pipeline's class is not known.
    """
    steps: int = effective(spec, "num_inference_steps")
    if "strength" not in spec.task_spec.params.model_fields:
        return steps
    pipeline = None if spec.pipeline is None else catalogue().pipeline(spec.pipeline)
    if spec.strength is None and pipeline is not None and pipeline.own_name("strength") is None:
        return steps
    strength: float = effective(spec, "strength")
    return max(1, min(math.floor(steps * strength), steps))


def workload(spec: JobSpec) -> Workload:
    """How much one output of a job computes."""
    image = next((files[0] for role, files in spec.inputs.items() if role in ("image", "video")), None)
    width, height = spec.width, spec.height
    if width is None and height is None and image is not None:
        width, height = image.width, image.height
    media = spec.media
    return Workload(
        steps=steps_run(spec),
        width=width or effective(spec, "width"),
        height=height or effective(spec, "height"),
        frames=effective(spec, "num_frames") if media is Media.VIDEO else 1,
        seconds=effective(spec, "seconds") if media is Media.AUDIO else 0.0,
    )


def cost(spec: JobSpec) -> float:
    """What all outputs of a job cost, in megapixel-steps."""
    return spec.task_spec.cost(workload(spec)) * spec.num_outputs
