"""The JSON Schema of what a model takes for a task: all that a form or a client needs."""

from __future__ import annotations

from typing import Any, Final

from farm.domain.model import Model
from farm.domain.own_names import own_inputs, own_parameter
from farm.domain.requests import REQUESTS
from farm.domain.schedulers import public_name
from farm.pipelines.spec import PipelineSpec
from farm.tasks import TASKS

_SIDES: Final = ("width", "height")


def task_schema(model: Model, task: str) -> dict[str, Any]:
    """A JSON Schema of the requests that the model takes for one of its tasks.

    Args:
        model: the entry of the registry.
        task: one of `Model.tasks`.
    """
    schema = REQUESTS[task].model_json_schema()
    pipeline = model.pipeline_for(task)
    properties = schema["properties"]
    required = set(schema.get("required", ()))
    if pipeline is not None:
        _keep_taken(properties, required, pipeline, task)
        _describe_pipeline(properties, model, pipeline, task)
        required |= {name for name in ("parameters", "inputs") if properties[name]["required"]}
    for name, limits in _limits(model, pipeline).items():
        if name in properties:
            _narrow(properties[name], limits)
    for name, value in model.defaults.items():
        follows_input = name in _SIDES and TASKS[task].resized is not None
        if name in properties and name != "parameters" and not follows_input:
            properties[name]["default"] = value
    for each in properties.values():
        if each.get("default", "") is None:  # left open: the pipeline decides
            del each["default"]
    properties["model"] = {"const": model.id, "description": "The model's id."}
    if not model.loras:
        del properties["loras"]
    schema["required"] = sorted(required & properties.keys())
    schema["title"] = f"{model.id}: {task}"
    return schema


def _limits(model: Model, pipeline: PipelineSpec | None) -> dict[str, dict[str, Any]]:
    limits = model.limits
    side = {"minimum": limits.min_side, "maximum": limits.max_side, "multipleOf": model.side_multiple(pipeline)}
    return {
        **dict.fromkeys(_SIDES, side),
        "num_frames": {"maximum": limits.max_frames},
        "seconds": {"maximum": limits.max_seconds},
        "num_outputs": {"maximum": limits.max_outputs},
    }


def _keep_taken(properties: dict[str, Any], required: set[str], pipeline: PipelineSpec, task: str) -> None:
    """Remove what the class does not take, and require what it cannot do without."""
    spec = TASKS[task]
    own = {name: own_parameter(pipeline, name) for name in spec.params.model_fields}
    inputs = own_inputs(pipeline, spec)
    for name, parameter in {**own, **{role: inputs.get(role) for role in spec.inputs}}.items():
        if parameter is not None and parameter.required:
            required.add(name)
        if parameter is None and name not in spec.honoured:
            for each in [key for key, value in properties.items() if key == name or _is_alias(value, name)]:
                del properties[each]
        elif parameter is not None and parameter.default is not None and name in properties:
            properties[name]["default"] = parameter.default


def _is_alias(schema: dict[str, Any], name: str) -> bool:
    return schema.get("description") == f"Another name of `{name}`."


def _describe_pipeline(properties: dict[str, Any], model: Model, pipeline: PipelineSpec, task: str) -> None:
    """Say what the class takes beside the task's parameters, and which schedulers run with it."""
    own = {pipeline.own_name(name) for name in (*TASKS[task].params.model_fields, "num_outputs")}
    properties["parameters"] = pipeline.json_schema(exclude={name for name in own if name is not None}) | {
        "description": f"What only {pipeline.name} takes."
    }
    roles = {parameter.name for parameter in own_inputs(pipeline, TASKS[task]).values()}
    files = {name: one for name, one in pipeline.inputs.items() if name not in roles}
    reference = {"type": "string", "minLength": 1}
    properties["inputs"] = {
        "type": "object",
        "description": f"Files that only {pipeline.name} takes: a reference, or a list of them.",
        "properties": {
            name: {"anyOf": [reference, {"type": "array", "items": reference}], "description": one.description}
            for name, one in files.items()
        },
        "required": [name for name, one in files.items() if one.required],
        "additionalProperties": False,
    }
    choices = model.schedulers(pipeline)
    if not choices:
        properties.pop("scheduler", None)
        properties.pop("scheduler_options", None)
        return
    names = [public_name(one.spec.name) for one in choices]
    properties["scheduler"] = {
        "description": "The sampling method. A class's own name is taken too.",
        "enum": names,
        **({"default": public_name(model.scheduler)} if model.scheduler is not None else {}),
    }
    options: dict[str, Any] = {}
    for one in choices:
        for name, option in one.spec.options.items():
            if option.offered:
                schema = options.setdefault(name, {**option.json_schema(), "schedulers": []})
                schema["schedulers"].append(public_name(one.spec.name))
    properties["scheduler_options"] = {
        "type": "object",
        "description": "Options of the scheduler; `schedulers` names those that have one.",
        "properties": options,
        "additionalProperties": False,
    }


def _narrow(schema: dict[str, Any], limits: dict[str, Any]) -> None:
    """Put limits into a property, which may allow null as well."""
    for each in schema.get("anyOf", [schema]):
        if each.get("type") in ("integer", "number"):
            each.update(limits)
