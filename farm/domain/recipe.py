"""The recipe: everything that decides the pixels, in the two forms that travel inside every output.

``parameters`` is the text that the image tools of the Stable Diffusion world read (the A1111 form); ``farm`` is JSON
and complete: `JobSpec` plus what the worker adds. Neither holds a time, a job or a worker, so the same recipe gives
the same bytes.
"""

from __future__ import annotations

import json
from typing import Final

from farm.domain.tasks import InputImage, JobSpec, Scheduler
from farm.errors import BadInput

VERSION: Final = 1

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
    """The A1111 form: prompt, negative prompt, and one line of settings."""
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


def recipe_json(spec: JobSpec, index: int, made_with: dict[str, object]) -> str:
    """The complete form, of one image: output ``index`` as a job of its own.

    ``made_with``: model revision, dtype, device kind, library versions.
    """
    body = {"version": VERSION, "spec": _portable(single_output(spec, index)), "made_with": made_with}
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def single_output(spec: JobSpec, index: int) -> JobSpec:
    """The spec that renders output ``index`` and nothing else."""
    return spec.model_copy(update={"seed": spec.seed_of(index), "num_images_per_prompt": 1})


def _portable(spec: JobSpec) -> dict[str, object]:
    """The spec without what belongs to one farm: inputs are named by their content alone."""
    body = spec.model_dump(mode="json", exclude={"inputs", "preview"})
    body["inputs"] = {name: image.sha256 for name, image in spec.inputs.items()}
    return body


def request_from_recipe(text: str) -> dict[str, object]:
    """From the ``farm`` JSON of an image, the request that renders that one image again.

    Raises `BadInput` if the text is not a recipe.
    """
    try:
        body = json.loads(text)
        if body["version"] != VERSION:
            raise BadInput.of("recipe", body["version"], f"is a recipe of another version; this farm reads {VERSION}")
        stored = dict(body["spec"])
        images = {
            name: InputImage(sha256=str(sha256), key="", content_type="", width=0, height=0)
            for name, sha256 in dict(stored.pop("inputs")).items()
        }
        spec = JobSpec.model_validate(stored | {"inputs": images})
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput.of("recipe", text[:80], "is not a recipe of this farm") from error
    return spec.parameters()
