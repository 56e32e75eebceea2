"""What may be rendered with: the models of the registry."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from farm.domain.schedulers import class_of
from farm.errors import NotFound
from farm.fields import MAX_SIDE, SIDE_MULTIPLE, FrozenValue, JsonObject, Storable
from farm.pipelines.catalogue import SchedulerChoice, catalogue
from farm.pipelines.granularity import Granularity, MissingConfig
from farm.pipelines.spec import PipelineSpec
from farm.pipelines.weights import unfit_for
from farm.tasks import TASKS, TaskName

Text = Annotated[str, Storable]
MODEL_ID: Final = r"^[A-Za-z0-9][A-Za-z0-9._/-]*$"
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

    min_side: int = Field(16, gt=0, strict=True)  #: pixels
    max_side: int = Field(2048, gt=0, strict=True)  #: pixels
    max_pixels: int = Field(2048 * 1024, gt=0, strict=True)
    max_outputs: int = Field(8, gt=0, strict=True)  #: per job
    max_frames: int = Field(257, gt=0, strict=True)  #: of a video
    max_seconds: float = Field(120, gt=0, strict=True, allow_inf_nan=False)  #: of a sound


class LoraFile(FrozenValue):
    """A LoRA that jobs of a model may use."""

    name: str = Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    source: Text = Field(max_length=1000, description="A `.safetensors` file, or a Hub repository.")
    weight_name: Text | None = Field(None, description="The file in the repository.")
    revision: Text | None = Field(None, description="The Hub revision to pin.")
    description: Text = Field("", max_length=2000, description="For people.")


class ModelState(StrEnum):
    """Where a stored entry stands."""

    CHECKING = "checking"  #: a worker has still to try it; no job may name it
    READY = "ready"  #: jobs may name it
    FAILED = "failed"  #: it cannot be rendered with; its report says why
    REMOVED = "removed"  #: accepted jobs still end with it; no new one may name it


class ModelChoices(FrozenValue):
    """What an operator decides for a model, and may change while jobs name it."""

    description: Text = Field("", max_length=2000, description="For people.")
    defaults: ModelDefaults = Field(
        default_factory=dict,
        description="What a job gets that leaves these open: any parameter of a task, `scheduler`, "
        "`scheduler_options`, `parameters`, `exact`.",
    )
    limits: ModelLimits = Field(ModelLimits(), description="What a job may ask for.")
    memory_bytes: int | None = Field(
        None,
        gt=0,
        le=2**62,
        strict=True,
        description="Only devices with so much memory get its jobs; null: any device is tried.",
    )
    tags: tuple[Text, ...] = Field((), description="Only workers with all of these tags get its jobs.")
    vocabulary: dict[Text, tuple[Text, ...]] = Field(
        default_factory=dict, description="The words it knows, by kind, where it knows only some."
    )
    example_prompts: tuple[Text, ...] = Field((), description="Prompts to try.")
    loras: tuple[LoraFile, ...] = Field((), description="What its jobs may name in `loras`.")


class ModelEntry(ModelChoices):
    """What is stated of a model: a table of the models file, or an entry that was added while the farm runs."""

    id: Text = Field(min_length=1, max_length=200, pattern=MODEL_ID, description="What jobs name.")
    source: Text = Field(
        min_length=1,
        max_length=1000,
        description="A local folder, a Hub repository, `s3://bucket/prefix`, `builtin:starter`, or what "
        "`POST /v1/model-uploads` answers.",
    )
    revision: Text | None = Field(None, description="The Hub revision to pin.")
    config: Text | None = Field(
        None,
        max_length=1000,
        description="Where a single checkpoint file gets configs and tokenizers from, and text encoders that it lacks: "
        "a model of the farm, a folder, or a Hub repository.",
    )
    pipeline: Text | None = Field(None, description="The class of diffusers; a folder says it itself.")
    pipelines: dict[TaskName, Text] = Field(default_factory=dict, description="Another class, by task.")
    scheduler: Text | None = Field(None, description="The class of the model's own scheduler; a folder says it itself.")
    tasks: tuple[TaskName, ...] = Field((), description="All that the class can do, if absent.")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field("auto", description="Of the weights.")
    variant: Text | None = Field(None, description="The weights' file variant, such as `fp16`.")


class ModelFacts(FrozenValue):
    """What the files of a model say of it."""

    pipeline: str | None = None  #: the class that its index names
    scheduler: str | None = None  #: the class of its scheduler
    scheduler_config: dict[str, Any] = Field(default_factory=dict)
    configs: dict[str, dict[str, Any]] = Field(
        default_factory=dict
    )  #: of its components, by name; under "" the pipeline's own
    tasks: tuple[TaskName, ...] = ()  #: those that its check on a worker left; empty: not checked
    config: str | None = None  #: the source that the entry's `config` meant when the model was added
    files: str | None = None  #: the farm's own copy of the source, as ``farm://…``


class Model(ModelEntry):
    """A model of the registry: its entry, and what its files say."""

    scheduler_config: dict[str, Any] = Field(default_factory=dict, exclude=True)
    configs: dict[str, dict[str, Any]] = Field(
        default_factory=dict, exclude=True
    )  #: of its components, by name; under "" the pipeline's own
    files: str | None = Field(None, exclude=True)  #: the farm's own copy of the source

    @classmethod
    def of(cls, entry: ModelEntry, facts: ModelFacts) -> Model:
        """The model of an entry and its files; what the entry states wins."""
        stated = {name: getattr(entry, name) for name in ModelEntry.model_fields}
        tasks = tuple(task for task in entry.tasks if not facts.tasks or task in facts.tasks)
        return cls(
            **stated
            | {
                "tasks": tasks if entry.tasks else facts.tasks,
                "config": facts.config or entry.config,
                "files": facts.files,
                "pipeline": entry.pipeline or facts.pipeline,
                "scheduler": entry.scheduler or facts.scheduler,
                "scheduler_config": facts.scheduler_config,
                "configs": facts.configs,
            }
        )

    def lora(self, name: str) -> LoraFile | None:
        """The LoRA of that name."""
        return next((lora for lora in self.loras if lora.name == name), None)

    @cached_property  # which equality leaves out
    def _multiples(self) -> dict[str, int]:
        """By pipeline class."""
        return {}

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
        if task not in own.same_weights or self.unfit_for(task):
            raise NotFound("task", task)
        return catalogue().pipeline(own.same_weights[task])

    def unfit_for(self, task: str) -> str:
        """Why the model's weights do not do a task that its class is known for; empty where they do."""
        own = None if self.pipeline is None or task in self.pipelines else catalogue().pipeline(self.pipeline)
        if own is None or task in own.tasks or task not in own.same_weights:
            return ""
        return unfit_for(task, own, catalogue().pipeline(own.same_weights[task]), self.configs)

    def capable(self) -> tuple[str, ...]:
        """The tasks that the model's class can do, in the registry's order; empty where the class is not known."""
        own = None if self.pipeline is None else catalogue().pipeline(self.pipeline)
        able = {*self.pipelines, *(() if own is None else (*own.tasks, *own.same_weights))}
        return tuple(name for name in TASKS if name in able and not self.unfit_for(name))

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
    """The models of a farm, those of the models file first: the first that does a task is its default."""

    models: tuple[Model, ...]
    problems: tuple[EntryProblem, ...] = ()
    retired: tuple[Model, ...] = ()  #: removed ones: no new job may name them, and accepted jobs still end with them
    #: why no job may name a model that was added, by its id
    refusals: dict[str, str] = Field(default_factory=dict)

    def get(self, model_id: str) -> Model | None:
        """The model of that id that new jobs may name."""
        return next((model for model in self.models if model.id == model_id), None)

    @property
    def rendering(self) -> tuple[Model, ...]:
        """The models that render: all but what does the tasks that need no model."""
        return tuple(model for model in self.models if model.id != IMAGE_STEPS.id)

    def known(self, model_id: str) -> Model | None:
        """The model of that id, for jobs that are accepted: it may be removed since."""
        return next((model for model in (*self.models, *self.retired) if model.id == model_id), None)

    def default_for(self, task: str) -> Model | None:
        """The first model that does the task."""
        return next((model for model in self.models if task in model.tasks), None)

    def tasks(self) -> tuple[str, ...]:
        """The tasks that some model does, in the registry's order."""
        return tuple(name for name in TASKS if self.default_for(name) is not None)
