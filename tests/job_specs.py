"""Specs of jobs from flat parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from farm import model_registry
from farm.domain.job_spec import InputFile, JobSpec
from farm.domain.requests import REQUESTS
from farm.tasks import TASKS


def job_spec(values: Mapping[str, Any]) -> JobSpec:
    """The spec with these parameters: those of the task, or of any job. A None is left out."""
    given = {name: value for name, value in values.items() if value is not None}
    common = {name: given.pop(name) for name in TASKS[given["task"]].params.model_fields if name in given}
    inputs = {
        role: (files,) if isinstance(files, InputFile | dict) else tuple(files)
        for role, files in given.pop("inputs", {}).items()
    }
    defaults = {"num_outputs": 1, "output_format": REQUESTS[given["task"]].model_fields["output_format"].default}
    return JobSpec.model_validate(defaults | given | {"common": common, "inputs": inputs})


#: What the built-in model does.
STARTER_TASKS = model_registry.load(None).models[0].tasks
#: The schedulers that run in each of its pipelines, by their public names.
STARTER_SCHEDULERS = ("ddim", "ddpm", "pndm", "euler", "euler-ancestral", "heun", "dpm-solver", "unipc")


def size_of(spec: JobSpec) -> tuple[int, int]:
    """Width and height of the job's outputs in pixels, where the job names them."""
    assert spec.width is not None
    assert spec.height is not None
    return spec.width, spec.height
