"""Small autoencoders; each halves the sides once per block after the first."""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderKLQwenImage


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


def flow_vae(*channels: int, **changes: Any) -> AutoencoderKL:
    """The autoencoder of SD3 and Flux: without convolutions at the latents, and with a shift."""
    return vae(
        *channels,
        **{"use_quant_conv": False, "use_post_quant_conv": False, "scaling_factor": 1.5, "shift_factor": 0.06}
        | changes,
    )


def qwen_vae(blocks: int = 2, latents: int = 4, **changes: Any) -> AutoencoderKLQwenImage:
    """The autoencoder of Qwen-Image, which treats an image as a clip of one frame.

    Args:
        blocks: the sides are halved once per block after the first.
        latents: their channels.
        changes: of the config.
    """
    return AutoencoderKLQwenImage(
        **{
            "base_dim": 4,
            "z_dim": latents,
            "dim_mult": [1] * blocks,
            "num_res_blocks": 1,
            "temperal_downsample": [True] * (blocks - 1),
            "latents_mean": [0.1] * latents,
            "latents_std": [1.2] * latents,
        }
        | changes
    )


def deep_compression_vae() -> AutoencoderDC:
    """The autoencoder of Sana, which halves the sides three times here."""
    blocks = ("ResBlock", "ResBlock", "EfficientViTBlock", "EfficientViTBlock")
    scales = ((), (), (5,), (5,))
    return AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        encoder_layers_per_block=(1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        encoder_qkv_multiscales=scales,
        decoder_qkv_multiscales=scales,
        scaling_factor=0.5,
    )
