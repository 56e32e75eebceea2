"""The denoiser: a small UNet that turns noise into latents, step by step, as the caption asks.

It predicts velocity (Salimans & Ho 2022, arXiv:2202.00512) on a noise schedule that ends in pure noise (Lin et al.
2023, arXiv:2305.08891). Otherwise the trace of the image left at the noisiest step would tell the background's colour
during training, and the model would not learn to take it from the prompt.

The caption reaches it twice: by cross-attention, as in Stable Diffusion, and pooled into the time embedding, which
scales and shifts every residual block. The second way is diffusers' `addition_embed_type="text"`; it asks nothing of
the pipeline.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer

from tools.starter import text
from tools.starter.captions import caption, plain
from tools.starter.images import SceneImages
from tools.starter.scenes import Scene
from tools.starter.trainer import StepRandom
from tools.starter.vae import CELLS

WIDTHS: Final = (32, 64, 112)
#: How many times more than an empty cell one counts in the loss that shows a thing, less one.
EXTRA_WEIGHT: Final = 4.0
SCHEDULE: Final[dict[str, Any]] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "clip_sample": False,
}


def build(channels: int = 4, seed: int = 0) -> UNet2DConditionModel:
    """A denoiser with random weights.

    Args:
        channels: 4 latent channels, or 5 with the depth.
        seed: of the weights.
    """
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=CELLS,
        in_channels=channels,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=WIDTHS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=text.WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
        resnet_time_scale_shift="scale_shift",
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
    )


def with_depth(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """The same denoiser with a fifth input channel, which it ignores until it is trained."""
    wider = build(channels=5)
    weights = unet.state_dict()
    weights["conv_in.weight"] = functional.pad(weights["conv_in.weight"], (0, 0, 0, 0, 0, 1))
    wider.load_state_dict(weights)
    return wider


def scheduler() -> DDIMScheduler:
    """The sampler the model ships with."""
    return DDIMScheduler(**SCHEDULE, set_alpha_to_one=True, steps_offset=1)


def depth_channel(nearness: Tensor) -> Tensor:
    """Depth as the depth-to-image pipeline feeds it: (B, 1, H, W) to (B, 1, CELLS, CELLS) in the range -1 to 1."""
    small = functional.interpolate(nearness, size=(CELLS, CELLS), mode="bicubic", align_corners=False)
    low, high = small.amin((1, 2, 3), keepdim=True), small.amax((1, 2, 3), keepdim=True)
    return 2 * (small - low) / (high - low) - 1


class DenoiserStep:
    """One step of the denoiser's training: find the velocity in noised latents.

    Cells that show a thing count several times: they are a fifth of the image and all of what the prompt asks for.
    At first half of the timesteps come from the noisy end, where colour, shape and place are decided; once the denoiser
    can tell what to draw, most of its time goes into how to draw it cleanly.

    Args:
        unet: the denoiser; with five input channels it is also given the depth, and its captions name no place.
        encoder: the frozen text encoder.
        tokenizer: its tokenizer.
        images: what to learn from.
        latents: scaled latents of those images, (N, 4, CELLS, CELLS).
        depths: the depth channel of those images, (N, 1, CELLS, CELLS), if the denoiser takes it.
        weights: how much each cell counts, (N, 1, CELLS, CELLS).
    """

    BATCH: Final = 48
    UNCONDITIONAL: Final = 0.1
    NOISY: Final = 600  # timesteps from here on are drawn more often
    NOISY_SHARE: Final = (0.4, 0.1)  # of the timesteps drawn from there, besides those that fall there anyway
    WHAT_BEFORE_HOW: Final = 500  # steps with the first share

    def __init__(
        self,
        unet: UNet2DConditionModel,
        encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        images: SceneImages,
        latents: Tensor,
        weights: Tensor,
        depths: Tensor | None = None,
    ) -> None:
        self._unet, self._encoder, self._tokenizer = unet, encoder, tokenizer
        self._images, self._latents, self._weights, self._depths = images, latents, weights, depths
        self._noiser = DDPMScheduler(**SCHEDULE)

    def __call__(self, step: int, randomness: StepRandom) -> tuple[Tensor, Mapping[str, float]]:
        """The loss of one step, and what to record of it."""
        numbers = randomness.numpy.integers(0, self._images.count, self.BATCH)
        clean = self._latents[numbers].float()
        said = [self._caption(self._images.scene(int(number)), randomness.numpy) for number in numbers]
        hidden = text.encode(self._encoder, self._tokenizer, said)
        timesteps = self._timesteps(self.NOISY_SHARE[step >= self.WHAT_BEFORE_HOW], randomness.torch)
        noise = torch.randn(clean.shape, generator=randomness.torch)
        noisy = self._noiser.add_noise(clean, noise, timesteps)
        velocity = self._noiser.get_velocity(clean, noise, timesteps)
        if self._depths is not None:
            noisy = torch.cat([noisy, self._depths[numbers].float()], 1)
        found = self._unet(noisy, timesteps, hidden).sample
        error = (found - velocity) ** 2
        weight = self._weights[numbers].float()
        return (error * weight).sum() / (weight.sum() * 4), {"plain": error.mean().item()}

    def _caption(self, scene: Scene, rng: np.random.Generator) -> str:
        if rng.random() < self.UNCONDITIONAL:
            return ""
        if self._depths is not None and rng.random() < 0.5:
            return plain(scene, placed=False)
        return caption(scene, rng)

    def _timesteps(self, noisy_share: float, generator: torch.Generator) -> Tensor:
        anywhere = torch.randint(0, 1000, (self.BATCH,), generator=generator)
        late = torch.randint(self.NOISY, 1000, (self.BATCH,), generator=generator)
        return torch.where(torch.rand(self.BATCH, generator=generator) < noisy_share, late, anywhere)
