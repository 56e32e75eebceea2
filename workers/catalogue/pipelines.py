"""One value for each `DiffusionPipeline` of diffusers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from farm.pipelines.spec import Kind, PipelineParameter, PipelineSpec
from workers.catalogue.aliases import aliases_of
from workers.catalogue.components import components_of, decoders_of, denoisers_of, inner_pipelines
from workers.catalogue.guidance import guidance_of
from workers.catalogue.mappings import combined, same_weights
from workers.catalogue.outputs import outputs_of, returned_fields
from workers.catalogue.packages import packages_of
from workers.catalogue.parameters import call_parameters
from workers.catalogue.schedulers import scheduler_use
from workers.catalogue.sizes import frames_of, size_of
from workers.catalogue.tasks import REQUIRED_INPUTS, Facts, optional_inputs, tasks_of

#: What a name adds for a class that does another task with the weights of the class without it.
_VARIANT: Final = {
    "Img2Img": "image-to-image",
    "Inpainting": "inpainting",
    "Inpaint": "inpainting",
    "VideoToVideo": "video-to-video",
}
#: Tasks that need a prompt wherever the class takes one.
_WORDED: Final = re.compile(r"text-to-\w+|image-editing")


def pipeline_specs(classes: Mapping[str, type]) -> list[PipelineSpec]:
    """Every pipeline class."""
    specs = [_spec(name, cls) for name, cls in classes.items()]
    return [replace(spec, same_weights={**_variants(spec, specs), **spec.same_weights}) for spec in specs]


def _spec(name: str, cls: type) -> PipelineSpec:
    parameters = call_parameters(cls)
    components = components_of(cls)
    aliases = aliases_of(name, parameters, components.classes)
    outputs = outputs_of(cls)
    facts = Facts(
        name=name,
        parameters=parameters,
        outputs=outputs,
        aliases=aliases,
        components=components.classes,
        returned=returned_fields(cls),
        optional=optional_inputs(cls, parameters),
    )
    tasks, no_task = tasks_of(facts)
    packages, optional_packages = packages_of(cls)
    bases = {base.__name__ for base in cls.__mro__}
    return PipelineSpec(
        name=name,
        kind=Kind.PIPELINE,
        family=_family(cls),
        deprecated="DeprecatedPipelineMixin" in bases or ".deprecated." in cls.__module__,
        tasks=tasks,
        no_task=no_task,
        parameters=_with_required(facts, tasks),
        aliases=aliases,
        outputs=outputs,
        size=size_of(cls),
        frames=frames_of(cls),
        components=components.classes,
        optional_components=components.optional,
        denoisers=denoisers_of(cls),
        decoders=decoders_of(cls),
        pipelines={attribute: inner.__name__ for attribute, (inner, _) in inner_pipelines(cls).items()},
        scheduler=scheduler_use(cls),
        guidance=guidance_of(cls),
        packages=packages,
        optional_packages=optional_packages,
        same_weights=same_weights(name),
        combined=combined(name),
        workflows={},
    )


def _family(cls: type) -> str:
    parts = cls.__module__.split(".")
    return parts[3] if parts[2] == "deprecated" else parts[2]


def _with_required(facts: Facts, tasks: Iterable[str]) -> dict[str, PipelineParameter]:
    """The parameters with those required that each task of the class needs, whatever the signature's default."""
    done = list(tasks)
    needed = set.intersection(*(set(REQUIRED_INPUTS[task]) for task in done)) if done else set()
    if done and all(_WORDED.fullmatch(task) for task in done):
        needed.add("prompt")
    if "Control" in facts.name or {"controlnet", "adapter"} & set(facts.components):
        needed |= {"control_image", "control_video"}
    own = {facts.own(common) for common in needed}
    return {
        name: replace(parameter, required=True) if name in own and parameter.internal is None else parameter
        for name, parameter in facts.parameters.items()
    }


def _variants(spec: PipelineSpec, specs: Iterable[PipelineSpec]) -> dict[str, str]:
    """Task → the class of the same components that is named after this one: Chroma, ChromaImg2Img."""
    found = {}
    for other in specs:
        for word, task in _VARIANT.items():
            if (
                word in other.name
                and other.name.replace(word, "", 1) == spec.name
                and other.components == spec.components
                and task in other.tasks
            ):
                found[task] = other.name
    return found
