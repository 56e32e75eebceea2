"""The form of a quirk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from farm.pipelines.spec import PipelineSpec


class AdjustableCall(Protocol):
    """The call that a quirk may change; see `workers.pipelines.binding.BoundCall`."""

    arguments: dict[str, Any]  #: of the pipeline, by its own names
    common: Mapping[str, Any]  #: what the job gives, by the tasks' names
    pipeline: Any  #: the loaded pipeline, whose components tell what the model is

    def warn(self, message: str) -> None:
        """Say something about the result."""


@dataclass(frozen=True)
class Quirk:
    """What some pipeline classes need that their signatures do not say."""

    classes: frozenset[str] = frozenset()  #: names of pipeline classes
    families: frozenset[str] = frozenset()  #: packages in diffusers: ``wan``
    #: More arguments of ``from_pretrained``.
    load: Mapping[str, Any] = field(default_factory=dict)
    dtype: str | None = None  #: the only type of weights with which the class works: ``bfloat16``
    #: What the model's own instructions do between loading and calling.
    prepare: Callable[[Any], None] | None = None
    #: Inputs in a form that the catalogue does not know, by the parameter's name.
    inputs: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)
    #: Changes the arguments of a call, which are complete but for the quirks.
    adjust: Callable[[AdjustableCall], None] | None = None
    #: Frames per second for which the family's models were trained, where the call takes no frame rate.
    frame_rate: float | None = None

    def applies_to(self, spec: PipelineSpec) -> bool:
        """Whether a pipeline class has this quirk."""
        return spec.name in self.classes or spec.family in self.families
