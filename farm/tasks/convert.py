"""convert."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from farm.pipelines.spec import Media
from farm.tasks.spec import InputSpec, Size, TaskParams, TaskSpec, step_cost


class Params(TaskParams):
    """Colours; the file format is `output_format`, as everywhere."""

    colours: Literal["rgb", "grey"] = Field("rgb", description="rgb, or grey: the luminance (ITU-R 601).")
    threshold: Annotated[int, Field(strict=True, ge=1, le=255)] | None = Field(
        None, description="Grey values from this one on become white, the others black: a mask."
    )
    invert: bool = Field(False, strict=True, description="Whether dark becomes bright, at last.")


def output_size(common: Mapping[str, Any], size: Size) -> Size:  # noqa: ARG001 - the signature of all
    """The size stays."""
    return size


SPEC = TaskSpec(
    "convert",
    "An image in another format or other colours, without a model.",
    Params,
    inputs={"image": InputSpec(Media.IMAGE, "The image to convert.")},
    cost=step_cost,
    output_size=output_size,
)
