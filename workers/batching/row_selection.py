"""Measures on the device how many rows a forward gets, with synthetic inputs: the fewest that are efficient."""

from __future__ import annotations

import time
from typing import Any, Final

import torch

from workers import device_errors
from workers.batch_profiles import BatchProfile
from workers.batching.calls import ParkedCall, has_rows, tensors_in

MEMORY_SHARE: Final = 0.8  #: of the device's free memory, for one forward
MAX_ROWS: Final = 64  #: more was never efficient: the device is full long before
#: Of a module that is not called at every step (the VAE), which is a small part of the work and takes much memory.
MAX_VAE_ROWS: Final = 4
MEASURE_SECONDS: Final = 4.0  #: no further forward is measured after this time
MIN_GAIN: Final = 1.05  #: more rows must take less time each by this factor


def measure_profile(call: ParkedCall, max_rows: int) -> BatchProfile:
    """Measure how many rows the forwards of calls like ``call`` get; ``max_rows``: where no memory is measured."""
    limit = row_limit(call, max_rows)
    return BatchProfile(most_efficient_rows(_seconds_by_rows(call, limit)))


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
                taken = _timed_forward(call, rows)
            except Exception as error:
                if not device_errors.is_out_of_memory(error) or not seconds:
                    raise
                empty_cache(call)
                counts = counts[: counts.index(rows)]
                break
            seconds[rows] = min(taken, seconds.get(rows, taken))
    return seconds


def _timed_forward(call: ParkedCall, rows: int) -> float:
    """The seconds of a forward of synthetic rows."""
    arguments = {name: _synthetic(name, value, call.rows, rows) for name, value in call.arguments.items()}
    call.apply_state()
    synchronize(call)
    started = time.perf_counter()
    call.hook.original(**arguments)
    synchronize(call)
    return time.perf_counter() - started


def _synthetic(name: str, value: Any, call_rows: int, rows: int) -> Any:
    """An argument for ``rows`` samples, with random values."""
    if isinstance(value, torch.Tensor):
        if not has_rows(name, value, call_rows):
            return value
        shape = tuple(value.shape[1:])
        if not value.is_floating_point():
            return value[:1].expand(rows, *shape).contiguous()
        made = torch.randn((rows, *shape), generator=torch.Generator("cpu").manual_seed(rows))
        return made.to(device=value.device, dtype=value.dtype)
    if isinstance(value, dict):
        return {key: _synthetic(name, part, call_rows, rows) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([_synthetic(name, part, call_rows, rows) for part in value])
    return value


def row_limit(call: ParkedCall, max_rows: int) -> int:
    """Rows to measure at most: by the memory that one row takes of a CUDA device, otherwise ``max_rows``."""
    limit = max_rows
    sample = next(iter(tensors_in(call.arguments)))
    if sample.device.type == "cuda":
        device = sample.device
        _timed_forward(call, 1)  # the first one allocates what stays
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        _timed_forward(call, 1)
        peak = torch.cuda.max_memory_allocated(device) - before
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        limit = rows_that_fit_memory(peak, 1, torch.cuda.mem_get_info(device)[0] + cached)
    return limit if call.hook.denoiser else min(limit, MAX_VAE_ROWS)


def synchronize(call: ParkedCall) -> None:
    """Wait for a CUDA device, so that a clock measures its work."""
    if _is_on_cuda(call):
        torch.cuda.synchronize()


def _is_on_cuda(call: ParkedCall) -> bool:
    return any(tensor.device.type == "cuda" for tensor in tensors_in(call.arguments))
