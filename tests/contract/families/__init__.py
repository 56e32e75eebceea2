"""Tiny models of the pipeline families of diffusers, built from configs with random weights.

Each module of this package may declare ``FAMILIES``, a tuple of :class:`Family`, and ``IMPOSSIBLE``, which names the
pipeline classes that cannot be built here and why. ``python -m tests.contract.families`` renders all of them with stock
diffusers and prints a table.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Final

import torch

from workers.torchvision_operators import declare_missing_operators

declare_missing_operators()  # before the first import of transformers

from tests.contract.families.family import Call, Family, Media, Output  # noqa: E402
from tests.contract.families.weights import randomize  # noqa: E402

__all__ = ["FAMILIES", "IMPOSSIBLE", "Call", "Family", "Media", "Output", "save"]


def _modules() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def _families() -> dict[str, Family]:
    families: dict[str, Family] = {}
    for module in _modules():
        for family in getattr(importlib.import_module(f"{__name__}.{module}"), "FAMILIES", ()):
            if family.name in families:
                raise ValueError(f"two families are named {family.name}")
            families[family.name] = family
    return families


def _impossible() -> dict[str, str]:
    return {
        pipeline_class: reason
        for module in _modules()
        for pipeline_class, reason in getattr(importlib.import_module(f"{__name__}.{module}"), "IMPOSSIBLE", {}).items()
    }


#: Every family by its name.
FAMILIES: Final[dict[str, Family]] = _families()

#: The pipeline classes that cannot be built here, with the reason.
IMPOSSIBLE: Final[dict[str, str]] = _impossible()


def save(name: str, folder: Path) -> Path:
    """Write the model of a family as a diffusers folder.

    Args:
        name: of the family.
        folder: created if it does not exist. The same name gives the same weights in each process.

    Returns:
        The folder.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = FAMILIES[name].build()
    randomize(pipeline)
    pipeline.save_pretrained(folder)
    return folder
