"""Which device a worker owns, and what it hides from itself."""

from __future__ import annotations

import pytest

from farm.errors import SetupError
from workers.device import DeviceChoice, choose, pin

GPU = "GPU-8c1b0a5e-1111-2222-3333-444455556666"


@pytest.mark.parametrize(
    ("wanted", "choice"),
    [
        ("1", DeviceChoice("cuda", "cuda:1", "1")),
        ("cuda:1", DeviceChoice("cuda", "cuda:1", "1")),
        ("CUDA:0", DeviceChoice("cuda", "cuda:0", "0")),
        ("cuda", DeviceChoice("cuda", "cuda:0", "0")),
        (GPU, DeviceChoice("cuda", GPU, GPU)),
        ("cpu", DeviceChoice("cpu", "cpu0", None)),
        ("cpu3", DeviceChoice("cpu", "cpu3", None)),
        ("mps", DeviceChoice("mps", "mps", None)),
    ],
)
def test_a_device_is_named_in_many_ways(wanted: str, choice: DeviceChoice) -> None:
    assert choose(wanted) == choice


@pytest.mark.parametrize("wanted", ["gpu", "cuda:x", "-1", "cuda:0,1", "0;rm"])
def test_any_other_name_is_refused(wanted: str) -> None:
    with pytest.raises(SetupError, match="FARM_DEVICE"):
        choose(wanted)


@pytest.mark.parametrize(
    ("wanted", "before", "after"),
    [
        ("1", {}, "1"),
        ("1", {"CUDA_VISIBLE_DEVICES": "4, 6"}, "6"),  # the index counts in what a container was given
        (GPU, {"CUDA_VISIBLE_DEVICES": "4,6"}, GPU),
        ("cpu", {"CUDA_VISIBLE_DEVICES": "4,6"}, ""),
    ],
)
def test_a_pinned_process_sees_its_device_alone(wanted: str, before: dict[str, str], after: str) -> None:
    environment = dict(before)
    pin(choose(wanted), environment)
    assert environment["CUDA_VISIBLE_DEVICES"] == after


def test_an_index_outside_cuda_visible_devices_is_refused() -> None:
    with pytest.raises(SetupError, match="allows 1"):
        pin(choose("1"), {"CUDA_VISIBLE_DEVICES": "4"})
