"""The tiny models render with stock diffusers; ``python -m tests.contract.families`` tries all of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.contract.families import FAMILIES, IMPOSSIBLE, save
from tests.contract.families.stock import check

pytestmark = pytest.mark.filterwarnings("ignore")  # stock pipelines warn of what diffusers will change

#: Few classes that differ: the text encoders, the inputs, the kind of denoiser, the output.
FAST = (
    "StableDiffusionPipeline",
    "StableDiffusionInpaintPipeline",
    "FluxFillPipeline",
    "StableDiffusionControlNetPipeline",
    "WanPipeline",
    "WanImageToVideoPipeline",
    "LTXPipeline",
    "AnimateDiffPipeline",
    "StableVideoDiffusionPipeline",
    "StableAudioPipeline",
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("pipeline_class", FAST)
def test_a_tiny_model_renders_and_depends_on_each_input(pipeline_class: str, tmp_path: Path) -> None:
    family = next(family for family in FAMILIES.values() if pipeline_class in family.calls)
    check(family, pipeline_class, save(family.name, tmp_path))


def test_a_family_has_the_same_bytes_each_time(tmp_path: Path) -> None:
    first, second = (save("stable-diffusion", tmp_path / name) for name in ("first", "second"))
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert len(files) == 10
    for file in files:
        assert (first / file).read_bytes() == (second / file).read_bytes(), file


def test_no_class_is_both_rendered_and_impossible() -> None:
    assert not {name for family in FAMILIES.values() for name in family.calls} & set(IMPOSSIBLE)
