"""No call that renders is refused at submission: the calls of the tiny families, as a user would submit them."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection
from typing import Any, Final

import pytest
import torch
from PIL import Image

from farm.domain.job_spec import InputFile
from farm.domain.model import Model
from farm.domain.own_names import own_inputs
from farm.domain.resolve import resolve
from farm.errors import BadInput
from farm.pipelines.catalogue import catalogue
from farm.pipelines.spec import Media, PipelineSpec
from farm.services import validation
from farm.tasks import TASKS
from farm.tasks.spec import TaskSpec
from tests.contract.families import FAMILIES

#: Classes with tasks of the farm, of the families that can be built here.
CALLS: Final = [
    (name, pipeline)
    for name, family in FAMILIES.items()
    if all(importlib.util.find_spec(module) is not None for module in family.requires)
    for pipeline in family.calls
    if set(catalogue().pipeline(pipeline).tasks) & set(TASKS)
]
MEDIA_TYPES: Final = {Media.IMAGE: "image/png", Media.VIDEO: "video/mp4", Media.AUDIO: "audio/wav"}


def configs_of(family: str) -> dict[str, Any]:
    """What a folder of the family says of its scheduler and components."""
    components: dict[str, Any] = FAMILIES[family].build().components
    scheduler: Any = components.get("scheduler")
    known = type(scheduler).__name__ in catalogue().scheduler_names
    return {
        "configs": {
            name: dict(one.config)
            for name, one in components.items()
            if one is not None and hasattr(getattr(one, "config", None), "items")
        },
        "scheduler": type(scheduler).__name__ if known else None,
        "scheduler_config": dict(scheduler.config) if known else {},
    }


def file_of(media: Media, value: object, number: int) -> InputFile:
    """A stored file in place of an argument."""
    first = value[0] if isinstance(value, list) else value
    size: dict[str, int] = {}
    if isinstance(first, Image.Image):
        size = {"width": first.width, "height": first.height}
    elif isinstance(first, torch.Tensor) and media is not Media.AUDIO:
        size = {"width": first.shape[-1], "height": first.shape[-2]}
    return InputFile(sha256=f"{number:064x}", key="k", media_type=MEDIA_TYPES[media], size=1, metadata=size)


def task_of(spec: PipelineSpec, arguments: Collection[str]) -> TaskSpec | None:
    """The first task of the class that needs no other inputs; None for a call that does none of the farm's tasks."""
    for task in (TASKS[name] for name in spec.tasks if name in TASKS):
        needed = {own.name for role, own in own_inputs(spec, task).items() if task.inputs[role].min}
        if needed <= set(arguments):
            return task
    return None


def request_of(
    spec: PipelineSpec, task: TaskSpec, arguments: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, InputFile]]:
    """A stock call as a request, and the files that it refers to."""
    roles = {parameter.name: role for role, parameter in own_inputs(spec, task).items()}
    common = {spec.own_name(name): name for name in task.params.model_fields}
    body: dict[str, Any] = {"task": task.name, "model": "m", "parameters": {}, "inputs": {}}
    files: dict[str, InputFile] = {}
    for own, value in arguments.items():
        parameter = spec.parameters[own]
        if value is None:  # what a stock call need not give
            continue
        if parameter.input is not None:
            several = isinstance(value, list) and parameter.input.media is not Media.VIDEO
            given = [
                file_of(parameter.input.media, one, len(files) + number)
                for number, one in enumerate(value if several else [value])
            ]
            files |= {one.reference: one for one in given}
            references = [one.reference for one in given]
            if own in roles:
                body[roles[own]] = references[0] if task.inputs[roles[own]].max == 1 else references
            else:
                body["inputs"][own] = references
        elif own in common:
            body[common[own]] = value
        elif parameter.offered:
            body["parameters"][own] = list(value) if isinstance(value, tuple) else value
    return body, files


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", dict.fromkeys(name for name, _ in CALLS))
def test_a_call_that_renders_is_accepted_and_a_foreign_parameter_is_not(family: str) -> None:
    facts = configs_of(family)
    for pipeline in [one for name, one in CALLS if name == family]:
        spec = catalogue().pipeline(pipeline)
        arguments = FAMILIES[family].calls[pipeline].arguments()
        task = task_of(spec, arguments)
        if task is None:
            continue
        body, files = request_of(spec, task, arguments)
        model = Model(id="m", source="some/model", pipeline=pipeline, tasks=(body["task"],), **facts)
        request = validation.job_request(body)
        given = {role: tuple(files[one] for one in references) for role, references in request.references().items()}
        job = resolve(request, model, given)
        asked = {name: value for name, value in body.items() if name in task.params.model_fields}
        assert asked == {name: value for name, value in job.common.items() if name in asked}
        assert job.common.keys() - asked.keys() <= task.honoured  # the size of the input
        foreign = validation.job_request(body | {"parameters": {"no_such_parameter": 1}})
        with pytest.raises(BadInput, match="no_such_parameter"):
            resolve(foreign, model, given)
