"""What a task is: its parameters, its inputs, what comes out and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from farm.fields import FrozenValue
from farm.pipelines.spec import Media


class TaskParams(FrozenValue):
    """Base of the parameters that a task declares.

    The names are those of `farm.pipelines`: `PipelineSpec.own_name` gives a class's own name of each. A parameter with
    the default None may be left out, and the pipeline's own default holds then.
    """


@dataclass(frozen=True)
class InputSpec:
    """Files that a job begins with, of one role."""

    media: Media
    description: str
    min: int = 1  #: 0: optional
    max: int = 1
    same_size_as: str | None = None  #: the role whose width and height it must have


@dataclass(frozen=True)
class Workload:
    """How much a job computes."""

    steps: int  #: denoising steps of one output
    width: int  #: pixels
    height: int  #: pixels
    frames: int  #: of a video; 1 for an image
    seconds: float  #: of a sound; 0 for other media


Size = tuple[int, int]  #: width and height in pixels


def step_cost(work: Workload) -> float:
    """What a step without a model costs, in megapixel-steps: a thousandth of a denoising step of its size."""
    return work.width * work.height / 1e9


def image_cost(work: Workload) -> float:
    """Megapixel-steps of one image."""
    return work.steps * work.width * work.height / 1e6


def video_cost(work: Workload) -> float:
    """Megapixel-steps of all frames of one video."""
    return image_cost(work) * work.frames


#: What a task honours whose input is resized.
SIZE: Final = frozenset({"width", "height"})
#: What the encoder of videos honours.
FRAME_RATE: Final = frozenset({"fps"})

#: What a second of sound costs beside an image: as many megapixels.
MEGAPIXELS_PER_SECOND: Final = 0.1


def audio_cost(work: Workload) -> float:
    """Megapixel-steps that one sound counts for."""
    return work.steps * work.seconds * MEGAPIXELS_PER_SECOND


@dataclass(frozen=True)
class TaskSpec:
    """One task. Whatever lists tasks, parameters or inputs derives them from here."""

    name: str  #: the Hub's name where it has one
    title: str  #: one sentence
    params: type[TaskParams]
    inputs: Mapping[str, InputSpec] = field(default_factory=dict)  #: by role
    output: Media = Media.IMAGE
    cost: Callable[[Workload], float] = image_cost  #: of one output, in megapixel-steps
    #: The input that is resized to the job's width and height before the pipeline gets it, and decides those that are
    #: left open.
    resized: str | None = None
    #: The parameters that the farm itself honours: they are taken whether or not the pipeline has them.
    honoured: frozenset[str] = frozenset()
    #: The size of the output from the parameters and the size of ``image``, of a task that needs no model: the worker's
    #: processor does it, beside the device. None: a pipeline does the task.
    output_size: Callable[[Mapping[str, Any], Size], Size] | None = None

    @property
    def needs_model(self) -> bool:
        """Whether a pipeline does the task, on a device."""
        return self.output_size is None
