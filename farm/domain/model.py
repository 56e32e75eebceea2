"""What may be rendered with: the models of the registry file."""

from __future__ import annotations

import math
import tomllib
from typing import Literal

from pydantic import Field, ValidationError

from farm.domain.tasks import SIDE_MULTIPLE, FrozenValue, Scheduler, Task
from farm.errors import SetupError


class ModelDefaults(FrozenValue):
    """What a request gets that leaves these open."""

    width: int = 512  #: pixels
    height: int = 512  #: pixels
    num_inference_steps: int = 30
    guidance_scale: float = 7.5
    scheduler: Scheduler = Scheduler.DPM_SOLVER
    #: Whether a recipe gives the same bytes whatever the device does. If not, a value may differ by 1/255, and jobs
    #: that share a device are quicker.
    exact: bool = True


class ModelLimits(FrozenValue):
    """The sizes a model renders."""

    min_side: int = 64  #: pixels
    max_side: int = 1024  #: pixels
    max_pixels: int = 1024 * 1024
    max_outputs: int = 8  #: images per job


class LoraFile(FrozenValue):
    """A LoRA that jobs of a model may wear."""

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
    tasks: tuple[Task, ...]
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    variant: str | None = None  #: the weights' file variant, such as ``fp16``
    defaults: ModelDefaults = ModelDefaults()
    limits: ModelLimits = ModelLimits()
    memory_bytes: int | None = Field(None, gt=0)  #: of a device, for the weights and a job; None: any device is tried
    tags: tuple[str, ...] = ()  #: a worker must have all of them
    #: words the model knows, by kind, where it knows only some
    vocabulary: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    example_prompts: tuple[str, ...] = ()
    loras: tuple[LoraFile, ...] = ()  #: what its jobs may name

    def lora(self, name: str) -> LoraFile | None:
        """The LoRA of that name."""
        return next((lora for lora in self.loras if lora.name == name), None)

    def fit(self, width: int, height: int) -> tuple[int, int]:
        """The nearest size within the limits with about the same aspect: sides in pixels, multiples of 8."""
        scale = min(
            1.0,
            self.limits.max_side / max(width, height),
            math.sqrt(self.limits.max_pixels / (width * height)),
        )
        scale = max(scale, self.limits.min_side / min(width, height))

        def side(length: int) -> int:
            rounded = round(length * scale / SIDE_MULTIPLE) * SIDE_MULTIPLE
            return max(self.limits.min_side, min(self.limits.max_side, rounded))

        fitted = side(width), side(height)
        if fitted[0] * fitted[1] > self.limits.max_pixels:  # rounding up both sides can step over the edge
            fitted = max(fitted[0] - SIDE_MULTIPLE, self.limits.min_side), fitted[1]
        return fitted


class Registry(FrozenValue):
    """The models of a farm, in the order of the file: the first that does a task is its default."""

    models: tuple[Model, ...]

    def get(self, model_id: str) -> Model | None:
        """The model of that id."""
        return next((model for model in self.models if model.id == model_id), None)

    def default_for(self, task: Task) -> Model | None:
        """The first model that does the task."""
        return next((model for model in self.models if task in model.tasks), None)


def parse(text: str, origin: str) -> Registry:
    """The registry that a models.toml describes; `SetupError` names the file and what is wrong in it."""
    try:
        registry = Registry.model_validate({"models": tomllib.loads(text).get("model", ())})
    except tomllib.TOMLDecodeError as error:
        raise SetupError(f"{origin} is not valid TOML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise SetupError(f"{origin}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    if not registry.models:
        raise SetupError(f"{origin} names no model: add a [[model]] table")
    ids = [model.id for model in registry.models]
    twice = {name for name in ids if ids.count(name) > 1}
    if twice:
        raise SetupError(f"{origin} names {', '.join(sorted(twice))} twice")
    return registry
