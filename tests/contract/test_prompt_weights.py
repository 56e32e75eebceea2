"""Jobs with weights in their prompts, and with prompts that are longer than what the text encoder reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from farm.errors import UnsupportedParameter
from farm.pipelines.catalogue import catalogue
from farm.pipelines.prompt_weighting import weighs_prompts
from tests.contract.families import FAMILIES, Family, farm, save, stock
from workers import numerics, pipelines
from workers.batched_renderer import BatchedRenderer
from workers.model_cache import ModelCache

pytestmark = pytest.mark.filterwarnings("ignore")
#: Ways of encoding that differ.
CLASSES = (
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionControlNetPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "LatentConsistencyModelPipeline",
    "AnimateDiffPipeline",
    "StableDiffusionXLPAGPipeline",
    "StableDiffusionAdapterPipeline",
)
LONG = "a red cube on a blue table, " * 15


@pytest.fixture(scope="module", autouse=True)
def _deterministic() -> None:
    pipelines.silence_libraries()
    numerics.make_deterministic(1)


def family_of(pipeline_class: str) -> Family:
    return next(family for family in FAMILIES.values() if pipeline_class in family.calls)


class Model:
    """A tiny model on a device."""

    def __init__(self, pipeline_class: str, folder: Path) -> None:
        self.family, self.spec = family_of(pipeline_class), catalogue().pipeline(pipeline_class)
        save(self.family.name, folder)
        self.stock = stock.load(self.family, pipeline_class, folder)
        self.entry = farm.entry_of("m", farm.folder_for(self.family, pipeline_class, folder), self.spec.tasks[0])
        self.renderer = BatchedRenderer(ModelCache(farm.CPU), 8)
        self.call = self.family.calls[pipeline_class]

    def expected(self, **changes: Any) -> np.ndarray:
        """What the stock pipeline gives; None leaves an argument out."""
        arguments = {name: value for name, value in (self.call.arguments() | changes).items() if value is not None}
        return farm.expected_values(stock.render(self.stock, arguments), self.spec.tasks[0])

    def jobs(self, count: int = 1, **changes: Any) -> list[farm.Outcome]:
        job = farm.job_of(self.spec, self.call.arguments(), "m")
        common = {**job.spec.common, "prompt_weighting": "a1111", **changes}
        spec = job.spec.model_copy(update={"common": common, "exact": count > 1})
        return farm.run(self.renderer, self.entry, [spec] * count, job.inputs)

    def found(self, **changes: Any) -> np.ndarray:
        (outcome,) = self.jobs(**changes)
        assert outcome.result is not None, outcome.error
        return farm.values_of(outcome.result.artifacts[0])


@pytest.mark.parametrize("pipeline_class", CLASSES)
def test_a_short_prompt_without_weights_has_the_bytes_of_the_stock_call(pipeline_class: str, tmp_path: Path) -> None:
    model = Model(pipeline_class, tmp_path / "model")
    assert weighs_prompts(model.spec)
    assert np.array_equal(model.found(), model.expected())
    plain = model.expected(prompt="a (red) cube")
    assert np.array_equal(model.found(prompt=r"a \(red\) cube"), plain)
    assert np.array_equal(model.found(prompt=r"a \((red:1.0)\) cube"), plain)
    # nothing of a long prompt is cut: its last word counts, and no warning says otherwise
    (long,) = model.jobs(prompt=LONG + "sphere")
    assert long.result is not None, long.error
    assert long.result.warnings == ()
    other = model.found(prompt=LONG + "house")
    assert not np.array_equal(farm.values_of(long.result.artifacts[0]), other)
    assert np.array_equal(model.expected(prompt=LONG + "sphere"), model.expected(prompt=LONG + "house"))
    assert not np.array_equal(model.found(prompt="a (red:1.4) cube"), model.found(prompt="a (red:0.7) cube"))
    for outcome in model.jobs(3, prompt=LONG + "house"):
        assert outcome.result is not None, outcome.error
        assert np.array_equal(farm.values_of(outcome.result.artifacts[0]), other)


def encoded(model: Model, chunks: list[list[tuple[str, float]]], encoder: str = "") -> list[torch.Tensor]:
    """The embeddings of chunks by the rules: hidden states times weights, with the mean that they had."""
    tokenizer = getattr(model.stock, f"tokenizer{encoder}")
    text_encoder = getattr(model.stock, f"text_encoder{encoder}")
    hidden, pooled = [], None
    for chunk in chunks:
        ids, weights = [tokenizer.bos_token_id], [1.0]
        for text, weight in chunk:
            tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
            ids, weights = ids + tokens, weights + [weight] * len(tokens)
        rest = 77 - len(ids) - 1
        ids += [tokenizer.eos_token_id, *[tokenizer.pad_token_id] * rest]
        weights += [1.0] * (rest + 1)
        with torch.no_grad():
            output = text_encoder(torch.tensor([ids]), output_hidden_states=True)
        states = output.hidden_states[-2] if model.spec.takes("pooled_prompt_embeds") else output[0]
        if pooled is None:
            pooled = output[0]
        if any(weight != 1 for weight in weights):
            scaled = states * torch.tensor(weights)[None, :, None]
            states = scaled * (states.mean() / scaled.mean())
        hidden.append(states)
    assert pooled is not None
    return [torch.cat(hidden, 1), pooled]


def test_weights_and_breaks_of_stable_diffusion_are_those_of_the_web_ui(tmp_path: Path) -> None:
    model = Model("StableDiffusionPipeline", tmp_path / "model")
    prompt, _ = encoded(model, [[("a ", 1.0), ("red", 1.5), (" cube", 1.0)], [("a table", 1.0)]])
    negative, _ = encoded(model, [[("blurry", 1 / 1.1)], []])
    expected = model.expected(prompt=None, negative_prompt=None, prompt_embeds=prompt, negative_prompt_embeds=negative)
    found = model.found(prompt="a (red:1.5) cube BREAK a table", negative_prompt="[blurry]")
    assert np.array_equal(found, expected)


def test_weights_of_stable_diffusion_xl_are_those_of_the_web_ui(tmp_path: Path) -> None:
    model = Model("StableDiffusionXLPipeline", tmp_path / "model")
    chunks = [[("a ", 1.0), ("red", 1.5), (" cube", 1.0)], [("a table", 1.0)]]
    first, _ = encoded(model, chunks)
    second, pooled = encoded(model, chunks, "_2")
    none, _ = encoded(model, [[("blurry", 1.0)], []])
    none_2, none_pooled = encoded(model, [[("blurry", 1.0)], []], "_2")
    expected = model.expected(
        prompt=None,
        negative_prompt=None,
        prompt_embeds=torch.cat([first, second], -1),
        pooled_prompt_embeds=pooled,
        negative_prompt_embeds=torch.cat([none, none_2], -1),
        negative_pooled_prompt_embeds=none_pooled,
    )
    assert np.array_equal(model.found(prompt="a (red:1.5) cube BREAK a table", negative_prompt="blurry"), expected)


def test_what_the_web_ui_reads_otherwise_is_warned_of_and_other_pipelines_refuse(tmp_path: Path) -> None:
    model = Model("StableDiffusionPipeline", tmp_path / "model")
    (outcome,) = model.jobs(prompt="a [red:blue:0.5] cube")
    assert outcome.result is not None
    assert any("[from:to:when]" in text for text in outcome.result.warnings)
    (refused,) = Model("FluxPipeline", tmp_path / "flux").jobs()
    assert isinstance(refused.error, UnsupportedParameter)
    assert "prompt_weighting" in str(refused.error)
