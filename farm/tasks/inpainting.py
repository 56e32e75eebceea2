"""inpainting."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from farm.fields import MAX_SIDE
from farm.pipelines.spec import Media
from farm.tasks.params import Guided, Repainted, Sized
from farm.tasks.spec import InputSpec, TaskSpec


class Params(Repainted, Sized, Guided):
    """A text, a size, and how much of the masked part is replaced."""

    padding_mask_crop: Annotated[int, Field(strict=True, ge=0, le=MAX_SIDE)] | None = Field(
        None, description="Render only the masked part with a margin of so many pixels, enlarged to the whole size."
    )


SPEC = TaskSpec(
    "inpainting",
    "The white part of a mask is replaced.",
    Params,
    inputs={
        "image": InputSpec(Media.IMAGE, "The image to repair."),
        "mask_image": InputSpec(Media.IMAGE, "Its white part is replaced.", same_size_as="image"),
    },
    resized="image",
)
