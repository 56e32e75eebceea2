"""The recipe: everything that decides the pixels, as JSON inside every output.

It holds no time, job or worker, so the same recipe gives the same bytes: on every worker of the numerics class that it
names. Reading it needs only the standard library, because the client's base installation does it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from farm.errors import BadInput

if TYPE_CHECKING:
    from farm.domain.job_spec import JobSpec

VERSION: Final = 1


def recipe_json(spec: JobSpec, index: int, made_with: dict[str, object]) -> str:
    """The recipe of output ``index``, as a job of its own.

    Args:
        spec: the job's.
        index: 0-based position among the job's outputs.
        made_with: model revision, dtype, device kind, library versions, numerics class.
    """
    without = {"preview": False, "fail_on_suspicious": False}  # they decide no pixel
    # an output of another job is an input by its content: the job decides no pixel either
    content = {"job": None, "output": 0}
    inputs = {role: tuple(one.model_copy(update=content) for one in files) for role, files in spec.inputs.items()}
    parameters = single_output(spec, index).model_copy(update=without | {"inputs": inputs}).request()
    body = {"version": VERSION, "parameters": parameters, "made_with": made_with}
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def single_output(spec: JobSpec, index: int) -> JobSpec:
    """The spec that renders output ``index`` and nothing else."""
    return spec.model_copy(update={"seed": spec.seed_of(index), "num_outputs": 1})


def request_from_recipe(text: str) -> dict[str, Any]:
    """The request that renders an output again, from its recipe.

    Raises:
        BadInput: the text is not a recipe, or one of another version.
    """
    try:
        body = json.loads(text)
        version, parameters = body["version"], dict(body["parameters"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise BadInput.of("recipe", text[:80], "is not a recipe of a farm") from error
    if version != VERSION:
        raise BadInput.of("recipe", version, f"has version {version}; this farm reads version {VERSION}")
    return parameters


def numerics_of_recipe(text: str) -> str | None:
    """The numerics class in which an output was rendered, from its recipe; None if it does not say."""
    name = json.loads(text).get("made_with", {}).get("numerics")
    return name if isinstance(name, str) else None
