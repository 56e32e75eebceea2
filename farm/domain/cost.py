"""What a job costs: the currency of fair shares and quotas."""

from __future__ import annotations

import math

from farm.domain.tasks import JobSpec, Task


def steps_run(spec: JobSpec) -> int:
    """Denoising steps that the pipeline really takes: strength shortens the schedule (diffusers, ``get_timesteps``)."""
    if spec.task is Task.TEXT_TO_IMAGE or spec.strength is None:
        return spec.num_inference_steps
    return max(1, min(math.floor(spec.num_inference_steps * spec.strength), spec.num_inference_steps))


def cost(spec: JobSpec) -> float:
    """Steps × megapixels × outputs (unit: megapixel-steps)."""
    return steps_run(spec) * spec.width * spec.height / 1e6 * spec.num_images_per_prompt
