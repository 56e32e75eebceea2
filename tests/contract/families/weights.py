"""Random weights with which a tiny model gives images full of contrast that depend on each input."""

from __future__ import annotations

import math
import zlib

import torch
from diffusers import DiffusionPipeline
from torch import nn


def randomize(pipeline: DiffusionPipeline) -> None:
    """Draw all matrices and kernels of a pipeline again, with a variance of 1 / fan-in.

    The libraries' own initialization does not fit a model that is never trained: gates and ControlNet outputs start at
    zero, so that their inputs have no effect, and text encoders start so small that all prompts look alike. Each
    tensor's values depend on its name and shape only.
    """
    for component, module in pipeline.components.items():
        if isinstance(module, nn.Module):
            _randomize(component, module)


@torch.no_grad()
def _randomize(component: str, module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        generator = torch.Generator().manual_seed(zlib.crc32(f"{component}.{name}".encode()))
        if parameter.ndim > 1:
            fan_in = math.prod(parameter.shape[1:])
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
        elif parameter.ndim == 0 and parameter == 0:  # a gate that a model learns to open
            parameter.fill_(0.5)
        elif not parameter.isfinite().all():
            raise ValueError(f"{component}.{name} is not initialized")
