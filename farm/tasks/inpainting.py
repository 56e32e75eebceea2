"""inpainting."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from farm.fields import MAX_SIDE
from farm.pipelines.spec import Media
from farm.tasks.params import Controlled, MayBeGuided, Repainted, Sized
from farm.tasks.roles import CONTROL, REFERENCES
from farm.tasks.spec import SIZE, InputSpec, TaskSpec


class Params(Controlled, Repainted, Sized, MayBeGuided):
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
        **CONTROL,
        **REFERENCES,
    },
    resized="image",
    honoured=SIZE,
)
