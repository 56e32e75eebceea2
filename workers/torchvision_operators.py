"""Makes torchvision importable beside a build of torch for which its compiled operators were not made.

The wheels of the package index are compiled for one build of torch. Beside another one, such as the build for
processors, their library does not load, and ``import torchvision`` fails where it describes ``nms`` and ``qnms`` to
torch. No pipeline needs these: transformers' image processors use the transforms, which are written in Python.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import torch


@cache
def declare_missing_operators() -> Any:
    """Declare the signatures of torchvision's operators where its library cannot be loaded.

    Call it before the first image processor of transformers is imported. It takes a millisecond and imports nothing.

    Returns:
        What keeps the declarations alive; None where torchvision is absent or works by itself.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return None
    for library in Path(spec.submodule_search_locations[0]).glob("_C*.so"):
        try:
            torch.ops.load_library(library)  # type: ignore[no-untyped-call]
        except OSError:
            continue
        return None
    operators: Any = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return operators
