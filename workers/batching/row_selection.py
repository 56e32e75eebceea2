"""Measures on the device how many rows a forward gets, with synthetic inputs.

For `BatchMode.THROUGHPUT`: how many rows are efficient. For `BatchMode.EXACT` also: which numbers of rows give equal
bits.
"""

from __future__ import annotations

import hashlib
import time
from typing import Any, Final

import torch

from workers import device_errors
from workers.batch_profiles import BatchProfile
from workers.batching.calls import BatchMode, Output, ParkedCall, has_rows, slice_rows, tensors_in

#: Rows up to which `BatchMode.EXACT` looks for equal bits. Fixed, because the result decides pixels.
EXACT_ROWS: Final = 8
MEMORY_SHARE: Final = 0.8  #: of the device's free memory, for one forward
MAX_ROWS: Final = 64  #: more was never efficient: the device is full long before
#: Of a module that is not called at every step (the VAE), which is a small part of the work and takes much memory.
MAX_VAE_ROWS: Final = 4
MEASURE_SECONDS: Final = 4.0  #: no further forward is measured after this time
MIN_GAIN: Final = 1.05  #: more rows must take less time each by this factor


def measure_profile(call: ParkedCall, max_rows: int) -> BatchProfile:
    """Measure how many rows the forwards of calls like ``call`` get; ``max_rows``: where no memory is measured."""
    if call.run.mode is BatchMode.EXACT:
        digests, seconds = _digests_by_rows(call)
        ranges = {rows: found for rows in range(1, EXACT_ROWS + 1) if (found := equal_bits_range(rows, digests))}
        # Efficiency may only reduce the rows: within a range the bits are equal.
        return BatchProfile(most_efficient_rows(seconds), ranges)
    limit = _row_limit(call, max_rows)
    return BatchProfile(most_efficient_rows(_seconds_by_rows(call, limit)))


def equal_bits_range(rows: int, digests: dict[int, bytes | None]) -> tuple[int, int] | None:
    """The minimum and maximum rows of forwards for calls of ``rows``.

    It is the longest range of row counts with equal digests, the first of such. It must hold two of the calls, and may
    pad one of them to at most twice its rows.

    Args:
        rows: Of one call.
        digests: By the number of rows of a forward; None equals no other.
    """
    best: tuple[int, int] | None = None
    begin = 1
    for count in sorted(digests):
        if count > 1 and (digests[count] is None or digests[count] != digests[count - 1]):
            begin = count
        fits = digests[count] is not None and begin <= 2 * rows <= count
        if fits and (best is None or count - begin > best[1] - best[0]):
            best = begin, count
    return best


def most_efficient_rows(seconds: dict[int, float]) -> int:
    """The smallest number of rows whose time per row is about the least; ``seconds``: of forwards, by their rows."""
    best = min(taken / rows for rows, taken in seconds.items())
    return min(rows for rows, taken in seconds.items() if taken / rows <= MIN_GAIN * best)


def rows_that_fit_memory(peak_bytes: int, rows: int, free_bytes: int) -> int:
    """Rows of one forward, from the peak memory of a forward of ``rows`` and the free memory."""
    bytes_per_row = max(1, -(-peak_bytes // rows))
    return max(1, min(MAX_ROWS, int(free_bytes * MEMORY_SHARE) // bytes_per_row))


def empty_cache(call: ParkedCall) -> None:
    """Return cached memory to a CUDA device."""
    if _is_on_cuda(call):
        torch.cuda.empty_cache()


def _digests_by_rows(call: ParkedCall) -> tuple[dict[int, bytes | None], dict[int, float]]:
    """By the number of rows: a digest of one row's output, None if that depends on its position; and the seconds.

    The rows are made from a fixed seed, not from the call, so every process finds the same on the same machine.
    """
    digests: dict[int, bytes | None] = {}
    seconds: dict[int, float] = {}
    for rows in range(1, EXACT_ROWS + 1):
        found = set()
        for others in (False, True):  # the row at every position, and among others
            output, taken = _timed_forward(call, rows, others=others)
            seconds[rows] = min(taken, seconds.get(rows, taken))
            for position in range(1 if others else rows):
                row = tensors_in(slice_rows(output, position, position + 1, rows))
                data = b"".join(part.cpu().contiguous().view(torch.uint8).numpy().tobytes() for part in row)
                found.add(hashlib.sha256(data).digest())
        digests[rows] = found.pop() if len(found) == 1 else None
    return digests, seconds


def _seconds_by_rows(call: ParkedCall, limit: int) -> dict[int, float]:
    """The time of forwards of 1, 2, 4 … rows, up to ``limit``, the device's memory and `MEASURE_SECONDS`."""
    seconds: dict[int, float] = {}
    counts = [2**power for power in range(limit.bit_length())]
    started = time.monotonic()
    for _ in range(3):  # all of them in turn, so that a busy moment of the machine does not hit one count only
        for rows in counts:
            if len(seconds) > 1 and time.monotonic() - started > MEASURE_SECONDS:
                return seconds
            try:
                taken = _timed_forward(call, rows, others=True)[1]
            except Exception as error:
                if not device_errors.is_out_of_memory(error) or not seconds:
                    raise
                empty_cache(call)
                counts = counts[: counts.index(rows)]
                break
            seconds[rows] = min(taken, seconds.get(rows, taken))
    return seconds


def _timed_forward(call: ParkedCall, rows: int, *, others: bool) -> tuple[Output, float]:
    """A forward of synthetic rows, and its seconds."""
    arguments = {name: _synthetic(name, value, call.rows, rows, others) for name, value in call.arguments.items()}
    call.apply_state()
    _synchronize(call)
    started = time.perf_counter()
    output = call.hook.original(**arguments)
    _synchronize(call)
    return output, time.perf_counter() - started


def _synthetic(name: str, value: Any, call_rows: int, rows: int, others: bool) -> Any:
    """An argument for ``rows`` samples: the same row for all of them, or for the first, among ``others``."""
    if isinstance(value, torch.Tensor):
        if not has_rows(name, value, call_rows):
            return value
        if not value.is_floating_point():
            return value[:1].expand(rows, *value.shape[1:]).contiguous()
        shape = tuple(value.shape[1:])
        made = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(0)).repeat(rows, *[1] * len(shape))
        if others:
            made[1:] = torch.randn((rows - 1, *shape), generator=torch.Generator("cpu").manual_seed(rows))
        return made.to(device=value.device, dtype=value.dtype)
    if isinstance(value, dict):
        return {key: _synthetic(name, part, call_rows, rows, others) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([_synthetic(name, part, call_rows, rows, others) for part in value])
    return value


def _row_limit(call: ParkedCall, max_rows: int) -> int:
    """Rows to measure at most: by the memory that one row takes of a CUDA device, otherwise ``max_rows``."""
    limit = max_rows
    sample = next(iter(tensors_in(call.arguments)))
    if sample.device.type == "cuda":
        device = sample.device
        _timed_forward(call, 1, others=True)  # the first one allocates what stays
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        _timed_forward(call, 1, others=True)
        peak = torch.cuda.max_memory_allocated(device) - before
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        limit = rows_that_fit_memory(peak, 1, torch.cuda.mem_get_info(device)[0] + cached)
    return limit if call.hook.denoiser else min(limit, MAX_VAE_ROWS)


def _synchronize(call: ParkedCall) -> None:
    """Wait for a CUDA device, so that a clock measures its work."""
    if _is_on_cuda(call):
        torch.cuda.synchronize()


def _is_on_cuda(call: ParkedCall) -> bool:
    return any(tensor.device.type == "cuda" for tensor in tensors_in(call.arguments))
