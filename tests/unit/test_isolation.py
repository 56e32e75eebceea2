"""What a call changes in shared modules is found, and decides whether calls of its class run beside others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from workers.pipelines.isolation import ClassIsolation, SharedState, Sharing, Trial


class Attention(torch.nn.Module):
    """A module with what pipelines change: weights, a buffer, a processor, a cache."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q = torch.nn.Linear(2, 2)
        self.freqs: torch.Tensor
        self.register_buffer("freqs", torch.zeros(2))
        self.processor: object = object()
        self.weight: torch.Tensor | None = None
        self.cache: list[torch.Tensor | None] = [None]


def change_forward(module: Attention) -> None:
    module.to_q.forward = lambda x: x  # type: ignore[method-assign, assignment]


def add_hook(module: Attention) -> None:
    module.to_q.register_forward_hook(lambda *_: None)


def swap_processor(module: Attention) -> None:
    module.processor = object()


def cast(module: Attention) -> None:
    module.to(torch.float64)


def write_buffer(module: Attention) -> None:
    module.freqs.add_(1)


def fill_cache(module: Attention) -> None:
    module.cache = [torch.zeros(1)]


CHANGES = (change_forward, add_hook, swap_processor, cast, write_buffer, fill_cache)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_found_and_named(change: Callable[[Attention], None]) -> None:
    module = Attention()
    state = SharedState({"unet": module, "tokenizer": object()})
    assert state.changes() == {}
    change(module)
    assert list(state.changes()) == ["unet"]
    assert state.changes()["unet"].startswith("unet.")


def test_a_tensor_that_is_computed_anew_counts_by_its_content() -> None:
    module = Attention()
    module.weight = torch.ones(2)
    state = SharedState({"vae": module})
    module.weight = torch.ones(2)  # as weight norm does in every forward
    assert state.changes() == {}
    module.weight = torch.zeros(2)
    assert state.changes() == {"vae": "vae.weight"}


def test_a_forward_alone_changes_nothing() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.GELU())
    state = SharedState({"unet": module})
    with torch.no_grad():
        module(torch.zeros(1, 2))
    assert state.changes() == {}


def trial(
    known: ClassIsolation, module: Attention, change: Callable[[], object], undo: Callable[[], object]
) -> set[str]:
    """A call that changes the module, parks, and undoes the change."""
    found = Trial(known, {"vae": module})
    change()
    found.at_park("decoder")
    undo()
    return found.finish(frozenset({"vae"}))


def test_a_change_that_the_call_undoes_counts_because_others_run_while_it_is_parked() -> None:
    known, module = ClassIsolation(), Attention()
    own = module.processor
    for _ in range(2):
        assert known.sharing is Sharing.UNTRIED
        found = Trial(known, {"unet": module})
        swap_processor(module)
        found.at_park("unet")
        module.processor = own
        assert found.finish(frozenset()) == set()
    assert known.sharing is Sharing.ALONE
    assert "unet.processor" in str(known.reason)


def test_what_only_the_first_call_changes_does_not_count() -> None:
    known, module = ClassIsolation(), Attention()
    for first in (True, False):
        found = Trial(known, {"unet": module})
        if first:
            fill_cache(module)
        found.at_park("unet")
        found.finish(frozenset())
    assert known.sharing is Sharing.SHARES


def test_an_autoencoder_that_a_call_changes_no_longer_parks_and_the_class_shares() -> None:
    known, module = ClassIsolation(), Attention()

    def change() -> None:
        module.cache = [torch.zeros(1)]

    def undo() -> None:
        module.cache = [None]

    assert trial(known, module, change, undo) == set()
    assert trial(known, module, change, undo) == {"vae"}
    assert known.sharing is not Sharing.ALONE
    found = Trial(known, {"vae": module})  # no longer parks inside
    change()
    undo()
    assert found.finish(frozenset({"vae"})) == set()
    assert known.sharing is Sharing.SHARES


def test_an_autoencoder_that_stays_changed_while_other_modules_park_runs_alone() -> None:
    known, module = ClassIsolation(), Attention()
    for _ in range(4):
        trial(known, module, lambda: swap_processor(module), lambda: None)
    assert known.sharing is Sharing.ALONE
