"""Metrics of the device: what NVIDIA's management library and torch's allocator read; NaN for what a device lacks."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import Any, Final

from prometheus_client import Gauge

from farm import metrics
from farm.domain.worker import Device

#: What `torch.cuda.memory_stats` calls what the gauges of the allocator show.
ALLOCATOR: Final[Mapping[Gauge, str]] = {
    metrics.ALLOCATOR_ALLOCATED: "allocated_bytes.all.current",
    metrics.ALLOCATOR_RESERVED: "reserved_bytes.all.current",
    metrics.ALLOCATOR_RETRIES: "num_alloc_retries",
    metrics.ALLOCATOR_OUT_OF_MEMORY: "num_ooms",
}


def register(device: Device) -> None:
    """Read the device's state at each scrape. Without ``nvidia-ml-py`` or an NVIDIA GPU, only its size is known."""
    metrics.DEVICE_MEMORY.set(device.memory_bytes)
    if device.kind != "cuda":
        return
    import torch  # noqa: PLC0415 - the engine has imported it

    publish_allocator(torch.cuda.memory_stats)
    try:
        import pynvml  # noqa: PLC0415 - optional

        pynvml.nvmlInit()
        uuid = str(torch.cuda.get_device_properties(0).uuid)
        publish(pynvml, handle_of(pynvml, os.environ.get("CUDA_VISIBLE_DEVICES", ""), uuid))
    except Exception:  # noqa: BLE001 - a missing metric must not keep a device from rendering
        return


def handle_of(nvml: Any, visible: str, uuid: str) -> Any:
    """The library's handle of the pinned device.

    Args:
        nvml: The module ``pynvml``.
        visible: ``CUDA_VISIBLE_DEVICES``. Its indices do not count as the library's do, so only a UUID in it is used.
        uuid: The device's, as torch names it, with or without ``GPU-``.
    """
    if visible.startswith(("GPU-", "MIG-")):
        return nvml.nvmlDeviceGetHandleByUUID(visible)
    return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid.removeprefix('GPU-')}")


def publish(nvml: Any, handle: Any) -> None:
    """Show what the library reads of a device at each scrape."""
    readings: dict[Gauge, Callable[[], float]] = {
        metrics.DEVICE_MEMORY_USED: lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used,
        metrics.DEVICE_UTILIZATION: lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
        metrics.DEVICE_POWER: lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1_000,
        metrics.DEVICE_TEMPERATURE: lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        metrics.DEVICE_CLOCK: lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM) * 1e6,
        metrics.DEVICE_THROTTLE_REASONS: lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
        metrics.DEVICE_ECC_ERRORS: lambda: nvml.nvmlDeviceGetTotalEccErrors(
            handle, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
        ),
    }
    for gauge, read in readings.items():
        gauge.set_function(_or_nan(read))


def publish_allocator(stats: Callable[[], Mapping[str, float]]) -> None:
    """Show torch's allocator of CUDA memory at each scrape."""
    for gauge, name in ALLOCATOR.items():
        gauge.set_function(_or_nan(lambda name=name: stats().get(name, math.nan)))  # type: ignore[misc]


def _or_nan(read: Callable[[], float]) -> Callable[[], float]:
    """The reading, or NaN: a part of a GPU and a virtual one lack some, and one that raises would fail the scrape."""

    def reading() -> float:
        try:
            return float(read())
        except Exception:  # noqa: BLE001 - whatever the library raises
            return math.nan

    return reading
