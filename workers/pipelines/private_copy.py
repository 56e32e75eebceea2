"""Copies of pipelines for one call each: they share the weights, and nothing that a call changes."""

from __future__ import annotations

import copy
from typing import Any

import torch
from diffusers import DiffusionPipeline, ModularPipeline, SchedulerMixin
from diffusers.configuration_utils import ConfigMixin

from farm.pipelines.catalogue import catalogue
from farm.pipelines.spec import Media
from workers.pipelines.running_call import RunningCall

_SIMPLE = (bool, int, float, str, bytes, type(None))


def private_copy(pipeline: Any, scheduler: Any = None, run: RunningCall | None = None) -> Any:
    """A copy of a pipeline for one call.

    Schedulers, image processors and the pipelines that the pipeline contains are copied, too: they hold the state of
    a run. A scheduler that several of them share is one object in the copy as well.

    Args:
        pipeline: The model's pipeline, which stays as it is.
        scheduler: Replaces the pipeline's ``scheduler`` wherever it is used; the pipeline's own if absent. The copy
            takes it as it is.
        run: Gets the steps that the pipeline and those inside report to their progress bars.
    """
    made: dict[int, Any] = {}
    own = getattr(pipeline, "scheduler", None)
    if scheduler is not None and own is not None:
        made[id(own)] = scheduler
    return _copy(pipeline, made, run)


def _copy(pipeline: Any, made: dict[int, Any], run: RunningCall | None) -> Any:
    if id(pipeline) in made:
        return made[id(pipeline)]
    copied = made[id(pipeline)] = copy.copy(pipeline)
    # written into the dictionary: the pipelines' __setattr__ changes the config, which the copy shares
    for name, value in list(vars(copied).items()):
        copied.__dict__[name] = _part(value, made, run)
    if run is not None:
        copied.__dict__["progress_bar"] = run.progress_bar if _makes_media(pipeline) else run.silent_bar
    return copied


def _makes_media(pipeline: Any) -> bool:
    """Whether a pipeline's steps are those of the output: a prior makes an embedding for the pipeline after it."""
    name = type(pipeline).__name__
    return name not in catalogue().pipeline_names or catalogue().pipeline(name).output is not Media.OTHER


def _part(value: Any, made: dict[int, Any], run: RunningCall | None) -> Any:
    if id(value) in made:
        return made[id(value)]
    if isinstance(value, (DiffusionPipeline, ModularPipeline)):
        return _copy(value, made, run)
    if isinstance(value, torch.nn.Module):
        return value
    if isinstance(value, (SchedulerMixin, ConfigMixin)):
        made[id(value)] = copy.deepcopy(value)
        return made[id(value)]
    if type(value) in (list, dict, set) and _is_simple(value):
        return copy.deepcopy(value)
    return value


def _is_simple(value: Any) -> bool:
    """Whether a container holds nothing but numbers, texts and such containers."""
    if type(value) is dict:
        return all(isinstance(key, _SIMPLE) and _is_simple(part) for key, part in value.items())
    if type(value) in (list, set, tuple):
        return all(map(_is_simple, value))
    return isinstance(value, _SIMPLE)
