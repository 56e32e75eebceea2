r"""Weights in prompts and prompts of any length, by the rules of AUTOMATIC1111's web UI.

``(text)`` counts 1.1 times, ``[text]`` 1 / 1.1 times, ``(text:1.3)`` 1.3 times; brackets multiply, and ``\(`` is a
bracket of the text. A prompt is encoded in chunks of what the encoder reads, and ``BREAK`` begins a new one. The
pipeline's own ``encode_prompt`` encodes each chunk; a prompt of one chunk without weights goes to the pipeline itself.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from transformers import BatchEncoding

from workers.pipelines.binding import BoundCall

ROUND: Final = 1.1  #: what a pair of round brackets multiplies by
SQUARE: Final = 1 / 1.1
#: How far back a chunk may end at a comma, in tokens, instead of in the middle of a phrase.
COMMA_BACKTRACK: Final = 20
_COMMA: Final = ",</w>"
_TOKENS: Final = re.compile(r"\\[()\[\]\\]|\\|\(|\[|:\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\)|\)|]|[^\\()\[\]:]+|:")
_BREAK: Final = re.compile(r"\s*\bBREAK\b\s*")
#: What the rules of the web UI read in another way, and this module reads as text.
_UNSUPPORTED: Final = {
    "[from:to:when]": re.compile(r"\[[^\[\]]*:[^\[\]]*:?\s*[\d.]+\s*]"),
    "[one|other]": re.compile(r"\[[^\[\]]*\|[^\[\]]*]"),
    "AND": re.compile(r"\bAND\b"),
}
#: What `encode_prompt` returns, in this order; the last two of Stable Diffusion XL alone.
_EMBEDDINGS: Final = (
    "prompt_embeds",
    "negative_prompt_embeds",
    "pooled_prompt_embeds",
    "negative_pooled_prompt_embeds",
)
_POSITIVE: Final = "prompt"
_NEGATIVE: Final = "negative prompt"


@dataclass(frozen=True)
class Fragment:
    """A part of a prompt with one weight; ``text`` is None where a new chunk begins."""

    text: str | None
    weight: float = 1.0


@dataclass
class Chunk:
    """What the encoder reads at once, without the tokens of begin, end and padding."""

    tokens: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    @property
    def is_weighted(self) -> bool:
        """Whether some token counts more or less than others."""
        return any(weight != 1.0 for weight in self.weights)


def parse(prompt: str) -> list[Fragment]:
    """The fragments of a prompt; two in turn of one weight are one fragment."""
    texts: list[tuple[str | None, float]] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def multiply(start: int, by: float) -> None:
        texts[start:] = [(text, weight * by) for text, weight in texts[start:]]

    for match in _TOKENS.finditer(prompt):
        text, weight = match[0], match[1]
        if text.startswith("\\"):
            texts.append((text[1:], 1.0))
        elif text in opened:
            opened[text].append(len(texts))
        elif weight is not None and opened["("]:
            multiply(opened["("].pop(), float(weight))
        elif text == ")" and opened["("]:
            multiply(opened["("].pop(), ROUND)
        elif text == "]" and opened["["]:
            multiply(opened["["].pop(), SQUARE)
        else:
            for number, part in enumerate(_BREAK.split(text)):
                texts += [(None, 1.0)] if number else []
                texts.append((part, 1.0))
    for bracket, by in (("(", ROUND), ("[", SQUARE)):  # those that are never closed
        for start in opened[bracket]:
            multiply(start, by)
    return list(_merged(texts))


def _merged(texts: Sequence[tuple[str | None, float]]) -> Iterator[Fragment]:
    pending, weight = "", 1.0
    for text, each in texts:
        if text is None or (each != weight and pending):
            if pending:
                yield Fragment(pending, weight)
            pending = ""
        if text is None:
            yield Fragment(None)
        elif text:
            pending, weight = pending + text, each
    if pending:
        yield Fragment(pending, weight)


def chunks_of(prompt: str, tokenizer: Any, length: int) -> list[Chunk]:
    """The chunks of a prompt, at least one.

    Args:
        prompt: With weights.
        tokenizer: Of CLIP.
        length: Tokens of one chunk without begin and end: 75.
    """
    comma = tokenizer.convert_tokens_to_ids(_COMMA)
    done: list[Chunk] = []
    chunk, last_comma = Chunk(), -1

    def finish() -> None:
        nonlocal chunk, last_comma
        done.append(chunk)
        chunk, last_comma = Chunk(), -1

    for fragment in parse(prompt):
        if fragment.text is None:
            finish()
            continue
        for token in tokenizer(fragment.text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]:
            if token == comma:
                last_comma = len(chunk.tokens)
            elif len(chunk.tokens) == length and last_comma >= 0 and length - last_comma <= COMMA_BACKTRACK:
                begin = last_comma + 1
                moved = Chunk(chunk.tokens[begin:], chunk.weights[begin:])
                chunk = Chunk(chunk.tokens[:begin], chunk.weights[:begin])
                finish()
                chunk = moved
            if len(chunk.tokens) == length:
                finish()
            chunk.tokens.append(token)
            chunk.weights.append(fragment.weight)
    if chunk.tokens or not done:
        finish()
    return done


def weigh_prompts(pipeline: Any, call: BoundCall) -> None:
    """Replace the prompts of a call by their embeddings, where they have weights or are longer than one chunk.

    Args:
        pipeline: The call's own copy of the pipeline.
        call: Its arguments are changed.
    """
    arguments = call.arguments
    prompt = arguments.get("prompt")
    if not isinstance(prompt, str):
        return
    for text in (prompt, arguments.get("negative_prompt") or ""):
        for name, pattern in _UNSUPPORTED.items():
            if pattern.search(text):
                call.warn(f"{name} is read as text: prompt_weighting knows (text:1.2), [text] and BREAK")
    readers = [
        _Reader(suffix, pipeline, arguments)
        for suffix in ("", "_2")
        if getattr(pipeline, f"tokenizer{suffix}", None) is not None
    ]
    count = max(reader.count for reader in readers)
    given = [name + reader.suffix for reader in readers for name in ("prompt", "negative_prompt")]
    if count == 1 and not any(reader.is_weighted for reader in readers):
        for name in given:
            if isinstance(arguments.get(name), str):
                arguments[name] = "".join(one.text or "" for one in parse(arguments[name]))
        return
    parts = [_encode(pipeline, call, readers, number) for number in range(count)]
    for name in given:
        arguments.pop(name, None)
    for number, name in enumerate(_EMBEDDINGS[: len(parts[0])]):
        pieces = [piece for part in parts if (piece := part[number]) is not None]
        if pieces:
            arguments[name] = pieces[0] if "pooled" in name else torch.cat(pieces, dim=1)


class _Reader:
    """A tokenizer with its text encoder, and what they read of the prompts."""

    def __init__(self, suffix: str, pipeline: Any, arguments: Mapping[str, Any]) -> None:
        self.suffix = suffix
        self.tokenizer: Any = getattr(pipeline, f"tokenizer{suffix}")
        self.width: int = getattr(pipeline, f"text_encoder{suffix}").config.hidden_size
        self.window: int = self.tokenizer.model_max_length
        self.prompts: dict[str, list[Chunk]] = {}
        for key, name in ((_POSITIVE, "prompt"), (_NEGATIVE, "negative_prompt")):
            text = arguments.get(name + suffix) or arguments.get(name)
            if isinstance(text, str):
                # textual inversions of several tokens
                convert = getattr(pipeline, "maybe_convert_prompt", None)
                converted = text if convert is None else convert(text, self.tokenizer)
                self.prompts[key] = chunks_of(converted, self.tokenizer, self.window - 2)

    @property
    def count(self) -> int:
        return max(map(len, self.prompts.values()))

    @property
    def is_weighted(self) -> bool:
        return any(chunk.is_weighted for chunks in self.prompts.values() for chunk in chunks)

    def chunk(self, key: str, number: int) -> Chunk:
        """A chunk of one of the prompts; those behind its end are empty."""
        chunks = self.prompts.get(key, [])
        return chunks[number] if number < len(chunks) else Chunk()

    def ids(self, chunk: Chunk) -> list[int]:
        tokenizer = self.tokenizer
        ids = [tokenizer.bos_token_id, *chunk.tokens, tokenizer.eos_token_id]
        return ids + [tokenizer.pad_token_id] * (self.window - len(ids))

    def weights(self, chunk: Chunk) -> torch.Tensor:
        """A weight for each place, (window, 1)."""
        rest = self.window - 1 - len(chunk.weights)
        return torch.tensor([1.0, *chunk.weights, *[1.0] * rest]).unsqueeze(1)


class _FixedTokens:
    """Stands in for a tokenizer: it gives the tokens of one chunk in the place of each prompt."""

    def __init__(self, reader: _Reader, number: int) -> None:
        self._tokenizer = reader.tokenizer
        self._ids = {key: reader.ids(reader.chunk(key, number)) for key in (_POSITIVE, _NEGATIVE)}
        self._ids[""] = reader.ids(Chunk())  # what a pipeline encodes without a negative prompt

    def __call__(self, text: str | list[str], **_: object) -> BatchEncoding:
        rows = torch.tensor([self._ids[one] for one in ([text] if isinstance(text, str) else text)])
        return BatchEncoding({"input_ids": rows, "attention_mask": torch.ones_like(rows)})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def _encode(pipeline: Any, call: BoundCall, readers: Sequence[_Reader], number: int) -> list[torch.Tensor | None]:
    """The embeddings of one chunk of each prompt, in the order of `_EMBEDDINGS`; what is not made is None."""
    negative = call.spec.takes("negative_prompt_embeds")
    given: dict[str, Any] = {
        "prompt": _POSITIVE,
        "negative_prompt": _NEGATIVE if _NEGATIVE in readers[0].prompts else None,
        "device": pipeline._execution_device,  # noqa: SLF001 - as the call itself chooses it
        "num_images_per_prompt": 1,
        "do_classifier_free_guidance": negative,
        "clip_skip": call.arguments.get("clip_skip"),
    }
    taken = inspect.signature(pipeline.encode_prompt).parameters
    own = dict(vars(pipeline))
    try:
        for reader in readers:  # not by setattr, which changes the config
            vars(pipeline)[f"tokenizer{reader.suffix}"] = _FixedTokens(reader, number)
        with torch.no_grad():
            found = list(pipeline.encode_prompt(**{name: value for name, value in given.items() if name in taken}))
    finally:
        vars(pipeline).update(own)
    for place, key in enumerate((_POSITIVE, _NEGATIVE)):
        if found[place] is not None:
            found[place] = _weighted(found[place], [(reader, reader.chunk(key, number)) for reader in readers])
    return found


def _weighted(embeddings: torch.Tensor, read: Sequence[tuple[_Reader, Chunk]]) -> torch.Tensor:
    """Embeddings, (1, window, widths of the encoders), times their weights, with the mean that each encoder gave."""
    parts = []
    of_encoders = torch.split(embeddings, [reader.width for reader, _ in read], dim=-1)
    for each, (reader, chunk) in zip(of_encoders, read, strict=True):
        if not chunk.is_weighted:
            parts.append(each)
            continue
        part = each.contiguous()  # as the encoder gave it: another order of the sum gives another mean
        scaled = part * reader.weights(chunk).to(part.device, part.dtype)
        parts.append(scaled * (part.mean() / scaled.mean()))
    return torch.cat(parts, dim=-1)
