"""What ``torch.compile`` lacks on a machine is named, and what is not compiled is not called compiled."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from farm import metrics
from farm.local import compilers
from tests.unit.test_pipelines import CPU, STARTER, render, spec
from workers import pipelines
from workers.compilation import Compilation


def programs(folder: Path, *names: str) -> dict[str, str]:
    for name in names:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    return {"PATH": str(folder)}


@pytest.mark.parametrize(("kind", "package"), [("cuda", "gcc"), ("cpu", "g++")])
def test_a_compiler_that_is_missing_is_named_with_its_package(tmp_path: Path, kind: str, package: str) -> None:
    said = compilers.missing(kind, tmp_path, {"PATH": str(tmp_path)})
    assert said is not None
    assert f"apt-get install {package}" in said
    assert compilers.missing(kind, tmp_path, {"PATH": str(tmp_path), "CC": "icx", "CXX": "icx"}) in (
        "CC names icx, which is not installed",
        "CXX names icx, which is not installed",
    )
    environment = programs(tmp_path, "gcc", "g++")
    assert compilers.missing(kind, tmp_path, environment) is None


def test_a_folder_whose_files_may_not_be_executed_is_named(tmp_path: Path) -> None:
    forbidden = next((one for one in ("/proc", "/sys", "/dev/shm") if os.statvfs(one).f_flag & os.ST_NOEXEC), None)
    if forbidden is None:
        pytest.skip("nothing is mounted noexec here")
    said = compilers.missing("cpu", Path(forbidden, "nothing", "here"), programs(tmp_path, "g++"))
    assert said is not None
    assert "noexec" in said


def test_python_s_headers_that_are_missing_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path / "include"))
    said = compilers.missing("cuda", tmp_path, programs(tmp_path, "gcc"))
    assert said is not None
    assert "python3-dev" in said


class Block(torch.nn.Module):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values * 2


class Denoiser(torch.nn.Module):
    _repeated_blocks = ("Block",)

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def compile_repeated_blocks(self, **options: object) -> None:
        self.block.compile(**options)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.block(values)
        return out


def gauge(model: str) -> float:
    found: float = metrics.MODEL_COMPILED.labels(model)._value.get()
    return found


def test_what_cannot_be_compiled_runs_as_it_is_and_nobody_calls_it_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> object:
        raise RuntimeError("Failed to find C compiler")

    module = Denoiser()
    found = Compilation("odd")
    monkeypatch.setattr(module, "compile_repeated_blocks", lambda **_: module.block.compile(backend=broken))
    found.compile(module)
    assert found.compiled
    assert module(torch.ones(2)).tolist() == [2, 2]
    assert not found.compiled
    assert "Failed to find C compiler" in str(found.failure)
    assert module.block._compiled_call_impl is None
    assert gauge("odd") == 0
    assert module(torch.ones(3)).tolist() == [2, 2, 2]


def test_what_torch_silently_does_not_compile_is_not_called_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.compilation._graphs", lambda: 0)
    module = Denoiser()
    found = Compilation("silent")
    monkeypatch.setattr(module, "compile_repeated_blocks", lambda **_: module.block.compile(backend="eager"))
    found.compile(module)
    module(torch.ones(2))
    assert not found.compiled
    assert gauge("silent") == 0


def test_what_is_compiled_is_called_so(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Denoiser()
    found = Compilation("eager")
    monkeypatch.setattr(module, "compile_repeated_blocks", lambda **_: module.block.compile(backend="eager"))
    found.compile(module)
    assert module(torch.ones(2)).tolist() == [2, 2]
    assert found.compiled
    assert gauge("eager") == 1


def test_a_recipe_says_that_its_worker_could_not_compile() -> None:
    loaded = pipelines.load(STARTER, CPU)
    assert "compiled" not in loaded.made_with(CPU)
    loaded.compile("no C++ compiler is installed")
    render(loaded, spec("text-to-image", num_inference_steps=1), {})
    assert loaded.made_with(CPU)["compiled"] is False
