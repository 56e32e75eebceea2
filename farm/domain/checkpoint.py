"""The stored work of a job that has not finished, from which another attempt goes on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Checkpoint:
    """What earlier attempts have computed. The objects are parts, each of which continues those before it."""

    parts: tuple[tuple[int, int], ...] = ()  #: (epoch, parts that it wrote), in order
    steps: int = 0  #: denoising steps of the job
    size: int = 0  #: bytes

    def extended(self, epoch: int, steps: int, size: int, *, fresh: bool) -> Checkpoint:
        """With one more part of that epoch. ``fresh``: it continues none of the earlier ones."""
        before = Checkpoint() if fresh else self
        number = next((count for wrote, count in before.parts if wrote == epoch), 0) + 1
        parts = (*(one for one in before.parts if one[0] != epoch), (epoch, number))
        return Checkpoint(parts, steps, before.size + size)

    def objects(self) -> Iterator[tuple[int, int]]:
        """The epoch and the number of each part, in order."""
        for epoch, count in self.parts:
            yield from ((epoch, number) for number in range(count))
