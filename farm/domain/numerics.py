"""Numerics classes: workers whose exact outputs have the same bits.

The same operations round differently on another device, with other libraries, or with another number of threads. A
worker computes its class when it starts, from the facts that decide its bits; `workers.numerics` collects them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

CLASS_PATTERN: Final = r"^[a-z]+-[0-9a-f]{12}$"  #: of the name of a class
ONE: Final = "one"  #: asked of a batch instead of a class: that of the worker that gets its first job
MAX_DIFFERENCES: Final = 3  #: facts that `differences` writes out


@dataclass(frozen=True)
class Numerics:
    """A numerics class and the facts that make it."""

    name: str  #: ``cpu-3f9a2c1b7e40``: the kind of device, and a hash of the facts
    facts: Mapping[str, str]  #: nothing in them belongs to one machine's name or one moment

    @classmethod
    def of(cls, kind: str, facts: Mapping[str, str]) -> Self:
        """The class of these facts on a device of that kind."""
        body = json.dumps(dict(facts), sort_keys=True, separators=(",", ":"))
        return cls(f"{kind}-{hashlib.sha256(body.encode()).hexdigest()[:12]}", dict(facts))


def differences(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """What differs between the facts of two classes, as one line: ``threads 2 → 1``."""
    names = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    # a hash says that the bits differ; the other facts say why
    names = [name for name in names if not name.endswith("_sha256")] or names
    shown = [f"{name} {old.get(name, 'none')} → {new.get(name, 'none')}" for name in names[:MAX_DIFFERENCES]]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
