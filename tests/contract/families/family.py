"""What a tiny model of a family of pipelines is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from diffusers import DiffusionPipeline


class Media(StrEnum):
    """What a pipeline returns."""

    IMAGE = "image"
    VIDEO = "video"
    AUDIO = "audio"
    EMBEDDING = "embedding"  #: the input of another pipeline
    TEXT = "text"


@dataclass(frozen=True)
class Output:
    """The output that a call must have."""

    media: Media
    #: image: width, height. video: frames, width, height. audio: channels, samples. embedding: the tensor's shape.
    size: tuple[int, ...]
    count: int = 1  #: how many outputs one call returns
    sound: tuple[int, int] | None = None  #: channels and samples of the sound of a video


@dataclass(frozen=True)
class Call:
    """A short call of one pipeline class and the output that it must have."""

    arguments: Callable[[], dict[str, Any]]  #: new objects each time, because a pipeline may change its arguments
    output: Output
    #: Arguments among the prompts, images, clips and tensors of this call which do not change the output.
    without_effect: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Family:
    """A folder with a tiny model and the pipeline classes that can be loaded from that folder."""

    name: str  #: kebab-case
    build: Callable[[], DiffusionPipeline]
    calls: Mapping[str, Call]  #: by pipeline class; the first is the class that ``build`` returns
    dtype: torch.dtype = torch.float32  #: the only one with which the pipelines work, if it is not float32
    requires: tuple[str, ...] = ()  #: modules that must be importable besides diffusers and transformers
    #: What the model's own instructions do between loading and calling, where a call fails without it.
    prepare: Callable[[DiffusionPipeline], None] | None = None

    #: A call takes longer than ten seconds, however small the model is: rendered only where it is named.
    slow: bool = False

    @property
    def pipeline_class(self) -> str:
        """The class that ``model_index.json`` names."""
        return next(iter(self.calls))


def image(width: int, height: int, count: int = 1) -> Output:
    """The output of a call that returns images."""
    return Output(Media.IMAGE, (width, height), count)


def video(frames: int, width: int, height: int, sound: tuple[int, int] | None = None) -> Output:
    """The output of a call that returns one clip."""
    return Output(Media.VIDEO, (frames, width, height), sound=sound)


def audio(channels: int, samples: int) -> Output:
    """The output of a call that returns one sound."""
    return Output(Media.AUDIO, (channels, samples))


def embedding(*shape: int) -> Output:
    """The output of a call that returns the input of another pipeline."""
    return Output(Media.EMBEDDING, shape)
