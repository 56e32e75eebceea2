"""The short calls that most image pipelines share."""

from __future__ import annotations

from typing import Any, Final

from tests.contract.families.family import Call, Output, image
from tests.contract.families.inputs import PROMPT, mask, picture

#: The sides of the images.
SIDE: Final = 64


def call(output: Output, side: int = SIDE, **arguments: Any) -> Call:
    """A call with these arguments.

    Args:
        output: that the call must have.
        side: of the images.
        arguments: of the pipeline; a function such as ``picture`` stands for its result for the sides. ``None`` leaves
            the argument out.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    return Call(
        lambda: {name: value(side, side) if callable(value) else value for name, value in given.items()}, output
    )


def text_to_image(side: int = SIDE, **more: Any) -> Call:
    """A text-to-image call."""
    arguments = {"prompt": PROMPT, "width": side, "height": side, "num_inference_steps": 2}
    return call(image(side, side), side, **arguments | more)


def image_to_image(side: int = SIDE, **more: Any) -> Call:
    """An image-to-image call; the sides are those of the image unless ``more`` names them."""
    arguments = {"prompt": PROMPT, "image": picture, "strength": 0.5, "num_inference_steps": 4}
    return call(image(side, side), side, **arguments | more)


def inpainting(side: int = SIDE, **more: Any) -> Call:
    """An inpainting call."""
    arguments = {"image": picture, "mask_image": mask, "strength": 0.9}
    return text_to_image(side, **arguments | more)
