"""The depth estimator: a small DPT (Ranftl et al. 2021, arXiv:2103.13413) that learns the renderer's exact depth."""

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessorPil

from tools.starter.images import SceneImages
from tools.starter.trainer import StepRandom

#: Pixels per side that the estimator looks at. The depth only has to fill 16 x 16 latent cells.
SIGHT: Final = 64


def build(seed: int = 0) -> DPTForDepthEstimation:
    """A depth estimator with random weights: 4 transformer layers of width 48 over patches of 8 x 8 pixels."""
    torch.manual_seed(seed)
    config = DPTConfig(
        hidden_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=96,
        image_size=SIGHT,
        patch_size=8,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[16, 24, 32, 48],
        fusion_hidden_size=24,
        reassemble_factors=[4, 2, 1, 0.5],
        is_hybrid=False,
        use_auxiliary_head=False,
    )
    return DPTForDepthEstimation(config)


def processor() -> DPTImageProcessorPil:
    """What turns an image into the estimator's input."""
    return DPTImageProcessorPil(
        size={"height": SIGHT, "width": SIGHT},
        do_resize=True,
        keep_aspect_ratio=False,
        ensure_multiple_of=1,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


class DepthStep:
    """One step of the estimator's training: nearness (0 farthest, 1 nearest) from colours."""

    BATCH: Final = 16

    def __init__(self, estimator: DPTForDepthEstimation, dataset: SceneImages) -> None:
        self._estimator, self._dataset = estimator, dataset

    def __call__(self, _step: int, randomness: StepRandom) -> tuple[Tensor, Mapping[str, float]]:
        """The loss of one step, and what to record of it."""
        numbers = randomness.numpy.integers(0, self._dataset.count, self.BATCH)
        images = functional.interpolate(self._dataset.images(numbers), size=(SIGHT, SIGHT), mode="area")
        wanted = functional.interpolate(self._dataset.nearness(numbers), size=(SIGHT, SIGHT), mode="area")[:, 0]
        error = estimate(self._estimator, images) - wanted
        slopes = error.diff(dim=1).abs().mean() + error.diff(dim=2).abs().mean()
        return error.abs().mean() + 0.5 * slopes, {"mean_error": error.abs().mean().item()}


def estimate(estimator: DPTForDepthEstimation, images: Tensor) -> Tensor:
    """Nearness (B, SIGHT, SIGHT) of images (B, 3, SIGHT, SIGHT)."""
    found = estimator(images).predicted_depth
    return functional.interpolate(found[:, None], size=(SIGHT, SIGHT), mode="bilinear")[:, 0]
