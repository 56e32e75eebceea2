"""The catalogue of pipeline and scheduler classes: read once, each class when it is asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from typing import Any, Final

from farm.errors import NotFound
from farm.pipelines.document import read_parameter, read_pipeline, read_scheduler
from farm.pipelines.spec import Formulation, PipelineParameter, PipelineSpec, SchedulerSpec, SchedulerUse

#: The generated document, beside this module.
FILE: Final = "catalogue.json"


class Catalogue:
    """What one version of diffusers accepts."""

    def __init__(self, text: str) -> None:
        """Read the document.

        Args:
            text: of ``catalogue.json``.
        """
        self._document: dict[str, Any] = json.loads(text)
        self._pipelines: dict[str, PipelineSpec] = {}
        self._schedulers: dict[str, SchedulerSpec] = {}
        self.version: str = self._document["diffusers"]  #: of diffusers

    @cached_property
    def pipeline_names(self) -> tuple[str, ...]:
        """Every pipeline class, sorted."""
        return tuple(self._document["pipelines"])

    @cached_property
    def package_names(self) -> frozenset[str]:
        """Every package that some pipeline needs or uses, beside torch, numpy and transformers."""
        rows = self._document["pipelines"].values()
        keys = ("packages", "optional_packages")
        return frozenset(name for row in rows for key in keys for name in row.get(key, ()))

    @cached_property
    def scheduler_names(self) -> tuple[str, ...]:
        """Every scheduler class, sorted."""
        return tuple(self._document["schedulers"])

    def pipelines(self) -> Iterator[PipelineSpec]:
        """Every pipeline class."""
        return map(self.pipeline, self.pipeline_names)

    def schedulers(self) -> Iterator[SchedulerSpec]:
        """Every scheduler class."""
        return map(self.scheduler, self.scheduler_names)

    def pipeline(self, name: str) -> PipelineSpec:
        """A pipeline class.

        Raises:
            NotFound: diffusers has no such class.
        """
        if name not in self._pipelines:
            if name not in self._document["pipelines"]:
                raise NotFound("pipeline class", name)
            self._pipelines[name] = read_pipeline(
                name, self._document["pipelines"][name], self._parameters, self._document["groups"]
            )
        return self._pipelines[name]

    def scheduler(self, name: str) -> SchedulerSpec:
        """A scheduler class.

        Raises:
            NotFound: diffusers has no such class.
        """
        if name not in self._schedulers:
            if name not in self._document["schedulers"]:
                raise NotFound("scheduler class", name)
            self._schedulers[name] = read_scheduler(name, self._document["schedulers"][name], self._options)
        return self._schedulers[name]

    def schedulers_for(
        self, pipeline: str, model_scheduler: str | None = None, model_config: Mapping[str, Any] | None = None
    ) -> tuple[SchedulerChoice, ...]:
        """The schedulers that run in a pipeline, those that its class declares first.

        A scheduler runs if it integrates the noise process that the model was trained for and has every attribute and
        argument that the pipeline uses.

        Args:
            pipeline: a pipeline class.
            model_scheduler: the class in the model's folder; what the pipeline's class declares decides if absent.
            model_config: its ``scheduler_config.json``.
        """
        spec = self.pipeline(pipeline)
        use = spec.scheduler
        if use is None:
            return ()
        process = use.formulation
        if model_scheduler is not None:
            config = model_config or {}
            flow = config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction"
            process = Formulation.FLOW if flow else self.scheduler(model_scheduler).formulation
        declared = {*spec.components.get("scheduler", ()), *([model_scheduler] if model_scheduler else [])}
        choices = [
            SchedulerChoice(each, each.flow_options if each.formulation is not process else {})
            for each in self.schedulers()
            if each.name == model_scheduler or _runs(each, use, process, declared)
        ]
        return tuple(sorted(choices, key=lambda choice: (choice.spec.name not in declared, choice.spec.name)))

    @cached_property
    def _parameters(self) -> dict[str, PipelineParameter]:
        return _read_parameters(self._document["parameters"])

    @cached_property
    def _options(self) -> dict[str, PipelineParameter]:
        return _read_parameters(self._document["options"])


@dataclass(frozen=True, slots=True)
class SchedulerChoice:
    """A scheduler that runs in a pipeline."""

    spec: SchedulerSpec
    config: Mapping[str, Any]  #: options that it has to be made with, beside those of the model's own scheduler


def _runs(spec: SchedulerSpec, use: SchedulerUse, process: Formulation, declared: set[str]) -> bool:
    """Whether a scheduler runs in a pipeline.

    Args:
        spec: the scheduler.
        use: what the pipeline expects.
        process: what the model was trained for.
        declared: the classes that the pipeline or the model names.
    """
    as_flow = process is Formulation.FLOW and bool(spec.flow_options)
    if (spec.unfit or use.only_declared or process is Formulation.OWN) and spec.name not in declared:
        return False
    if spec.formulation is not process and not as_flow and process is not Formulation.OWN:
        return False
    missing = use.needs - spec.features
    if as_flow and use.spares_sigmas:
        missing -= {"set_timesteps.sigmas"}
    return not missing


def _read_parameters(rows: Mapping[str, dict[str, Any]]) -> dict[str, PipelineParameter]:
    return {key: read_parameter(key.partition("~")[0], row) for key, row in rows.items()}


@cache
def catalogue() -> Catalogue:
    """The catalogue that this version of the farm ships with."""
    return Catalogue(files("farm.pipelines").joinpath(FILE).read_text(encoding="utf-8"))
