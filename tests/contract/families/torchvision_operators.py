"""Make torchvision importable beside a build of torch for which its own operators were not compiled.

PyPI's torchvision is compiled for CUDA, so that its operators do not load beside torch for CPUs, and the import fails
where torchvision describes ``nms`` and ``qnms`` to torch. Transformers needs only the image transforms.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch

_library: Any = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]  # the operators live as long as this object


def declare_missing_operators() -> None:
    """Import torchvision if it is installed, with the signatures of its operators where they cannot be loaded."""
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "does not exist" not in str(error):
            raise
        for name in ("nms", "qnms"):
            _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        importlib.import_module("torchvision")
