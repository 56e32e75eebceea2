"""Calls of hooked modules: which ones fit into one forward, how they are joined, and how its result is split."""

from __future__ import annotations

import functools
import hashlib
import inspect
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

import structlog
import torch
from greenlet import greenlet  # type: ignore[import-untyped, unused-ignore]
from torch.utils.weak import WeakIdKeyDictionary

from workers.checkpoints.record import OutputRecord, Recording

log = structlog.stdlib.get_logger()

#: Arguments that have no row for each sample: position ids and rotary embeddings, which are the same for one size.
UNBATCHED_ARGUMENTS: Final = frozenset({"img_ids", "txt_ids", "image_rotary_emb", "freqs_cis"})
#: Parameters above which one row fills a processor, so that `BatchMode.EXACT` does not batch: measuring equal rows
#: would take minutes.
MAX_EXACT_PARAMETERS_ON_CPU: Final = 200_000_000

Output: TypeAlias = Any  #: what a module returns: a tensor, or tensors in tuples, lists and output classes


class BatchMode(StrEnum):
    """What is guaranteed for an image whose forwards are shared."""

    #: Every call is a forward of its own: the bytes of the unmodified pipeline, whatever other jobs do.
    ALONE = "alone"
    #: Every call has the bits that it has alone, see `workers.batching.exact`: the bytes of the unmodified pipeline.
    EXACT = "exact"
    #: Any number of rows: within 1/255 of the unmodified pipeline.
    THROUGHPUT = "throughput"


class NotBatchable(Exception):
    """A call whose state is not entirely in tensors with one row for each sample."""


@dataclass(frozen=True)
class ModuleState:
    """A state of the modules that an image needs, such as active LoRAs; calls with an equal state may share."""

    key: Hashable
    apply: Callable[[], None] = field(compare=False)  #: must be cheap if the state is active already


@dataclass(eq=False)
class PipelineRun:
    """One pipeline call in its greenlet."""

    mode: BatchMode
    interactive: bool  #: its calls go before others, see `ContinuousBatcher`
    state: ModuleState | None = None
    on_park: Callable[[torch.nn.Module], None] | None = None  #: called before it waits in a hooked module
    record: OutputRecord | None = None  #: of its denoiser calls
    stop: threading.Event | None = None  #: ends it before a call that does not wait
    random_state: torch.Tensor | None = None  #: of torch's own generator on the CPU, while the run waits
    result: Any = None
    error: BaseException | None = None
    finished: bool = False
    greenlet: greenlet | None = None  #: of the batcher
    parked_call: ParkedCall | None = None  #: of the batcher


class ExactPlan(NamedTuple):
    """What was measured about exact sharing."""

    calls: tuple[int, ...]  #: the numbers of calls that may share a forward, ascending
    modules: frozenset[str]  #: the names of those that run in chunks of one call then


class ExactSharing(Protocol):
    """How calls of one shape and number of rows share forwards exactly, see `workers.batching.exact`."""

    plan: ExactPlan | None  #: what was measured, once it is
    finished: bool  #: whether nothing more is measured

    @property
    def max_rows(self) -> int:
        """The largest number of rows of a shared forward; 0: a call runs alone."""

    def count_of(self, waiting: int) -> int:
        """How many of the waiting calls share the next forward."""

    def is_check_due(self) -> bool:
        """Whether the next shared forward is to be compared with separate calls."""

    def refuse(self) -> None:
        """Share no more: a forward gave other bits."""

    def run(self, arguments: dict[str, Any], calls: int) -> Output:
        """One forward of the joined arguments of several calls."""

    def measure(self, call: ParkedCall, seconds: float) -> None:
        """Go on measuring, with synthetic inputs like the call's, for about that time: at least one forward."""


@dataclass(eq=False)
class SignatureState:
    """What is known about the calls of a module that differ only in values and rows."""

    max_rows: int  #: of one forward
    #: For `BatchMode.EXACT`: by the rows of a call and the state of the modules.
    exact: dict[Hashable, ExactSharing] = field(default_factory=dict)
    batchable: bool = True
    verified: bool = False  #: whether a shared forward has been compared with separate ones
    profiled: bool = False  #: whether `max_rows` has been measured or loaded


class CallSignature(NamedTuple):
    """A call's arguments, and what other calls must have in common with it."""

    arguments: dict[str, Any]  #: by name
    rows: int
    shapes: Hashable  #: equal for calls that differ only in values and rows
    content: Hashable  #: of what is not a row of a sample: equal for calls that fit into one forward


@dataclass(eq=False)
class ParkedCall:
    """A parked call of a hooked module."""

    hook: ModuleHook
    run: PipelineRun
    args: tuple[Any, ...]  #: as the pipeline passed them
    kwargs: dict[str, Any]
    arguments: dict[str, Any]  #: the same by name
    rows: int  #: 0 for a call that cannot share a forward
    key: Hashable  #: equal for calls that fit into one forward
    signature: SignatureState
    sequence: int  #: increases in the order in which calls park
    exact: ExactSharing | None = None  #: of a call in `BatchMode.EXACT` that may share

    @property
    def max_rows(self) -> int:
        """The most rows of its forward; its own rows if it runs alone."""
        if not self.rows or not self.signature.batchable:
            return self.rows
        most = self.signature.max_rows if self.exact is None else self.exact.max_rows
        return max(self.rows, most) if self.run.mode is not BatchMode.ALONE else self.rows

    def fits(self, other: ParkedCall) -> bool:
        """Whether the two may share a forward, as far as their arguments decide."""
        return self.key == other.key and self.exact is other.exact

    def apply_state(self) -> None:
        """Put the modules into the state that the call needs."""
        if self.run.state is not None:
            self.run.state.apply()


class ModuleHook:
    """Replaces one module's ``forward`` by one that parks the call."""

    def __init__(
        self,
        module: torch.nn.Module,
        name: str,
        park: Callable[[ModuleHook, tuple[Any, ...], dict[str, Any]], Output],
        *,
        weights: str,
        denoiser: bool,
        check_finite: bool,
        recording: Recording = Recording.NOTHING,
    ) -> None:
        """Hook a module.

        Args:
            module: The module.
            name: For the log.
            park: Called in place of ``forward``.
            weights: Distinguishes its weights from others, for what is measured on it.
            denoiser: Whether it is called at every step.
            check_finite: Whether NaN or infinity in its output is an error.
            recording: What is recorded of its calls.
        """
        self.recording = recording
        self.name = name
        self.module = module
        self.weights = weights
        self.denoiser = denoiser
        self.check_finite = check_finite
        self.original: Callable[..., Output] = module.forward
        self.signatures: dict[Hashable, SignatureState] = {}
        self.refusal: str | None = None  #: why its calls run alone, once that is known
        self._instance_forward = module.__dict__.get("forward")
        self._parameters = inspect.signature(self.original)
        kinds = {parameter.kind for parameter in self._parameters.parameters.values()}
        self._all_named = not kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
        self._sample_name = next(iter(self._parameters.parameters), "")

        @functools.wraps(self.original)  # pipelines inspect the signature
        def forward(*args: Any, **kwargs: Any) -> Output:
            return park(self, args, kwargs)

        module.forward = forward

    def sample_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
        """The tensor that a call changes from step to step: the module's first argument."""
        first = args[0] if args else kwargs.get(self._sample_name)
        return next(iter(tensors_in(first)), None)

    def remove(self) -> None:
        """Restore the module's own ``forward``."""
        if self._instance_forward is None:
            self.module.__dict__.pop("forward", None)
        else:
            self.module.forward = self._instance_forward

    def allows(self, mode: BatchMode) -> bool:
        """Whether calls in that mode may share forwards at all."""
        if mode is BatchMode.ALONE:
            return False
        if mode is BatchMode.THROUGHPUT:
            return True
        return self.denoiser and not self._fills_a_processor and not self._is_compiled

    @functools.cached_property
    def _is_compiled(self) -> bool:
        # compiled code does not call the modules that it was made from, so none of them can run in chunks
        return any(getattr(one, "_compiled_call_impl", None) is not None for one in self.module.modules())

    @functools.cached_property
    def _fills_a_processor(self) -> bool:
        parameters = list(self.module.parameters())
        return (
            all(one.device.type == "cpu" for one in parameters)
            and sum(one.numel() for one in parameters) > MAX_EXACT_PARAMETERS_ON_CPU
        )

    def signature_of(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], digests: TensorDigests, *, exact: bool = False
    ) -> CallSignature:
        """What other calls must have in common with this one; if ``exact``, the layout in memory as well.

        Raises `NotBatchable`.
        """
        if not self._all_named:
            raise NotBatchable("its forward takes arguments without names")
        arguments = dict(self._parameters.bind(*args, **kwargs).arguments)
        sample = arguments.get(self._sample_name)
        if not isinstance(sample, torch.Tensor) or sample.ndim == 0 or sample.shape[0] == 0:
            raise NotBatchable(f"{self._sample_name} is not a batch of samples")
        rows = int(sample.shape[0])
        if _is_single_timestep(arguments.get("timestep"), rows):
            arguments["timestep"] = _timestep_for_each_row(arguments["timestep"], rows, sample.device)
        return CallSignature(
            arguments,
            rows,
            tuple((name, _shapes_of(name, value, rows, exact=exact)) for name, value in sorted(arguments.items())),
            tuple((name, digests.of(name, value, rows)) for name, value in sorted(arguments.items())),
        )

    def run_alone(self, call: ParkedCall) -> Output:
        """Compute the call as the pipeline made it."""
        return self.original(*call.args, **call.kwargs)

    def run_together(self, calls: Sequence[ParkedCall]) -> list[Output]:
        """Compute calls of one key as one forward; returns to each call its rows."""
        counts = [call.rows for call in calls]
        names = calls[0].arguments
        exact = calls[0].exact
        joined = {
            name: _join(name, [call.arguments[name] for call in calls], counts[0], exact=exact is not None)
            for name in names
        }
        output = self.original(**joined) if exact is None else exact.run(joined, len(calls))
        total = sum(counts)
        parts, begin = [], 0
        for count in counts:
            parts.append(slice_rows(output, begin, begin + count, total))
            begin += count
        return parts

    def refuse(self, reason: str) -> None:
        """Log, once for each module, that its calls run alone."""
        if self.refusal is None:
            self.refusal = reason
            log.warning("runs alone", action="batching_refused", module=self.name, reason=reason)


class TensorDigests:
    """Digests of tensors that calls must have in common; each tensor is read once."""

    def __init__(self) -> None:
        self._known: Any = WeakIdKeyDictionary()

    def of(self, name: str, value: Any, rows: int) -> Hashable:
        """A digest of what in an argument is not a row of a sample; None if all of it is rows."""
        if isinstance(value, torch.Tensor):
            return None if has_rows(name, value, rows) else self._of_tensor(value)
        if isinstance(value, dict):
            return tuple(self.of(name, part, rows) for _, part in sorted(value.items()))
        if isinstance(value, (list, tuple)):
            return tuple(self.of(name, part, rows) for part in value)
        return None

    def _of_tensor(self, value: torch.Tensor) -> bytes:
        # a pipeline passes the same tensor at every step: copy it from the device once
        version, digest = self._known.get(value, (-1, b""))
        if version != value._version:  # noqa: SLF001 - torch's own count of writes
            data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            version, digest = value._version, hashlib.sha256(data.numpy().tobytes()).digest()  # noqa: SLF001
            self._known[value] = (version, digest)
        return bytes(digest)


def has_rows(name: str, value: torch.Tensor, rows: int) -> bool:
    """Whether an argument has one row for each sample."""
    return value.ndim > 0 and value.shape[0] == rows and name not in UNBATCHED_ARGUMENTS


def tensors_in(value: Any) -> list[torch.Tensor]:
    """All tensors in nested dicts, lists and tuples."""
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for part in parts for tensor in tensors_in(part)]


def slice_rows(output: Output, begin: int, end: int, total: int) -> Output:
    """Rows ``begin`` to ``end`` of a module's output. Raises `NotBatchable` if it lacks a row for each sample."""
    if isinstance(output, torch.Tensor):
        if output.ndim == 0 or output.shape[0] != total:
            raise NotBatchable("its output has not one row for each sample")
        return output[begin:end]
    if isinstance(output, dict):  # diffusers' output classes are ordered dicts with fields
        return type(output)(**{key: slice_rows(part, begin, end, total) for key, part in output.items()})
    if isinstance(output, (list, tuple)):
        return type(output)([slice_rows(part, begin, end, total) for part in output])
    if output is None:
        return None
    raise NotBatchable(f"it returns a {type(output).__name__}")


def _is_single_timestep(value: Any, rows: int) -> bool:
    if isinstance(value, torch.Tensor):
        return value.ndim == 0 or (value.numel() == 1 and rows != 1)
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _timestep_for_each_row(timestep: Any, rows: int, device: torch.device) -> torch.Tensor:
    """One timestep as a vector (rows,), as models expand it themselves."""
    return torch.as_tensor(timestep, device=device).reshape(-1).expand(rows)


def layout_of(value: torch.Tensor) -> torch.memory_format | None:
    """A tensor's layout in memory, by which kernels round differently; None for one that joining does not keep."""
    for layout in (torch.contiguous_format, torch.channels_last, torch.channels_last_3d):
        fits = layout is torch.contiguous_format or value.ndim == (4 if layout is torch.channels_last else 5)
        if fits and value.is_contiguous(memory_format=layout):
            return layout
    # rows that are one row, expanded: kernels copy it first
    return torch.contiguous_format if value.stride(0) == 0 and value[0].is_contiguous() else None


def _shapes_of(name: str, value: Any, rows: int, *, exact: bool) -> Hashable:
    """What must be equal in calls of one forward, besides content. Raises `NotBatchable`."""
    if isinstance(value, torch.Tensor):
        # schedulers differ in the type of their timesteps; models convert all of them to float32
        dtype = None if name == "timestep" else value.dtype
        if has_rows(name, value, rows):
            layout = layout_of(value) if exact else None
            if exact and layout is None:
                raise NotBatchable(f"{name} has a layout in memory that a shared forward would not keep")
            return "rows", tuple(value.shape[1:]), dtype, value.device, layout
        return "same", tuple(value.shape), dtype, value.device
    if isinstance(value, dict):
        return tuple((key, _shapes_of(name, part, rows, exact=exact)) for key, part in sorted(value.items()))
    if isinstance(value, (list, tuple)):
        return type(value), tuple(_shapes_of(name, part, rows, exact=exact) for part in value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return type(value), value
    raise NotBatchable(f"{name} is a {type(value).__name__}")


def _join(name: str, values: list[Any], rows: int, *, exact: bool) -> Any:
    """One argument of several calls as the argument of one forward; ``rows``: of the first call."""
    first = values[0]
    if isinstance(first, torch.Tensor):
        if not has_rows(name, first, rows):
            return first
        if len({value.dtype for value in values}) > 1:  # timesteps: see `_shapes_of`
            values = [value.to(torch.float32) for value in values]
        # in one memory layout: kernels round differently in another, and a co-batched call could bring it
        layout = (exact and layout_of(first)) or torch.contiguous_format
        return torch.cat([value.contiguous(memory_format=layout) for value in values]).contiguous(memory_format=layout)
    if isinstance(first, dict):
        return {key: _join(name, [value[key] for value in values], rows, exact=exact) for key in first}
    if isinstance(first, (list, tuple)):
        return type(first)([_join(name, list(parts), rows, exact=exact) for parts in zip(*values, strict=True)])
    return first
