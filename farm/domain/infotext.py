"""The text that image tools of the Stable Diffusion world write into an image and read from it: A1111's infotext."""

from __future__ import annotations

import re
from typing import Any, Final

from farm.domain.job_spec import JobSpec
from farm.domain.schedulers import sampler, sampler_name

#: A setting of the last line: a name, and a value that may be quoted.
_SETTING: Final = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_NEGATIVE: Final = "Negative prompt:"
_MIN_SETTINGS: Final = 3  #: that make a line the line of settings
#: Settings that are numbers, by the farm's names.
_NUMBERS: Final[dict[str, tuple[str, type[int | float]]]] = {
    "Steps": ("num_inference_steps", int),
    "CFG scale": ("guidance_scale", float),
    "Seed": ("seed", int),
    "Denoising strength": ("strength", float),
}


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


def request_from_text(text: str) -> dict[str, Any]:
    """The parameters that an infotext names, as a request has them; what the farm has no name for is left out.

    The model is not among them: its name is one of another program.
    """
    lines = text.strip().splitlines()
    settings: dict[str, str] = {}
    if lines:
        settings = {name.strip(): value.strip().strip('"') for name, value in _SETTING.findall(lines[-1])}
        if len(settings) < _MIN_SETTINGS:
            settings = {}
        else:
            lines = lines[:-1]
    prompt: list[str] = []
    negative: list[str] | None = None
    for line in lines:
        if negative is None and line.startswith(_NEGATIVE):
            negative = [line.removeprefix(_NEGATIVE).strip()]
        else:
            (prompt if negative is None else negative).append(line)
    found: dict[str, Any] = {"prompt": "\n".join(prompt).strip()}
    if negative is not None:
        found["negative_prompt"] = "\n".join(negative).strip()
    for name, (ours, kind) in _NUMBERS.items():
        try:
            found[ours] = kind(settings[name])
        except (KeyError, ValueError):
            continue
    size = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", settings.get("Size", ""))
    if size:
        found |= {"width": int(size[1]), "height": int(size[2])}
    schedule = settings.get("Schedule type", "")
    known = sampler(f"{settings.get('Sampler', '')} {schedule}") or sampler(settings.get("Sampler", ""))
    if known is not None:
        found["scheduler"] = known.scheduler
        if known.options:
            found["scheduler_options"] = dict(known.options)
    return found
