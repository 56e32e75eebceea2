"""A scene as class numbers, for the networks that must tell what is in a caption or an image.

The image is three slots from left to right, each empty or holding one thing. Every attribute is one classification:
the background's colour, and per slot shape, colour and size, where class 0 means an empty slot. A caption may leave an
attribute open, which is one class more.
"""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from tools.starter.scenes import COLOURS, PLACES, SHAPES, SIZES, Scene

#: The number of classes of each attribute in the order of `classes`: background, then per slot shape, colour, size.
WIDTHS: Final = (len(COLOURS), *(len(SHAPES) + 1, len(COLOURS) + 1, len(SIZES) + 1) * len(PLACES))


def classes(scene: Scene) -> list[int]:
    """The class number of each attribute, as many as `WIDTHS` has entries."""
    numbers = [COLOURS.index(scene.background)] + [0] * (3 * len(PLACES))
    for thing in scene.things:
        slot = 1 + 3 * PLACES.index(thing.place)
        numbers[slot : slot + 3] = (
            SHAPES.index(thing.shape) + 1,
            COLOURS.index(thing.colour) + 1,
            SIZES.index(thing.size) + 1,
        )
    return numbers


class AttributeHeads(nn.Module):
    """One linear classifier per attribute over the same features (..., width).

    Args:
        width: of the features.
        spare: classes added to each attribute, such as one for "not said".
    """

    def __init__(self, width: int, spare: int = 0) -> None:
        super().__init__()
        self._widths = [count + spare for count in WIDTHS]
        self.read = nn.Linear(width, sum(self._widths))

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        """The logits of each attribute, each (..., classes)."""
        logits: Tensor = self.read(features)
        return torch.split(logits, self._widths, -1)


def loss(logits: tuple[Tensor, ...], target: Tensor) -> Tensor:
    """The sum over attributes of the mean cross entropy; `target` is (..., attributes)."""
    each = [
        functional.cross_entropy(scores.flatten(0, -2), target[..., number].flatten())
        for number, scores in enumerate(logits)
    ]
    return torch.stack(each).sum()


def right(logits: tuple[Tensor, ...], target: Tensor) -> Tensor:
    """Which attributes are named right, (..., attributes) of bool."""
    return torch.stack([scores.argmax(-1) for scores in logits], -1) == target
