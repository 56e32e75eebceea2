"""What may be rendered with: the models of the registry."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, PrivateAttr, TypeAdapter, ValidationError

from farm.domain.schedulers import class_of
from farm.errors import NotFound
from farm.fields import MAX_SIDE, SIDE_MULTIPLE, FrozenValue, JsonObject
from farm.pipelines.catalogue import SchedulerChoice, catalogue
from farm.pipelines.granularity import Granularity, MissingConfig
from farm.pipelines.spec import PipelineSpec
from farm.tasks import TASKS, TaskName

Configs = Mapping[str, Mapping[str, Any]]


def _known_scheduler(name: str) -> str:
    if class_of(name) is None:
        raise ValueError("is not a scheduler: give a name such as euler, or a class of diffusers")
    return name


def _default_types() -> dict[str, TypeAdapter[Any]]:
    """What an entry may give defaults for, and their types: the parameters of all tasks, and a few of every request."""
    fields = {
        name: field.rebuild_annotation()
        for spec in TASKS.values()
        for name, field in spec.params.model_fields.items()
        if name != "prompt"
    }
    fields |= {
        "scheduler": Annotated[str, AfterValidator(_known_scheduler)],
        "scheduler_options": JsonObject,
        "parameters": JsonObject,
        "exact": bool,
    }
    return {name: TypeAdapter(kind) for name, kind in fields.items()}


_DEFAULTS: Final = _default_types()


def _check_defaults(given: dict[str, Any]) -> dict[str, Any]:
    checked = {}
    for name, value in given.items():
        if name not in _DEFAULTS:
            raise ValueError(f"{name} has no default; defaults are {', '.join(_DEFAULTS)}")
        try:
            checked[name] = _DEFAULTS[name].validate_python(value)
        except ValidationError as error:
            raise ValueError(f"{name}: {error.errors()[0]['msg']}") from None
    return checked


#: What a request gets that leaves these open, by name. What has no default here is decided by the pipeline.
ModelDefaults = Annotated[dict[str, Any], AfterValidator(_check_defaults)]


class ModelLimits(FrozenValue):
    """What a job of the model may ask for."""

    min_side: int = 16  #: pixels
    max_side: int = 2048  #: pixels
    max_pixels: int = 2048 * 1024
    max_outputs: int = 8  #: per job
    max_frames: int = 257  #: of a video
    max_seconds: float = 120  #: of a sound


class LoraFile(FrozenValue):
    """A LoRA that jobs of a model may use."""

    name: str = Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    source: str  #: a ``.safetensors`` file, or a Hub repository id
    weight_name: str | None = None  #: the file in the repository
    revision: str | None = None  #: the Hub revision to pin
    description: str = ""


class Model(FrozenValue):
    """One entry of the registry."""

    id: str = Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")
    source: str  #: ``builtin:<name>``, a local directory, or a Hub repository id
    revision: str | None = None  #: the Hub revision to pin; the content decides for local ones
    description: str = ""
    pipeline: str | None = None  #: the class of diffusers; read from a local folder where absent
    pipelines: dict[TaskName, str] = Field(default_factory=dict)  #: by task, where another class does it
    scheduler: str | None = None  #: the class of the model's own scheduler; read from a local folder where absent
    scheduler_config: dict[str, Any] = Field(default_factory=dict, exclude=True)  #: of the folder
    configs: dict[str, dict[str, Any]] = Field(default_factory=dict, exclude=True)  #: of the folder's components
    tasks: tuple[TaskName, ...] = ()  #: what the pipeline can do, where absent
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    variant: str | None = None  #: the weights' file variant, such as ``fp16``
    defaults: ModelDefaults = Field(default_factory=dict)
    limits: ModelLimits = ModelLimits()
    memory_bytes: int | None = Field(None, gt=0)  #: of a device, for the weights and a job; None: any device is tried
    tags: tuple[str, ...] = ()  #: a worker must have all of them
    #: words the model knows, by kind, where it knows only some
    vocabulary: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    example_prompts: tuple[str, ...] = ()
    loras: tuple[LoraFile, ...] = ()  #: what its jobs may name
    _multiples: dict[str, int] = PrivateAttr(default_factory=dict)  # by pipeline class

    def lora(self, name: str) -> LoraFile | None:
        """The LoRA of that name."""
        return next((lora for lora in self.loras if lora.name == name), None)

    # -- what the catalogue knows of it --------------------------------------------------------------------------------

    def pipeline_for(self, task: str) -> PipelineSpec | None:
        """The class that does a task with the model's weights; None where the model's class is not known.

        Raises:
            NotFound: its class cannot do the task.
        """
        if task in self.pipelines:
            return catalogue().pipeline(self.pipelines[task])
        if self.pipeline is None:
            return None
        own = catalogue().pipeline(self.pipeline)
        if task in own.tasks:
            return own
        if task not in own.same_weights:
            raise NotFound("task", task)
        return catalogue().pipeline(own.same_weights[task])

    def capable(self) -> tuple[str, ...]:
        """The tasks that the model's class can do, in the registry's order; empty where the class is not known."""
        own = None if self.pipeline is None else catalogue().pipeline(self.pipeline)
        able = {*self.pipelines, *(() if own is None else (*own.tasks, *own.same_weights))}
        return tuple(name for name in TASKS if name in able)

    def schedulers(self, pipeline: PipelineSpec | None) -> tuple[SchedulerChoice, ...]:
        """The schedulers that run in one of the model's pipelines; none where the class is not known."""
        if pipeline is None:
            return ()
        return catalogue().schedulers_for(pipeline.name, self.scheduler, self.scheduler_config)

    def side_multiple(self, pipeline: PipelineSpec | None) -> int:
        """What widths and heights must be a multiple of, in pixels."""
        if pipeline is None:
            return 1 if self.id == IMAGE_STEPS.id else SIDE_MULTIPLE
        if pipeline.name not in self._multiples:
            base = None if self.pipeline is None else catalogue().pipeline(self.pipeline)
            size = pipeline.size or (None if base is None else base.size)
            multiple = None if size is None else self._multiple(size)
            self._multiples[pipeline.name] = math.lcm(SIDE_MULTIPLE, multiple or 1)
        return self._multiples[pipeline.name]

    def frame_step(self, pipeline: PipelineSpec | None) -> tuple[int, int] | None:
        """Frame counts are ``k * multiple + offset``: the two numbers; None where any count will do."""
        if pipeline is None or pipeline.frames is None:
            return None
        multiple = self._multiple(pipeline.frames)
        return None if multiple is None else (multiple, pipeline.frames.offset)

    def _multiple(self, granularity: Granularity) -> int | None:
        try:
            return granularity.multiple_for(self.configs)
        except (MissingConfig, TypeError, ValueError, IndexError):  # a config that the rule does not fit
            return granularity.multiple

    def fit(self, width: int, height: int, multiple: int = SIDE_MULTIPLE) -> tuple[int, int]:
        """The nearest size within the limits with about the same aspect.

        Args:
            width: pixels.
            height: pixels.
            multiple: what both sides have to be a multiple of.
        """
        lowest = math.ceil(self.limits.min_side / multiple) * multiple
        highest = max(lowest, self.limits.max_side // multiple * multiple)
        scale = min(1.0, highest / max(width, height), math.sqrt(self.limits.max_pixels / (width * height)))
        scale = max(scale, lowest / min(width, height))

        def side(length: int) -> int:
            return max(lowest, min(highest, round(length * scale / multiple) * multiple))

        fitted = side(width), side(height)
        while fitted[0] * fitted[1] > self.limits.max_pixels and max(fitted) > lowest:
            # rounding up can step over the edge
            longer = 0 if fitted[0] >= fitted[1] else 1
            fitted = (fitted[0] - multiple, fitted[1]) if longer == 0 else (fitted[0], fitted[1] - multiple)
        return fitted


@dataclass(frozen=True)
class EntryProblem:
    """What is wrong with an entry of the registry, which stops no service: the entry, or a task of it, is left out."""

    origin: str  #: the file
    entry: str  #: the model's id, or its place in the file
    key: str  #: what is wrong in it
    message: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.origin}: model {self.entry}: {self.key}: {self.message}; {self.remedy}"


#: What does the tasks that need no model. It is in every registry, behind the models of the file.
IMAGE_STEPS: Final = Model(
    id="image-steps",
    source="builtin:image-steps",
    description="Steps between renderings that need no device: resize, crop, composite, convert.",
    tasks=tuple(name for name, spec in TASKS.items() if not spec.needs_model),
    limits=ModelLimits(min_side=1, max_side=MAX_SIDE, max_pixels=MAX_SIDE * MAX_SIDE, max_outputs=1),
)


class Registry(FrozenValue):
    """The models of a farm, in the order of the file: the first that does a task is its default."""

    models: tuple[Model, ...]
    problems: tuple[EntryProblem, ...] = ()

    def get(self, model_id: str) -> Model | None:
        """The model of that id."""
        return next((model for model in self.models if model.id == model_id), None)

    @property
    def rendering(self) -> tuple[Model, ...]:
        """The models that render: all but what does the tasks that need no model."""
        return tuple(model for model in self.models if model.id != IMAGE_STEPS.id)

    def default_for(self, task: str) -> Model | None:
        """The first model that does the task."""
        return next((model for model in self.models if task in model.tasks), None)

    def tasks(self) -> tuple[str, ...]:
        """The tasks that some model does, in the registry's order."""
        return tuple(name for name in TASKS if self.default_for(name) is not None)
