"""Modular pipelines: their blocks declare inputs, outputs, components and workflows."""

from __future__ import annotations

import importlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from farm.pipelines.spec import Internal, Kind, Media, PipelineParameter, PipelineSpec, Workflow
from workers.catalogue.aliases import aliases_of
from workers.catalogue.annotations import shape_of
from workers.catalogue.docstrings import first_sentence
from workers.catalogue.outputs import media_of_field
from workers.catalogue.packages import packages_of
from workers.catalogue.parameters import declare
from workers.catalogue.schedulers import declared_use
from workers.catalogue.tasks import Facts, tasks_of

_TASKS: Final[Mapping[str, str]] = {
    "text2image": "text-to-image",
    "image2image": "image-to-image",
    "img2img": "image-to-image",
    "inpainting": "inpainting",
    "image_conditioned": "image-editing",
    "image_conditioned_inpainting": "inpainting",
    "text2video": "text-to-video",
    "image2video": "image-to-video",
    "flf2v": "image-to-video",
    "video2video": "video-to-video",
    "t2va": "text-to-video",
    "fl2va": "image-to-video",
}
_VARIANT: Final = re.compile(r"^((ip_adapter|controlnet_union|controlnet)_)*|_with_sound$")
#: One block makes it for another; nobody gives it.
_INTERMEDIATE: Final = re.compile(
    r"timesteps|batch_size|dtype|(resized|processed)_\w+|preprocess_kwargs|crops_coords|\w+_strengths|\w+_indices"
)
_DENOISER: Final = re.compile(r"(unconditional_)?(transformer|unet)(_\w+)?")
_DECODER: Final = re.compile(r"(audio_)?vae|vocoder|diffusion_decoder")


def modular_specs(classes: Mapping[str, type], known: Iterable[PipelineSpec]) -> list[PipelineSpec]:
    """Every modular pipeline that has blocks of its own.

    Args:
        classes: by name.
        known: the ordinary pipelines: they say what an unannotated input takes, and which sizes a model renders.
    """
    ordinary = list(known)
    frequent = _most_frequent(parameter for spec in ordinary for parameter in spec.parameters.values())
    return [_spec(name, cls, ordinary, frequent) for name, cls in classes.items()]


def _spec(
    name: str, cls: type, ordinary: list[PipelineSpec], frequent: Mapping[str, PipelineParameter]
) -> PipelineSpec:
    blocks = getattr(importlib.import_module("diffusers"), cls.default_blocks_name)()  # type: ignore[attr-defined]
    components = {
        component.name: (_class_name(component.type_hint),)
        for component in sorted(blocks.expected_components, key=lambda component: component.name)
    }
    workflows = _workflows(getattr(blocks, "_workflow_map", None) or {})
    parameters = _parameters(blocks, workflows, frequent)
    outputs = {output.name: media for output in blocks.outputs if (media := media_of_field(output.name))}
    outputs = dict(sorted(outputs.items(), key=lambda item: item[1] is Media.AUDIO))
    aliases = aliases_of(name, parameters, components)
    tasks, reason = tuple(sorted({workflow.task for workflow in workflows.values()})), ""
    if not tasks:
        optional = frozenset(key for key, parameter in parameters.items() if parameter.input and not parameter.required)
        returned = tuple(output.name for output in blocks.outputs)
        tasks, reason = tasks_of(Facts(name, parameters, outputs, aliases, components, returned, optional))
    kinds: set[type] = {type(block) for block in _all_blocks(blocks)}
    packages = [packages_of(kind) for kind in kinds]
    needed = {package for more, _ in packages for package in more}
    twin = _twin(components, ordinary)
    return PipelineSpec(
        name=name,
        kind=Kind.MODULAR,
        family=cls.__module__.split(".")[2],
        deprecated=False,
        tasks=tasks,
        no_task=reason,
        parameters=parameters,
        aliases=aliases,
        outputs=outputs,
        size=twin.size if twin and {"height", "width"} & set(parameters) else None,
        frames=twin.frames if twin and "num_frames" in parameters else None,
        components=components,
        optional_components=frozenset(),
        denoisers=tuple(component for component in components if _DENOISER.fullmatch(component)),
        decoders=tuple(component for component in components if _DECODER.fullmatch(component)),
        pipelines={},
        scheduler=declared_use(components["scheduler"]) if "scheduler" in components else None,
        packages=tuple(sorted(needed)),
        optional_packages=tuple(sorted({package for _, maybe in packages for package in maybe} - needed)),
        guidance=None,
        same_weights={},
        combined="",
        workflows=workflows,
    )


def _class_name(hint: Any) -> str:
    """The name of a component's class; transformers' stand-ins for processors without torchvision have a suffix."""
    name = getattr(hint, "__name__", str(hint))
    return name.removesuffix("Pil") if name.endswith("ProcessorPil") else name


def _workflows(declared: Mapping[str, Any]) -> dict[str, Workflow]:
    found = {}
    for name, triggers in declared.items():
        task = _TASKS.get(_VARIANT.sub("", name))
        first = triggers[0] if isinstance(triggers, tuple) else triggers
        if task is not None:
            found[name] = Workflow(
                task=task,
                inputs=tuple(sorted(key for key, value in first.items() if value is True)),
                fixed={key: value for key, value in first.items() if value is not True},
            )
    return found


def _parameters(
    blocks: Any, workflows: Mapping[str, Workflow], frequent: Mapping[str, PipelineParameter]
) -> dict[str, PipelineParameter]:
    always = [set(workflow.inputs) for workflow in workflows.values()]
    found: dict[str, PipelineParameter] = {}
    for given in blocks.inputs:
        if not given.name:  # the fields of another block's result
            continue
        default = given.default
        declared = declare(
            given.name,
            shape_of(given.type_hint, "builtins"),
            default,
            required=False,
            description=first_sentence(given.description or ""),
        )
        if given.type_hint is None and given.name in frequent:
            declared = replace(frequent[given.name], default=default if declared.default is None else declared.default)
            declared = replace(declared, default=declared.default if declared.offered else None)
        if _INTERMEDIATE.fullmatch(given.name):
            declared = replace(declared, schema={}, default=None, description="", internal=Internal.WORKER, input=None)
        demanded = (
            all(given.name in inputs for inputs in always) if always else bool(given.required) and default is None
        )
        found[given.name] = replace(declared, required=demanded and declared.internal is None)
    return found


def _most_frequent(parameters: Iterable[PipelineParameter]) -> dict[str, PipelineParameter]:
    """The most frequent declaration under each name: what an unannotated parameter of that name most likely takes."""
    counts: Counter[str] = Counter()
    first: dict[str, PipelineParameter] = {}
    for parameter in parameters:
        key = repr((parameter.name, dict(parameter.schema), parameter.input, parameter.internal))
        counts[key] += 1
        first.setdefault(key, parameter)
    found: dict[str, PipelineParameter] = {}
    for key, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        found.setdefault(first[key].name, first[key])
    return found


def _twin(components: Mapping[str, tuple[str, ...]], ordinary: Iterable[PipelineSpec]) -> PipelineSpec | None:
    """An ordinary pipeline with the same denoiser and VAE: what sizes they allow does not depend on the code around."""
    parts = {name: classes for name, classes in components.items() if name in ("transformer", "unet", "vae")}
    found = [
        spec
        for spec in ordinary
        if len(parts) == 2 and all(set(classes) & set(spec.components.get(name, ())) for name, classes in parts.items())
    ]
    return min(found, key=lambda spec: (spec.size is None, len(spec.name), spec.name), default=None)


def _all_blocks(blocks: Any) -> list[Any]:
    return [blocks, *(inner for block in getattr(blocks, "sub_blocks", {}).values() for inner in _all_blocks(block))]
