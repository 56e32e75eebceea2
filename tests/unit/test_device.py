"""Which device a worker owns, and what it hides from itself."""

from __future__ import annotations

import pytest
import torch
from structlog.testing import capture_logs

from farm.errors import SetupError
from workers.device import DeviceChoice, choose, describe, pin, require_architecture

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


WHEEL = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]  #: what a wheel of torch is built for


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 9), (9, 0), (10, 3), (12, 0), (12, 1)])
def test_a_device_with_kernels_is_taken(capability: tuple[int, int]) -> None:
    require_architecture("a GPU", capability, WHEEL, "2.13.0")


@pytest.mark.parametrize("capability", [(6, 1), (7, 0), (11, 0)])
def test_a_device_without_kernels_is_refused_in_one_sentence(capability: tuple[int, int]) -> None:
    with pytest.raises(SetupError) as refused:
        require_architecture("Quadro P6000", capability, WHEEL, "2.13.0")
    major, minor = capability
    assert str(refused.value) == (
        f"Quadro P6000 has compute capability {major}.{minor}, and torch 2.13.0 has kernels for "
        "7.5, 8.0, 8.6, 9.0, 10.0, 12.0 only; install a torch build for it, or set FARM_DEVICE=cpu"
    )


def test_portable_kernels_run_on_later_devices() -> None:
    require_architecture("a GPU", (13, 0), ["sm_90", "compute_90"], "2.13.0")
    with pytest.raises(SetupError):
        require_architecture("a GPU", (8, 9), ["sm_90", "compute_90"], "2.13.0")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_missing_device_is_refused_with_what_torch_says() -> None:
    with pytest.raises(SetupError, match=r"sees no such CUDA device \(.*(not compiled with CUDA|driver)"):
        describe(choose("cuda:0"))


def test_an_xpu_does_not_become_a_processor_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    monkeypatch.setattr(torch.xpu, "get_device_name", lambda _: "Intel Arc B580")
    with capture_logs() as logs:
        assert choose(None) == DeviceChoice("cpu", "cpu0", None)
    assert [(one["log_level"], one["device"]) for one in logs] == [("warning", "Intel Arc B580")]
