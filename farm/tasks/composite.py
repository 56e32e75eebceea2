"""composite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from farm.pipelines.spec import Media
from farm.tasks.params import Placed
from farm.tasks.spec import InputSpec, Size, TaskSpec, step_cost


class Params(Placed):
    """Where the upper image lies, and how much of it shows."""

    opacity: Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)] = Field(
        1.0, description="How much of the upper image shows: 0 nothing, 1 it alone."
    )


def output_size(common: Mapping[str, Any], size: Size) -> Size:  # noqa: ARG001 - the signature of all
    """The size of the lower image."""
    return size


SPEC = TaskSpec(
    "composite",
    "One image laid on another, without a model.",
    Params,
    inputs={
        "image": InputSpec(Media.IMAGE, "The lower image."),
        "overlay_image": InputSpec(Media.IMAGE, "The upper image; what leaves the lower one is cut off."),
        "mask_image": InputSpec(
            Media.IMAGE, "The upper image shows where it is white.", min=0, same_size_as="overlay_image"
        ),
    },
    cost=step_cost,
    output_size=output_size,
)
