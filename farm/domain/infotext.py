"""The text that image tools of the Stable Diffusion world read from an image: A1111's infotext."""

from __future__ import annotations

from farm.domain.job_spec import JobSpec
from farm.domain.schedulers import sampler_name


def parameters_text(spec: JobSpec, index: int) -> str:
    """The infotext of output ``index``: prompt, negative prompt, and one line of settings, of what the job says."""
    lines = [spec.prompt]
    if spec.negative_prompt:
        lines.append(f"Negative prompt: {spec.negative_prompt}")
    settings = []
    if spec.num_inference_steps is not None:
        settings.append(f"Steps: {spec.num_inference_steps}")
    if spec.scheduler is not None:
        settings.append(f"Sampler: {sampler_name(spec.scheduler, spec.scheduler_options)}")
    if spec.guidance_scale is not None:
        settings.append(f"CFG scale: {spec.guidance_scale:g}")
    settings.append(f"Seed: {spec.seed_of(index)}")
    if spec.width is not None and spec.height is not None:
        settings.append(f"Size: {spec.width}x{spec.height}")
    settings.append(f"Model: {spec.model}")
    if spec.strength is not None:
        settings.append(f"Denoising strength: {spec.strength:g}")
    lines.append(", ".join(settings))
    return "\n".join(lines)
