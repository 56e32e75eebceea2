"""Fields of forms, derived from the parameters of jobs: a new parameter is in every form without a word here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from farm.domain.media import input_formats, titles
from farm.domain.parameters import PARAMETERS, Parameter, ParameterKind, from_text, to_text
from farm.tasks import TASKS

#: What people call a parameter, where it is not its name.
LABELS: Final = {
    "num_inference_steps": "Steps",
    "guidance_scale": "Guidance",
    "num_outputs": "Outputs",
    "output_format": "Format",
    "mask_image": "Mask",
    "loras": "LoRAs",
    "custom_id": "Custom ID",
}
#: What to write into a field whose kind does not say it.
EXAMPLES: Final = {
    ParameterKind.LORAS: "name:0.8, other",
    ParameterKind.METADATA: '{"sku": "A-1"}',
    ParameterKind.OBJECT: '{"name": 1}',
    ParameterKind.INPUTS: '{"ip_adapter_image": "file_…"}',
    ParameterKind.TIME: "2026-01-31T22:00:00Z",
}
#: The parameters that decide what is rendered and are shown first; the others are behind “More”.
MAIN: Final = (
    "num_inference_steps",
    "guidance_scale",
    "scheduler",
    "width",
    "height",
    "seed",
    "strength",
    "num_frames",
    "fps",
    "seconds",
    "num_outputs",
    "output_format",
    "priority",
)
#: The parameters that forms lay out in their own way.
PROMPTS: Final = ("prompt", "negative_prompt")
IMAGES: Final = tuple(name for name, one in PARAMETERS.items() if one.kind is ParameterKind.INPUT)
#: What a variant of a job keeps, or is none of its parameters.
_KEPT: Final = frozenset(
    {"task", "model", "preview", "custom_id", "metadata", "webhook", "not_before", "deadline", "inputs", *IMAGES}
)


def variant(task: str) -> tuple[str, ...]:
    """What a variant of a job of this task may change."""
    return tuple(name for name, one in PARAMETERS.items() if task in one.tasks and name not in _KEPT)


@dataclass(frozen=True)
class FormField:
    """One input of a form."""

    name: str
    label: str
    kind: str  #: ``number``, ``select`` or ``text``
    step: str  #: of a ``number``
    options: tuple[str, ...]  #: of a ``select``
    optional: bool  #: whether no choice is one, too
    default: str
    example: str  #: of a ``text``
    title: str  #: what the parameter is for
    tasks: str  #: the tasks that have it, separated by spaces; empty for all


@dataclass(frozen=True)
class FileField:
    """One input of a form for files."""

    name: str
    label: str
    hint: str
    accept: str  #: MIME types
    many: bool
    tasks: str  #: the tasks that take it, separated by spaces


def field(name: str, *, blank: bool = False) -> FormField:
    """The input of a parameter; ``blank``: without the parameter's own default."""
    one = PARAMETERS[name]
    options = ("true", "false") if one.kind is ParameterKind.BOOLEAN else one.choices
    numeric = one.kind in (ParameterKind.INTEGER, ParameterKind.NUMBER)
    return FormField(
        name=name,
        label=LABELS.get(name, name.replace("_", " ").capitalize()),
        kind="number" if numeric else "select" if options else "text",
        step="" if not numeric else "any" if one.kind is ParameterKind.NUMBER else _step(one),
        options=options,
        optional=blank or one.field.default is None,
        default="" if blank or one.required else _default(one),
        example=EXAMPLES.get(one.kind, ""),
        title=one.description,
        tasks=_tasks(one),
    )


def _tasks(one: Parameter) -> str:
    return "" if len(one.tasks) == len(TASKS) else " ".join(name for name in TASKS if name in one.tasks)


def files() -> list[FileField]:
    """The inputs for the files of all tasks."""
    found = []
    for name in IMAGES:
        specs = [spec.inputs[name] for spec in TASKS.values() if name in spec.inputs]
        formats = input_formats(specs[0].media)
        found.append(
            FileField(
                name=name,
                label=LABELS.get(name, name.replace("_", " ").capitalize()),
                hint=f"{specs[0].description} {titles(formats)}.",
                accept=",".join(dict.fromkeys(one.media_type for one in formats)),
                many=PARAMETERS[name].many,
                tasks=_tasks(PARAMETERS[name]),
            )
        )
    return found


def _default(one: Parameter) -> str:
    value = one.field.get_default(call_default_factory=True)
    return "" if value in ((), {}) else to_text(value)


def _step(one: Parameter) -> str:
    """The multiple that a whole number must be of."""
    return next((str(rule.multiple_of) for rule in one.field.metadata if hasattr(rule, "multiple_of")), "1")


def fields(names: Iterable[str], hidden: Sequence[str] = (), *, blank: bool = False) -> list[FormField]:
    """The inputs of these parameters, without the hidden ones."""
    return [field(name, blank=blank) for name in names if name not in hidden]


def request(given: Mapping[str, str], names: Iterable[str]) -> dict[str, Any]:
    """The parameters that a form gives: what is empty is absent."""
    return {name: from_text(name, given[name]) for name in names if given.get(name, "").strip()}
