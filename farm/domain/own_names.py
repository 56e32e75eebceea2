"""What a pipeline class calls the parameters and inputs of a task."""

from __future__ import annotations

from typing import Any

from farm.pipelines import prompt_weighting
from farm.pipelines.spec import PipelineParameter, PipelineSpec
from farm.tasks.spec import TaskSpec


def default_of(pipeline: PipelineSpec | None, name: str) -> Any:
    """The class's default of a common parameter; None where it has none."""
    parameter = own_parameter(pipeline, name)
    return None if parameter is None else parameter.default


def own_parameter(pipeline: PipelineSpec | None, name: str) -> PipelineParameter | None:
    """The class's parameter that means what the common one means; None where it has none, or is not known."""
    if name == prompt_weighting.NAME:  # the worker does it
        return prompt_weighting.PARAMETER if pipeline and prompt_weighting.weighs_prompts(pipeline) else None
    own = None if pipeline is None else pipeline.own_name(name)
    return None if own is None or pipeline is None else pipeline.parameters[own]


def own_inputs(pipeline: PipelineSpec, task: TaskSpec) -> dict[str, PipelineParameter]:
    """The class's inputs for the roles of a task, by role.

    One input has one role: where two roles have the same name in the class, the one that the catalogue maps to it.
    """
    names = {role: pipeline.own_name(role) for role in task.inputs}
    mapped = {own for role, own in names.items() if own is not None and own != role}
    return {
        role: parameter
        for role, own in names.items()
        if own is not None and (own != role or own not in mapped)
        if (parameter := pipeline.parameters[own]).input is not None
    }
