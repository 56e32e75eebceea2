"""Metrics of a device that lacks some readings, and the handle of the pinned one."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from prometheus_client import REGISTRY, generate_latest

from workers import device_metrics

UUID = "8c1b0a5e-1111-2222-3333-444455556666"


class NotSupported(Exception):
    """What the library raises for a reading that a device lacks."""


class Library:
    """NVIDIA's management library on a machine with a part of a GPU: no utilization and no power."""

    NVML_TEMPERATURE_GPU: ClassVar = 0
    NVML_CLOCK_SM: ClassVar = 1
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED: ClassVar = 1
    NVML_VOLATILE_ECC: ClassVar = 0

    readings: ClassVar[dict[str, Any]] = {
        "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=7 * 2**30),
        "nvmlDeviceGetTemperature": 61,
        "nvmlDeviceGetClockInfo": 1_980,
        "nvmlDeviceGetCurrentClocksThrottleReasons": 4,
    }

    def __getattr__(self, name: str) -> Any:
        def read(argument: str, *_: object) -> Any:
            if name == "nvmlDeviceGetHandleByUUID":
                return f"handle of {argument}"
            if name not in self.readings:
                raise NotSupported(name)
            return self.readings[name]

        return read


def value(name: str) -> float:
    found = REGISTRY.get_sample_value(name)
    assert found is not None
    return found


def test_a_reading_that_a_device_lacks_is_nan_and_does_not_fail_the_scrape() -> None:
    device_metrics.publish(Library(), "handle")
    assert b"farm_device_utilization_ratio NaN" in generate_latest()
    assert math.isnan(value("farm_device_power_watts"))
    assert math.isnan(value("farm_device_ecc_uncorrected_errors"))
    assert value("farm_device_memory_used_bytes") == 7 * 2**30
    assert value("farm_device_temperature_celsius") == 61
    assert value("farm_device_clock_hertz") == 1.98e9
    assert value("farm_device_throttle_reasons") == 4


@pytest.mark.parametrize(
    ("visible", "uuid", "named"),
    [
        ("6", UUID, f"GPU-{UUID}"),  # the index of a container's list is not the library's
        ("6", f"GPU-{UUID}", f"GPU-{UUID}"),
        (f"MIG-{UUID}", "another", f"MIG-{UUID}"),
    ],
)
def test_the_pinned_device_is_found_by_its_uuid(visible: str, uuid: str, named: str) -> None:
    assert device_metrics.handle_of(Library(), visible, uuid) == f"handle of {named}"


def test_the_allocator_is_shown_as_torch_counts_it() -> None:
    stats = {"allocated_bytes.all.current": 5, "reserved_bytes.all.current": 8, "num_alloc_retries": 2}
    device_metrics.publish_allocator(lambda: stats)
    assert value("farm_allocator_allocated_bytes") == 5
    assert value("farm_allocator_reserved_bytes") == 8
    assert value("farm_allocator_retries") == 2
    assert math.isnan(value("farm_allocator_out_of_memory_errors"))
