"""Finds what a call of a pipeline changes in the modules that other calls share with it.

A call may swap attention processors, cast the VAE to float32 for a while, or keep the frames of a clip in its VAE. That
is harmless where no other call runs in between. So the first calls of each class run while no other call does, and the
modules are compared each time the call parks, which is when another call would run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

import torch

#: Calls of a class that are compared at most. What only the first one changes (a table made at its first use) counts
#: for nothing, so a change counts when two calls in turn make it.
MAX_TRIALS: Final = 5
#: How often a trial compares at the calls of one module: the first and the second are enough to see what they change.
PARKS_COMPARED: Final = 2
_MAX_ITEMS: Final = 256  #: of a container that is compared by value
_MAX_DEPTH: Final = 4


class Sharing(StrEnum):
    """Whether calls of a pipeline class may run beside other calls."""

    UNTRIED = "untried"  #: no call has been compared yet; it runs while no other does
    SHARES = "shares"
    ALONE = "alone"  #: its calls change what others read


@dataclass
class ClassIsolation:
    """What is known about the calls of one pipeline class of a loaded model."""

    sharing: Sharing = Sharing.UNTRIED
    reason: str | None = None  #: why it runs alone
    trials: int = 0
    suspects: set[str] = field(default_factory=set)  #: components that the last compared call changed
    #: Components whose modules must not park, because a call changes the component while it is in them.
    unparked: set[str] = field(default_factory=set)


class SharedState:
    """The state of components at one moment."""

    def __init__(self, components: Mapping[str, Any]) -> None:
        """Record it; ``components`` by name."""
        self._components = components
        self._references: list[Any] = []  # keeps the addresses of compared objects from being used again
        self._before = {
            name: self._state(module, keep=True)
            for name, module in components.items()
            if isinstance(module, torch.nn.Module)
        }

    def changes(self) -> dict[str, str]:
        """What has changed since, by component: the first difference of each."""
        found: dict[str, str] = {}
        for name, before in self._before.items():
            now = self._state(self._components[name], keep=False)
            if now == before:
                continue
            place = next(
                (place for place in (*before, *now) if before.get(place, _ABSENT) != now.get(place, _ABSENT)), None
            )
            if place is not None:
                found[name] = ".".join(part for part in (name, *place) if part)
        return found

    def _state(self, component: torch.nn.Module, *, keep: bool) -> dict[tuple[str, str], Hashable]:
        state: dict[tuple[str, str], Hashable] = {}
        for path, module in component.named_modules():
            for key, value in vars(module).items():
                if key in _TABLES:
                    for name, entry in value.items():
                        state[path, name] = self._value(entry, 0, keep=keep)
                elif isinstance(value, torch.Tensor):
                    # neither a parameter nor a buffer: weight norm computes it anew, and equal, in every forward
                    state[path, key] = _content(value)
                else:
                    state[path, key] = self._value(value, 0, keep=keep)
        return state

    def _value(self, value: Any, depth: int, *, keep: bool) -> Hashable:
        """A value that is equal as long as the object is as good as unchanged."""
        if value is None or isinstance(value, (bool, int, float, str, torch.dtype, torch.device)):
            return value
        if isinstance(value, torch.Tensor):
            if keep:
                self._references.append(value)
            place = None if value.is_meta else value.data_ptr()
            return id(value), place, value._version, value.dtype, value.device  # noqa: SLF001 - torch's count of writes
        if depth < _MAX_DEPTH and isinstance(value, (list, tuple)) and len(value) <= _MAX_ITEMS:
            return type(value).__name__, tuple(self._value(part, depth + 1, keep=keep) for part in value)
        if depth < _MAX_DEPTH and isinstance(value, dict) and len(value) <= _MAX_ITEMS:
            return tuple((str(key), self._value(part, depth + 1, keep=keep)) for key, part in value.items())
        if keep:
            self._references.append(value)
        return id(value)


def _content(tensor: torch.Tensor) -> Hashable:
    if tensor.is_meta:  # not computed yet
        return None
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return tensor.dtype, tensor.device, tuple(tensor.shape), hashlib.sha256(data.tobytes()).digest()


_ABSENT: Final = object()
_TABLES: Final = ("_parameters", "_buffers", "_modules")


class Trial:
    """One call of a class that is compared: its modules before, at the moments when it parks, and after."""

    def __init__(self, known: ClassIsolation, components: Mapping[str, Any]) -> None:
        """Start before the call.

        Args:
            known: Of the class; the trial writes its result there.
            components: Of the pipeline, by name.
        """
        self._known = known
        self._state = SharedState(components)
        self._parks: dict[Hashable, int] = {}
        self._changes: dict[str, str] = {}

    def at_park(self, module: Hashable) -> None:
        """Compare while the call is parked in a module."""
        parks = self._parks[module] = self._parks.get(module, 0) + 1
        if parks <= PARKS_COMPARED:
            self._changes = self._state.changes() | self._changes

    def changed(self, halves: frozenset[str]) -> bool:
        """Whether the call has changed a component so far that is not one of ``halves``."""
        return bool(self._changes.keys() - halves)

    def finish(self, halves: frozenset[str]) -> set[str]:
        """Compare after the call and record the result.

        Args:
            halves: The components that park in their encoder and decoder. One of them that a call changes may still be
                used without parking: then no other call runs in between.

        Returns:
            The components that must not park from now on.
        """
        known = self._known
        changes = self._state.changes() | self._changes
        known.trials += 1
        if not changes:
            known.sharing = Sharing.SHARES
            return set()
        repeated = set(changes) & known.suspects
        unparked = (repeated & halves) - known.unparked
        if repeated - unparked or known.trials >= MAX_TRIALS:
            known.sharing = Sharing.ALONE
            known.reason = f"a call changes {', '.join(sorted(changes.values()))}, which other calls read"
        known.suspects = set(changes) - unparked
        known.unparked |= unparked
        return unparked
