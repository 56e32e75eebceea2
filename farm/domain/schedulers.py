"""The public names of schedulers, and what other tools call them. Every scheduler may also be named by its class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from farm.errors import FieldProblem
from farm.pipelines.catalogue import SchedulerChoice, catalogue
from farm.pipelines.checks import Unfit
from farm.pipelines.spec import SchedulerSpec

#: Public name → class. Schedulers of flow matching have names of their own: no name means two things.
CLASSES: Final[Mapping[str, str]] = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "pndm": "PNDMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-ancestral": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "dpm-solver": "DPMSolverMultistepScheduler",
    "dpm-solver-singlestep": "DPMSolverSinglestepScheduler",
    "dpm-solver-sde": "DPMSolverSDEScheduler",
    "unipc": "UniPCMultistepScheduler",
    "deis": "DEISMultistepScheduler",
    "kdpm2": "KDPM2DiscreteScheduler",
    "kdpm2-ancestral": "KDPM2AncestralDiscreteScheduler",
    "lms": "LMSDiscreteScheduler",
    "lcm": "LCMScheduler",
    "tcd": "TCDScheduler",
    "sa-solver": "SASolverScheduler",
    "edm-euler": "EDMEulerScheduler",
    "edm-dpm-solver": "EDMDPMSolverMultistepScheduler",
    "flow-match-euler": "FlowMatchEulerDiscreteScheduler",
    "flow-match-heun": "FlowMatchHeunDiscreteScheduler",
    "flow-match-lcm": "FlowMatchLCMScheduler",
}
_NAMES: Final = {cls: name for name, cls in CLASSES.items()}


@dataclass(frozen=True)
class Sampler:
    """What A1111's world calls a sampler."""

    scheduler: str  #: the public name
    options: Mapping[str, Any] = field(default_factory=dict)


#: A1111's samplers, as diffusers documents them ("Schedulers: A1111 / k-diffusion").
SAMPLERS: Final[Mapping[str, Sampler]] = {
    "Euler": Sampler("euler"),
    "Euler a": Sampler("euler-ancestral"),
    "Heun": Sampler("heun"),
    "LMS": Sampler("lms"),
    "DPM2": Sampler("kdpm2"),
    "DPM2 a": Sampler("kdpm2-ancestral"),
    "DPM++ 2M": Sampler("dpm-solver"),
    "DPM++ 2M SDE": Sampler("dpm-solver", {"algorithm_type": "sde-dpmsolver++"}),
    "DPM++ SDE": Sampler("dpm-solver-sde"),
    "DPM++ 2S": Sampler("dpm-solver-singlestep"),
    "DDIM": Sampler("ddim"),
    "DDPM": Sampler("ddpm"),
    "PLMS": Sampler("pndm"),
    "UniPC": Sampler("unipc"),
    "DEIS": Sampler("deis"),
    "LCM": Sampler("lcm"),
    "TCD": Sampler("tcd"),
}
#: A1111's noise schedules, which its clients choose beside a sampler or behind its name.
SCHEDULES: Final[Mapping[str, Mapping[str, Any]]] = {
    "Automatic": {},
    "Karras": {"use_karras_sigmas": True},
    "Exponential": {"use_exponential_sigmas": True},
    "Beta": {"use_beta_sigmas": True},
    "SGM Uniform": {"timestep_spacing": "trailing"},
}


def sampler(name: str) -> Sampler | None:
    """The sampler of that name in A1111's world, alone or followed by a noise schedule: ``DPM++ 2M Karras``."""
    text = name.strip().lower()
    for label, found in SAMPLERS.items():
        if text == label.lower():
            return found
        for schedule, options in SCHEDULES.items():
            if text == f"{label} {schedule}".lower():
                return Sampler(found.scheduler, {**found.options, **options})
    return None


def sampler_name(scheduler: str | None, options: Mapping[str, Any]) -> str:
    """What A1111's world calls a scheduler with these options; the class's name where it has no name for it."""
    if scheduler is None:
        return "Automatic"
    public = public_name(class_of(scheduler) or scheduler)
    fitting = [
        (label, one.options)
        for label, one in SAMPLERS.items()
        if one.scheduler == public and one.options.items() <= options.items()
    ]
    if not fitting:
        return class_of(scheduler) or scheduler
    label, used = max(fitting, key=lambda each: len(each[1]))
    rest = {name: value for name, value in options.items() if name not in used}
    schedule = next((name for name, each in SCHEDULES.items() if each and each.items() <= rest.items()), None)
    return label if schedule is None else f"{label} {schedule}"


def class_of(name: str) -> str | None:
    """The class that a public name or a class's name means; None for an unknown one."""
    if name in CLASSES:
        return CLASSES[name]
    return name if name in catalogue().scheduler_names else None


def public_name(cls: str) -> str:
    """The public name of a class; its own name where it has none."""
    return _NAMES.get(cls, cls)


def check_options(spec: SchedulerSpec, options: Mapping[str, Any]) -> tuple[dict[str, Any], list[FieldProblem]]:
    """The options in the types that the class expects, and what is wrong with them."""
    found: dict[str, Any] = {}
    problems: list[FieldProblem] = []
    offered = {name: option for name, option in spec.options.items() if option.offered}
    for name, value in options.items():
        if name not in offered:
            message = f"{public_name(spec.name)} has no such option; it has {', '.join(sorted(offered)) or 'none'}"
            if name in spec.options:
                message = "is a property of the model's training, which a job cannot change"
            problems.append(FieldProblem(f"scheduler_options.{name}", value, message))
            continue
        try:
            found[name] = offered[name].check(value)
        except Unfit as error:
            problems.append(FieldProblem(f"scheduler_options.{name}", value, str(error)))
    return found, problems


def listed(choices: tuple[SchedulerChoice, ...]) -> str:
    """The schedulers by their public names, as a sentence lists them."""
    return ", ".join(public_name(one.spec.name) for one in choices) or "none"
