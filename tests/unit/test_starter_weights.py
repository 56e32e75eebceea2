"""The shipped weights: what is in the folder, and that all four tasks render from it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from workers.starter import WEIGHTS

pytestmark = pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning")


@pytest.fixture(scope="module")
def pipelines() -> dict[str, Any]:
    from workers.starter.load import load

    loaded = load(torch.float32)
    for pipeline in loaded.values():
        pipeline.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((WEIGHTS / "farm.json").read_text())
    return loaded


def test_naming_the_weights_does_not_import_torch() -> None:
    check = "import sys, workers.starter as s; assert s.WEIGHTS.is_dir(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=Path(__file__).parents[2], check=False).returncode == 0


def test_weights_are_safetensors_under_20_megabytes() -> None:
    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 20_000_000
    assert {path.suffix for path in files} <= {".json", ".safetensors"}


def test_configurations_hold_no_path_of_the_machine_that_trained_them() -> None:
    for path in WEIGHTS.rglob("*.json"):
        assert "_name_or_path" not in path.read_text(), path


def test_the_tasks_share_their_components(pipelines: dict[str, Any]) -> None:
    first = pipelines["text-to-image"]
    for task in ("image-to-image", "inpainting"):
        assert pipelines[task].unet is first.unet
    for pipeline in pipelines.values():
        assert pipeline.vae is first.vae
        assert pipeline.text_encoder is first.text_encoder
    assert pipelines["depth-to-image"].unet.config.in_channels == 5
    assert len({id(pipeline.scheduler) for pipeline in pipelines.values()}) == 4


def test_all_four_tasks_render_the_declared_size(pipelines: dict[str, Any], settings: dict[str, Any]) -> None:
    size = settings["size"]
    prompt = settings["example_prompts"][0]
    common: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": settings["guidance_scale"]}
    made = pipelines["text-to-image"](prompt, generator=torch.Generator().manual_seed(0), **common).images[0]
    assert made.size == (size, size), "the default size is the declared one"
    assert np.asarray(made).std() > 1
    mask = Image.new("L", made.size, 255)
    others = [
        pipelines["image-to-image"](prompt, image=made, **common),
        pipelines["inpainting"](prompt, image=made, mask_image=mask, height=size, width=size, **common),
        pipelines["depth-to-image"](prompt, image=made, **common),
    ]
    assert [output.images[0].size for output in others] == [(size, size)] * 3


def test_the_same_seed_renders_the_same_image(pipelines: dict[str, Any], settings: dict[str, Any]) -> None:
    first, second = (
        pipelines["text-to-image"](
            settings["example_prompts"][0], num_inference_steps=2, generator=torch.Generator().manual_seed(3)
        ).images[0]
        for _ in range(2)
    )
    assert np.array_equal(np.asarray(first), np.asarray(second))


@pytest.mark.parametrize("prompt", ["", "an astronaut riding a horse 🐎", "word " * 300])
def test_prompts_from_outside_its_world_do_not_fail(pipelines: dict[str, Any], prompt: str) -> None:
    made = pipelines["text-to-image"](prompt, num_inference_steps=1).images[0]
    assert np.isfinite(np.asarray(made)).all()
