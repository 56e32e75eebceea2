"""Metrics of the device's memory and utilization, where NVIDIA's management library is installed."""

from __future__ import annotations

from typing import Any

from farm import metrics
from farm.domain.worker import Device


def register(device: Device) -> None:
    """Read the device's state at each scrape. Without ``nvidia-ml-py`` or an NVIDIA GPU, only its size is known."""
    metrics.DEVICE_MEMORY.set(device.memory_bytes)
    if device.kind != "cuda":
        return
    try:
        import pynvml  # noqa: PLC0415 - optional

        pynvml.nvmlInit()
        handle = _handle(pynvml, device.index)
    except Exception:  # noqa: BLE001 - a missing metric must not keep a device from rendering
        return
    metrics.DEVICE_MEMORY_USED.set_function(lambda: float(pynvml.nvmlDeviceGetMemoryInfo(handle).used))
    metrics.DEVICE_UTILIZATION.set_function(lambda: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100)


def _handle(pynvml: Any, index: str) -> Any:
    """The device of an index (``cuda0``, ``0``) or of a UUID."""
    if index.startswith("GPU-"):
        return pynvml.nvmlDeviceGetHandleByUUID(index)
    return pynvml.nvmlDeviceGetHandleByIndex(int(index.removeprefix("cuda").lstrip(":")))
