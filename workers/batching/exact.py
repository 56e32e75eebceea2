"""Shared forwards in which every call has the bits that it has alone.

Kernels choose the order of their sums by the shape of a batch, so a row of a forward of 8 rows may differ in the last
bits from the same row in a forward of 2. But only some modules of a denoiser are affected (with one thread, 37 of the
137 Linear and Conv2d modules of the built-in UNet). So the modules that give other bits in a larger forward, and only
those, are run in chunks of one call each; everything else runs on all rows at once.

Which modules these are is measured once for each denoiser, shape and number of rows. A module is compared with itself
in chunks after its children were, so the smallest affected ones are found; one whose own operations differ is run in
chunks as a whole. In the end whole forwards are compared with separate calls. What still differs then is not shared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from workers.batching import row_selection
from workers.batching.calls import (
    ExactPlan,
    ModuleHook,
    Output,
    ParkedCall,
    has_rows,
    layout_of,
    slice_rows,
    tensors_in,
)

MAX_CALLS: Final = 8  #: that share one forward
#: Kernels choose by the alignment of their inputs, too, and a tensor of its own is aligned so.
ALIGNMENT: Final = {"cpu": 64, "cuda": 512}
CALIBRATION_SECONDS: Final = 60.0  #: of the device; what takes longer runs alone
CHECK_EVERY: Final = 500  #: shared forwards until one is compared with separate calls again

#: The shapes of the tensors among a call's arguments, and None for everything else.
Shapes: TypeAlias = tuple[tuple[int, ...] | None, ...]


class ChunkedModules:
    """The modules of one denoiser, some of which run in chunks while a shared forward runs."""

    def __init__(self, root: torch.nn.Module) -> None:
        """No module runs in chunks at first."""
        self.chunked: set[str] = set()  #: names of the modules that do
        self._modules = {name: module for name, module in root.named_modules() if name}
        self._alone: dict[str, list[Shapes]] = {}  # by name: the shapes of its arguments in a call alone
        self._batched: dict[tuple[str, int, Shapes], tuple[bool, ...] | None] = {}
        self._in_chunk = False

    def record(self, forward: Callable[[], Output]) -> Output:
        """Run a call alone, and keep the shapes that its modules see."""

        def recorder(name: str, original: Callable[..., Output]) -> Callable[..., Output]:
            def run(*args: Any, **kwargs: Any) -> Output:
                shapes = _shapes(tree_flatten((args, kwargs))[0])
                seen = self._alone.setdefault(name, [])
                if shapes not in seen:
                    seen.append(shapes)
                return original(*args, **kwargs)

            return run

        with self._patched(self._modules, recorder):
            return forward()

    def run(self, forward: Callable[[], Output], calls: int) -> Output:
        """Run a forward of several calls."""

        def chunker(name: str, original: Callable[..., Output]) -> Callable[..., Output]:
            def run(*args: Any, **kwargs: Any) -> Output:
                parts = None if self._in_chunk else self._run_in_chunks(name, original, args, kwargs, calls)
                return original(*args, **kwargs) if parts is None else _joined(parts)

            return run

        with self._patched(self.chunked, chunker):
            return forward()

    def probe(self, forward: Callable[[], Output], calls: int) -> Output:
        """Run a forward of several calls, and find the modules that give other bits than in chunks."""

        def prober(name: str, original: Callable[..., Output]) -> Callable[..., Output]:
            def run(*args: Any, **kwargs: Any) -> Output:
                if self._in_chunk:
                    return original(*args, **kwargs)
                whole = None if name in self.chunked else original(*args, **kwargs)
                parts = self._run_in_chunks(name, original, args, kwargs, calls)
                if parts is None:
                    return original(*args, **kwargs) if name in self.chunked else whole
                joined = _joined(parts)
                if name in self.chunked:
                    return joined
                if _same_structure(whole, joined) and not same_bits(whole, joined):
                    self.chunked.add(name)
                    return joined
                return whole

            return run

        with self._patched(self._modules, prober):
            return forward()

    def _run_in_chunks(
        self, name: str, original: Callable[..., Output], args: Any, kwargs: Any, calls: int
    ) -> list[Output] | None:
        """The outputs of a module for each call; None if its arguments do not tell which rows are whose."""
        leaves, structure = tree_flatten((args, kwargs))
        batched = self._batched_arguments(name, _shapes(leaves), calls)
        if batched is None:
            return None
        parts = []
        self._in_chunk = True
        try:
            for index in range(calls):
                chunk = [
                    _rows_of_call(leaf, index, calls) if rows else leaf
                    for leaf, rows in zip(leaves, batched, strict=True)
                ]
                chunk_args, chunk_kwargs = tree_unflatten(chunk, structure)
                parts.append(original(*chunk_args, **chunk_kwargs))
        finally:
            self._in_chunk = False
        return parts

    def _batched_arguments(self, name: str, shapes: Shapes, calls: int) -> tuple[bool, ...] | None:
        """Which arguments have rows of every call, by the shapes that a call alone has."""
        key = name, calls, shapes
        if key not in self._batched:
            found = (_batched(shapes, alone, calls) for alone in self._alone.get(name, ()))
            self._batched[key] = next((one for one in found if one is not None and any(one)), None)
        return self._batched[key]

    @contextmanager
    def _patched(
        self, names: Collection[str], wrapper: Callable[[str, Callable[..., Output]], Callable[..., Output]]
    ) -> Iterator[None]:
        """Replace the ``forward`` of modules for one forward of the whole."""
        before: list[tuple[torch.nn.Module, Any]] = []
        try:
            for name in names:
                module = self._modules[name]
                before.append((module, module.__dict__.get("forward")))
                module.forward = wrapper(name, module.forward)
            yield
        finally:
            for module, own in before:
                if own is None:
                    del module.forward
                else:
                    module.forward = own


class ExactCalls:
    """How calls of one shape and number of rows share forwards exactly. They run alone until that is known."""

    def __init__(self, hook: ModuleHook, rows: int, max_rows: int, known: ExactPlan | None = None) -> None:
        """Nothing is measured yet.

        Args:
            hook: Of the module.
            rows: Of one call.
            max_rows: Of one forward, on a device whose memory is not measured.
            known: What was measured before; its forwards are compared once more.
        """
        self.calls: tuple[int, ...] = ()  #: numbers of calls that may share a forward, ascending
        self.plan: ExactPlan | None = None  #: what was measured, once it is
        self.finished = False  #: whether nothing more is measured
        self._hook = hook
        self._rows = rows
        self._most = max_rows
        self._known = known
        self._modules: ChunkedModules | None = None
        self._steps: Generator[None, None, None] | None = None
        self._seconds = 0.0
        self._until_check = 0

    @property
    def max_rows(self) -> int:
        """The largest number of rows of a shared forward; 0: a call runs alone."""
        return self._rows * self.calls[-1] if self.calls else 0

    def count_of(self, waiting: int) -> int:
        """How many of the waiting calls share the next forward."""
        return max((count for count in self.calls if count <= waiting), default=1)

    def is_check_due(self) -> bool:
        """Whether the next shared forward is to be compared with separate calls."""
        self._until_check -= 1
        if self._until_check < 0:
            self._until_check = CHECK_EVERY
            return True
        return False

    def refuse(self) -> None:
        """Share no more: a forward gave other bits."""
        self.calls, self.finished, self._steps = (), True, None

    def run(self, arguments: dict[str, Any], calls: int) -> Output:
        """One forward of the joined arguments of several calls."""
        assert self._modules is not None
        return self._modules.run(lambda: self._hook.original(**arguments), calls)

    def measure(self, call: ParkedCall, seconds: float) -> None:
        """Go on measuring, with synthetic inputs like the call's, for about that time: at least one forward."""
        if self.finished:
            return
        steps = self._steps = self._steps or self._measure(call)
        started = time.monotonic()
        while not self.finished and time.monotonic() - started < seconds:
            before = time.monotonic()
            if next(steps, self) is self:
                self.finished, self._steps = True, None
            self._seconds += time.monotonic() - before
        if not self.finished and self._seconds > CALIBRATION_SECONDS:
            self.finished, self._steps = True, None

    def _measure(self, call: ParkedCall) -> Generator[None, None, None]:
        """Find the modules that need chunks, and the numbers of calls whose forwards are exact and efficient."""
        modules = ChunkedModules(self._hook.module)
        if self._known is not None:
            modules.chunked |= self._known.modules
            counts = self._known.calls
        else:
            fitting = row_selection.row_limit(call, self._most) // max(1, self._rows)
            counts = tuple(range(2, min(MAX_CALLS, fitting) + 1))
        if not counts:
            return
        alone: dict[int, list[Output]] = {}
        for seed in (0, 1):
            alone[seed] = []
            for index in range(max(counts)):
                one = synthetic(call, self._rows, seed, index, index + 1)
                output = modules.record(lambda one=one: self._hook.original(**one))  # type: ignore[misc]
                alone[seed].append(output)
                yield
        if self._known is None:
            for count in sorted({*counts[-1:], *counts[: len(counts) // 2], *counts[:1]}, reverse=True):
                joined = synthetic(call, self._rows, 0, 0, count)
                modules.probe(lambda joined=joined: self._hook.original(**joined), count)  # type: ignore[misc]
                yield
        exact: dict[int, float] = {}
        for count in counts:
            for seed in (0, 1):
                joined = synthetic(call, self._rows, seed, 0, count)
                started = _now(call)
                output = modules.run(lambda joined=joined: self._hook.original(**joined), count)  # type: ignore[misc]
                taken = _now(call) - started
                total = self._rows * count
                parts = [slice_rows(output, i * self._rows, (i + 1) * self._rows, total) for i in range(count)]
                if not all(same_bits(one, other) for one, other in zip(parts, alone[seed], strict=False)):
                    exact.pop(count, None)
                    break
                exact[count] = min(taken, exact.get(count, taken))
                yield
        if exact:
            one = synthetic(call, self._rows, 0, 0, 1)
            for _ in range(2):
                started = _now(call)
                self._hook.original(**one)
                exact[1] = min(_now(call) - started, exact.get(1, torch.inf))
                yield
            most = self._known.calls[-1] if self._known else row_selection.most_efficient_rows(exact)
            exact = {count: taken for count, taken in exact.items() if 1 < count <= most}
        self._modules = modules
        self.calls = tuple(sorted(exact))
        self.plan = ExactPlan(self.calls, frozenset(modules.chunked))


def synthetic(call: ParkedCall, rows: int, seed: int, begin: int, end: int) -> dict[str, Any]:
    """Arguments like a call's, with random rows: of the calls ``begin`` to ``end`` of an endless series of calls."""

    def made(name: str, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            if not has_rows(name, value, call.rows):
                return value
            shape = tuple(value.shape[1:])
            if not value.is_floating_point():
                return value[:1].expand(rows * (end - begin), *shape).contiguous()
            parts = [
                torch.randn(rows, *shape, generator=torch.Generator("cpu").manual_seed(1_000 * seed + index))
                for index in range(begin, end)
            ]
            layout = layout_of(value) or torch.contiguous_format
            return torch.cat(parts).to(device=value.device, dtype=value.dtype).contiguous(memory_format=layout)
        if isinstance(value, dict):
            return {key: made(name, part) for key, part in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)([made(name, part) for part in value])
        return value

    return {name: made(name, value) for name, value in call.arguments.items()}


def same_bits(one: Output, other: Output) -> bool:
    """Whether two outputs have the same tensors with equal values."""
    here, there = tensors_in(one), tensors_in(other)
    return len(here) == len(there) and all(torch.equal(a, b) for a, b in zip(here, there, strict=True))


def _shapes(leaves: list[Any]) -> Shapes:
    return tuple(tuple(leaf.shape) if isinstance(leaf, torch.Tensor) else None for leaf in leaves)


def _batched(shapes: Shapes, alone: Shapes, calls: int) -> tuple[bool, ...] | None:
    """Which arguments have the rows of all calls one after the other; None if one fits neither way."""
    if len(shapes) != len(alone):
        return None
    found = []
    for shape, one in zip(shapes, alone, strict=True):
        if shape == one:
            found.append(False)
        elif shape and one and shape[1:] == one[1:] and shape[0] == calls * one[0]:
            found.append(True)
        else:
            return None
    return tuple(found)


def _rows_of_call(tensor: torch.Tensor, index: int, calls: int) -> torch.Tensor:
    """The rows of one call, aligned as a tensor of its own."""
    rows = tensor.shape[0] // calls
    part = tensor[index * rows : (index + 1) * rows]
    return part if part.data_ptr() % ALIGNMENT.get(part.device.type, 512) == 0 else part.clone()


def _joined(parts: list[Output]) -> Output:
    """The outputs of a module's chunks as one output."""
    leaves, structure = tree_flatten(parts[0])
    others = [tree_flatten(part)[0] for part in parts]
    joined = [
        torch.cat([other[place] for other in others]) if isinstance(leaf, torch.Tensor) and leaf.ndim else leaf
        for place, leaf in enumerate(leaves)
    ]
    return tree_unflatten(joined, structure)


def _same_structure(one: Output, other: Output) -> bool:
    here, there = tree_flatten(one), tree_flatten(other)
    return here[1] == there[1] and _shapes(here[0]) == _shapes(there[0])


def _now(call: ParkedCall) -> float:
    row_selection.synchronize(call)
    return time.perf_counter()
