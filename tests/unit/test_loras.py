"""LoRAs by name: jobs on one device apply different ones without an effect on each other."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from farm.domain.job_spec import JobSpec
from farm.domain.model import LoraFile, Model
from farm.domain.requests import REQUESTS, JobRequest
from farm.domain.resolve import resolve
from farm.errors import BadInput, ModelUnavailable
from tests.job_specs import STARTER_TASKS
from tests.unit.test_pipelines import CPU, images, spec
from workers import numerics, pipelines
from workers.batched_renderer import BatchedRenderer
from workers.model_cache import ModelCache
from workers.render_request import RenderRequest, RenderResult

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning"),
    pytest.mark.filterwarnings("ignore:`torch_dtype` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning"),
]

SMALL: dict[str, Any] = {"width": 32, "height": 32, "num_inference_steps": 4}
LAYERS = ("attn1.to_q", "attn2.to_v", "attn2.to_out.0")


def made(path: Path, seed: int) -> dict[str, torch.Tensor]:
    """A LoRA of rank 2 for the built-in model, in diffusers' layout."""
    unet = (
        pipelines.load(Model(id="bare", source="builtin:starter", tasks=tuple(STARTER_TASKS)), CPU)
        .pipeline("text-to-image")
        .unet
    )
    draw = torch.Generator().manual_seed(seed)
    weights = {}
    for name, module in unet.named_modules():
        if name.endswith(LAYERS):
            weights[f"unet.{name}.lora_A.weight"] = torch.randn(2, module.in_features, generator=draw) * 0.3
            weights[f"unet.{name}.lora_B.weight"] = torch.randn(module.out_features, 2, generator=draw) * 0.3
    save_file(weights, path)
    return weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pipelines.silence_libraries()
    numerics.make_deterministic(1)
    folder = tmp_path_factory.mktemp("loras")
    for seed, name in enumerate(("ink", "clay")):
        made(folder / f"{name}.safetensors", seed)
    (folder / "pickle.bin").write_bytes(b"code")
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    files = [LoraFile(name=name, source=str(folder / f"{name}.safetensors")) for name in ("ink", "clay", "gone")]
    odd = LoraFile(name="pickle", source=str(folder / "pickle.bin"))
    return Model(id="starter", source="builtin:starter", tasks=tuple(STARTER_TASKS), loras=(*files, odd))


def wearing(*loras: tuple[str, float], task: str = "text-to-image", **changes: Any) -> JobSpec:
    worn = [{"name": name, "scale": scale} for name, scale in loras]
    return spec(task, loras=worn, **(SMALL | changes))


def rendered(renderer: BatchedRenderer, model: Model, specs: list[JobSpec]) -> list[Any]:
    jobs = [
        RenderRequest(one, model, images(one.task), lambda _: None, lambda _: None, threading.Event()) for one in specs
    ]
    for job in jobs:
        renderer.admit(job)
    ended: dict[RenderRequest, Any] = {}
    while renderer.active:
        ended.update(renderer.advance())
    ended.update(renderer.advance())
    return [ended[job] for job in jobs]


def image(outcome: Any) -> Image.Image:
    assert isinstance(outcome, RenderResult), outcome
    (artifact,) = outcome.artifacts
    assert isinstance(artifact, Image.Image)
    return artifact


def test_each_job_has_its_own_active_loras_and_equal_ones_share_forwards(model: Model) -> None:
    renderer = BatchedRenderer(ModelCache(CPU), 8)
    plain, ink, soft, both = (
        wearing(),
        wearing(("ink", 1.0)),
        wearing(("ink", 0.5)),
        wearing(("ink", 1.0), ("clay", 0.7)),
    )
    depth = wearing(("clay", 1.0), task="depth-to-image")
    specs = [plain, ink, soft, both, depth, plain, ink]
    alone = [image(outcome).tobytes() for one in specs for outcome in rendered(renderer, model, [one])]
    assert len(set(alone)) == 5
    shared = []
    for _ in range(6):  # at first it is also measured how the calls may share
        before = renderer.batcher.forwards
        company = rendered(renderer, model, specs)
        assert [image(one).tobytes() for one in company] == alone
        shared.append(renderer.batcher.forwards - before)
    before = renderer.batcher.forwards
    for one in specs:
        rendered(renderer, model, [one])
    assert min(shared) < renderer.batcher.forwards - before  # the two of plain and the two of ink went together
    assert set(company[3].made_with["loras"]) == {"ink", "clay"}
    assert "loras" not in company[0].made_with


def test_a_lora_gives_the_image_of_merged_weights(model: Model, folder: Path) -> None:
    (worn,) = rendered(BatchedRenderer(ModelCache(CPU), 8), model, [wearing(("ink", 0.8))])
    merged = pipelines.load(model.model_copy(update={"loras": ()}), CPU)
    weights = made(folder / "again.safetensors", 0)
    modules = dict(merged.pipeline("text-to-image").unet.named_modules())
    with torch.no_grad():
        for name in {name.removeprefix("unet.").rsplit(".lora_", 1)[0] for name in weights}:
            up, down = weights[f"unet.{name}.lora_B.weight"], weights[f"unet.{name}.lora_A.weight"]
            modules[name].weight += 0.8 * up @ down
    expected = pipelines.render(merged, wearing(), 0, {}, lambda _: None, threading.Event())
    assert np.abs(np.asarray(image(worn), int) - np.asarray(expected, int)).max() <= 2


@pytest.mark.parametrize(("name", "says"), [("gone", "no such file"), ("pickle", "can contain code")])
def test_an_invalid_lora_fails_its_job_with_one_sentence(model: Model, name: str, says: str) -> None:
    renderer = BatchedRenderer(ModelCache(CPU), 8)
    with pytest.raises(ModelUnavailable, match=says):
        rendered(renderer, model, [wearing((name, 1.0))])
    assert image(rendered(renderer, model, [wearing()])[0])


def test_a_request_names_only_loras_of_its_model(model: Model) -> None:
    def asked(*names: str) -> JobRequest:
        return REQUESTS["text-to-image"].model_validate(
            {"task": "text-to-image", "prompt": "", "loras": [{"name": name} for name in names]}
        )

    assert resolve(asked("ink"), model, {}).loras[0].scale == 1.0
    with pytest.raises(BadInput, match=r"loras\.1\.name") as refused:
        resolve(asked("ink", "oil"), model, {})
    assert "it has: ink, clay, gone, pickle" in str(refused.value)
    with pytest.raises(BadInput, match="named twice"):
        resolve(asked("ink", "ink"), model, {})
