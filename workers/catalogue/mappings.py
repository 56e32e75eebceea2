"""Diffusers' auto-pipeline mappings: which classes do a task, and which of them share weights."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Final

_MAPPINGS: Final = {
    "AUTO_TEXT2IMAGE_PIPELINES_MAPPING": "text-to-image",
    "AUTO_IMAGE2IMAGE_PIPELINES_MAPPING": "image-to-image",
    "AUTO_INPAINT_PIPELINES_MAPPING": "inpainting",
    "AUTO_TEXT2VIDEO_PIPELINES_MAPPING": "text-to-video",
    "AUTO_IMAGE2VIDEO_PIPELINES_MAPPING": "image-to-video",
    "AUTO_VIDEO2VIDEO_PIPELINES_MAPPING": "video-to-video",
    "AUTO_TEXT2AUDIO_PIPELINES_MAPPING": "text-to-audio",
}
_DECODERS: Final = {
    "_AUTO_TEXT2IMAGE_DECODER_PIPELINES_MAPPING": "AUTO_TEXT2IMAGE_PIPELINES_MAPPING",
    "_AUTO_IMAGE2IMAGE_DECODER_PIPELINES_MAPPING": "AUTO_IMAGE2IMAGE_PIPELINES_MAPPING",
    "_AUTO_INPAINT_DECODER_PIPELINES_MAPPING": "AUTO_INPAINT_PIPELINES_MAPPING",
}


@cache
def _mapping(name: str) -> dict[str, type]:
    return dict(vars(importlib.import_module("diffusers.pipelines.auto_pipeline"))[name])


def mapped_tasks(name: str) -> set[str]:
    """The tasks for which diffusers' auto-pipelines choose the class."""
    return {task for mapping, task in _MAPPINGS.items() if name in {cls.__name__ for cls in _mapping(mapping).values()}}


def same_weights(name: str) -> dict[str, str]:
    """Task → the class that diffusers' auto-pipelines make of the class's components."""
    keys = {key for mapping in _MAPPINGS for key, cls in _mapping(mapping).items() if cls.__name__ == name}
    return {
        task: _mapping(mapping)[key].__name__
        for mapping, task in _MAPPINGS.items()
        for key in sorted(keys)
        if key in _mapping(mapping) and _mapping(mapping)[key].__name__ != name
    }


def combined(name: str) -> str:
    """The class that runs a decoder together with its prior; empty for a class that is no such stage."""
    for decoders, mapping in _DECODERS.items():
        for key, cls in _mapping(decoders).items():
            if cls.__name__ == name and key in _mapping(mapping):
                return _mapping(mapping)[key].__name__
    return ""
