"""Finds prompts that are longer than what the model's text encoders read."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, Final

from transformers import PreTrainedTokenizerBase

_NO_LIMIT: Final = 100_000  #: tokenizers without a limit name an astronomic one
_MAX_LENGTH: Final = "max_sequence_length"


def cut_prompts(pipeline: Any, arguments: Mapping[str, Any]) -> Iterator[str]:
    """What the text encoders of a pipeline do not read of its prompts, one sentence for each.

    Args:
        pipeline: The pipeline.
        arguments: Of its call.
    """
    for name, tokenizer in pipeline.components.items():
        if not name.startswith("tokenizer") or not isinstance(tokenizer, PreTrainedTokenizerBase):
            continue
        limit = _window(pipeline, tokenizer, arguments)
        suffix = name.removeprefix("tokenizer")  # tokenizer_2 reads prompt_2, or prompt where that is absent
        for base in ("prompt", "negative_prompt"):
            text = arguments.get(base + suffix) or arguments.get(base)
            if not isinstance(text, str) or limit >= _NO_LIMIT:
                continue
            count = len(tokenizer(text, truncation=False, verbose=False)["input_ids"])
            if count > limit:
                yield f"{base} has {count} tokens; {name} reads {limit}, so its end has no effect there"


def _window(pipeline: Any, tokenizer: PreTrainedTokenizerBase, arguments: Mapping[str, Any]) -> int:
    """How many tokens of a prompt a pipeline passes to the encoder."""
    length = int(tokenizer.model_max_length)
    declared = inspect.signature(type(pipeline).__call__).parameters.get(_MAX_LENGTH)
    if declared is None or "CLIP" in type(tokenizer).__name__:
        return length
    given = arguments.get(_MAX_LENGTH, declared.default)
    return given if isinstance(given, int) else length
