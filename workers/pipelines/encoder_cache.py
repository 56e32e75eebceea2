"""Remembers what a model's text and image encoders returned, so that a sweep over seeds encodes its prompt once.

Each encoder's ``forward`` first looks for an earlier call with the same arguments, by content, and with the same active
LoRAs. An encoder draws no random numbers, so the answer has the bits that the forward would give. Nothing of this
depends on the pipeline.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Final

import torch
from transformers.utils import ModelOutput

from farm import metrics
from workers.pipelines.running_call import current_call

#: How the components of a pipeline that encode prompts and guiding images are named.
PREFIXES: Final = ("text_encoder", "image_encoder", "prior_text_encoder", "prior_image_encoder")
MAX_ARGUMENT_BYTES: Final = 16 * 2**20  #: of tensors that are hashed: more would take as long as some encoders
MAX_BYTES: Final = 256 * 2**20  #: of what is remembered of one model
#: Of a result, what only a later call of `generate` reads. It may be as large as all the rest, and is changed in place.
_UNREAD: Final = frozenset({"past_key_values"})


class EncoderCache:
    """The results of one model's encoders, the least recently used ones forgotten first."""

    def __init__(self, state: Callable[[], Hashable], max_bytes: int = MAX_BYTES) -> None:
        """Start empty.

        Args:
            state: What else a result depends on: the active LoRAs.
            max_bytes: Of all results together.
        """
        self._state = state
        self._max_bytes = max_bytes
        self._found: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self.bytes = 0
        self._watched: set[int] = set()

    def watch(self, pipeline: Any) -> None:
        """Let the encoders of a pipeline answer from here; once for each module."""
        for name, module in pipeline.components.items():
            if name.startswith(PREFIXES) and isinstance(module, torch.nn.Module) and id(module) not in self._watched:
                self._watched.add(id(module))
                self._wrap(module)

    def _wrap(self, module: torch.nn.Module) -> None:
        original = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            key = None if current_call() is None else self._key(module, args, kwargs)
            if key is None:
                return original(*args, **kwargs)
            known = self._found.get(key)
            if known is not None:
                metrics.ENCODER_CALLS.labels("reused").inc()
                self._found.move_to_end(key)
                return _copy(known[0])
            metrics.ENCODER_CALLS.labels("computed").inc()
            result = original(*args, **kwargs)
            self._remember(key, result)
            return result

        module.forward = forward

    def _key(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hashable:
        """Equal for calls with equal results; None for a call that is not to be remembered."""
        if module.training or kwargs.get("use_cache"):
            return None
        try:
            content = _content([args, sorted(kwargs.items())])
        except _NotContent:
            return None
        return id(module), self._state(), content

    def _remember(self, key: Hashable, result: Any) -> None:
        try:
            kept = _copy(result)
        except _NotContent:
            return
        size = sum(tensor.nbytes for tensor in _tensors(kept))
        if size > self._max_bytes // 2:
            return
        self._found[key] = kept, size
        self.bytes += size
        while self.bytes > self._max_bytes:
            _, (_, freed) = self._found.popitem(last=False)
            self.bytes -= freed


class _NotContent(Exception):
    """A value that is neither data nor made of data."""


def _content(value: Any) -> Hashable:
    """A hash of nested data with tensors. Raises `_NotContent`."""
    digest = hashlib.sha256()
    budget = MAX_ARGUMENT_BYTES

    def add(value: Any) -> None:
        nonlocal budget
        if isinstance(value, torch.Tensor):
            budget -= value.nbytes
            if budget < 0:
                raise _NotContent
            digest.update(f"{value.dtype}{tuple(value.shape)}{value.device}".encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(value, tuple | list):
            digest.update(f"{len(value)}[".encode())
            for one in value:
                add(one)
        elif value is None or isinstance(value, bool | int | float | str | torch.dtype):
            digest.update(f"{type(value).__name__}{value!r};".encode())
        else:
            raise _NotContent

    add(value)
    return digest.digest()


def _copy(value: Any) -> Any:
    """The same with tensors of its own: a pipeline may write into what it got. Raises `_NotContent`."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, ModelOutput):
        fields = {name: None if name in _UNREAD else _copy(one) for name, one in value.items()}
        return type(value)(**{name: one for name, one in fields.items() if one is not None})
    if type(value) in (tuple, list):
        return type(value)(_copy(one) for one in value)
    raise _NotContent


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, ModelOutput):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, tuple | list):
        for one in value:
            yield from _tensors(one)
