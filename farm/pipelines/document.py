"""The form of ``catalogue.json``: one line for each class, and each distinct parameter written once.

Thousands of parameters are copies of a few hundred, so a class names them by a key: the parameter's name where it is
the most frequent declaration under that name, ``name~digest`` otherwise.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from farm.pipelines.granularity import Granularity
from farm.pipelines.spec import (
    Form,
    Formulation,
    Guidance,
    Internal,
    Kind,
    Media,
    PipelineInput,
    PipelineParameter,
    PipelineSpec,
    SchedulerSpec,
    SchedulerUse,
    Workflow,
)

Row = dict[str, Any]


def write(
    version: str,
    groups: Mapping[str, Sequence[str]],
    pipelines: Iterable[PipelineSpec],
    schedulers: Iterable[SchedulerSpec],
) -> str:
    """The text of the document.

    Args:
        version: of diffusers.
        groups: names that stand for several classes in annotations of components.
        pipelines: in any order.
        schedulers: in any order.
    """
    pipelines, schedulers = list(pipelines), list(schedulers)
    parameters = _Declarations(p for spec in pipelines for p in spec.parameters.values())
    options = _Declarations(p for spec in schedulers for p in spec.options.values())
    sections: dict[str, Mapping[str, Any]] = {
        "groups": groups,
        "options": options.rows,
        "parameters": parameters.rows,
        "pipelines": {spec.name: _pipeline_row(spec, parameters, groups) for spec in pipelines},
        "schedulers": {spec.name: _scheduler_row(spec, options) for spec in schedulers},
    }
    text = [f'{{\n"diffusers": {_line(version)}']
    for name, rows in sections.items():
        lines = ",\n".join(f"{_line(key)}: {_line(row)}" for key, row in sorted(rows.items()))
        text.append(f'"{name}": {{\n{lines}\n}}')
    return ",\n".join(text) + "\n}\n"


def _line(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


class _Declarations:
    """Every distinct declaration under a key of its own."""

    def __init__(self, parameters: Iterable[PipelineParameter]) -> None:
        counts = Counter((p.name, _line(_parameter_row(p))) for p in parameters)
        self._keys: dict[tuple[str, str], str] = {}
        self.rows: dict[str, Row] = {}
        for (name, row), _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
            key = name if name not in self.rows else f"{name}~{hashlib.sha256(row.encode()).hexdigest()[:6]}"
            if key in self.rows:
                raise ValueError(f"two declarations have the key {key}: take more digits of the digest")
            self._keys[name, row] = key
            self.rows[key] = json.loads(row)

    def key(self, parameter: PipelineParameter) -> str:
        return self._keys[parameter.name, _line(_parameter_row(parameter))]


def _without_empty(row: Row) -> Row:
    return {key: value for key, value in row.items() if value not in (None, "", False) and value not in ([], {}, ())}


def _parameter_row(parameter: PipelineParameter) -> Row:
    given = parameter.input
    row = _without_empty(
        {
            "schema": dict(parameter.schema),
            "required": parameter.required,
            "input": [given.media, given.form, *(["many"] if given.many else [])] if given else None,
            "internal": parameter.internal,
            "description": parameter.description,
        }
    )
    return row if parameter.default is None else {**row, "default": parameter.default}


def read_parameter(name: str, row: Row) -> PipelineParameter:
    """A parameter or an option."""
    given = row.get("input")
    return PipelineParameter(
        name=name,
        schema=row.get("schema", {}),
        default=row.get("default"),
        required=row.get("required", False),
        description=row.get("description", ""),
        input=PipelineInput(media=Media(given[0]), form=Form(given[1]), many="many" in given) if given else None,
        internal=Internal(row["internal"]) if "internal" in row else None,
    )


def _granularity_row(granularity: Granularity | None) -> Row | None:
    if granularity is None:
        return None
    return _without_empty(
        {"multiple": granularity.multiple, "rule": granularity.rule, "offset": granularity.offset or None}
    )


def _read_granularity(row: Row | None) -> Granularity | None:
    return None if row is None else Granularity(row.get("multiple"), row["rule"], row.get("offset", 0))


def _guidance_row(guidance: Guidance | None) -> list[Any] | None:
    if guidance is None:
        return None
    return [guidance.scale, guidance.above, *(["needs_negative"] if guidance.needs_negative else [])]


def _read_guidance(row: Sequence[Any] | None) -> Guidance | None:
    return None if row is None else Guidance(row[0], row[1], needs_negative="needs_negative" in row)


def _grouped(classes: Sequence[str], groups: Mapping[str, Sequence[str]]) -> list[str]:
    """The classes, those of a group replaced by its name."""
    for name, members in groups.items():
        if set(members) <= set(classes):
            return [name, *(each for each in classes if each not in members)]
    return list(classes)


def _pipeline_row(spec: PipelineSpec, parameters: _Declarations, groups: Mapping[str, Sequence[str]]) -> Row:
    return _without_empty(
        {
            "modular": spec.kind is Kind.MODULAR,
            "family": spec.family,
            "deprecated": spec.deprecated,
            "tasks": list(spec.tasks),
            "no_task": spec.no_task,
            "outputs": dict(spec.outputs),
            "parameters": [parameters.key(parameter) for parameter in spec.parameters.values()],
            "aliases": dict(sorted(spec.aliases.items())),
            "size": _granularity_row(spec.size),
            "frames": _granularity_row(spec.frames),
            "components": {name: _grouped(classes, groups) for name, classes in sorted(spec.components.items())},
            "optional_components": sorted(spec.optional_components),
            "denoisers": list(spec.denoisers),
            "decoders": list(spec.decoders),
            "pipelines": dict(sorted(spec.pipelines.items())),
            "scheduler": spec.scheduler
            and _without_empty(
                {
                    "formulation": spec.scheduler.formulation,
                    "needs": sorted(spec.scheduler.needs),
                    "only_declared": spec.scheduler.only_declared,
                    "spares_sigmas": spec.scheduler.spares_sigmas,
                }
            ),
            "guidance": spec.guidance
            and [
                spec.guidance.scale,
                spec.guidance.above,
                *(["needs_negative"] if spec.guidance.needs_negative else []),
            ],
            "packages": list(spec.packages),
            "optional_packages": list(spec.optional_packages),
            "same_weights": dict(sorted(spec.same_weights.items())),
            "combined": spec.combined,
            "workflows": {
                name: _without_empty(
                    {"task": workflow.task, "inputs": list(workflow.inputs), "fixed": dict(workflow.fixed)}
                )
                for name, workflow in sorted(spec.workflows.items())
            },
        }
    )


def read_pipeline(
    name: str, row: Row, parameters: Mapping[str, PipelineParameter], groups: Mapping[str, Sequence[str]]
) -> PipelineSpec:
    """A pipeline class.

    Args:
        name: of the class.
        row: its line of the document.
        parameters: every declaration, by its key.
        groups: names that stand for several classes.
    """
    use = row.get("scheduler")
    declared = [parameters[key] for key in row.get("parameters", ())]
    return PipelineSpec(
        name=name,
        kind=Kind.MODULAR if row.get("modular") else Kind.PIPELINE,
        family=row["family"],
        deprecated=row.get("deprecated", False),
        tasks=tuple(row.get("tasks", ())),
        no_task=row.get("no_task", ""),
        parameters={parameter.name: parameter for parameter in declared},
        aliases=row.get("aliases", {}),
        outputs={field: Media(media) for field, media in row.get("outputs", {}).items()},
        size=_read_granularity(row.get("size")),
        frames=_read_granularity(row.get("frames")),
        components={
            name: tuple(each for written in classes for each in groups.get(written, (written,)))
            for name, classes in row.get("components", {}).items()
        },
        optional_components=frozenset(row.get("optional_components", ())),
        denoisers=tuple(row.get("denoisers", ())),
        decoders=tuple(row.get("decoders", ())),
        pipelines=row.get("pipelines", {}),
        scheduler=use
        and SchedulerUse(
            formulation=Formulation(use["formulation"]),
            needs=frozenset(use.get("needs", ())),
            only_declared=use.get("only_declared", False),
            spares_sigmas=use.get("spares_sigmas", False),
        ),
        guidance=_read_guidance(row.get("guidance")),
        packages=tuple(row.get("packages", ())),
        optional_packages=tuple(row.get("optional_packages", ())),
        same_weights=row.get("same_weights", {}),
        combined=row.get("combined", ""),
        workflows={
            name: Workflow(workflow["task"], tuple(workflow.get("inputs", ())), workflow.get("fixed", {}))
            for name, workflow in row.get("workflows", {}).items()
        },
    )


def _scheduler_row(spec: SchedulerSpec, options: _Declarations) -> Row:
    return _without_empty(
        {
            "formulation": spec.formulation,
            "options": [options.key(option) for option in spec.options.values()],
            "compatibles": list(spec.compatibles),
            "features": sorted(spec.features),
            "flow_options": dict(spec.flow_options),
            "order": spec.order,
            "random": spec.random,
            "packages": list(spec.packages),
            "unfit": spec.unfit,
        }
    )


def read_scheduler(name: str, row: Row, options: Mapping[str, PipelineParameter]) -> SchedulerSpec:
    """A scheduler class."""
    declared = [options[key] for key in row.get("options", ())]
    return SchedulerSpec(
        name=name,
        formulation=Formulation(row["formulation"]),
        options={option.name: option for option in declared},
        compatibles=tuple(row.get("compatibles", ())),
        features=frozenset(row.get("features", ())),
        flow_options=row.get("flow_options", {}),
        order=row["order"],
        random=row.get("random", False),
        packages=tuple(row.get("packages", ())),
        unfit=row.get("unfit", ""),
    )
