"""What takes too long for the suite: ``python -m pytest tests/slow``."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.unit.test_pipelines import CPU, STARTER, render, spec
from workers import compilation, numerics, pipelines

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for a processor with a C++ compiler")
def test_compiled_blocks_give_the_same_image_and_are_kept_for_the_next_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    pipelines.silence_libraries()
    numerics.make_deterministic(1)
    wanted = spec("text-to-image", num_inference_steps=2)
    plain = np.asarray(render(pipelines.load(STARTER, CPU), wanted, {}), int)
    compiled = pipelines.load(STARTER, CPU)
    compiled.compile()
    assert np.abs(np.asarray(render(compiled, wanted, {}), int) - plain).max() <= 1
    assert compiled.made_with(CPU)["compiled"] is True
    assert list(tmp_path.rglob("*.so"))


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for a processor with a C++ compiler")
def test_a_machine_that_can_compile_proves_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    assert compilation.problem(CPU, tmp_path) is None
    monkeypatch.setenv("CXX", "/nonexistent/g++")
    assert compilation.problem(CPU, tmp_path) == "CXX names /nonexistent/g++, which is not installed"
