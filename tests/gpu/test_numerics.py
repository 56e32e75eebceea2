"""Numerics classes of a CUDA device. ``python -m pytest tests/gpu``; skipped, with a sentence, where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from workers import device as devices
from workers import numerics

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="torch sees no CUDA device: its numerics classes are not tried here"
)


@pytest.fixture(autouse=True)
def deterministic() -> Iterator[None]:
    numerics.make_deterministic(1)
    matmul, convolution = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, convolution


def test_each_dtype_of_a_device_is_a_numerics_class_of_its_own_that_does_not_change() -> None:
    device = devices.describe(devices.choose("cuda:0"))
    found = {
        dtype: [numerics.describe(replace(device, dtype=dtype), compiled=False) for _ in range(3)]
        for dtype in ("float32", "float16", "bfloat16")
    }
    assert all(len({one.name for one in same}) == 1 for same in found.values())
    assert len({same[0].name for same in found.values()}) == 3
    assert len({same[0].facts["operations_sha256"] for same in found.values()}) == 3


def test_tf32_on_and_off_are_two_numerics_classes() -> None:
    device = replace(devices.describe(devices.choose("cuda:0")), dtype="float32")
    found = []
    for on in (False, True):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on
        found.append(numerics.describe(device, compiled=False))
    assert found[0].name != found[1].name
    if torch.cuda.get_device_capability() >= (8, 0):
        assert found[0].facts["operations_sha256"] != found[1].facts["operations_sha256"]
