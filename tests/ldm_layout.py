"""A Stable Diffusion of this library as one file in the layout that civitai and the original repository publish."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

#: The names of layers in a residual block of the UNet: here, there.
_RESNET: Final = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET: Final = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE_ATTENTION: Final = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def save_single_file(pipeline: StableDiffusionPipeline, path: Path) -> None:
    """Write the UNet, the autoencoder and the text encoder into one safetensors file."""
    tensors = {
        **{f"model.diffusion_model.{name}": value for name, value in _unet(pipeline)},
        **{f"first_stage_model.{name}": value for name, value in _vae(pipeline)},
        **{
            f"cond_stage_model.transformer.text_model.{name.removeprefix('text_model.')}": value
            for name, value in pipeline.text_encoder.state_dict().items()
        },
    }
    save_file({name: value.contiguous().clone() for name, value in tensors.items()}, path)


def _unet(pipeline: StableDiffusionPipeline) -> Iterator[tuple[str, torch.Tensor]]:
    unet = pipeline.unet
    layers = unet.config.layers_per_block
    for name, value in unet.state_dict().items():
        module, _, kind = name.rpartition(".")
        if module in _UNET:
            yield f"{_UNET[module]}.{kind}", value
            continue
        place, inner = _place(module, layers, unet.config.down_block_types, unet.config.up_block_types)
        yield f"{place}.{_RESNET.get(inner, inner)}.{kind}", value


def _place(module: str, layers: int, down: list[str], up: list[str]) -> tuple[str, str]:
    """Where a module of a block is in the other layout, and its name in there."""
    if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", module):
        number = 2 * int(found[2]) if found[1] == "resnets" else 1
        return f"middle_block.{number}", found[3]
    if found := re.fullmatch(r"(down|up)_blocks\.(\d)\.(resnets|attentions)\.(\d)\.(.+)", module):
        block, layer, part = int(found[2]), int(found[4]), 0 if found[3] == "resnets" else 1
        per_block = layers + 1
        number = 1 + block * per_block + layer if found[1] == "down" else block * per_block + layer
        return f"{'input' if found[1] == 'down' else 'output'}_blocks.{number}.{part}", found[5]
    if found := re.fullmatch(r"down_blocks\.(\d)\.downsamplers\.0\.conv", module):
        return f"input_blocks.{(int(found[1]) + 1) * (layers + 1)}.0", "op"
    found = re.fullmatch(r"up_blocks\.(\d)\.upsamplers\.0\.conv", module)
    assert found is not None, module
    block = int(found[1])
    part = 2 if "CrossAttn" in up[block] else 1
    return f"output_blocks.{block * (layers + 1) + layers}.{part}", "conv"


def _vae(pipeline: StableDiffusionPipeline) -> Iterator[tuple[str, torch.Tensor]]:
    blocks = len(pipeline.vae.config.block_out_channels)
    for name, value in pipeline.vae.state_dict().items():
        there = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        there = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", there)
        there = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", there)
        there = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{blocks - 1 - int(m[1])}.block.{m[2]}", there)
        there = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", there)
        there = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", there)
        if "mid_block.attentions.0." in there:
            before, _, inner = there.partition("mid_block.attentions.0.")
            module, _, kind = inner.rpartition(".")
            there = f"{before}mid.attn_1.{_VAE_ATTENTION[module]}.{kind}"
            if value.ndim == 2:  # a convolution of one pixel there
                value = value[:, :, None, None]  # noqa: PLW2901 - the same weights
        yield there, value
