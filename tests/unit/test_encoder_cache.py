"""Equal calls of a model's encoders are computed once, and the images have the bits that they had without that."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from typing import Any

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

from farm.domain.model import Model
from tests.job_specs import STARTER_TASKS
from tests.unit.test_pipelines import CPU, spec
from workers import numerics, pipelines
from workers.pipelines.encoder_cache import EncoderCache
from workers.pipelines.loaded_model import LoadedModel
from workers.pipelines.running_call import RunningCall, running

MODEL = Model(id="starter", source="builtin:starter", tasks=tuple(STARTER_TASKS), dtype="float32")
SMALL: dict[str, Any] = {"width": 32, "height": 32, "num_inference_steps": 2}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    pipelines.silence_libraries()
    numerics.make_deterministic(1)


def render(loaded: LoadedModel, **changes: Any) -> bytes:
    image: Any = pipelines.render(loaded, spec(**SMALL, **changes), 0, {}, lambda _: None, threading.Event())
    pixels: bytes = image.tobytes()
    return pixels


def test_a_sweep_over_64_seeds_computes_each_prompt_once_and_its_images_stay_the_same() -> None:
    remembering, plain = pipelines.load(MODEL, CPU), pipelines.load(MODEL, CPU)
    encoder = remembering.pipeline("text-to-image").text_encoder
    calls: list[int] = []
    encoder.get_submodule("text_model.encoder" if hasattr(encoder, "text_model") else "encoder").register_forward_hook(
        lambda *_: calls.append(1)
    )
    plain.encoders = EncoderCache(lambda: None)  # it watches no encoder
    swept = [render(remembering, seed=seed) for seed in range(64)]
    assert len(calls) == 2  # the prompt, and the negative one
    plain.pipeline("text-to-image").text_encoder.__dict__.pop("forward", None)
    assert swept[:4] == [render(plain, seed=seed) for seed in range(4)]
    render(remembering, prompt="a green cube")
    assert len(calls) == 3


class Encoder(torch.nn.Module):
    """Counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.eval()

    def forward(self, ids: Any, mask: Any = None, **more: Any) -> BaseModelOutput:  # noqa: ARG002 - as encoders take
        self.calls += 1
        return BaseModelOutput(last_hidden_state=ids.float() * 2, hidden_states=(ids.float(), ids.float() + 1))


class Pipeline:
    def __init__(self, **components: Any) -> None:
        self.components = components


def watched(state: Any = None, max_bytes: int = 2**20) -> tuple[Encoder, EncoderCache]:
    encoder, cache = Encoder(), EncoderCache(state or (lambda: None), max_bytes)
    cache.watch(Pipeline(text_encoder_2=encoder, vae=torch.nn.Identity()))
    cache.watch(Pipeline(text_encoder_2=encoder))  # the same one in another pipeline
    return encoder, cache


def in_a_call() -> Any:
    return running(RunningCall(1, lambda _: None, threading.Event()))


def test_what_a_pipeline_writes_into_a_result_changes_no_later_one() -> None:
    encoder, _ = watched()
    with in_a_call():
        first = encoder(torch.tensor([1, 2]))
        first.last_hidden_state.zero_()
        first.hidden_states[0].zero_()
        second = encoder(torch.tensor([1, 2]))
        second.last_hidden_state.zero_()
        third = encoder(torch.tensor([1, 2]))
    assert encoder.calls == 1
    assert isinstance(third, BaseModelOutput)
    assert third.last_hidden_state is not None
    assert third.last_hidden_state.tolist() == [2, 4]
    assert third.hidden_states is not None
    assert [one.tolist() for one in third.hidden_states] == [[1, 2], [2, 3]]


def test_calls_that_differ_in_anything_are_computed() -> None:
    adapters: list[Hashable] = [()]
    encoder, _ = watched(lambda: adapters[0])
    ids = torch.tensor([[1, 2], [3, 4]])
    with in_a_call():
        for arguments, named in (
            ((ids,), {}),
            ((ids.reshape(1, 4),), {}),
            ((ids.int(),), {}),
            ((ids, ids), {}),
            ((ids,), {"mask": ids > 2}),
            ((ids,), {"output_hidden_states": True}),
            ((ids,), {"output_hidden_states": 1}),
        ):
            before = encoder.calls
            encoder(*arguments, **named)
            assert encoder.calls == before + 1, named
            encoder(*arguments, **named)
            assert encoder.calls == before + 1, named
        adapters[0] = ("ink", 0.5)
        before = encoder.calls
        encoder(ids)
        assert encoder.calls == before + 1


def test_calls_that_cannot_be_compared_are_computed_each_time() -> None:
    encoder, cache = watched()
    ids = torch.tensor([1])
    with in_a_call():
        for named in ({"past_key_values": object()}, {"use_cache": True}, {"mask": torch.zeros(5_000_000)}):
            before = encoder.calls
            encoder(ids, **named)
            encoder(ids, **named)
            assert encoder.calls == before + 2, named
    encoder(ids)  # no job's call
    encoder(ids)
    assert cache.bytes == 0


def test_what_is_remembered_has_a_limit_and_the_oldest_goes_first() -> None:
    encoder, cache = watched(max_bytes=4_000)
    with in_a_call():
        for number in range(20):
            encoder(torch.full((100,), number))  # 1,200 bytes each
            assert cache.bytes <= 4_000
        before = encoder.calls
        encoder(torch.full((100,), 19))
        assert encoder.calls == before
        encoder(torch.full((100,), 0))
        assert encoder.calls == before + 1
        encoder(torch.zeros(10_000))  # too large to be worth it
        assert cache.bytes <= 4_000
