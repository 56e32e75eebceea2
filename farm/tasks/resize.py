"""resize."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from farm.pipelines.spec import Media
from farm.tasks.params import Framed
from farm.tasks.spec import InputSpec, Size, TaskSpec, step_cost


class Params(Framed):
    """A size, and how the image gets it."""

    fit: Literal["cover", "contain", "stretch"] = Field(
        "cover",
        description=(
            "cover: fills the size, and the middle is kept. contain: fits into the size, so one side may be shorter. "
            "stretch: both sides exactly."
        ),
    )
    resample: Literal["lanczos", "bicubic", "bilinear", "box", "nearest"] = Field(
        "lanczos", description="How values between pixels are computed."
    )


def output_size(common: Mapping[str, Any], size: Size) -> Size:
    """The size that an image of ``size`` gets. Raises `ValueError`."""
    width: int | None = common.get("width")
    height: int | None = common.get("height")
    if width is None:
        if height is None:
            raise ValueError("give width or height, or both")
        return max(1, round(size[0] * height / size[1])), height
    if height is None:
        return width, max(1, round(size[1] * width / size[0]))
    if common.get("fit") != "contain":
        return width, height
    scale = min(width / size[0], height / size[1])
    return max(1, min(width, round(size[0] * scale))), max(1, min(height, round(size[1] * scale)))


SPEC = TaskSpec(
    "resize",
    "An image in another size, without a model.",
    Params,
    inputs={"image": InputSpec(Media.IMAGE, "The image to resize.")},
    cost=step_cost,
    output_size=output_size,
)
