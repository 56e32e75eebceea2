"""What the signature of a pipeline class does not say: one small file for each family that needs one.

A module of this package declares ``QUIRK`` or ``QUIRKS``. Most families need none. Nothing else in the worker names a
family or a pipeline class.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from farm.pipelines.spec import PipelineSpec
from workers.pipelines.families.quirk import Quirk


@cache
def _quirks() -> tuple[Quirk, ...]:
    found: list[Quirk] = []
    for name in sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "quirk"):
        module = importlib.import_module(f"{__name__}.{name}")
        found += getattr(module, "QUIRKS", None) or (module.QUIRK,)
    return tuple(found)


def quirks_of(spec: PipelineSpec) -> tuple[Quirk, ...]:
    """The quirks of a pipeline class, in the order of their modules' names."""
    return tuple(quirk for quirk in _quirks() if quirk.applies_to(spec))
