"""crop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from farm.pipelines.spec import Media
from farm.tasks.params import Framed, Placed
from farm.tasks.spec import InputSpec, Size, TaskSpec, step_cost


class Params(Placed, Framed):
    """The part that is kept; the middle where its place is left open."""


def box(common: Mapping[str, Any], size: Size) -> tuple[int, int, int, int]:
    """The part of an image of ``size`` that is kept: left, top, right, bottom. Raises `ValueError`."""
    found = []
    for side, place, whole in (("width", "left", size[0]), ("height", "top", size[1])):
        given = common.get(place)
        length = common.get(side)
        if length is None:
            length = whole - (given or 0)
        begin = (whole - length) // 2 if given is None else given
        if length < 1 or begin < 0 or begin + length > whole:
            raise ValueError(f"{place} {begin} and {side} {length} leave the image, whose {side} is {whole}")
        found.append((begin, begin + length))
    (left, right), (top, bottom) = found
    return left, top, right, bottom


def output_size(common: Mapping[str, Any], size: Size) -> Size:
    """The size of the part. Raises `ValueError`."""
    left, top, right, bottom = box(common, size)
    return right - left, bottom - top


SPEC = TaskSpec(
    "crop",
    "A part of an image, without a model.",
    Params,
    inputs={"image": InputSpec(Media.IMAGE, "The image to cut the part from.")},
    cost=step_cost,
    output_size=output_size,
)
