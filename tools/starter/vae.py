"""The autoencoder: an encoder set by hand, and a decoder trained to undo it.

The latents are an image's thumbnail: channels 0 to 2 are red, green and blue averaged over 8 x 8 pixels, channel 3 is
how much brighter the right half of each such square is than its left. A denoiser works in colours it can see, and
training it does not wait for the autoencoder. An encoder trained from random weights for minutes lost the colours.

Three identities make an ordinary `AutoencoderKL` compute such a thumbnail with plain weights:
`silu(x) - silu(-x) = x`, so a pair of channels carries a value through an activation; two channels holding a large
constant dominate their group's variance, so group normalisation only divides by a known number; and a residual block
whose last convolution is zero passes its input on.
"""

import math
from collections.abc import Mapping
from typing import Final

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from tools.starter.images import SIZE, SceneImages
from tools.starter.trainer import StepRandom

WIDTHS: Final = (16, 32, 64, 96)
GROUPS: Final = 2
#: Latent cells per side of an image.
CELLS: Final = SIZE // 8
#: The constant of the two dominating channels, in the encoder and in the decoder's start.
ENCODER_CONSTANT: Final = 16.0
DECODER_CONSTANT: Final = 4.0
#: Channels 0 to 2 hold a colour, 3 to 5 its negative, 6 and 7 the constants, 8 and 9 the left-right detail.
_COLOUR, _NEGATIVE, _CONSTANTS, _DETAIL = (0, 3, (6, 7), (8, 9))


def build(seed: int = 0) -> AutoencoderKL:
    """An autoencoder whose encoder is finished and frozen, and whose decoder starts as a smooth enlargement."""
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        sample_size=SIZE,
        block_out_channels=WIDTHS,
        layers_per_block=1,
        norm_num_groups=GROUPS,
        down_block_types=("DownEncoderBlock2D",) * len(WIDTHS),
        up_block_types=("UpDecoderBlock2D",) * len(WIDTHS),
        mid_block_add_attention=False,
        scaling_factor=SCALING,
        force_upcast=False,
    )
    with torch.no_grad():
        _set_encoder(vae)
        _start_decoder(vae)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    return vae


#: One over the standard deviation of the latents of the training images.
SCALING: Final = 1.7


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Scaled latents (B, 4, H/8, W/8) of images (B, 3, H, W) in the range -1 to 1."""
    latents: Tensor = vae.encode(images).latent_dist.mode() * vae.config.scaling_factor
    return latents


def thumbnail(images: Tensor) -> Tensor:
    """The same latents as `encode` gives, to within 0.01, straight from their definition and a hundred times faster."""
    halves = functional.avg_pool2d(images, (8, 4))
    left, right = halves[..., 0::2], halves[..., 1::2]
    detail = (right - left).sum(1, keepdim=True)
    return torch.cat([(left + right) / 2, detail], 1) * SCALING


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Images (B, 3, H, W) in the range -1 to 1 of scaled latents (B, 4, H/8, W/8)."""
    images: Tensor = vae.decode(latents / vae.config.scaling_factor).sample
    return images.clamp(-1, 1)


def _set_encoder(vae: AutoencoderKL) -> None:
    encoder = vae.encoder
    _clear(encoder.conv_in)
    _carry_colour(encoder.conv_in, constant=ENCODER_CONSTANT)
    for block in encoder.down_blocks:
        for resnet in block.resnets:
            _pass_through(resnet)
    halvings = [block.downsamplers[0].conv for block in encoder.down_blocks if block.downsamplers]
    for conv in halvings:
        # Diffusers pads right and below only, so taps 0 and 1 of three are the two pixels that become one.
        _clear(conv)
        for channel in range(_CONSTANTS[1] + 1):
            conv.weight[channel, channel, :2, :2] = 0.25
    for channel, sign in zip(_DETAIL, (1, -1), strict=True):
        halvings[-1].weight[channel, :3, :2, 0] = -sign / 2
        halvings[-1].weight[channel, :3, :2, 1] = sign / 2
    for resnet in encoder.mid_block.resnets:
        _pass_through(resnet)
    gain = _spread(ENCODER_CONSTANT, WIDTHS[-1])
    _clear(encoder.conv_out)
    for colour in range(3):
        encoder.conv_out.weight[colour, colour, 1, 1] = gain
        encoder.conv_out.weight[colour, _NEGATIVE + colour, 1, 1] = -gain
    encoder.conv_out.weight[3, _DETAIL[0], 1, 1] = gain
    encoder.conv_out.weight[3, _DETAIL[1], 1, 1] = -gain
    encoder.conv_out.bias[4:] = -12  # the logarithm of the variance: no noise to speak of
    _clear(vae.quant_conv)
    for channel in range(8):
        vae.quant_conv.weight[channel, channel] = 1


def _start_decoder(vae: AutoencoderKL) -> None:
    decoder = vae.decoder
    _clear(vae.post_quant_conv)
    for channel in range(4):
        vae.post_quant_conv.weight[channel, channel] = 1
    carried = _CONSTANTS[1] + 1
    decoder.conv_in.weight[:carried] = 0
    decoder.conv_in.bias[:carried] = 0
    _carry_colour(decoder.conv_in, constant=DECODER_CONSTANT)
    for block in (decoder.mid_block, *decoder.up_blocks):
        for resnet in block.resnets:
            # Nearly, but not quite, a pass-through: the other channels start with something to learn from.
            resnet.conv2.weight.mul_(0.1)
            resnet.conv2.weight[:carried] = 0
            nn.init.zeros_(resnet.conv2.bias)
            _identity_shortcut(resnet)
    tent = torch.tensor([0.25, 0.5, 0.25])
    for block in decoder.up_blocks:
        if not block.upsamplers:
            continue
        conv = block.upsamplers[0].conv
        conv.weight[:carried] = 0
        conv.bias[:carried] = 0
        for channel in range(_CONSTANTS[0]):
            conv.weight[channel, channel] = tent[:, None] * tent
        # A constant through a padded convolution would sag at the border; the bias makes it anew.
        conv.bias[_CONSTANTS[0]], conv.bias[_CONSTANTS[1]] = DECODER_CONSTANT, -DECODER_CONSTANT
    gain = _spread(DECODER_CONSTANT, WIDTHS[0])
    _clear(decoder.conv_out)
    for colour in range(3):
        decoder.conv_out.weight[colour, colour, 1, 1] = gain
        decoder.conv_out.weight[colour, _NEGATIVE + colour, 1, 1] = -gain


def _clear(conv: nn.Conv2d) -> None:
    nn.init.zeros_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def _carry_colour(conv: nn.Conv2d, constant: float) -> None:
    """Makes a first convolution put colours, their negatives and the constants into their channels."""
    assert conv.bias is not None
    for colour in range(3):
        conv.weight[colour, colour, 1, 1] = 1
        conv.weight[_NEGATIVE + colour, colour, 1, 1] = -1
    conv.bias[_CONSTANTS[0]], conv.bias[_CONSTANTS[1]] = constant, -constant


def _pass_through(resnet: nn.Module) -> None:
    _clear(resnet.conv2)  # type: ignore[arg-type]
    _identity_shortcut(resnet)


def _identity_shortcut(resnet: nn.Module) -> None:
    shortcut = resnet.conv_shortcut
    if isinstance(shortcut, nn.Conv2d):
        _clear(shortcut)
        for channel in range(min(shortcut.weight.shape[:2])):
            shortcut.weight[channel, channel] = 1


def _spread(constant: float, width: int) -> float:
    """The standard deviation of the first group of `width` channels when the two constants dominate it."""
    return math.sqrt(2 * constant**2 / (width // GROUPS))


class DecoderStep:
    """One step of the decoder's training: rebuild images from latents with a little noise on them.

    The noise (up to a twelfth of the latents' spread) makes the decoder forgive what a denoiser gets slightly wrong.
    Pixels near edges count five times: they are few, and they decide whether an image looks sharp. For the same reason
    most of the training looks at windows around things. The last part sees whole images, as the decoder will in use,
    and edges count twice there: what is flat has to come back as it was.

    Args:
        vae: its encoder is left alone.
        dataset: what to rebuild.
        whole_from: the step from which on whole images are rebuilt.
    """

    WINDOW: Final = SIZE // 2
    WINDOWS: Final = 8
    WHOLES: Final = 2  # as many pixels as the windows have

    def __init__(self, vae: AutoencoderKL, dataset: SceneImages, whole_from: int) -> None:
        self._vae, self._dataset, self._whole_from = vae, dataset, whole_from

    def __call__(self, step: int, randomness: StepRandom) -> tuple[Tensor, Mapping[str, float]]:
        """The loss of one step, and what to record of it."""
        whole = step >= self._whole_from
        count = self.WHOLES if whole else self.WINDOWS
        numbers = randomness.numpy.integers(0, self._dataset.count, count)
        wanted = self._dataset.images(numbers)
        if not whole:
            wanted = self._windows(wanted, numbers, randomness.numpy)
        latents = thumbnail(wanted)
        noise = torch.randn(latents.shape, generator=randomness.torch)
        latents = latents + noise * 0.08 * torch.rand((count, 1, 1, 1), generator=randomness.torch)
        made = self._vae.decode(latents / SCALING).sample
        error = made - wanted
        weight = 1 + (1 if whole else 4) * _near_edges(wanted)
        slopes = [(made.diff(dim=axis) - wanted.diff(dim=axis)).abs().mean() for axis in (2, 3)]
        loss = (weight * error.abs()).mean() + 2 * (weight * error**2).mean() + slopes[0] + slopes[1]
        return loss, {"mse": (error**2).mean().item()}

    def _windows(self, images: Tensor, numbers: NDArray[np.int64], rng: np.random.Generator) -> Tensor:
        """Cuts one window from each image, around a random pixel of a thing, in steps of a latent cell."""
        cut = []
        for image, number in zip(images, numbers, strict=True):
            rows, columns = np.nonzero(self._dataset.cover[number])
            pixel = rng.integers(len(rows))
            top, left = (
                int(np.clip((at[pixel] + rng.integers(-24, 25) - self.WINDOW // 2) // 8 * 8, 0, SIZE - self.WINDOW))
                for at in (rows, columns)
            )
            cut.append(image[:, top : top + self.WINDOW, left : left + self.WINDOW])
        return torch.stack(cut)


def _near_edges(images: Tensor) -> Tensor:
    """1 at pixels within two of a strong change, else 0, (B, 1, H, W)."""
    change = (images - functional.avg_pool2d(images, 5, 1, 2, count_include_pad=False)).abs().amax(1, keepdim=True)
    return (functional.max_pool2d(change, 3, 1, 1) > 0.08).float()


def psnr(vae: AutoencoderKL, dataset: SceneImages, count: int) -> float:
    """Peak signal to noise of rebuilt images, in decibels, over the first `count`."""
    numbers = torch.split(torch.arange(count), 8)
    squares = []
    for some in numbers:
        wanted = dataset.images(some.numpy())
        squares.append(((decode(vae, encode(vae, wanted)) - wanted) ** 2).mean((1, 2, 3)))
    return 10 * math.log10(4 / torch.cat(squares).mean().item())
