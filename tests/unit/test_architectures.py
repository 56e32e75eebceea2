"""Other people's architectures, tiny and random, from a folder on disk through the renderer of a device."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from farm.domain.model import Model
from farm.domain.tasks import JobSpec, Scheduler, Task
from tests.unit.test_batching import flux, sd3, sdxl
from tests.unit.test_pipelines import CPU, spec
from workers import pipelines
from workers.batched_renderer import BatchedRenderer
from workers.model_cache import ModelCache
from workers.render_request import RenderRequest, RenderResult
from workers.starter import WEIGHTS

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`torch_dtype` is deprecated:FutureWarning"),
]


@pytest.fixture(autouse=True)
def all_rows_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests do not depend on which row counts are efficient on a busy machine."""
    monkeypatch.setattr("workers.batching.row_selection.most_efficient_rows", max)


def clip(width: int, *, projected: bool) -> Any:
    """A text encoder that reads what the built-in model's tokenizer writes."""
    torch.manual_seed(2)
    tokens = transformers.CLIPTokenizer.from_pretrained(WEIGHTS, subfolder="tokenizer")
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=width,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=width,
        max_position_embeddings=77,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return kind(config).eval()


def t5() -> tuple[Any, Any]:
    """A tokenizer of four words, and an encoder that reads them."""
    words = transformers.T5Tokenizer(
        vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"▁{word}", -1.0) for word in ["a", "red", "sphere"])],
        extra_ids=0,
    )
    config = transformers.T5Config(
        vocab_size=len(words), d_model=32, d_kv=8, d_ff=37, num_layers=1, num_heads=4, feed_forward_proj="gated-gelu"
    )
    torch.manual_seed(3)
    return words, transformers.T5EncoderModel(config).eval()


def whole(build: Callable[[], tuple[Any, Any]]) -> Any:
    """The pipeline with text encoders, so that it takes a prompt."""
    pipeline, _ = build()
    tokens = transformers.CLIPTokenizer.from_pretrained(WEIGHTS, subfolder="tokenizer")
    pipeline.register_modules(tokenizer=tokens, text_encoder=clip(32, projected=build is sd3))
    if build is not flux:
        pipeline.register_modules(tokenizer_2=tokens, text_encoder_2=clip(32, projected=True))
    if build is not sdxl:
        place = 2 if build is flux else 3
        words, encoder = t5()
        pipeline.register_modules(**{f"tokenizer_{place}": words, f"text_encoder_{place}": encoder})
    return pipeline


def rendered(renderer: BatchedRenderer, model: Model, specs: list[JobSpec]) -> list[np.ndarray[Any, Any]]:
    jobs = [RenderRequest(one, model, {}, lambda _: None, lambda _: None, threading.Event()) for one in specs]
    ended: dict[RenderRequest, Any] = {}
    for job in jobs:
        renderer.admit(job)
        ended.update(renderer.advance())
    while renderer.active:
        ended.update(renderer.advance())
    ended.update(renderer.advance())
    for job in jobs:
        assert isinstance(ended[job], RenderResult), ended[job]
    return [np.asarray(ended[job].images[0], int) for job in jobs]


@pytest.mark.parametrize("build", [sdxl, sd3, flux])
def test_an_architecture_from_a_folder_shares_the_device_and_keeps_both_promises(
    build: Callable[[], tuple[Any, Any]], tmp_path: Path
) -> None:
    pipelines.silence_libraries()
    pipelines.make_deterministic(1)
    whole(build).save_pretrained(tmp_path / "model")
    model = Model(id="other", source=str(tmp_path / "model"), tasks=(Task.TEXT_TO_IMAGE,))
    loaded = pipelines.load(model, CPU)
    specs = [
        spec(
            model="other",
            scheduler=Scheduler.EULER,
            num_inference_steps=3 + index,
            guidance_scale=3.0 + index,
            seed=index,
            width=32,
            height=32,
            exact=False,
        )
        for index in range(4)
    ]
    stock = [np.asarray(pipelines.render(loaded, one, 0, {}, lambda _: None, threading.Event()), int) for one in specs]
    assert len({image.tobytes() for image in stock}) == len(specs)
    renderer = BatchedRenderer(ModelCache(CPU), 8)
    company = np.stack(rendered(renderer, model, specs))
    assert np.abs(company - np.stack(stock)).max() <= 1
    assert renderer.batcher.rows / renderer.batcher.forwards > (1.2 if build is flux else 2.2)
    assert not renderer.refusals
    exact = [one.model_copy(update={"exact": True}) for one in specs]
    first = rendered(renderer, model, exact)
    other_way = rendered(renderer, model, exact[::-1])[::-1]
    (alone,) = rendered(renderer, model, exact[2:3])
    assert [one.tobytes() for one in first] == [one.tobytes() for one in other_way]
    assert first[2].tobytes() == alone.tobytes()
