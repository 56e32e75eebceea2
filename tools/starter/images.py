"""The training images: drawn once, kept as plain arrays on disk, and read without loading them whole."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor
from torch.nn import functional

from tools.starter.scenes import Scene, draw, sample

#: Pixels of an image, per side.
SIZE: Final = 128


@dataclass(frozen=True, slots=True)
class SceneImages:
    """`count` images; number `k` is a function of the seed and `k` alone.

    `rgb` is (N, SIZE, SIZE, 3) of uint8, `disparity` is one over the depth, (N, SIZE, SIZE) of float16, and `cover`
    tells the pixels that show a thing, (N, SIZE, SIZE) of bool.
    """

    seed: int
    count: int
    rgb: NDArray[np.uint8]
    disparity: NDArray[np.float16]
    cover: NDArray[np.bool_]

    def scene(self, number: int) -> Scene:
        """What image `number` shows."""
        return sample(np.random.default_rng((self.seed, number)))

    def images(self, numbers: NDArray[np.int64]) -> Tensor:
        """Images as a network takes them: (B, 3, SIZE, SIZE) in the range -1 to 1."""
        return pixels(self.rgb[numbers])

    def nearness(self, numbers: NDArray[np.int64]) -> Tensor:
        """Disparities (B, 1, SIZE, SIZE) stretched to the range 0 (farthest) to 1 (nearest) in each image."""
        raw = torch.from_numpy(self.disparity[numbers].astype(np.float32))[:, None]
        low, high = raw.amin((1, 2, 3), keepdim=True), raw.amax((1, 2, 3), keepdim=True)
        return (raw - low) / (high - low)

    def weight(self, numbers: NDArray[np.int64], cells: int, extra: float) -> Tensor:
        """How much each cell counts in a loss, (B, 1, cells, cells): 1, and up to `extra` more where a thing is."""
        share = torch.from_numpy(self.cover[numbers].astype(np.float32))[:, None]
        return 1 + extra * functional.adaptive_max_pool2d(share, cells)


def pixels(rgb: NDArray[np.uint8]) -> Tensor:
    """(B, H, W, 3) of uint8 to (B, 3, H, W) in the range -1 to 1."""
    return torch.from_numpy(rgb).permute(0, 3, 1, 2).float() / 127.5 - 1


def prepare(folder: Path, seed: int, count: int) -> SceneImages:
    """Opens the images of a seed, drawing first those that are not there yet (10 ms each). Safe to interrupt."""
    folder.mkdir(parents=True, exist_ok=True)
    rgb = _open(folder / f"{seed}-rgb.npy", (count, SIZE, SIZE, 3), np.uint8)
    disparity = _open(folder / f"{seed}-disparity.npy", (count, SIZE, SIZE), np.float16)
    cover = _open(folder / f"{seed}-cover.npy", (count, SIZE, SIZE), np.bool_)
    done = folder / f"{seed}-done.txt"
    start = int(done.read_text()) if done.exists() else 0
    for number in track(range(start, count), f"drawing {count:,} images", disable=start >= count):
        rng = np.random.default_rng((seed, number))
        image = draw(sample(rng), rng, SIZE)
        rgb[number], disparity[number], cover[number] = image.rgb, 1 / image.depth, image.cover
        if number % 200 == 199 or number == count - 1:
            done.write_text(str(number + 1))
    return SceneImages(seed, count, rgb, disparity, cover)


def _open(path: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
    return open_memmap(path, "r+") if path.exists() else open_memmap(path, "w+", dtype, shape)
