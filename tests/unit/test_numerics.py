"""A worker's numerics class: stable, without anything of one machine or moment, and another where bits differ."""

from __future__ import annotations

import itertools
import os
import platform
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from farm.domain.numerics import CLASS_PATTERN, differences
from workers import device as devices
from workers import numerics

CPU = devices.describe(devices.choose("cpu0"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    numerics.make_deterministic(1)
    yield
    numerics.make_deterministic(before)


def test_a_numerics_class_is_the_same_whenever_it_is_computed() -> None:
    first = numerics.describe(CPU, compiled=False)
    assert re.fullmatch(CLASS_PATTERN, first.name)
    assert numerics.describe(CPU, compiled=False) == first
    assert {"device", "threads", "instructions", "torch", "operations_sha256"} <= set(first.facts)


def test_another_number_of_threads_is_another_numerics_class_and_the_difference_says_so() -> None:
    one = numerics.describe(CPU, compiled=False)
    numerics.make_deterministic(2)
    two = numerics.describe(CPU, compiled=False)
    assert one.name != two.name
    assert differences(two.facts, one.facts) == "threads 2 → 1"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_another_dtype_is_another_numerics_class_with_other_results(dtype: str) -> None:
    full = numerics.describe(CPU, compiled=False)
    half = numerics.describe(replace(CPU, dtype=dtype), compiled=False)
    assert full.name != half.name
    assert full.facts["operations_sha256"] != half.facts["operations_sha256"]
    assert full.facts["host_operations_sha256"] == half.facts["host_operations_sha256"]


def test_a_compiling_worker_is_in_another_numerics_class() -> None:
    assert numerics.describe(CPU, compiled=True).name != numerics.describe(CPU, compiled=False).name


def test_other_instructions_are_another_numerics_class_with_other_results() -> None:
    """Torch reads the variable once, so this needs two processes."""
    names, hashes = set(), set()
    for capability in ("avx2", "default"):
        name, operations, _ = _described_in_a_new_process(ATEN_CPU_CAPABILITY=capability)
        names.add(name)
        hashes.add(operations)
    assert len(names) == 2
    assert len(hashes) == 2


def test_computing_the_numerics_class_takes_less_than_a_second_of_a_processor() -> None:
    assert float(_described_in_a_new_process()[2]) <= 1.0


_counter = itertools.count()
_word = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=4, max_size=12).map(lambda text: f"q7x{text}")


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(host=_word, folder=_word, moment=st.floats(1e9, 4e9), variables=st.dictionaries(_word, _word, max_size=3))
def test_a_numerics_class_contains_no_host_name_no_path_and_no_time(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    host: str,
    folder: str,
    moment: float,
    variables: dict[str, str],
) -> None:
    expected = numerics.describe(CPU, compiled=True, environment={})
    place = tmp_path / str(next(_counter)) / folder
    place.mkdir(parents=True)
    date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))
    environment = {name.upper(): value for name, value in variables.items()}
    environment |= {"HOSTNAME": host, "HOME": str(place), "TMPDIR": str(place), "SOURCE_DATE_EPOCH": str(int(moment))}
    with monkeypatch.context() as elsewhere:
        elsewhere.chdir(place)
        elsewhere.setattr(socket, "gethostname", lambda: host)
        elsewhere.setattr(platform, "node", lambda: host)
        elsewhere.setattr(time, "time", lambda: moment)
        for name, value in environment.items():
            elsewhere.setenv(name, value)
        assert numerics.describe(CPU, compiled=True) == numerics.describe(CPU, compiled=True, environment={})
        assert numerics.describe(CPU, compiled=True, environment=environment) == expected
        # also where a variable that changes kernels has a value that makes no sense
        odd = dict(zip(numerics.VARIABLES, itertools.cycle([str(place), date]), strict=False))
        text = repr(numerics.describe(CPU, compiled=True, environment=odd))
        for secret in (host, folder, str(tmp_path), date, str(int(moment)), *variables.values()):
            assert secret not in text


def _described_in_a_new_process(**variables: str) -> list[str]:
    """The class, the hash of the operations, and the seconds of processor time that computing them took."""
    code = """
import time
from workers import device, numerics
described = device.describe(device.choose("cpu0"))
numerics.make_deterministic(2)
began = time.process_time()
found = numerics.describe(described, compiled=False)
print(found.name, found.facts["operations_sha256"], time.process_time() - began)
"""
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"} | variables
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_allocated_memory_is_not_filled_float32_stays_float32_and_attention_repeatable() -> None:
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.enable_cudnn_sdp(True)
    torch.set_float32_matmul_precision("high")
    numerics.make_deterministic(1)
    assert not torch.empty(100_000).isnan().all(), "deterministic mode fills it with NaN"
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
    assert "cudnn" not in numerics.describe(CPU, compiled=False).facts["attention"].split()
