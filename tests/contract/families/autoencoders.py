"""Small autoencoders; each halves the sides once per block after the first."""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKL


def vae(*channels: int, **changes: Any) -> AutoencoderKL:
    """An image autoencoder.

    Args:
        channels: of each block, (8, 16) by default. All are multiples of four.
        changes: of the config.
    """
    channels = channels or (8, 16)
    return AutoencoderKL(
        **{
            "sample_size": 32,
            "latent_channels": 4,
            "block_out_channels": channels,
            "norm_num_groups": 4,
            "down_block_types": ("DownEncoderBlock2D",) * len(channels),
            "up_block_types": ("UpDecoderBlock2D",) * len(channels),
        }
        | changes
    )


def flow_vae(**changes: Any) -> AutoencoderKL:
    """The autoencoder of SD3 and Flux: without convolutions at the latents, and with a shift."""
    return vae(
        **{"use_quant_conv": False, "use_post_quant_conv": False, "scaling_factor": 1.5, "shift_factor": 0.06} | changes
    )
