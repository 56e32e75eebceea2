"""The judge: a small classifier that says what an image shows, trained on nothing but drawn scenes.

It measures the denoiser (`evaluate`), so it must not have learned from anything the denoiser made.
"""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tools.starter import attributes
from tools.starter.images import SceneImages
from tools.starter.trainer import StepRandom

#: Its weights, which are not part of the model.
JUDGE_WEIGHTS: Final = Path(__file__).with_name("judge.safetensors")
#: Pixels per side of what the judge looks at; images are averaged down to it.
SIGHT: Final = 64


class Judge(nn.Module):
    """Images (B, 3, H, W) in the range -1 to 1 to the logits of every attribute; H and W are multiples of `SIGHT`."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 72, 96)
        layers: list[nn.Module] = []
        for narrow, wide in pairwise(widths):
            layers += [nn.Conv2d(narrow, wide, 3, stride=2, padding=1), nn.GroupNorm(8, wide), nn.SiLU()]
        self.see = nn.Sequential(*layers, nn.Conv2d(96, 96, 3, padding=1), nn.SiLU(), nn.Flatten())
        self.name = nn.Sequential(nn.Linear(96 * 4 * 4, 192), nn.SiLU(), attributes.AttributeHeads(192))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """The logits of each attribute, each (B, classes)."""
        small = functional.adaptive_avg_pool2d(images, SIGHT)
        logits: tuple[Tensor, ...] = self.name(self.see(small))
        return logits

    @torch.no_grad()
    def say(self, images: Tensor) -> Tensor:
        """The most likely class of each attribute, (B, attributes)."""
        return torch.stack([scores.argmax(-1) for scores in self(images)], -1)


def build(seed: int = 0) -> Judge:
    """A judge with random weights."""
    torch.manual_seed(seed)
    return Judge()


class JudgeStep:
    """One step of the judge's training: name the attributes of drawn images, some of them noisy or blurred."""

    BATCH: Final = 64

    def __init__(self, judge: Judge, dataset: SceneImages) -> None:
        self._judge, self._dataset = judge, dataset

    def __call__(self, _step: int, randomness: StepRandom) -> tuple[Tensor, Mapping[str, float]]:
        """The loss of one step, and what to record of it."""
        numbers = randomness.numpy.integers(0, self._dataset.count, self.BATCH)
        # Averaged to the judge's sight first: everything after is four times cheaper.
        images = functional.avg_pool2d(self._dataset.images(numbers), 2)
        strength = 0.08 * torch.rand((len(images), 1, 1, 1), generator=randomness.torch)
        images = images + strength * torch.randn(images.shape, generator=randomness.torch)
        if randomness.numpy.random() < 0.3:
            images = functional.avg_pool2d(images, 3, 1, 1, count_include_pad=False)
        target = targets(self._dataset, numbers)
        logits = self._judge(images)
        correct = attributes.right(logits, target)
        return attributes.loss(logits, target), {"all_right": correct.all(-1).float().mean().item()}


def targets(dataset: SceneImages, numbers: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Tensor:
    """The attributes of images, (B, attributes)."""
    return torch.tensor([attributes.classes(dataset.scene(int(number))) for number in numbers])


def accuracy(judge: Judge, dataset: SceneImages, count: int) -> float:
    """The share of drawn images of which the judge tells everything but the sizes right."""
    correct = []
    for numbers in np.array_split(np.arange(count), max(1, count // 50)):
        right = judge.say(dataset.images(numbers)) == targets(dataset, numbers)
        correct.append(right[:, [0, 1, 2, 4, 5, 7, 8]].all(1))
    return torch.cat(correct).float().mean().item()
