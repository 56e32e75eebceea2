"""The tasks of the farm: one file each. A new file in this package is a new task everywhere.

`TASKS` finds them by scanning the package.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Annotated, Final

from pydantic import AfterValidator, Field

from farm.pipelines.spec import Media
from farm.tasks.spec import TaskSpec

#: The order in which tasks are listed; others follow by name.
_FIRST: Final = ("text-to-image", "image-to-image", "inpainting", "depth-to-image")


def _found() -> Mapping[str, TaskSpec]:
    modules = [importlib.import_module(f"{__name__}.{one.name}") for one in pkgutil.iter_modules(__path__)]
    specs = [module.SPEC for module in modules if isinstance(getattr(module, "SPEC", None), TaskSpec)]
    order = {name: place for place, name in enumerate(_FIRST)}
    media = {kind: place for place, kind in enumerate(Media)}
    specs.sort(key=lambda spec: (order.get(spec.name, len(order)), media[spec.output], spec.name))
    names = [spec.name for spec in specs]
    if len(set(names)) < len(names):
        raise ValueError(f"two files of {__name__} declare the same task: {', '.join(names)}")
    return MappingProxyType({spec.name: spec for spec in specs})


#: Every task by its name.
TASKS: Final = _found()


def _known(name: str) -> str:
    if name not in TASKS:
        raise ValueError(f"must be one of {', '.join(TASKS)}")
    return name


#: A task's name.
TaskName = Annotated[str, AfterValidator(_known), Field(json_schema_extra={"enum": list(TASKS)})]

#: The roles of each task's inputs, in the order they are shown.
INPUT_ROLES: Final[Mapping[str, tuple[str, ...]]] = {name: tuple(spec.inputs) for name, spec in TASKS.items()}


def chosen_task(tasks: Iterable[str], roles: Iterable[str], default: str = "text-to-image") -> str:
    """The task that a request means which names none: the first one that needs no other inputs, and takes these.

    Args:
        tasks: the candidates, those of a model, the most likely first.
        roles: the inputs that the request gives.
        default: where none fits.
    """
    given = set(roles)
    for name in tasks:
        inputs = TASKS[name].inputs
        needed = {role for role, spec in inputs.items() if spec.min}
        # an optional input decides only if it is given: an image alone is no depth-to-image
        if needed <= given <= set(inputs) and (given or not inputs):
            return name
    return default
