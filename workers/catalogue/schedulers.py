"""Scheduler classes with their options, and what each pipeline expects of its scheduler."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, Final

from farm.pipelines.spec import Formulation, Internal, PipelineParameter, SchedulerSpec, SchedulerUse
from workers.catalogue.annotations import shape_of
from workers.catalogue.bounds import known_bounds
from workers.catalogue.components import components_of, inner_pipelines
from workers.catalogue.docstrings import Entry, parse
from workers.catalogue.library import schedulers
from workers.catalogue.packages import scheduler_packages
from workers.catalogue.parameters import bounded, declare
from workers.catalogue.sources import Function, called_methods, docstring, method, nodes

#: Options that say how the model was trained; a job cannot choose them.
_TRAINING: Final = frozenset(
    {
        *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type"),
        *("sigma_data", "sigma_min", "sigma_max", "snr_shift_scale", "mask_token_id", "num_vec_classes"),
        *("alpha_cum_start", "alpha_cum_end", "gamma_cum_start", "gamma_cum_end", "variance_type", "set_alpha_to_one"),
        *("original_inference_steps", "timestep_scaling", "base_image_seq_len", "max_image_seq_len", "stages"),
        *("stage_range", "gamma", "use_flow_sigmas", "scheduler_type", "base_shift", "max_shift", "n_grid"),
    }
)
_USUAL_ARGUMENTS: Final = frozenset({f"set_timesteps.{name}" for name in ("mu", "sigmas", "timesteps")})
_STEP: Final = ("model_output", "timestep", "sample")
#: Why a scheduler is offered for no pipeline but those that declare it.
_UNFIT: Final[Mapping[str, str]] = {
    "CogVideoXDDIMScheduler": "shifts the noise schedule as CogVideoX was trained with",
    "DDIMInverseScheduler": "goes from the image to the noise",
    "DDIMParallelScheduler": "gives what DDIMScheduler gives",
    "DDPMParallelScheduler": "gives what DDPMScheduler gives",
    "DPMSolverMultistepInverseScheduler": "goes from the image to the noise",
}
#: Published models of these families integrate a flow, with a scheduler that can do both; their classes do not say so.
_FLOW_FAMILIES: Final = frozenset({"sana", "sana_video"})


def scheduler_groups() -> dict[str, list[str]]:
    """The enumeration that annotations of schedulers name, with its members."""
    enumeration = importlib.import_module("diffusers.schedulers").KarrasDiffusionSchedulers
    return {enumeration.__name__: [member.name for member in enumeration]}


def scheduler_specs(needed: Iterable[str]) -> list[SchedulerSpec]:
    """Every scheduler class.

    Args:
        needed: the features that some pipeline uses; others are left out.
    """
    classes = schedulers()
    options = {name: _options(cls) for name, cls in classes.items()}
    choices = _choices(option for each in options.values() for option in each.values())
    return [
        _spec(name, cls, {key: _chosen(option, choices) for key, option in options[name].items()}, set(needed))
        for name, cls in classes.items()
    ]


def _spec(name: str, cls: type, options: dict[str, PipelineParameter], needed: set[str]) -> SchedulerSpec:
    extra = [key for key, p in _step(cls).items() if p.default is p.empty and key not in _STEP]
    return SchedulerSpec(
        name=name,
        formulation=formulation(name),
        options=options,
        compatibles=tuple(sorted({getattr(each, "name", each) for each in getattr(cls, "_compatibles", ())} - {name})),
        features=frozenset(_features(cls, options))
        & (frozenset(needed) | {"set_timesteps.sigmas", "set_timesteps.timesteps"}),
        flow_options=_flow_options(cls, options),
        order=getattr(cls, "order", 1),
        random=_draws_noise(cls),
        packages=scheduler_packages(name),
        unfit=_UNFIT.get(name, f"its step also takes {', '.join(extra)}" if extra else ""),
    )


@cache
def formulation(name: str) -> Formulation:
    """The noise process that the class integrates by default."""
    cls = schedulers()[name]
    options = set(inspect.signature(cls.__init__).parameters)  # type: ignore[misc]
    compatibles = {getattr(each, "name", each) for each in getattr(cls, "_compatibles", ())}
    if name.startswith("FlowMatch") or "FlowMatchEulerDiscreteScheduler" in compatibles:
        return Formulation.FLOW
    if {"sigma_data", "sigma_schedule"} <= options:
        return Formulation.EDM
    if {"beta_start", "beta_end", "prediction_type"} <= options:
        return Formulation.BETA
    return Formulation.OWN


def _options(cls: type) -> dict[str, PipelineParameter]:
    signature = inspect.signature(cls.__init__)  # type: ignore[misc]
    entries = parse(docstring(cls))
    found = {}
    for name, parameter in signature.parameters.items():
        if name == "self" or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        empty = parameter.default is parameter.empty
        option = declare(
            name,
            shape_of(parameter.annotation, cls.__module__),
            None if empty else parameter.default,
            required=empty,
            description=entries.get(name, Entry("", "")).sentence,
        )
        if name in _TRAINING:
            option = replace(option, internal=Internal.MODEL)
        found[name] = replace(option, schema=bounded(option.schema, known_bounds(name)) if option.schema else {})
    return found


def _choices(options: Iterable[PipelineParameter]) -> dict[str, list[str]]:
    """What most annotations of an option of that name allow."""
    seen: dict[str, Counter[tuple[str, ...]]] = {}
    for option in options:
        if option.schema.get("enum"):
            seen.setdefault(option.name, Counter())[tuple(sorted(option.schema["enum"]))] += 1
    return {name: list(counts.most_common(1)[0][0]) for name, counts in seen.items() if len(counts) == 1}


def _chosen(option: PipelineParameter, choices: Mapping[str, list[str]]) -> PipelineParameter:
    """The option with the choices that other schedulers annotate, where it is annotated as a mere text."""
    known = choices.get(option.name)
    if known and option.schema == {"type": "string"} and option.default in known:
        return replace(option, schema={"enum": known})
    return option


def _features(cls: type, options: Iterable[str]) -> set[str]:
    """The attributes, config keys and arguments that the class has."""
    found = {name for name in dir(cls) if not name.startswith("_")} | {f"config.{name}" for name in options}
    for function in (method(cls, "__init__"), method(cls, "set_timesteps")):
        for node in nodes(function) if function else ():
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.ctx, ast.Store)
                and ast.unparse(node.value) == "self"
            ):
                found.add(node.attr)
    arguments = inspect.signature(cls.set_timesteps).parameters if hasattr(cls, "set_timesteps") else {}
    any_argument = any(parameter.kind is parameter.VAR_KEYWORD for parameter in arguments.values())
    found |= {f"set_timesteps.{name}" for name in (*arguments, *(("mu",) if any_argument else ()))}
    return found | {f"step.{name}" for name in _step(cls)}


def _step(cls: type) -> dict[str, inspect.Parameter]:
    if not hasattr(cls, "step"):
        return {}
    return {name: p for name, p in inspect.signature(cls.step).parameters.items() if name not in ("self", "kwargs")}


def _flow_options(cls: type, options: Mapping[str, PipelineParameter]) -> dict[str, Any]:
    if "use_flow_sigmas" not in options or formulation(cls.__name__) is not Formulation.BETA:
        return {}
    return {"prediction_type": "flow_prediction", "use_flow_sigmas": True}


def _draws_noise(cls: type) -> bool:
    function = method(cls, "step")
    return function is not None and ("randn" in ast.unparse(function) or "noise_sampler" in ast.unparse(function))


def scheduler_use(cls: type) -> SchedulerUse | None:
    """What a pipeline expects of its scheduler; None for one without."""
    classes = components_of(cls).classes
    if "scheduler" not in classes:
        return None
    functions = list(called_methods(cls))
    for inner, parts in inner_pipelines(cls).values():
        if parts.get("scheduler") == "scheduler":
            functions += called_methods(inner)
    needs = set().union(*(_needs(function) for function in functions))
    return SchedulerUse(
        formulation=_process(classes["scheduler"], needs, cls.__module__.split(".")[2]),
        needs=frozenset(needs),
        only_declared=False,
        spares_sigmas=any("use_flow_sigmas" in ast.unparse(function) for function in functions),
    )


def declared_use(declared: Sequence[str]) -> SchedulerUse:
    """What a modular pipeline expects: its blocks pass the scheduler to functions that no signature names."""
    return SchedulerUse(_process(declared, set(), ""), frozenset(), only_declared=True, spares_sigmas=False)


def _process(declared: Iterable[str], needs: set[str], family: str) -> Formulation:
    """The noise process of the models of a class.

    Args:
        declared: the classes in the annotation of the scheduler.
        needs: what the pipeline uses of it.
        family: the package in diffusers.
    """
    if any(need.startswith("set_timesteps.") and need not in _USUAL_ARGUMENTS for need in needs):
        return Formulation.OWN
    if family in _FLOW_FAMILIES:
        return Formulation.FLOW
    processes = [formulation(name) for name in declared if name in schedulers()]
    # A class that declares both was made for flows and accepts the others' classes by its annotation only.
    for process in (Formulation.FLOW, Formulation.BETA, *processes):
        if process in processes:
            return process
    return Formulation.FLOW if "set_timesteps.mu" in needs else Formulation.OWN


def _needs(function: Function) -> set[str]:
    """The features that a function uses unless it asks first."""
    scheduler = "self.scheduler"
    found: set[str] = set()
    chosen = _chosen_names(function)

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If | ast.IfExp) and "scheduler" in ast.unparse(node.test):
            return  # what it does depends on the scheduler
        match node:
            case ast.Attribute(value=inner, attr=name) if ast.unparse(inner) == scheduler:
                if name not in ("config", "step", "set_timesteps", "timesteps", "compatibles"):
                    found.add(name)
            case ast.Attribute(value=inner, attr=name) if ast.unparse(inner) == f"{scheduler}.config":
                if name not in ("get", "keys"):
                    found.add(f"config.{name}")
            case ast.Call(func=called, args=args, keywords=keywords):
                text = ast.unparse(called)
                given = {keyword.arg: keyword.value for keyword in keywords if keyword.arg}
                if text == f"{scheduler}.set_timesteps":
                    found.update(
                        f"set_timesteps.{name}" for name in given if name not in ("device", "num_inference_steps")
                    )
                elif text == f"{scheduler}.step":
                    found.update(f"step.{name}" for name in given if name != "return_dict")
                elif text == "retrieve_timesteps" and args and ast.unparse(args[0]) == scheduler:
                    positional = dict(zip(("timesteps", "sigmas"), args[3:], strict=False))
                    for name, value in {**positional, **given}.items():
                        if name in ("num_inference_steps", "device"):
                            continue
                        # Timesteps and sigmas are passed on where the request gives them.
                        if name not in ("timesteps", "sigmas") or ast.unparse(value) in chosen:
                            found.add(f"set_timesteps.{name}")
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(function)
    return found


def _chosen_names(function: Function) -> set[str]:
    """Names to which the function gives a value where the caller gave none: ``x = default if x is None else x``."""
    found: set[str] = set()
    for node in nodes(function):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.IfExp(test=test)) if (
                f"{name} is None" in ast.unparse(test) or f"{name} is not None" in ast.unparse(test)
            ):
                found.add(name)
            case ast.If(test=test, body=body) if ast.unparse(test).endswith(" is None"):
                name = ast.unparse(test).removesuffix(" is None")
                if any(isinstance(s, ast.Assign) and ast.unparse(s.targets[0]) == name for s in body):
                    found.add(name)
    return found
