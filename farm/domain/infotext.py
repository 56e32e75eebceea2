"""The text that image tools of the Stable Diffusion world read from an image: A1111's infotext."""

from __future__ import annotations

from typing import Final

from farm.domain.tasks import JobSpec, Scheduler

#: What the A1111 world calls them.
SAMPLER_NAMES: Final = {
    Scheduler.DDIM: "DDIM",
    Scheduler.DDPM: "DDPM",
    Scheduler.PNDM: "PLMS",
    Scheduler.EULER: "Euler",
    Scheduler.EULER_ANCESTRAL: "Euler a",
    Scheduler.HEUN: "Heun",
    Scheduler.DPM_SOLVER: "DPM++ 2M",
    Scheduler.UNIPC: "UniPC",
}


def parameters_text(spec: JobSpec, index: int) -> str:
    """The infotext of output ``index``: prompt, negative prompt, and one line of settings."""
    lines = [spec.prompt]
    if spec.negative_prompt:
        lines.append(f"Negative prompt: {spec.negative_prompt}")
    settings = [
        f"Steps: {spec.num_inference_steps}",
        f"Sampler: {SAMPLER_NAMES[spec.scheduler]}",
        f"CFG scale: {spec.guidance_scale:g}",
        f"Seed: {spec.seed_of(index)}",
        f"Size: {spec.width}x{spec.height}",
        f"Model: {spec.model}",
    ]
    if spec.strength is not None:
        settings.append(f"Denoising strength: {spec.strength:g}")
    lines.append(", ".join(settings))
    return "\n".join(lines)
